"""Skip guidance on the bundled model: every layer, several scales and seeds, and whether its score says which is good.

    python examples/uses/skip_guidance.py            # three seeds, twenty minutes of one core: out/skip_guidance.png
    python examples/uses/skip_guidance.py --seeds 1 --steps 20 --layers 3 --scales 1
    python examples/uses/skip_guidance.py --clips    # what samples look like: out/skip_guidance_clips.png

For each seed a small DiT is trained on the packaged clips and attributed on held-out clips. Then it samples their mels
with each of its layers skipped in guidance. Reported is the change of the Fréchet distance to the real clips against
that without guidance: below 0 is nearer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from trained import options, trained

import fog_a
from fog_a_adapters.dit.demo.distance import SampleDistance


def measure(seed: int, layers: int, steps: int, held_out: int, scales: Sequence[float]) -> dict[str, Any]:
    """One trained model: its contribution scores, and its distances by layer and scale."""
    model, corpus = trained(seed, layers, steps, held_out)
    flow, batches = fog_a.wrap(model), corpus.held_out()
    scores = fog_a.attribute(flow, batches, times=4, progress=False)
    blocks = fog_a.find_blocks(flow, batches[0])
    distance = SampleDistance(corpus, batches, seed=seed)
    guided: dict[str, list[dict[str, float]]] = {}
    for name in scores.layers:
        guided[name] = []
        for scale in scales:
            with fog_a.skip_guidance(flow, blocks.named(name), scale):
                guided[name].append(distance(flow))
    score = {domain: scores.mean(domain).tolist() for domain in scores.domain_names}
    return {"seed": seed, "score": score, "plain": distance(flow), "guided": guided}


def correlation(a: Any, b: Any) -> float:
    """Spearman's rank correlation."""
    found: Any = stats.spearmanr(a, b)
    return float(found.statistic)


def changes(run: dict[str, Any], domain: str) -> np.ndarray:
    """(scales, layers): the distance with guidance over that without it, minus 1."""
    table = [[d[domain] for d in row] for row in run["guided"].values()]
    return np.array(table).T / run["plain"][domain] - 1


def summary(runs: Sequence[dict[str, Any]], scales: Sequence[float]) -> str:
    """What was measured, as text: the mean change over seeds, and the rank correlation with the scores."""
    lines = []
    for domain in runs[0]["plain"]:
        lines.append(f"{domain}: without guidance {[round(r['plain'][domain], 1) for r in runs]}")
        for i, scale in enumerate(scales):
            change = np.array([changes(r, domain)[i] for r in runs])  # seeds, layers
            rho = [correlation(r["score"][domain], c) for r, c in zip(runs, change, strict=True)]
            row = " ".join(f"{100 * m:+.0f}" for m in change.mean(0))
            best = [int(np.argmin(c)) for c in change]
            top = [int(np.argmax(r["score"][domain])) for r in runs]
            low = [int(np.argmin(r["score"][domain])) for r in runs]
            lines.append(
                f"  scale {scale:g}: change in % by layer {row}; best layer {best} (top score {top}, least {low}); "
                f"rank correlation of score and change {[round(float(x), 2) for x in rho]}"
            )
    return "\n".join(lines)


def picture(runs: Sequence[dict[str, Any]], scales: Sequence[float]) -> Figure:
    """Above, the change over the scale, a line for each skipped layer; below, the change against the score."""
    domains = list(runs[0]["plain"])
    figure, axes = plt.subplots(2, len(domains), figsize=(4.6 * len(domains), 6.4), layout="constrained", squeeze=False)
    order, shown = np.argsort([*scales, 0.0]), int(np.argmin(np.abs(np.array(scales) - 1)))
    for (above, below), domain in zip(axes.T, domains, strict=True):
        change = 100 * np.array([changes(r, domain) for r in runs])  # seeds, scales, layers
        mean = np.concatenate([change.mean(0), np.zeros((1, change.shape[2]))])[order]
        for layer in range(change.shape[2]):
            color = plt.get_cmap("viridis")(layer / change.shape[2])
            above.plot(np.array([*scales, 0.0])[order], mean[:, layer], marker=".", color=color, label=f"layer {layer}")
        above.set(title=domain, xlabel="scale s", ylabel="change of the Fréchet distance, %", yscale="symlog")
        for run, c in zip(runs, change[:, shown], strict=True):
            below.plot(run["score"][domain], c, "o", label=f"seed {run['seed']}")
        below.set(xlabel="contribution of the layer", ylabel=f"change at s = {scales[shown]:g}, %")
        for ax in (above, below):
            ax.axhline(0, color="0.6", lw=1)
            ax.legend(fontsize=8)
    return figure


def drawn(seed: int, layers: int, steps: int, held_out: int) -> Figure:
    """One held-out clip of each domain: itself, and its samples without guidance and with some."""
    model, corpus = trained(seed, layers, steps, held_out)
    flow, batches = fog_a.wrap(model), corpus.held_out()
    blocks = fog_a.find_blocks(flow, batches[0])
    columns = {
        "without guidance": (0, 0.0), "last layer, s = 0.5": (-1, 0.5), "last layer, s = 2": (-1, 2.0),
        "first layer, s = 2": (0, 2.0),
    }  # fmt: skip
    domains = {name: (b, i) for b in batches for i, name in enumerate(flow.samples(b).domains)}
    figure, axes = plt.subplots(len(domains), 1 + len(columns), figsize=(12, 1.9 * len(domains)), layout="constrained")
    for line, (domain, (batch, i)) in zip(np.atleast_2d(axes), domains.items(), strict=True):
        clip = flow.samples(batch).rows([i])
        mels = {"the clip": clip["mel"]}
        for title, (place, scale) in columns.items():
            with fog_a.skip_guidance(flow, blocks.named(blocks[place].name), scale):
                mels[title] = model.sample(clip, steps=16, cfg=1.0, seed=seed)
        low, high = np.quantile(clip["mel"], (0.02, 0.98))
        for ax, (title, mel) in zip(line, mels.items(), strict=True):
            ax.imshow(mel[0, : int(clip["lengths"][0])].T, origin="lower", aspect="auto", vmin=low, vmax=high)
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"{domain}: {title}", fontsize=8)
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--scales", type=float, nargs="+", default=[-1.0, -0.5, 0.1, 0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--clips", action="store_true", help="draw samples of the first seed, and measure nothing")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.clips:
        drawn(0, a.layers, a.steps, a.held_out).savefig(a.out / "skip_guidance_clips.png", dpi=80)
        return
    if a.numbers:
        result = json.loads(a.numbers.read_text())
    else:
        runs = [measure(seed, a.layers, a.steps, a.held_out, a.scales) for seed in range(a.seeds)]
        result = {"scales": a.scales, "runs": runs}
        (a.out / "skip_guidance.json").write_text(json.dumps(result, indent=1))
    picture(result["runs"], result["scales"]).savefig(a.out / "skip_guidance.png", dpi=110)
    print(summary(result["runs"], result["scales"]))


if __name__ == "__main__":
    main()
