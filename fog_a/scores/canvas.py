"""What all pictures share: sizes, colors, labels. Drawn on `matplotlib.figure.Figure`; pyplot's state is not touched.

Colors are Okabe and Ito's, told apart by all common kinds of color vision; heat maps are perceptually uniform.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fog_a.errors import MissingDependency
from fog_a.scores.image import png
from fog_a.scores.statistics import FEW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fog_a.scores.ranking import Ranking

INK, SOFT, FAINT = "#1f2430", "#6b7280", "#d8dce3"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#444444")
QUIET = "#b4c3d6"
HEAT = {"storage": "cividis", "drift": "magma"}
NAME = {"contribution": "contribution (FoG-A)", "storage": "storage (LASP)", "gradnorm": "gradient norm"}
UNIT = {"contribution": "relative change of v", "storage": "cosine to the teacher", "gradnorm": "‖∂L/∂θ‖₂"}
UNIT |= {"loss": "change of the flow loss", "metric": "metric", "interaction": "both closed, less the sum of each"}
UNIT["removal"] = "relative change of v"
UNIT["drift"] = "change of the update since the step before"

Labels = Literal["number", "name"]


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches; a notebook shows it without pyplot. Raises MissingDependency without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib: pip install 'fog-a[plot]'") from error
    fig = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
    fig._repr_png_ = functools.partial(png, fig)  # type: ignore[attr-defined]
    return fig


def whole(ax: Axes) -> Figure:
    """The figure that holds the axes."""
    fig = ax.get_figure(root=True)
    assert fig is not None
    return fig


def small_print(ranking: Ranking) -> str:
    """How many independent samples a panel shows, and whether that is too few."""
    return f"n = {ranking.n}" + (f" (< {FEW}: level not held)" if ranking.n < FEW else "")


def kind_name(ranking: Ranking) -> str:
    """What is measured, for a reader."""
    return NAME.get(ranking.kind, ranking.kind)


def panel_name(ranking: Ranking) -> str:
    """A panel's title: the domain, or the kind where there is only one nameless domain."""
    return kind_name(ranking) if ranking.domain == "all" else ranking.domain


def literal(text: str) -> str:
    """Text in which matplotlib sees no formula: a name may hold a dollar sign."""
    return text.replace("$", r"\$")


def headline(fig: Figure, text: str | None) -> None:
    """A heading above all panels."""
    if text:
        fig.suptitle(literal(text), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)


def footing(fig: Figure, lines: Sequence[str]) -> None:
    """Lines of small print below all panels."""
    if lines:
        fig.supxlabel(literal("\n".join(lines)), x=0.01, ha="left", fontsize=9, color=SOFT)


def tidy(ax: Axes, *, grid: Literal["x", "y", "both"] | None = "y") -> None:
    """Quiet spines and ticks, a faint grid behind the data."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
    ax.tick_params(colors=SOFT, labelcolor=INK, labelsize=9, length=3)
    if grid:
        ax.grid(axis=grid, color=FAINT, linewidth=0.6)
        ax.set_axisbelow(True)


def room(ax: Axes, size: float) -> float:
    """About how many letters of this size fit along the axes."""
    return ax.get_position().width * whole(ax).get_figwidth() * 72 / (0.55 * size)


def title(ax: Axes, text: str, beside: str = "") -> None:
    """A panel's title, flush left; `beside` says a detail in small print, flush right, below where it would touch."""
    touch = len(text) / room(ax, 12) + len(beside) / room(ax, 8.5) > 1
    ax.set_title(literal(text) + "\n" * bool(beside and touch), loc="left", fontsize=11, fontweight="bold", color=INK)
    if beside:
        ax.set_title(literal(beside), loc="right", fontsize=8.5, color=SOFT)


def axis(ax: Axes, x: str | None = None, y: str | None = None) -> None:
    """Axis labels in one size."""
    if x is not None:
        ax.set_xlabel(literal(x), fontsize=9.5, color=INK)
    if y is not None:
        ax.set_ylabel(literal(y), fontsize=9.5, color=INK)


def step_axis(ax: Axes) -> None:
    """Training steps along x: 100k rather than 100000."""
    axis(ax, "training step")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 10_000 else f"{x:,g}")


def edges(times: Sequence[float]) -> np.ndarray:
    """Cell borders around the times: midpoints, the outer cells as wide as their neighbors, kept in [0, 1]."""
    t = np.asarray(times, dtype=float)
    if len(t) == 1:
        return np.array([t[0] - 0.5, t[0] + 0.5])
    middle = (t[1:] + t[:-1]) / 2
    ends = np.array([t[0] - (middle[0] - t[0]), t[-1] + (t[-1] - middle[-1])])
    if t.min() >= 0 and t.max() <= 1:
        ends = np.clip(ends, 0, 1)
    return np.concatenate([ends[:1], middle, ends[1:]])


