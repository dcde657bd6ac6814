"""Where sizes do not tell samples, frames and channels apart, runs on half of the samples and half of the frames do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from fog_a.errors import ShapeMismatch
from fog_a.flows.case import picked
from fog_a.flows.frames import check_stream


def check_halves(
    run: Callable[[Any], Any],
    outputs: Callable[[], Iterable[Tensor]],
    batch: Any,
    x1: Tensor,
    channels: str,
    stream: str,
) -> None:
    """Raises ShapeMismatch where the samples of blocks' outputs, the frames of data (B, T, D) or theirs, are on an axis
    not declared.

    Args:
        run: runs the model on a smaller batch; what it raises there says nothing.
        outputs: the blocks' outputs in the last run.
    """
    frames, other = (1, 2) if channels == "last" else (2, 1)

    def runs(axis: int) -> bool:
        size = x1.shape[axis]
        try:
            return size > 1 and run(picked(batch, axis, size, range(size // 2))) is not None
        except Exception:  # it does not take so many: another axis, or a fixed length
            return False

    def checked(axis: int) -> bool:
        """Whether it takes half along this axis; if so the blocks' outputs have half there, too."""
        if not runs(axis):
            return False
        for h in outputs():
            check_stream(h, x1.narrow(axis, 0, x1.shape[axis] // 2), channels, stream)
        return True

    checked(0)
    if not checked(frames) and runs(other):
        raise ShapeMismatch(
            f"the network takes fewer entries along axis {other} of the data {tuple(x1.shape)}, and not along axis "
            f'{frames}, where channels="{channels}" has the frames. Type fog_a.wrap(..., channels="'
            f'{"first" if channels == "last" else "last"}")'
        )
