"""Pictures of scores: where contribution and storage sit over layers and flow time, and how sure that is.

Each function returns a matplotlib Figure (`.savefig("x.png")`), imports matplotlib when called, and leaves pyplot's
state alone. Layers are numbered from 1, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fog_a.errors import ShapeMismatch
from fog_a.scores import canvas, statistics
from fog_a.scores.canvas import INK, NAME, PALETTE, QUIET, SOFT, UNIT, Labels, axis, title
from fog_a.scores.dissociation import dissociation
from fog_a.scores.labels import layer_ticks, legend_of, time_label
from fog_a.scores.ranking import SIGNED, Ranked, Ranking, rankings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _limits(domains: Sequence[Ranking]) -> tuple[float, float]:
    """One color scale for all panels: from 0 where scores cannot be negative."""
    cells = np.concatenate([d.curve.ravel() for d in domains])
    cells = cells[np.isfinite(cells)]
    low = float(cells.min()) if len(cells) else 0.0
    high = float(cells.max()) if len(cells) else 1.0
    if domains[0].kind not in SIGNED:
        low = min(low, 0.0)
    return low, high if high > low else low + 1.0


def _bars(ax: Axes, ranking: Ranking, k: int, level: float, numbered: bool = False) -> list[int]:
    """Means with intervals, the top k in color, their rank above them if asked for. Returns the top k."""
    mean, interval = ranking.mean, ranking.interval(level)
    best = list(ranking.order[:k])
    x = np.arange(len(mean))
    colors = [PALETTE[1] if i in best else QUIET for i in x]
    ax.bar(x, np.nan_to_num(mean), color=colors, width=0.78, linewidth=0)
    known = np.isfinite(interval).all(1)
    ax.vlines(x[known], interval[known, 0], interval[known, 1], color=INK, linewidth=1.1)
    for i in np.flatnonzero(~np.isfinite(mean)):
        ax.annotate("?", (float(i), 0.0), ha="center", va="bottom", fontsize=9, color=SOFT)
    for rank, i in enumerate(best if numbered else (), 1):
        ax.annotate(
            str(rank), (i, np.where(known, interval[:, 1], mean)[i]), xytext=(0, 2), textcoords="offset points",
            ha="center", fontsize=9, fontweight="bold", color=PALETTE[1],
        )  # fmt: skip
    canvas.tidy(ax)
    ax.set_xlim(-0.5, len(mean) - 0.5)
    ax.margins(y=0.12)
    canvas.stack_borders(ax, ranking, SOFT)
    if ranking.noise_floor:
        ax.axhline(ranking.noise_floor, color=SOFT, linewidth=0.9, linestyle=(0, (3, 2)))
    return best


def _layer_axis(ax: Axes, layers: Sequence[str], labels: Labels, always: Sequence[int]) -> None:
    layer_ticks(ax, layers, labels, always)
    axis(ax, legend_of(layers, ax) if labels == "number" else "")


def plot_scores(
    scores: Ranked,
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

    Raises: BadArgument for what are no Scores; MissingDependency without matplotlib.
    """
    domains = rankings(scores, domain)
    unit, layers, timed = UNIT.get(scores.kind, scores.kind), scores.layers, domains[0].timed
    width = min(max(4.2, 0.19 * len(layers) + 1.6), 9.0)
    fig = canvas.figure(min(width * len(domains) + 0.6, 18.0), 4.8 if timed else 3.1)
    grid = fig.subplots(
        2 if timed else 1, len(domains), squeeze=False, sharex="col", sharey="row",
        height_ratios=[1.0, 1.25] if timed else [1.0],
    )  # fmt: skip
    limits = _limits(domains)
    for column, ranking in zip(grid.T, domains, strict=True):
        best = _bars(column[0], ranking, k, level, numbered=True)
        lone = ranking.domain == "all" and len(domains) == 1
        title(
            column[0], canvas.kind_name(ranking) if lone else ranking.domain, canvas.small_print(ranking)
        )  # fmt: skip
        if timed:
            mesh = canvas.heat(column[1], ranking, limits)
            if ranking is domains[-1]:
                canvas.colorbar(column[1], mesh, unit, over=[column[1]])
        _layer_axis(column[-1], layers, labels, best)
    axis(grid[0, 0], y=unit)
    if timed:
        axis(grid[1, 0], y=time_label(domains[0]))
    canvas.headline(fig, heading)
    return fig


def _pairs(storage: Ranked, contribution: Ranked, domain: str | None) -> list[tuple[Ranking, Ranking]]:
    """The rankings of each domain that both have. Raises ShapeMismatch where layers or domains do not fit."""
    if storage.layers != contribution.layers:
        raise ShapeMismatch(
            f"storage has {len(storage.layers)} layers ({storage.layers[0]}, …), contribution "
            f"{len(contribution.layers)} ({contribution.layers[0]}, …): measure both on the same blocks (blocks=)"
        )
    wanted = storage.domain_names if domain is None else (domain,)
    common = [d for d in wanted if d in storage.domain_names and d in contribution.domain_names]
    if not common:
        raise ShapeMismatch(
            f"no common domain: storage has {', '.join(storage.domain_names)}; contribution has "
            f"{', '.join(contribution.domain_names)}. Give both the same domains="
        )
    return [(storage.ranking(d), contribution.ranking(d)) for d in common]


