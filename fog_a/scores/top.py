"""The best layers of a ranking, with what the reader should doubt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class RankedLayer(NamedTuple):
    """One layer of a ranking: its name, mean score, and (low, high) interval."""

    layer: str
    mean: float
    interval: tuple[float, float]

    def __repr__(self) -> str:
        low, high = self.interval
        return f"{self.layer} {self.mean:.3g} [{low:.3g}, {high:.3g}]"


class Top(tuple[RankedLayer, ...]):
    """The best layers, best first. `hint` says what the reader should doubt, or is None.

    >>> Top([RankedLayer("blocks.2", 0.31415, (0.25, 0.375)), RankedLayer("blocks.0", 0.2, (0.15, 0.25))])
    1. blocks.2 0.314 [0.25, 0.375]
    2. blocks.0 0.2 [0.15, 0.25]
    """

    hint: str | None

    def __new__(cls, ranked: Iterable[RankedLayer], hint: str | None = None) -> Top:
        self = super().__new__(cls, ranked)
        self.hint = hint
        return self

    def __repr__(self) -> str:
        rows = [f"{rank}. {layer!r}" for rank, layer in enumerate(self, 1)]
        return "\n".join([*rows, *([f"! {self.hint}"] if self.hint else [])])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(r.layer for r in self)
