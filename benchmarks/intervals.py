"""The tables of docs/statistics.md: how often an interval holds the true mean, and how often a false set is claimed.

    python benchmarks/intervals.py              # about ten minutes on one core
    python benchmarks/intervals.py --sims 200   # a rough look, one minute

Coverage: nominal 95 % intervals. Claims: layers of equal mean, 95 % confidence, so that every claim is false; a run
ends at its first claim.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from fog_a.scores.settling import needed, settled
from fog_a.scores.statistics import bootstrap_interval

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

LAWS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda r, s: r.normal(1.0, 0.3, s), 1.0),
    "exponential": (lambda r, s: r.exponential(1.0, s), 1.0),
    "log-normal(½)": (lambda r, s: r.lognormal(0.0, 0.5, s), float(np.exp(0.125))),
    "log-normal(1)": (lambda r, s: r.lognormal(0.0, 1.0, s), float(np.exp(0.5))),
    "t₃": (lambda r, s: r.standard_t(3, s), 0.0),
}
SIZES, CROPS, LOOKS = (16, 32, 128), 8, (1, 8, 20)


def coverage(law: str, n: int, sims: int = 1000, *, crops: int = 1) -> float:
    """Share of simulated data sets whose 95 % interval holds the true mean.

    Args:
        n: independent groups of a data set.
        crops: samples of a group, which share half of their variance; a group's samples are averaged, as Scores does.
    """
    draw, mean = LAWS[law]
    rng, hits = np.random.default_rng([n, crops]), []
    for seed in range(-(-sims // 100)):
        x = draw(rng, (n, 100))
        if crops > 1:
            x = np.sqrt(0.5) * (x - mean) + np.sqrt(0.5) * (draw(rng, (crops, n, 100)) - mean).mean(0) + mean
        low, high = bootstrap_interval(x, seed=seed).T
        hits.append((low <= mean) & (mean <= high))
    return float(np.mean(hits))


def alike(law: str) -> Draw:
    """Three layers of one law."""
    return lambda r, s: LAWS[law][0](r, (*s, 3))


def rare(r: np.random.Generator, s: tuple[int, ...], share: float = 0.02) -> np.ndarray:
    """Two layers that look far apart in all but a few samples, in which the weaker one is huge: the means are equal."""
    strong, weak = r.normal(1.0, 0.1, s), r.normal(0.8, 0.1, s)
    return np.stack([strong, np.where(r.random(s) < share, weak + 0.2 / share, weak)], -1)


def rare_in_range(r: np.random.Generator, s: tuple[int, ...]) -> np.ndarray:
    """The same with values that another layer often has, in one of 500 samples."""
    return np.concatenate([rare(r, s, 0.002), r.normal(101.0, 0.1, (*s, 1))], -1)


TIES: dict[str, Draw] = {
    **{law: alike(law) for law in LAWS},
    "huge in 2 %": rare,
    "in 0.2 %, as large as another layer": rare_in_range,
}


def false_claims(tie: str, looks: int, sims: int = 1000, *, each: int = 64) -> float:
    """Share of runs that claim a top set among layers of equal mean, each stopping at its first claim."""
    rng = np.random.default_rng(looks)
    k = 2 if tie.startswith("in ") else 1  # the layer of large values is on top by right
    first = -(-needed(0.95) // each)
    wrong = 0
    for _ in range(sims):
        x = TIES[tie](rng, ((first + looks - 1) * each,))
        wrong += any(settled(x[: (first + i) * each], k, look=i + 1, max_looks=looks) for i in range(looks))
    return wrong / sims


def claims(gap: float, looks: int, sims: int = 300, *, each: int = 64) -> float:
    """Share of runs that settle two normal layers whose means differ by `gap` standard deviations of the difference."""
    rng = np.random.default_rng(looks)
    first, right = -(-needed(0.95) // each), 0
    for _ in range(sims):
        x = rng.normal(3.0, 0.5, ((first + looks - 1) * each, 2)) + np.array([gap * np.sqrt(0.5), 0.0])
        right += any(settled(x[: (first + i) * each], 1, look=i + 1, max_looks=looks) for i in range(looks))
    return right / sims


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=4000, help="simulated data sets, and runs, of a cell")
    sims = parser.parse_args().sims
    rows = [[law, *(f"{coverage(law, n, sims):.3f}" for n in SIZES)] for law in LAWS]
    print(table(["independent samples", *map(str, SIZES)], rows))
    rows = [[law, *(f"{coverage(law, n, sims, crops=CROPS):.3f}" for n in SIZES)] for law in LAWS]
    print(table([f"clips of {CROPS} crops each", *map(str, SIZES)], rows))
    rows = [[tie, *(f"{false_claims(tie, looks, sims):.3f}" for looks in LOOKS)] for tie in TIES]
    print(table(["false claims, looks", *map(str, LOOKS)], rows))
    rows = [[f"{gap}", *(f"{claims(gap, looks, sims):.2f}" for looks in LOOKS)] for gap in (0.25, 0.5, 1.0)]
    print(table(["right claims at a gap of, looks", *map(str, LOOKS)], rows))


if __name__ == "__main__":
    main()
