"""F5-TTS with fewer layers: the least contributing ones taken out, against even spacing and against the first n.

    python examples/uses/prune_f5_tts.py             # three seeds, four minutes of one core: out/prune_f5_tts.png
    python examples/uses/prune_f5_tts.py --seeds 1 --depth 4 --keep 2 --steps 4 --tune 2 --clips 2

A tiny CFM of f5-tts 1.1.22 learns the packaged clips (depth 11 → 7, as 22 → 14 of the Base model). The held-out flow
loss of each clip is measured before, at once after pruning, and after as many steps of fine-tuning for all. On your own
checkpoint the part that matters is `shorter`: attribute, select, prune, load.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from f5_tts.model.backbones.dit import DiT
from f5_tts.model.cfm import CFM
from matplotlib.figure import Figure

import fog_a
from fog_a_adapters.compare.measures import flow_losses
from fog_a_adapters.dit import MelBatch
from fog_a_adapters.dit.audio.data import Corpus, load_corpus

ARMS = ("least contribution", "even spacing", "first n")


def new_model(depth: int, dim: int = 64) -> CFM:
    """F5-TTS's Base has depth 22 and dim 1024."""
    sizes: dict[str, Any] = dict(heads=4, dim_head=dim // 4, ff_mult=2, mel_dim=100, text_num_embeds=256, text_dim=32)
    return CFM(DiT(dim=dim, depth=depth, **sizes), mel_spec_kwargs=dict(n_mel_channels=100))


def as_batch(clips: MelBatch) -> dict[str, Any]:
    """What F5-TTS's collate gives; a clip's token ids stand for its text."""
    pairs = zip(clips["tokens"], clips["token_lengths"], strict=True)
    texts = ["".join(chr(48 + int(k)) for k in tokens[:m]) for tokens, m in pairs]
    return {"mel": clips["mel"].transpose(1, 2), "mel_lengths": clips["lengths"], "text": texts, "ids": clips["ids"]}


def train(model: CFM, corpus: Corpus, steps: int, seed: int, lr: float = 1e-3) -> None:
    """The flow loss alone, on crops of 64 frames."""
    torch.manual_seed(seed)
    flow, optimizer = fog_a.wrap(model), torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for step in range(steps):
        loss = flow.loss(as_batch(corpus.batch(step, size=8, frames=64, seed=seed)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def clip_losses(model: CFM, clips: Sequence[dict[str, Any]]) -> np.ndarray:
    """The held-out flow loss of each clip, on the same noise, times and spans whoever asks."""
    flow = fog_a.wrap(model)
    return np.array([sum(flow_losses(flow, [clip], draws=8, seed=i).values()) for i, clip in enumerate(clips)])


def dropped(arm: str, scores: fog_a.Scores, count: int) -> Sequence[str]:
    """The names that an arm takes out."""
    names = scores.layers
    if arm == "least contribution":
        return fog_a.select(scores, count, by="bottom").layers
    if arm == "first n":
        return names[len(names) - count :]
    return [names[i] for i in np.linspace(0, len(names) - 1, count + 2).round().astype(int)[1:-1]]


def shorter(model: CFM, names: Sequence[str], batch: dict[str, Any]) -> CFM:
    """A fresh model of fewer layers with the weights of those that stay."""
    pruned = fog_a.prune(fog_a.wrap(copy.deepcopy(model)), drop=names, batch=batch)
    fresh = new_model(pruned.depth["transformer_blocks"])
    fresh.load_state_dict(pruned.state_dict)
    return fresh.eval()


def measure(seed: int, a: argparse.Namespace) -> dict[str, np.ndarray]:
    """Losses by clip: of the whole model, and of each arm at once and after fine-tuning."""
    corpus = load_corpus(held_out=a.clips, seed=seed)
    torch.manual_seed(seed)
    model = new_model(a.depth)
    train(model, corpus, a.steps, seed)
    batch = as_batch(corpus.batch(0, size=16, frames=64, seed=seed))  # training clips: held-out ones judge
    scores = fog_a.attribute(fog_a.wrap(model), batch, progress=False)
    whole = [as_batch(b) for b in corpus.held_out()]
    clips = [fog_a.wrap(model).samples(b).rows([i]) for b in whole for i in range(len(b["ids"]))]
    result = {"whole": clip_losses(model, clips)}
    for arm in ARMS:
        names = dropped(arm, scores, a.depth - a.keep)
        print(f"seed {seed}: {arm} takes out {[int(n.rsplit('.', 1)[1]) for n in names]}")
        small = shorter(model, names, batch)
        result[f"{arm}, at once"] = clip_losses(small, clips)
        train(small, corpus, a.tune, seed + 100, lr=3e-4)
        result[f"{arm}, tuned"] = clip_losses(small, clips)
    longer = copy.deepcopy(model)
    train(longer, corpus, a.tune, seed + 100, lr=3e-4)
    return {**result, "whole, tuned": clip_losses(longer, clips)}


def interval(x: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over clips."""
    means = np.random.default_rng(0).choice(x, (draws, len(x))).mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def numbers(losses: dict[str, np.ndarray]) -> dict[str, Any]:
    """The whole model's loss, and by arm the change against it, as long fine-tuned, with its interval."""
    changes = {}
    for name in (f"{arm}, {when}" for when in ("at once", "tuned") for arm in ARMS):
        change = losses[name] - losses["whole, tuned" if "tuned" in name else "whole"]
        changes[name] = [float(change.mean()), *interval(change)]
    return {"whole": float(losses["whole"].mean()), "changes": changes}


def picture(runs: Sequence[dict[str, Any]]) -> Figure:
    """The change of the loss against the whole model, by arm; a mark for each seed with its interval over clips."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, when in zip(axes, ("at once", "tuned"), strict=True):
        for s, run in enumerate(runs):
            change, low, high = np.array([run["changes"][f"{arm}, {when}"] for arm in ARMS]).T
            x = np.arange(len(ARMS)) + 0.15 * (s - len(runs) // 2)
            ax.errorbar(x, change, [change - low, high - change], fmt="o", color=f"C{s}", label=f"seed {s}")
        ax.set(xticks=range(len(ARMS)), xticklabels=ARMS, title=when, ylabel="held-out flow loss − the whole model's")
        ax.axhline(0, color="0.6", lw=1)
    axes[0].legend(fontsize=8, loc="upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in dict(seeds=3, depth=11, keep=7, steps=400, tune=100, clips=16).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--numbers", type=Path, help="draw these, written by an earlier run")
    parser.add_argument("--out", type=Path, default=Path("out"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.numbers:
        runs = json.loads(a.numbers.read_text())
    else:
        runs = [numbers(measure(seed, a)) for seed in range(a.seeds)]
        (a.out / "prune_f5_tts.json").write_text(json.dumps(runs, indent=1))
    print(f"{'the whole model':28s} " + "  ".join(f"{run['whole']:.3f}" for run in runs))
    for name in runs[0]["changes"]:
        cells = [f"{change:+.3f} [{low:.3f}, {high:.3f}]" for change, low, high in (r["changes"][name] for r in runs)]
        print(f"{name:28s} " + "  ".join(cells))
    picture(runs).savefig(a.out / "prune_f5_tts.png", dpi=110)


if __name__ == "__main__":
    main()
