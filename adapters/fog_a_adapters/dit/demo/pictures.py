"""The demo's own pictures: how the training went, and what the model makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fog_a.scores.canvas import INK, PALETTE, QUIET, SOFT, panels, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_learning(
    losses: Sequence[float],
    before: Float[Tensor, "S J"],
    after: Float[Tensor, "S J"],
    times: Sequence[float],
    domains: Sequence[str],
    floor: float,
) -> Figure:
    """Left: the training loss. Right: the held-out flow loss over t, before and after, per domain.

    `floor` is the held-out loss of the best constant guess, `mean_frame_loss`.
    """
    fig, ((left, right),) = panels(9.6, 3.3, 1, 2)
    steps = np.arange(1, len(losses) + 1)
    left.plot(steps, losses, color=QUIET, linewidth=0.8)
    if len(losses) >= 20:
        width = max(5, len(losses) // 25)
        left.plot(
            steps[width - 1 :], np.convolve(losses, np.ones(width) / width, "valid"), color=PALETTE[0], linewidth=2
        )
    title(left, "training", f"{len(losses)} steps")
    left.set(xlabel="step", ylabel="flow loss", ylim=(0, None))
    right.plot(times, before.mean(0).numpy(), color=QUIET, linewidth=2, label="untrained")
    right.axhline(floor, color=SOFT, linewidth=1, linestyle=(0, (3, 2)), label="mean frame")
    names = tuple(dict.fromkeys(domains))
    for color, name in zip(PALETTE, names, strict=False):
        rows = [i for i, d in enumerate(domains) if d == name]
        right.plot(times, after[rows].mean(0).numpy(), color=color, linewidth=2, marker="o", markersize=3.4, label=name)
    title(right, "held-out clips", f"n = {len(domains)}")
    right.set(xlabel="flow time t  (0: noise, 1: data)", ylabel="flow loss", ylim=(0, None))
    right.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="center right")
    return fig


Shown = tuple[str, Float[Tensor, "T M"], Float[Tensor, "T M"], int]
"""A clip's name, real mel, sampled mel, and frames of the reference."""


def plot_samples(clips: Sequence[Shown], seconds: float) -> Figure:
    """Columns: held-out clips; rows: real, sampled.

    `seconds` is the length of a frame. The white line ends the reference that the model was shown.
    """
    fig, grid = panels(3.1 * len(clips) + 0.6, 3.9, 2, len(clips), sharex="col", sharey=True)
    for column, (name, real, made, prefix) in zip(grid.T, clips, strict=True):
        low, high = float(real.min()), float(real.max())
        for ax, mel in zip(column, (real, made), strict=True):
            extent = (0, len(mel) * seconds, 0, mel.shape[1])
            ax.imshow(mel.T.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=extent)
            ax.axvline(prefix * seconds, color="white", linewidth=1)
            ax.grid(False)
        title(column[0], name)
        column[1].set_xlabel("seconds")
    grid[0, 0].set_ylabel("real\nmel bin")
    grid[1, 0].set_ylabel("sampled\nmel bin")
    return fig
