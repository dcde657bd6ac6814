"""What all pictures share: sizes, colors, labels. Drawn on `matplotlib.figure.Figure`; pyplot's state is not touched.

Colors are Okabe and Ito's, told apart by all common kinds of color vision; heat maps are perceptually uniform.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fog_a.errors import MissingDependency
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
UNIT = {
    "contribution": "relative change of v",
    "removal": "relative change of v",
    "storage": "cosine to the teacher",
    "gradnorm": "‖∂L/∂θ‖₂",
    "loss": "change of the flow loss",
    "interaction": "both closed, beyond each alone",
    "drift": "change of update, a step",
}

STYLE: dict[Any, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.axisbelow": True,
    "axes.labelsize": 9.5, "axes.labelcolor": INK, "text.color": INK,
    "axes.prop_cycle": f"cycler(color={list(PALETTE)})", "text.parse_math": False,  # a name may hold a dollar sign
}  # fmt: skip

Labels = Literal["number", "name"]


def panels(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    *,
    heading: str | None = None,
    grid: Literal["x", "y", "both"] = "y",
    **options: Any,
) -> tuple[Figure, Any]:
    """A figure of so many inches with a heading, and its rows × columns of axes; options as in `Figure.subplots`.

    A notebook shows it without pyplot. Raises MissingDependency without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("pictures need matplotlib: pip install 'fog-a[plot]'") from error
    with rc_context(STYLE):
        fig = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
        axes = fig.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.tick_params(colors=SOFT, labelcolor=INK, labelsize=9, length=3)
        ax.grid(axis=grid, color=FAINT, linewidth=0.6)
    if heading:
        fig.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)
    fig._repr_png_ = functools.partial(png, fig)  # type: ignore[attr-defined]
    return fig, axes


def png(fig: Figure) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


def unit(kind: str) -> str:
    """What scores of a kind are counted in."""
    return UNIT.get(kind, kind)


def kind_name(ranking: Ranking) -> str:
    """What is measured, for a reader."""
    return NAME.get(ranking.kind, ranking.kind)


def panel_title(ax: Axes, ranking: Ranking, with_kind: bool = False) -> None:
    """The domain, or the kind where there is only one nameless domain; how many samples, and whether they are few."""
    words = [kind_name(ranking)] if with_kind or ranking.domain == "all" else []
    words += [ranking.domain] if ranking.domain != "all" else []
    title(ax, " · ".join(words), f"n = {ranking.n}" + (f" (< {FEW}: level not held)" if ranking.n < FEW else ""))


def title(ax: Axes, text: str, beside: str = "") -> None:
    """A panel's title, flush left; `beside` says a detail in small print, flush right, below where it would touch."""
    touch = len(text) / letters(ax, 12) + len(beside) / letters(ax, 8.5) > 1
    ax.set_title(text + "\n" * bool(beside and touch), loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_title(beside, loc="right", fontsize=8.5, color=SOFT)


def letters(ax: Axes, size: float) -> float:
    """About how many letters of this size fit along the axes."""
    return max(ax.get_position().width * figure_of(ax).get_figwidth(), 1.0) * 72 / (0.55 * size)


def figure_of(ax: Axes) -> Figure:
    """The figure that holds the axes."""
    fig = ax.get_figure(root=True)
    assert fig is not None
    return fig


def step_axis(ax: Axes) -> None:
    """Training steps along x: 100k rather than 100000."""
    ax.set_xlabel("training step")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 10_000 else f"{x:,g}")


def time_label(ranking: Ranking, break_lines: bool = True) -> str:
    """Which end of the time axis is noise, and what the network is given there, where that is not t itself."""
    ends = ranking.info.get("network_time")
    words = ["0: noise, 1: data", *(["network: {:g} … {:g}".format(*ends)] if ends else [])]
    return "\n".join(["flow time t", *words]) if break_lines else f"flow time t  ({'; '.join(words)})"


