"""Drift over t on the bundled model: what its blocks' updates do along a sampling run, and what a cache of them costs.

    python examples/uses/cache_schedule.py           # three seeds, about five minutes of one core: out/drift.png
    python examples/uses/cache_schedule.py --seeds 1 --steps 20 --layers 3

For each seed a small DiT is trained on the packaged clips. A sampling run of half of the held-out clips gives the drift
of each block. Schedules that compute a share of all block evaluations are replayed on the other half: by drift, and
as is usual, all blocks at every n-th step. The error is the relative change of the sampled mels, over real frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from trained import options, trained

import fog_a
from fog_a_adapters.dit import FlowMatching

POINTS = 17
"""Of the sampler's time grid: 16 calls of the network."""


def sample(model: FlowMatching, batch: Any) -> torch.Tensor:
    """The bundled sampler without classifier-free guidance: one call of the network a step."""
    return model.sample(batch, steps=POINTS, cfg=1.0)


def measure(seed: int, layers: int, steps: int, held_out: int, shares: Sequence[float]) -> dict[str, Any]:
    """One trained model: the drift of its blocks, and the error of schedules."""
    model, corpus = trained(seed, layers, steps, held_out)
    flow = fog_a.wrap(model)
    halves = [[flow.samples(b).rows(range(i, len(b["ids"]), 2)) for b in corpus.held_out()] for i in (0, 1)]
    first, *others = [fog_a.drift(flow, batch, sample) for batch in halves[0]]
    scores = first.concat(*others) if others else first
    blocks, plain = fog_a.find_blocks(flow, halves[1][0]), [sample(model, batch) for batch in halves[1]]

    def error(schedule: fog_a.CacheSchedule) -> tuple[float, float]:
        errors = []
        for batch, x in zip(halves[1], plain, strict=True):
            with schedule.replay(flow, blocks):
                cached = sample(model, batch)
            errors += ((cached - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).tolist()
        return schedule.share, float(np.mean(errors))

    every = [fog_a.CacheSchedule.every(n, scores.layers, POINTS - 1) for n in (2, 3, 4)]
    return {
        "seed": seed,
        "drift": scores.curve().tolist(),
        "times": scores.times,
        "layers": scores.layers,
        "by drift": [error(fog_a.cache_schedule(scores, share=s)) for s in shares],
        "every n-th": [error(schedule) for schedule in every],
        "compute": fog_a.cache_schedule(scores, share=0.5).compute.tolist(),
    }


def picture(runs: Sequence[dict[str, Any]]) -> Figure:
    """The drift and the schedule at one half of the first seed; the errors of all."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    drift, times = np.array(runs[0]["drift"]), runs[0]["times"]
    for k, name in enumerate(runs[0]["layers"]):
        left.plot(times, drift[:, k], marker=".", label=name)
    left.set(xlabel="flow time t (0: noise, 1: data)", ylabel="change of the update since the step before")
    left.legend(fontsize=7, loc="lower right", ncol=3)
    compute = np.array(runs[0]["compute"]).T
    middle.imshow(compute, aspect="auto", cmap="Greys", vmin=0, vmax=1.6, origin="lower")
    middle.set(xlabel="step", ylabel="layer", title="computed (dark) at a share of 0.5", xticks=range(0, POINTS - 1, 3))
    for label, marker in (("by drift", "o"), ("every n-th", "s")):
        points = np.array([run[label] for run in runs])  # seeds, points, (share, error)
        mean, spread = points[..., 1].mean(0), (points[..., 1].min(0), points[..., 1].max(0))
        bars = [mean - spread[0], spread[1] - mean]
        right.errorbar(points[..., 0].mean(0), 100 * mean, [100 * b for b in bars], fmt=marker, capsize=2, label=label)
    right.set(xlabel="share of block evaluations computed", ylabel="error of the sampled mels, %", ylim=(0, None))
    right.legend()
    return figure


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.34, 0.5, 0.67, 0.8])
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.numbers:
        runs = json.loads(a.numbers.read_text())
    else:
        runs = [measure(seed, a.layers, a.steps, a.held_out, a.shares) for seed in range(a.seeds)]
        (a.out / "drift.json").write_text(json.dumps(runs, indent=1))
    picture(runs).savefig(a.out / "drift.png", dpi=110)
    for label in ("by drift", "every n-th"):
        for i, (share, _) in enumerate(runs[0][label]):
            errors = " ".join(f"{100 * run[label][i][1]:.1f}" for run in runs)
            print(f"{label:10s} share {share:.2f}: error of the mels, % by seed: {errors}")


if __name__ == "__main__":
    main()
