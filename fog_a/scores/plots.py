"""Pictures of scores: where contribution and storage sit over layers and flow time, and how sure that is.

Each function returns a matplotlib Figure (`.savefig("x.png")`), imports matplotlib when called, and leaves pyplot's
state alone. Layers are numbered from 1, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fog_a.errors import ShapeMismatch
from fog_a.scores import statistics
from fog_a.scores.canvas import (
    INK,
    NAME,
    PALETTE,
    QUIET,
    SOFT,
    UNIT,
    Labels,
    axis,
    colorbar,
    figure,
    heat,
    layer_ticks,
    legend_of,
    point_labels,
    small_print,
    stack_borders,
    tidy,
    title,
)  # fmt: skip
from fog_a.scores.scores import Scores
from fog_a.scores.text import noise_floor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _limits(scores: Scores, domains: Sequence[str]) -> tuple[float, float]:
    """One color scale for all panels: from 0 where scores cannot be negative."""
    cells = np.concatenate([scores.curve(d).ravel() for d in domains])
    cells = cells[np.isfinite(cells)]
    low = float(cells.min()) if len(cells) else 0.0
    high = float(cells.max()) if len(cells) else 1.0
    if scores.kind != "storage":
        low = min(low, 0.0)
    return low, high if high > low else low + 1.0


def _bars(ax: Axes, scores: Scores, domain: str, k: int, level: float) -> list[int]:
    """Means with intervals, the top k in color. Returns the top k."""
    mean, interval = scores.mean(domain), scores.interval(level, domain, warn=False)
    best = [int(i) for i in statistics.top(mean, k) if np.isfinite(mean[i])]
    x = np.arange(len(mean))
    colors = [PALETTE[1] if i in best else QUIET for i in x]
    ax.bar(x, np.nan_to_num(mean), color=colors, width=0.78, linewidth=0)
    known = np.isfinite(interval).all(1)
    ax.vlines(x[known], interval[known, 0], interval[known, 1], color=INK, linewidth=1.1)
    for i in np.flatnonzero(~np.isfinite(mean)):
        ax.annotate("?", (float(i), 0.0), ha="center", va="bottom", fontsize=9, color=SOFT)
    tidy(ax)
    ax.set_xlim(-0.5, len(mean) - 0.5)
    ax.margins(y=0.12)
    stack_borders(ax, scores, SOFT)
    floor = noise_floor(scores)
    if floor is not None and floor > 0:
        ax.axhline(floor, color=SOFT, linewidth=0.9, linestyle=(0, (3, 2)))
    return best


def _number(ax: Axes, best: Sequence[int], heights: Sequence[float]) -> None:
    """The rank above each of the best bars."""
    for rank, (i, top) in enumerate(zip(best, heights, strict=True), 1):
        ax.annotate(
            str(rank), (i, top), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=9,
            fontweight="bold", color=PALETTE[1],
        )  # fmt: skip


def plot_scores(
    scores: Scores,
    *,
    domain: str | None = None,
    k: int = 3,
    level: float = 0.95,
    labels: Labels = "number",
    heading: str | None = None,
) -> Figure:
    """Means with intervals per layer, above a heat map layers × time where there is a time axis; a column per domain.

    Args:
        scores: of any kind.
        domain: one domain only; None: all.
        k: how many of the best layers are marked.
        level: of the intervals.
        labels: "number" (L1, L2, …) or "name" (the blocks' names).
        heading: above all panels.
    """
    domains = scores.domain_names if domain is None else (domain,)
    k = min(k, len(scores.layers))
    timed = scores.times is not None and len(scores.times) > 1
    width = min(max(4.2, 0.19 * len(scores.layers) + 1.6), 9.0)
    fig = figure(min(width * len(domains) + 0.6, 18.0), 4.8 if timed else 3.1)
    grid = fig.subplots(
        2 if timed else 1, len(domains), squeeze=False, sharex="col", sharey="row",
        height_ratios=[1.0, 1.25] if timed else [1.0],
    )  # fmt: skip
    limits = _limits(scores, domains)
    for column, name in enumerate(domains):
        bars = grid[0, column]
        best = _bars(bars, scores, name, k, level)
        tops = scores.interval(level, name, warn=False)[:, 1]
        mean = scores.mean(name)
        _number(bars, best, [float(tops[i] if np.isfinite(tops[i]) else mean[i]) for i in best])
        title(
            bars,
            name if name != "all" or len(domains) > 1 else NAME.get(scores.kind, scores.kind),
            small_print(scores, name),
        )
        lowest = grid[-1, column]
        if timed:
            mesh = heat(lowest, scores, name, limits)
            if column == len(domains) - 1:
                colorbar(lowest, mesh, UNIT.get(scores.kind, ""), over=[lowest])
        layer_ticks(lowest, scores.layers, labels, best)
        axis(lowest, legend_of(scores.layers, lowest) if labels == "number" else "")
    axis(grid[0, 0], y=UNIT.get(scores.kind, scores.kind))
    if timed:
        axis(grid[1, 0], y="flow time t")
    if heading:
        fig.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    return fig


def _paired(storage: Scores, contribution: Scores, domain: str | None) -> tuple[str, ...]:
    """The domains that both have. Raises ShapeMismatch where layers or domains do not fit."""
    if storage.layers != contribution.layers:
        raise ShapeMismatch(
            f"storage has {len(storage.layers)} layers ({storage.layers[0]}, …), contribution "
            f"{len(contribution.layers)} ({contribution.layers[0]}, …): measure both on the same blocks (blocks=)"
        )
    wanted = storage.domain_names if domain is None else (domain,)
    common = tuple(d for d in wanted if d in storage.domain_names and d in contribution.domain_names)
    if not common:
        raise ShapeMismatch(
            f"no common domain: storage has {', '.join(storage.domain_names)}; contribution has "
            f"{', '.join(contribution.domain_names)}. Give both the same domains="
        )
    return common


def plot_scd(
    storage: Scores,
    contribution: Scores,
    *,
    domain: str | None = None,
    labels: Labels = "number",
    level: float = 0.95,
    heading: str | None = None,
) -> Figure:
    """The paper's Figure 1: storage | contribution over layers × t, a row per domain, peaks marked.

    Args:
        storage: from `lasp`. contribution: from `attribute`; both of the same layers.
        domain: one domain only; None: all that both have.
        labels: "number" or "name".
        level: of the intervals, where a kind has no time axis and is drawn as bars.
        heading: above all panels.

    Raises: ShapeMismatch where layers or domains do not fit.
    """
    domains = _paired(storage, contribution, domain)
    width = min(max(4.8, 0.19 * len(storage.layers) + 1.8), 9.0)
    fig = figure(2 * width, 2.35 * len(domains) + 0.7)
    grid = fig.subplots(len(domains), 2, squeeze=False, sharex="col")
    for side, scores in enumerate((storage, contribution)):
        column = grid[:, side]
        limits = _limits(scores, domains)
        peaks = [int(statistics.top(scores.mean(name), 1)[0]) for name in domains]
        kind = NAME.get(scores.kind, scores.kind)
        mesh = None
        for ax, name, peak in zip(column, domains, peaks, strict=True):
            title(ax, kind if name == "all" else f"{kind} · {name}", small_print(scores, name))
            if scores.times is None:
                _bars(ax, scores, name, 1, level)
            else:
                mesh = heat(ax, scores, name, limits)
                _peak(ax, peak)
                axis(ax, y="flow time t" if side == 0 else None)
        if mesh is not None:
            colorbar(column[-1], mesh, UNIT.get(scores.kind, ""), over=list(column))
        layer_ticks(column[-1], scores.layers, labels, sorted(set(peaks)))
        axis(column[-1], legend_of(scores.layers, column[-1]) if labels == "number" else "")
    if heading:
        fig.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    return fig


def _peak(ax: Axes, layer: int) -> None:
    """A frame around the layer with the largest mean, and its number beside it; readable on any color."""
    from matplotlib.patheffects import withStroke

    low, high = ax.get_ylim()
    dark = [withStroke(linewidth=3.2, foreground=INK)]
    ax.vlines([layer - 0.5, layer + 0.5], low, high, color="white", linewidth=1.4, path_effects=dark)
    side = -1 if layer > sum(ax.get_xlim()) / 2 else 1
    ax.annotate(
        f"peak L{layer + 1}", (layer + side * 0.5, high), xytext=(side * 7, -11), textcoords="offset points",
        ha="left" if side > 0 else "right", va="center", color="white", fontsize=9, fontweight="bold",
        path_effects=dark,
    )  # fmt: skip


def plot_scatter(
    storage: Scores, contribution: Scores, *, domain: str | None = None, k: int = 3, level: float = 0.95
) -> Figure:
    """Store against contribute, a point with both intervals per layer, colored by depth; the best k of each named.

    Spearman's ρ in the corner says whether layers that store also contribute.
    """
    import matplotlib

    domains = _paired(storage, contribution, domain)
    fig = figure(4.6 * len(domains) + 0.8, 4.2)
    grid = fig.subplots(1, len(domains), squeeze=False)[0]
    points = None
    depth = np.arange(len(storage.layers))
    colors = matplotlib.colormaps["viridis_r"](depth / max(len(depth) - 1, 1))
    for ax, name in zip(grid, domains, strict=True):
        x, y = storage.mean(name), contribution.mean(name)
        xi, yi = storage.interval(level, name, warn=False), contribution.interval(level, name, warn=False)
        ax.hlines(y, xi[:, 0], xi[:, 1], color=colors, linewidth=1.0, alpha=0.55)
        ax.vlines(x, yi[:, 0], yi[:, 1], color=colors, linewidth=1.0, alpha=0.55)
        points = ax.scatter(x, y, c=depth + 1, cmap="viridis_r", s=46, edgecolor="white", linewidth=0.8, zorder=3)
        named = {int(i) for m in (x, y) for i in statistics.top(m, k) if np.isfinite(m[i])}
        ax.margins(0.08)
        point_labels(ax, x, y, {i: f"L{i + 1}" for i in sorted(named)})
        rho = storage.agreement(contribution, k, name).spearman
        title(ax, "store against contribute" if name == "all" else name, f"Spearman ρ = {rho:+.2f}".replace("-", "−"))
        tidy(ax, grid="both")
        axis(ax, NAME["storage"], NAME.get(contribution.kind) if ax is grid[0] else None)
    colorbar(grid[-1], points, "layer")
    return fig
