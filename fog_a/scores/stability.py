"""Pictures of rankings over training: which layers come and go, and by how much a score moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from fog_a.errors import ShapeMismatch
from fog_a.scores.canvas import (
    FAINT,
    INK,
    PALETTE,
    SOFT,
    UNIT,
    axis,
    band,
    figure,
    spread_labels,
    step_axis,
    tidy,
    title,
)
from fog_a.scores.labels import layer_ticks, legend_of
from fog_a.scores.ranking import Ranked
from fog_a.scores.statistics import Array, top

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    rank = ranks_of(np.array([r.mean for r in ranked.values()]))
    agreements = np.array([ranked[s].agreement(ranked[last], k) for s in steps])
    fig = figure(9.6, 3.6)
    left, right = fig.subplots(1, 2, width_ratios=[1.25, 1.0])
    draw_ranks(left, rank, steps, k)
    title(left, "rank of the layers" if domain is None else f"rank of the layers · {domain}", f"shaded: the best {k}")
    step_axis(left)
    names = (f"overlap of top {k}", "Kendall τ", "Spearman ρ")
    for color, name, values in zip(PALETTE, names, agreements.T, strict=False):
        right.plot(steps, values, color=color, linewidth=2.0, marker="o", markersize=4, label=name)
    tidy(right)
    right.set_ylim(min(0.0, float(np.nanmin(agreements))) - 0.05, 1.05)
    right.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    title(right, f"agreement with step {last:,}")
    step_axis(right)
    return fig


def ranks_of(means: Float[Array, "N L"]) -> Int[Array, "N L"]:
    """The rank of each layer in each row, from 1."""
    return np.argsort(top(means, means.shape[1]), axis=1) + 1


def leading(rank: Int[Array, "N L"], k: int) -> list[tuple[int, str]]:
    """The layers that are among the best k in some row, each with its color."""
    layers = np.flatnonzero((rank <= k).any(0)).tolist()
    return [(i, PALETTE[n % len(PALETTE)]) for n, i in enumerate(layers)]


def draw_ranks(ax: Axes, rank: Int[Array, "N L"], x: Sequence[float], k: int) -> None:
    """A line for each layer that is ever among the best k; the band of the best k shaded."""
    ax.axhspan(0.5, k + 0.5, color=FAINT, alpha=0.45, linewidth=0)
    lines = leading(rank, k)
    for i, color in lines:
        ax.plot(x, rank[:, i], color=color, linewidth=2.2, marker="o", markersize=6, markeredgecolor="white")
    tidy(ax, grid=None)
    lowest = int(rank[:, [i for i, _ in lines]].max())
    ax.set_ylim(lowest + 0.6, 0.4)
    ax.set_yticks(sorted({1, k, lowest}))
    axis(ax, y="rank")
    for i, color in lines:
        ax.annotate(
            f"L{i + 1}", (x[-1], rank[-1, i]), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9,
            fontweight="bold", color=color, annotation_clip=False,
        )  # fmt: skip


class Compared(Protocol):
    """What is drawn of a comparison: `fog_a.scores.comparison.Comparison` says what each is."""

    @property
    def names(self) -> tuple[Any, ...]: ...
    @property
    def reference(self) -> Any: ...
    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def rank(self) -> Int[Array, "N L"]: ...
    @property
    def difference(self) -> Float[Array, "N L"]: ...
    @property
    def interval(self) -> Float[Array, "N L 2"]: ...
    @property
    def k(self) -> int: ...
    @property
    def level(self) -> float: ...


def plot_comparison(made: Compared) -> Figure:
    """Left: ranks. Right: paired differences to the reference, over training steps, or for each layer by name."""
    steps = all(isinstance(name, int | float) for name in made.names)
    x = list(made.names) if steps else list(range(len(made.names)))
    fig = figure(10.4, 3.8)
    left, right = fig.subplots(1, 2, width_ratios=[1.0, 1.25])
    draw_ranks(left, made.rank, x, made.k)
    title(left, "rank of the layers", f"shaded: the best {made.k}")
    if steps:
        _over_training(right, made, x)
        step_axis(left)
    else:
        _by_name(right, made)
        left.set_xticks(x, [str(name) for name in made.names])
        left.margins(x=0.12)
    right.axhline(0, color=SOFT, linewidth=0.9)
    title(
        right,
        f"difference to {'step ' if steps else ''}{made.reference}",
        f"n = {made.n} pairs, {made.level:.0%} intervals",
    )
    axis(right, y=UNIT.get(made.kind, made.kind))
    return fig


def _over_training(ax: Axes, made: Compared, steps: Sequence[float]) -> None:
    """A line in its band for each layer that is ever among the best."""
    ends = []
    for i, color in leading(made.rank, made.k):
        band(ax, steps, made.difference[:, i], made.interval[:, i], color)
        ends.append((float(steps[-1]), float(made.difference[-1, i]), f"L{i + 1}", color))
    tidy(ax)
    spread_labels(ax, ends)
    step_axis(ax)


def _by_name(ax: Axes, made: Compared) -> None:
    """A point with its interval for each layer, a color for each name."""
    others = [i for i, name in enumerate(made.names) if name != made.reference]
    depth = np.arange(len(made.layers))
    for n, i in enumerate(others):
        color, x = PALETTE[n % len(PALETTE)], depth + 0.5 * ((n + 0.5) / len(others) - 0.5)
        ax.vlines(x, made.interval[i, :, 0], made.interval[i, :, 1], color=color, linewidth=1.4)
        ax.plot(x, made.difference[i], "o", color=color, markersize=4, label=str(made.names[i]))
    tidy(ax)
    layer_ticks(ax, made.layers, "number")
    axis(ax, legend_of(made.layers, ax))
    if len(others) > 1:
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
