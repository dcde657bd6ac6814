"""Curves: scores over flow time or depth, rankings over checkpoints, losses over training; with confidence bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a.scores import statistics
from fog_a.scores.canvas import (
    PALETTE,
    UNIT,
    axis,
    band,
    figure,
    kind_name,
    panel_name,
    small_print,
    spread_labels,
    step_axis,
    tidy,
    title,
)
from fog_a.scores.labels import layer_ticks, legend_of, time_label
from fog_a.scores.ranking import Ranked, Ranking, rankings

if TYPE_CHECKING:
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
        axis(ax, time_label(ranking, lines=False), UNIT.get(scores.kind, "") if ax is grid[0] else None)
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
