"""Pictures of scores: where contribution and storage sit over layers and flow time, and how sure that is.

Each function returns a matplotlib Figure (`.savefig("x.png")`), imports matplotlib when called, and leaves pyplot's
state alone. Layers are numbered from 1, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fog_a.errors import ShapeMismatch
from fog_a.scores import canvas
from fog_a.scores.canvas import INK, PALETTE, QUIET, SOFT, Labels, unit
from fog_a.scores.dissociation import dissociation
from fog_a.scores.ranking import SIGNED, Ranked, Ranking, check_layers, rankings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    timed = domains[0].timed
    width = min(max(4.2, 0.19 * len(scores.layers) + 1.6), 9.0) * len(domains) + 0.6
    fig, grid = canvas.panels(
        min(width, 18.0), 4.8 if timed else 3.1, 1 + timed, len(domains),
        heading=heading, sharex="col", sharey="row", height_ratios=[1.0, 1.25][: 1 + timed],
    )  # fmt: skip
    limits = _limits(domains)
    for column, ranking in zip(grid.T, domains, strict=True):
        _bars(column[0], ranking, k, level, numbered=True)
        canvas.panel_title(column[0], ranking)
        if timed:
            mesh = _heat(column[1], ranking, limits)
            if ranking is domains[-1]:
                canvas.colorbar(mesh, unit(scores.kind), column[1])
        canvas.layer_axis(column[-1], scores.layers, labels, ranking.order[:k])
    grid[0, 0].set_ylabel(unit(scores.kind))
    if timed:
        grid[1, 0].set_ylabel(canvas.time_label(domains[0]))
    return fig


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
    width = min(max(4.8, 0.19 * len(storage.layers) + 1.8), 9.0)
    tests = [str(test) for pair in pairs if (test := dissociation(*pair, level=level)) is not None]
    height = 2.35 * len(pairs) + 0.2 * len(tests) + 0.7
    fig, grid = canvas.panels(2 * width, height, len(pairs), 2, heading=heading, sharex="col")
    fig.supxlabel("\n".join(tests), x=0.01, ha="left", fontsize=9, color=SOFT, parse_math=False)
    for side, column in enumerate(grid.T):
        domains = [pair[side] for pair in pairs]
        limits, mesh = _limits(domains), None
        for ax, ranking in zip(column, domains, strict=True):
            canvas.panel_title(ax, ranking, with_kind=True)
            if ranking.timed:
                mesh = _heat(ax, ranking, limits)
                for peak in ranking.order[:1]:
                    _peak(ax, peak)
            else:
                _bars(ax, ranking, 1, level)
            if side == 0 and ranking.timed:
                ax.set_ylabel(canvas.time_label(ranking))
        if mesh is not None:
            canvas.colorbar(mesh, unit(domains[0].kind), column.tolist())
        canvas.layer_axis(column[-1], storage.layers, labels, sorted({i for d in domains for i in d.order[:1]}))
    return fig


def plot_scatter(
    storage: Ranked, contribution: Ranked, *, domain: str | None = None, k: int = 3, level: float = 0.95
) -> Figure:
    """Store against contribute, a point with both intervals per layer, colored by depth; the best k of each named.

    Spearman's ρ in the corner says whether layers that store also contribute.
    """
    pairs = _pairs(storage, contribution, domain)
    fig, grid = canvas.panels(4.6 * len(pairs) + 0.8, 4.2, 1, len(pairs), grid="both")
    points = [_cloud(ax, x, y, k, level) for ax, (x, y) in zip(grid[0], pairs, strict=True)]
    grid[0, 0].set_ylabel(canvas.NAME.get(contribution.kind, ""))
    canvas.colorbar(points[-1], "layer", grid[0, -1])
    for ax, (x, y) in zip(grid[0], pairs, strict=True):
        named = sorted({*x.order[:k], *y.order[:k]})
        canvas.point_labels(ax, x.mean, y.mean, {i: f"L{i + 1}" for i in named})
    return fig


def _pairs(storage: Ranked, contribution: Ranked, domain: str | None) -> list[tuple[Ranking, Ranking]]:
    """The rankings of each domain that both have. Raises ShapeMismatch where layers or domains do not fit."""
    check_layers(storage.layers, contribution.layers)
    wanted = storage.domain_names if domain is None else (domain,)
    common = [d for d in wanted if d in storage.domain_names and d in contribution.domain_names]
    if not common:
        raise ShapeMismatch(
            f"no common domain: storage has {', '.join(storage.domain_names)}; contribution has "
            f"{', '.join(contribution.domain_names)}. Give both the same domains="
        )
    return [(storage.ranking(d), contribution.ranking(d)) for d in common]


def _limits(domains: Sequence[Ranking]) -> tuple[float, float]:
    """One color scale for all panels: from 0 where scores cannot be negative."""
    cells = np.concatenate([d.curve.ravel() for d in domains])
    cells = cells[np.isfinite(cells)]
    low, high = (float(cells.min()), float(cells.max())) if len(cells) else (0.0, 1.0)
    if domains[0].kind not in SIGNED:
        low = min(low, 0.0)
    return low, high if high > low else low + 1.0


def _bars(ax: Axes, ranking: Ranking, k: int, level: float, numbered: bool = False) -> None:
    """Means with intervals, the top k in color, their rank above them if asked for."""
    mean, interval, best = ranking.mean, ranking.interval(level), ranking.order[:k]
    x, known = np.arange(len(mean)), np.isfinite(interval).all(1)
    ax.bar(x, np.nan_to_num(mean), color=[PALETTE[1] if i in best else QUIET for i in x], width=0.78, linewidth=0)
    ax.vlines(x[known], interval[known, 0], interval[known, 1], color=INK, linewidth=1.1)
    for i in np.flatnonzero(~np.isfinite(mean)):
        ax.annotate("?", (float(i), 0.0), ha="center", va="bottom", fontsize=9, color=SOFT)
    for rank, i in enumerate(best if numbered else (), 1):
        ax.annotate(
            str(rank), (i, np.where(known, interval[:, 1], mean)[i]), xytext=(0, 2), textcoords="offset points",
            ha="center", fontsize=9, fontweight="bold", color=PALETTE[1],
        )  # fmt: skip
    ax.set_xlim(-0.5, len(mean) - 0.5)
    ax.margins(y=0.12)
    _stack_borders(ax, ranking, SOFT)
    if ranking.noise_floor:
        ax.axhline(ranking.noise_floor, color=SOFT, linewidth=0.9, linestyle=(0, (3, 2)))


def _heat(ax: Axes, ranking: Ranking, limits: tuple[float, float]) -> Any:
    """Layers along x, flow time up; NaN cells hatched. Returns the mesh."""
    values, times = np.ma.masked_invalid(ranking.curve), ranking.times or ()
    mesh = ax.pcolormesh(
        np.arange(len(ranking.layers)), times, values, shading="nearest", rasterized=True,
        cmap=canvas.HEAT.get(ranking.kind, "viridis"), vmin=limits[0], vmax=limits[1],
    )  # fmt: skip
    if min(times) >= 0 and max(times) <= 1:
        ax.set_ylim(*np.clip(ax.get_ylim(), 0, 1))
    ax.patch.set(facecolor="#f3f4f6", hatch="////", edgecolor="#c3c8d1", linewidth=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    _stack_borders(ax, ranking, "white")
    return mesh


def _stack_borders(ax: Axes, ranking: Ranking, color: str) -> None:
    """A thin line between layers of different stacks (an encoder and a decoder, double and single blocks)."""
    for i in ranking.borders:
        ax.axvline(i - 0.5, color=color, linewidth=1.0, linestyle=(0, (4, 3)))


def _peak(ax: Axes, layer: int) -> None:
    """A frame around a layer, and its number beside it; readable on any color."""
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


def _cloud(ax: Axes, storage: Ranking, contribution: Ranking, k: int, level: float) -> Any:
    """One domain's layers as points. Returns them."""
    x, y, depth = storage.mean, contribution.mean, np.arange(1, len(storage.layers) + 1)
    points = ax.scatter(x, y, c=depth, cmap="viridis_r", s=46, edgecolor="white", linewidth=0.8, zorder=3)
    colors = points.to_rgba(depth)
    ax.hlines(y, *storage.interval(level).T, color=colors, linewidth=1.0, alpha=0.55)
    ax.vlines(x, *contribution.interval(level).T, color=colors, linewidth=1.0, alpha=0.55)
    ax.margins(0.08)
    rho = f"Spearman ρ = {storage.agreement(contribution, k).spearman:+.2f}".replace("-", "−")
    canvas.title(ax, "store against contribute" if storage.domain == "all" else storage.domain, rho)
    ax.set_xlabel(canvas.kind_name(storage))
    return points
