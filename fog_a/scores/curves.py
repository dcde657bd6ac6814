"""Curves: scores over flow time or depth, rankings over checkpoints, losses over training; with confidence bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a.scores import canvas, statistics
from fog_a.scores.canvas import FAINT, INK, unit
from fog_a.scores.ranking import Ranked, rankings
from fog_a.scores.statistics import Array

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
    if along not in ("time", "depth"):
        raise BadArgument(f"along = {along!r}: expected 'time' or 'depth'")
    if along == "depth":
        fig, ((ax,),) = canvas.panels(min(max(4.6, 0.22 * len(scores.layers) + 2.0), 12.0), 3.4)
        for ranking in domains:
            canvas.band(ax, np.arange(len(scores.layers)), ranking.mean, ranking.interval(level), ranking.domain)
        canvas.end_labels(ax)
        canvas.title(ax, canvas.kind_name(domains[0]))
        canvas.layer_axis(ax, scores.layers)
        ax.set_ylabel(unit(scores.kind))
        return fig
    if scores.times is None:
        raise ShapeMismatch("these scores have no time axis: wrap the model as a flow and measure, or along='depth'")
    if unknown := [name for name in layers or () if name not in scores.layers]:
        raise ShapeMismatch(f"no scores of {', '.join(unknown)}; the layers are {', '.join(scores.layers)}")
    fig, (axes,) = canvas.panels(4.4 * len(domains) + 0.6, 3.4, 1, len(domains), sharey=True)
    for ax, ranking in zip(axes, domains, strict=True):
        interval = ranking.curve_interval(level)
        chosen = [scores.layers.index(n) for n in layers] if layers else ranking.order[:k]
        for i in chosen:
            canvas.band(ax, scores.times, ranking.curve[:, i], interval[:, i], f"L{i + 1}")
        canvas.panel_title(ax, ranking)
        ax.set_xlabel(canvas.time_label(ranking, break_lines=False))
    axes[0].set_ylabel(unit(scores.kind))
    for ax in axes:  # after all panels: labels keep the limits that all share
        canvas.end_labels(ax)
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
    fig, ((ax,),) = canvas.panels(6.6, 3.8)
    table = {name: _seeds(name, run) for name, run in runs.items()}
    counts = {len(values) for _, values in table.values()}
    for name, (steps, values) in table.items():
        mean, many = statistics.finite_mean(values), len(values) > 1
        interval = statistics.bootstrap_interval(values, level) if many else np.stack([mean, mean], -1)
        label = name + (f" ({len(values)} seeds)" if many and len(counts) > 1 else "")
        canvas.band(ax, steps, mean, interval, label)
    canvas.end_labels(ax)
    over = f"{max(counts)} seeds" if len(counts) == 1 else "seeds"
    canvas.title(ax, value, f"band: {level:.0%} interval over {over}" if max(counts) > 1 else "")
    canvas.step_axis(ax)
    return fig


def _seeds(name: str, run: Run | Sequence[Run]) -> tuple[Float[Array, " N"], Float[Array, "seeds N"]]:
    """Steps and values."""
    single = len(run) == 2 and np.ndim(run[0]) == 1 and np.ndim(run[1]) == 1
    try:
        table = np.array([run] if single else list(run), dtype=float)
    except ValueError:  # of different lengths
        table = np.empty((1, 0, 0))
    if table.shape[1] != 2 or (table[:, 0] != table[0, 0]).any():
        raise ShapeMismatch(f"the seeds of {name!r} have different steps: evaluate all at the same steps")
    return table[0, 0], table[:, 1]


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
    fig, ((left, right),) = canvas.panels(9.6, 3.6, 1, 2, width_ratios=[1.25, 1.0])
    draw_ranks(left, statistics.ranks(np.array([r.mean for r in ranked.values()])), steps, k, domain)
    canvas.step_axis(left)
    names = (f"overlap of top {k}", "Kendall τ", "Spearman ρ")
    for name, values in zip(names, agreements.T, strict=True):
        right.plot(steps, values, linewidth=2.0, marker="o", markersize=4, label=name)
    right.set_ylim(min(0.0, float(np.nanmin(agreements))) - 0.05, 1.05)
    right.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    canvas.title(right, f"agreement with step {last:,}")
    canvas.step_axis(right)
    return fig


def draw_ranks(ax: Axes, rank: Int[Array, "N L"], x: Sequence[float], k: int, domain: str | None = None) -> None:
    """A line for each layer that is ever among the best k; the band of the best k shaded."""
    ax.axhspan(0.5, k + 0.5, color=FAINT, alpha=0.45, linewidth=0)
    ax.grid(False)
    layers = np.flatnonzero((rank <= k).any(0))
    lowest = int(rank[:, layers].max())
    ax.set_ylim(lowest + 0.6, 0.4)
    ax.set_yticks(sorted({1, k, lowest}))
    ax.set_ylabel("rank")
    for i in layers:
        ax.plot(x, rank[:, i], linewidth=2.2, marker="o", markersize=6, markeredgecolor="white", label=f"L{i + 1}")
    canvas.end_labels(ax)
    canvas.title(ax, "rank of the layers" + (f" · {domain}" if domain else ""), f"shaded: the best {k}")