def heat(ax: Axes, ranking: Ranking, limits: tuple[float, float]) -> Any:
    """Layers along x, flow time up; NaN cells hatched. Returns the mesh."""
    import matplotlib

    assert ranking.times is not None
    borders = edges(ranking.times)
    x = np.arange(len(ranking.layers) + 1) - 0.5
    values = np.ma.masked_invalid(ranking.curve)
    colors = matplotlib.colormaps[HEAT.get(ranking.kind, "viridis")]
    mesh = ax.pcolormesh(x, borders, values, cmap=colors, vmin=limits[0], vmax=limits[1], rasterized=True)
    ax.patch.set(facecolor="#f3f4f6", hatch="////", edgecolor="#c3c8d1", linewidth=0)
    stack_borders(ax, ranking, "white")
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(colors=SOFT, labelcolor=INK, labelsize=9, length=3)
    return mesh


def stack_borders(ax: Axes, ranking: Ranking, color: str) -> None:
    """A thin line between layers of different stacks (an encoder and a decoder, double and single blocks)."""
    for i in ranking.borders:
        ax.axvline(i - 0.5, color=color, linewidth=1.0, linestyle=(0, (4, 3)))


def band(ax: Axes, x: Sequence[float] | np.ndarray, y: np.ndarray, interval: np.ndarray, color: str) -> None:
    """A line in its interval."""
    ax.fill_between(x, interval[:, 0], interval[:, 1], color=color, alpha=0.16, linewidth=0)
    ax.plot(x, y, color=color, linewidth=2.0, marker="o" if len(x) < 40 else "", markersize=3.4)


def spread_labels(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines at their right ends (x, y, text, color) instead of in a legend, moved apart where they would touch."""
    low, high = ax.get_ylim()
    height = whole(ax).get_figheight() * 72 * 0.72
    gap = 12.5 / height * (high - low)
    y = np.array([e[1] for e in ends])
    order = np.argsort(y)
    placed = y[order].copy()
    for _ in range(200):
        placed[0], placed[-1] = max(placed[0], low), min(placed[-1], high)  # not over the labels below
        close = np.diff(placed) < gap - 1e-9 * abs(high - low)
        if not close.any():
            break
        for i in np.flatnonzero(close):
            short = (gap - (placed[i + 1] - placed[i])) / 2
            placed[i], placed[i + 1] = placed[i] - short, placed[i + 1] + short
    right = max(e[0] for e in ends)
    for i, at in zip(order, placed, strict=True):
        _, end, text, color = ends[i]
        move = (at - end) / (high - low) * height
        ax.annotate(
            literal(text), (right, end), xytext=(8, move), textcoords="offset points", va="center", fontsize=9,
            fontweight="bold", color=color, annotation_clip=False,
        )  # fmt: skip
    ax.set_ylim(low, high)


def point_labels(ax: Axes, x: np.ndarray, y: np.ndarray, names: Mapping[int, str]) -> None:
    """Name some points of a cloud, each label in the first of eight places that hides no point and no other label."""
    box = ax.get_position()
    size = whole(ax).get_size_inches() * 72 * (box.width, box.height)
    low = np.array([ax.get_xlim()[0], ax.get_ylim()[0]])
    span = np.array([ax.get_xlim()[1], ax.get_ylim()[1]]) - low
    points = (np.stack([x, y], -1) - low) / span * size  # typographic points
    taken = [(p - 3.5, p + 3.5) for p in points if np.isfinite(p).all()]
    places = [(7, -5), (-26, -5), (-8, 7), (-8, -17), (7, 8), (7, -18), (-26, 8), (-26, -18)]
    for i, name in names.items():
        wide = np.array([6.5 * len(name), 10.0])
        clash = []
        for place in places:
            a = points[i] + place
            clash.append(sum(bool((a < hi).all() and (lo < a + wide).all()) for lo, hi in taken))
        best = places[int(np.argmin(clash))]
        taken.append((points[i] + best, points[i] + best + wide))
        ax.annotate(
            name, (x[i], y[i]), xytext=best, textcoords="offset points", fontsize=9, color=INK, fontweight="bold",
        )  # fmt: skip


def colorbar(ax: Axes, mesh: Any, text: str, over: Sequence[Axes] | None = None) -> None:
    """A slim color bar beside `over` (or `ax`)."""
    bar = whole(ax).colorbar(mesh, ax=over or ax, pad=0.015, aspect=22, fraction=0.05)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(colors=SOFT, labelcolor=INK, labelsize=8.5, length=2)
    bar.set_label(text, fontsize=9, color=INK)