def plot_scd(
    storage: Ranked,
    contribution: Ranked,
    *,
    domain: str | None = None,
    labels: Labels = "number",
    level: float = 0.95,
    heading: str | None = None,
) -> Figure:
    """The paper's Figure 1: storage | contribution over layers × t, a row per domain, peaks marked.

    Below stands each domain's dissociation test: how much deeper storage peaks, and how far the two orders are apart
    beyond what other clips would do (`fog_a.scores.dissociation`).

    Args:
        storage: from `lasp`. contribution: from `attribute`; both of the same layers.
        domain: one domain only; None: all that both have.
        labels: "number" or "name".
        level: of the intervals.
        heading: above all panels.

    Raises: ShapeMismatch where layers or domains do not fit.
    """
    pairs = _pairs(storage, contribution, domain)
    tests = [str(test) for pair in pairs if (test := dissociation(*pair, level=level)) is not None]
    width = min(max(4.8, 0.19 * len(storage.layers) + 1.8), 9.0)
    fig = canvas.figure(2 * width, 2.35 * len(pairs) + 0.2 * len(tests) + 0.7)
    grid = fig.subplots(len(pairs), 2, squeeze=False, sharex="col")
    for side, column in enumerate(grid.T):
        _scd_column(list(column), [pair[side] for pair in pairs], labels, level)
        for ax in column if side == 0 and storage.times is not None else ():
            axis(ax, y=time_label(pairs[0][0]))
    canvas.footing(fig, tests)
    canvas.headline(fig, heading)
    return fig


def _scd_column(column: list[Axes], domains: list[Ranking], labels: Labels, level: float) -> None:
    """One kind of scores, a panel per domain."""
    limits, peaks, mesh = _limits(domains), set(), None
    for ax, ranking in zip(column, domains, strict=True):
        kind, peak = canvas.kind_name(ranking), int(statistics.top(ranking.mean, 1)[0])
        peaks.add(peak)
        title(ax, kind if ranking.domain == "all" else f"{kind} · {ranking.domain}", canvas.small_print(ranking))
        if ranking.times is None:
            _bars(ax, ranking, 1, level)
        else:
            mesh = canvas.heat(ax, ranking, limits)
            _peak(ax, peak)
    if mesh is not None:
        canvas.colorbar(column[-1], mesh, UNIT.get(domains[0].kind, ""), over=column)
    _layer_axis(column[-1], domains[0].layers, labels, sorted(peaks))


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
    storage: Ranked, contribution: Ranked, *, domain: str | None = None, k: int = 3, level: float = 0.95
) -> Figure:
    """Store against contribute, a point with both intervals per layer, colored by depth; the best k of each named.

    Spearman's ρ in the corner says whether layers that store also contribute.
    """
    pairs = _pairs(storage, contribution, domain)
    fig = canvas.figure(4.6 * len(pairs) + 0.8, 4.2)
    grid = fig.subplots(1, len(pairs), squeeze=False)[0]
    points = [_cloud(ax, x, y, k, level) for ax, (x, y) in zip(grid, pairs, strict=True)]
    axis(grid[0], y=NAME.get(contribution.kind))
    canvas.colorbar(grid[-1], points[-1], "layer")
    return fig


def _cloud(ax: Axes, storage: Ranking, contribution: Ranking, k: int, level: float) -> object:
    """One domain's layers as points. Returns them."""
    import matplotlib

    depth = np.arange(len(storage.layers))
    colors = matplotlib.colormaps["viridis_r"](depth / max(len(depth) - 1, 1))
    x, y, xi, yi = storage.mean, contribution.mean, storage.interval(level), contribution.interval(level)
    ax.hlines(y, xi[:, 0], xi[:, 1], color=colors, linewidth=1.0, alpha=0.55)
    ax.vlines(x, yi[:, 0], yi[:, 1], color=colors, linewidth=1.0, alpha=0.55)
    points = ax.scatter(x, y, c=depth + 1, cmap="viridis_r", s=46, edgecolor="white", linewidth=0.8, zorder=3)
    named = {*storage.order[:k], *contribution.order[:k]}
    ax.margins(0.08)
    canvas.point_labels(ax, x, y, {i: f"L{i + 1}" for i in sorted(named)})
    rho = f"Spearman ρ = {storage.agreement(contribution, k).spearman:+.2f}".replace("-", "−")
    title(ax, "store against contribute" if storage.domain == "all" else storage.domain, rho)
    canvas.tidy(ax, grid="both")
    axis(ax, NAME["storage"])
    return points