def layer_axis(ax: Axes, layers: Sequence[str], labels: Labels = "number", always: Sequence[int] = ()) -> None:
    """The layers along x, thinned so that their labels do not touch; `always` ones stay, in bold."""
    names = list(layers) if labels == "name" else [f"L{i + 1}" for i in range(len(layers))]
    step = max(1, int(np.ceil(len(layers) / letters(ax, 26 if labels == "name" else 44))))
    kept = [i for i in range(0, len(layers), step) if all(abs(i - a) >= step for a in always)]
    shown = sorted({*kept, *always})
    ax.set_xticks(shown, [names[i] for i in shown], parse_math=False)
    for label, i in zip(ax.get_xticklabels(), shown, strict=True):
        if labels == "name":
            label.set(rotation=60, ha="right", rotation_mode="anchor")
        if i in always:
            crowded = labels == "number" and step > 1 and {i - 1, i + 1} & set(always)
            label.set(fontweight="bold", fontsize=7.5 if crowded else 9)
    first, last = f"layer (L1 = {layers[0]} …", f"L{len(layers)} = {layers[-1]})"
    if len(layers) == 1:
        first, last = "layer", f"(L1 = {layers[0]})"
    gap = " " if len(first) + len(last) < letters(ax, 9.5) else "\n"
    ax.set_xlabel("" if labels == "name" else first + gap + last)


def band(ax: Axes, x: Sequence[float] | np.ndarray, y: np.ndarray, interval: np.ndarray, label: str = "") -> None:
    """A line in its interval, in the next color; `end_labels` shows its label."""
    (line,) = ax.plot(x, y, linewidth=2.0, marker="o" if len(x) < 40 else "", markersize=3.4, label=label)
    ax.fill_between(x, interval[:, 0], interval[:, 1], color=line.get_color(), alpha=0.16, linewidth=0)


def end_labels(ax: Axes) -> None:
    """Name lines at their right ends instead of in a legend, moved apart where they would touch."""
    lines = [line for line in ax.lines if not str(line.get_label()).startswith("_child")]
    ends = np.array([[np.asarray(axis)[-1] for axis in line.get_data()] for line in lines], dtype=float)
    low, high = ax.get_ylim()
    height = figure_of(ax).get_figheight() * 72 * 0.72
    up, gap = (ends[:, 1] - low) / (high - low) * height, 12.5 * np.arange(len(lines))
    order = np.argsort(up, kind="stable")
    level = up[order] - gap  # ascending where labels do not touch
    level = (np.maximum.accumulate(level) + np.minimum.accumulate(level[::-1])[::-1]) / 2
    places = np.clip(level, 0, max(0, height - gap[-1])) + gap
    for i, place in zip(order, places, strict=True):
        end, color = (ends[:, 0].max(), ends[i, 1]), lines[i].get_color()
        _note(ax, str(lines[i].get_label()), end, (8, place - up[i]), color=color, va="center", annotation_clip=False)


def point_labels(ax: Axes, x: np.ndarray, y: np.ndarray, names: Mapping[int, str]) -> None:
    """Name some points of a cloud, each label in the first of eight places that hides no point and no other label."""
    fig = figure_of(ax)
    fig.draw_without_rendering()  # sizes are known from here on
    points = ax.transData.transform(np.stack([x, y], -1)) * 72 / fig.dpi
    taken = [(p - 3.5, p + 3.5) for p in points if np.isfinite(p).all()]
    places = [(7, -5), (-26, -5), (-8, 7), (-8, -17), (7, 8), (7, -18), (-26, 8), (-26, -18)]
    for i, name in names.items():
        wide = np.array([6.5 * len(name), 10.0])
        corners = [points[i] + place for place in places]
        clashes = [sum(bool((a < hi).all() and (lo < a + wide).all()) for lo, hi in taken) for a in corners]
        best = int(np.argmin(clashes))
        taken.append((corners[best], corners[best] + wide))
        _note(ax, name, (x[i], y[i]), places[best])


def _note(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    ax.annotate(
        text, at, xytext=offset, textcoords="offset points", parse_math=False,
        **{"fontsize": 9, "fontweight": "bold", "color": INK, **options},
    )  # fmt: skip


def colorbar(mesh: Any, text: str, over: Any) -> None:
    """A slim color bar beside these axes."""
    bar = mesh.get_figure(root=True).colorbar(mesh, ax=over, pad=0.015, aspect=22, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=SOFT, labelcolor=INK, labelsize=8.5, length=2)
    bar.set_label(text, fontsize=9, color=INK)
