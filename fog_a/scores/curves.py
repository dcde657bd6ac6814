"""Curves: scores over flow time or depth, rankings over checkpoints, losses over training; with confidence bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a.scores import statistics
from fog_a.scores.canvas import (
    FAINT,
    INK,
    PALETTE,
    UNIT,
    axis,
    band,
    figure,
    kind_name,
    layer_ticks,
    legend_of,
    panel_name,
    small_print,
    spread_labels,
    step_axis,
    tidy,
    title,
)
from fog_a.scores.ranking import Ranked, Ranking, rankings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = tuple[Sequence[float], Sequence[float]]
"""Steps and values of one training run."""


def plot_curves(
    scores: Ranked,
    *,
    along: str = "time",
    domain: str | None = None,
    k: int = 3,
    layers: Sequence[str] | None = None,
    level: float = 0.95,
) -> Figure:
    """Curves with confidence bands: scores of some layers over flow time, or of all layers over depth.

    Args:
        along: "time": a panel per domain, a line for each of `layers` (default: the best k); "depth": one panel, a
            line per domain.
        level: of the bands, pointwise.

    Raises: ShapeMismatch where there is no time axis, or a layer is not among the scores.
    """
    domains = rankings(scores, domain)
    if along == "depth":
        return _depth(domains, level)
    if along != "time":
        raise BadArgument(f"along = {along!r}: expected 'time' or 'depth'")
    if scores.times is None:
        raise ShapeMismatch("these scores have no time axis: wrap the model as a flow and measure, or along='depth'")
    unknown = [name for name in layers or () if name not in scores.layers]
    if unknown:
        raise ShapeMismatch(f"no scores of {', '.join(unknown)}; the layers are {', '.join(scores.layers)}")
    fig = figure(4.4 * len(domains) + 0.6, 3.4)
    grid = fig.subplots(1, len(domains), squeeze=False, sharey=True)[0]
    ends: list[list[tuple[float, float, str, str]]] = []
    for ax, ranking in zip(grid, domains, strict=True):
        mean, interval = ranking.curve, ranking.curve_interval(level)
        chosen = [scores.layers.index(n) for n in layers] if layers else ranking.order[:k]
        colors = [PALETTE[n % len(PALETTE)] for n in range(len(chosen))]
        for color, i in zip(colors, chosen, strict=True):
            band(ax, scores.times, mean[:, i], interval[:, i], color)
        tidy(ax)
        ends.append([(scores.times[-1], mean[-1, i], f"L{i + 1}", c) for c, i in zip(colors, chosen, strict=True)])
        title(ax, panel_name(ranking), small_print(ranking))
        axis(ax, "flow time t  (0: noise, 1: data)", UNIT.get(scores.kind, "") if ax is grid[0] else None)
    for ax, labels in zip(grid, ends, strict=True):  # after all panels: labels keep the limits that all share
        spread_labels(ax, labels)
    return fig


def _depth(domains: Sequence[Ranking], level: float) -> Figure:
    first = domains[0]
    fig = figure(min(max(4.6, 0.22 * len(first.layers) + 2.0), 12.0), 3.4)
    ax = fig.subplots()
    x = np.arange(len(first.layers))
    ends = []
    for n, ranking in enumerate(domains):
        color = PALETTE[n % len(PALETTE)]
        band(ax, x, ranking.mean, ranking.interval(level), color)
        ends.append((float(x[-1]), float(ranking.mean[-1]), ranking.domain, color))
    tidy(ax)
    spread_labels(ax, ends)
    title(ax, kind_name(first))
    layer_ticks(ax, first.layers, "number")
    axis(ax, legend_of(first.layers, ax), UNIT.get(first.kind, ""))
    return fig


def plot_stability(
    history: Mapping[int, Ranked], *, domain: str | None = None, k: int = 3, against: int | None = None
) -> Figure:
    """Rank stability over checkpoints (the paper's Table 7).

    Left: the rank of every layer that is ever among the best k. Right: how each checkpoint agrees with one of them:
    overlap of the top k, Kendall's τ and Spearman's ρ over all layers.

    Args:
        history: training step → scores there, of the same layers.
        domain: one domain, or None: all samples together.
        against: the step to compare with; None: the last.

    Raises: ShapeMismatch for fewer than two checkpoints, an unknown `against`, or other layers.
    """
    steps = sorted(history)
    if len(steps) < 2:
        raise ShapeMismatch(f"{len(steps)} checkpoint(s): stability needs scores at two steps or more")
    last = steps[-1] if against is None else against
    if last not in history:
        raise ShapeMismatch(f"no scores at step {against}; there are steps {', '.join(map(str, steps))}")
    ranked = {s: history[s].ranking(domain) for s in steps}
    agreements = np.array([ranked[s].agreement(ranked[last], k) for s in steps])
    fig = figure(9.6, 3.6)
    left, right = fig.subplots(1, 2, width_ratios=[1.25, 1.0])
    _ranks(left, list(ranked.values()), steps, k, domain)
    names = (f"overlap of top {k}", "Kendall τ", "Spearman ρ")
    for color, name, values in zip(PALETTE, names, agreements.T, strict=False):
        right.plot(steps, values, color=color, linewidth=2.0, marker="o", markersize=4, label=name)
    tidy(right)
    right.set_ylim(min(0.0, float(np.nanmin(agreements))) - 0.05, 1.05)
    right.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    title(right, f"agreement with step {last:,}")
    step_axis(right)
    return fig


def _ranks(ax: Axes, checkpoints: Sequence[Ranking], steps: Sequence[int], k: int, domain: str | None) -> None:
    """A line per layer that is ever among the best k; the band of the best k shaded."""
    layers = checkpoints[0].layers
    order = np.array([statistics.top(c.mean, len(layers)) for c in checkpoints])
    rank = np.argsort(order, axis=1) + 1  # (checkpoints, L)
    shown = [i for i in range(len(layers)) if (rank[:, i] <= k).any()]
    ax.axhspan(0.5, k + 0.5, color=FAINT, alpha=0.45, linewidth=0)
    for color, i in zip(PALETTE * len(shown), shown, strict=False):
        ax.plot(steps, rank[:, i], color=color, linewidth=2.2, marker="o", markersize=6, markeredgecolor="white")
        ax.annotate(
            f"L{i + 1}", (steps[-1], rank[-1, i]), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9,
            fontweight="bold", color=color, annotation_clip=False,
        )  # fmt: skip
    tidy(ax, grid=None)
    lowest = int(rank[:, shown].max())
    ax.set_ylim(lowest + 0.6, 0.4)
    ax.set_yticks(sorted({1, k, lowest}))
    title(ax, "rank of the layers" if domain is None else f"rank of the layers · {domain}", f"shaded: the best {k}")
    step_axis(ax)
    axis(ax, y="rank")


def plot_training(
    runs: Mapping[str, Run | Sequence[Run]], *, value: str = "held-out flow loss", level: float = 0.95
) -> Figure:
    """Training curves, e.g. with and without alignment: mean over seeds, with an interval where there are two or more.

    Args:
        runs: name → (steps, values), or a list of such pairs, one per seed, at the same steps.
        value: what is drawn up.
        level: of the band (Student's t under 8 seeds).

    Raises: ShapeMismatch where the seeds of a run have different steps.
    """
    fig = figure(6.6, 3.8)
    ax = fig.subplots()
    ends: list[tuple[float, float, str, str]] = []
    table = {name: _seeds(name, run) for name, run in runs.items()}
    counts = {len(values) for _, values in table.values()}
    for color, (name, (steps, values)) in zip(PALETTE * len(runs), table.items(), strict=False):
        mean = statistics.finite_mean(values)
        if len(values) > 1:
            interval = statistics.bootstrap_interval(values, level)
            band(ax, steps, mean, interval, color)
        else:
            band(ax, steps, mean, np.stack([mean, mean], -1), color)
        seeds = f" ({len(values)} seeds)" if len(values) > 1 and len(counts) > 1 else ""
        ends.append((float(steps[-1]), float(mean[-1]), name + seeds, color))
    tidy(ax)
    over = f"{max(counts)} seeds" if len(counts) == 1 else "seeds"
    title(ax, value, f"band: {level:.0%} interval over {over}" if max(counts) > 1 else "")
    step_axis(ax)
    spread_labels(ax, ends)
    return fig


def _seeds(name: str, run: Run | Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (N,) and values (seeds, N)."""
    single = len(run) == 2 and np.ndim(run[0]) == 1 and np.ndim(run[1]) == 1
    pairs = [run] if single else list(run)
    steps = [np.asarray(p[0], dtype=float) for p in pairs]
    values = [np.asarray(p[1], dtype=float) for p in pairs]
    if any(s.shape != steps[0].shape or (s != steps[0]).any() for s in steps) or any(
        v.shape != steps[0].shape for v in values
    ):
        raise ShapeMismatch(f"the seeds of {name!r} have different steps: evaluate all at the same steps")
    return steps[0], np.stack(values)
