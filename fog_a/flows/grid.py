"""The times of a measurement: midpoints of [0, 1], or none."""

from __future__ import annotations

from typing import Any

from fog_a.errors import BadBatch


def midpoints(n: int) -> tuple[float, ...]:
    """(j + ½)/n for j = 0 … n − 1.

    >>> midpoints(2)
    (0.25, 0.75)
    """
    if n < 1:
        raise BadBatch(f"expected at least one time, got times={n}. Give a number of midpoints or a list")
    return tuple((j + 0.5) / n for j in range(n))


def timeless(what: str, times: Any) -> tuple[None]:
    """The grid of what has no time axis; any times are refused."""
    if times is not None:
        raise BadBatch(
            f"{what} has no time axis, so times= means nothing to it. "
            "Wrap it: fog_a.wrap(net, x='x', t='t'), or put t into the batch"
        )
    return (None,)
