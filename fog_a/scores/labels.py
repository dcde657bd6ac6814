"""What the axes of pictures say: layers by number or name, and flow time with its direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fog_a.scores.canvas import Labels, literal, room, whole
from fog_a.scores.ranking import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def time_label(ranking: Ranking, lines: bool = True) -> str:
    """Which end of the time axis is noise, and what the network is given there, where that is not t itself."""
    ends = ranking.info.get("network_time")
    network = "network: {:g} … {:g}".format(*ends) if ends else ""
    if lines:
        return "\n".join(["flow time t", "0: noise, 1: data", *([network] if network else [])])
    return f"flow time t  (0: noise, 1: data{'; ' + network if network else ''})"


def layer_labels(layers: Sequence[str], labels: Labels) -> list[str]:
    """`L1`, `L2`, … or the names of the blocks."""
    return list(layers) if labels == "name" else [f"L{i + 1}" for i in range(len(layers))]


def layer_ticks(ax: Axes, layers: Sequence[str], labels: Labels, always: Sequence[int] = ()) -> None:
    """Ticks for the layers along x, thinned so that they do not run into each other; `always` ones stay."""
    text = [literal(label) for label in layer_labels(layers, labels)]
    letters = max(ax.get_position().width * whole(ax).get_figwidth(), 1.0) * (5 if labels == "name" else 3.0)
    step = max(1, int(np.ceil(len(layers) / letters)))
    kept = [i for i in range(0, len(layers), step) if all(abs(i - a) >= step for a in always)]
    shown = sorted({*kept, *always})
    ax.set_xticks(shown, [text[i] for i in shown])
    if labels == "name":
        ax.tick_params(axis="x", rotation=60)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    for label, i in zip(ax.get_xticklabels(), shown, strict=True):
        if i in always:
            label.set_fontweight("bold")
            if labels == "number" and step > 1 and {i - 1, i + 1} & set(always):
                label.set_fontsize(7.5)  # neighbors must not touch


def legend_of(layers: Sequence[str], ax: Axes) -> str:
    """What `L1` … stand for, in two lines where one is too long: `L1 = blocks.0 … L24 = blocks.23`."""
    if len(layers) == 1:
        return f"layer (L1 = {layers[0]})"
    first, last = f"layer (L1 = {layers[0]} …", f"L{len(layers)} = {layers[-1]})"
    return f"{first} {last}" if len(first) + len(last) < room(ax, 9.5) else f"{first}\n{last}"
