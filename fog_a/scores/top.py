"""The best layers of a ranking, with what the reader should doubt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class RankedLayer(NamedTuple):
    """One layer of a ranking: its name, mean score, and (low, high) interval."""

    layer: str
    mean: float
    interval: tuple[float, float]


class Top(tuple[RankedLayer, ...]):
    """The best layers, best first. `hint` says what the reader should doubt, or is None."""

    hint: str | None

    def __new__(cls, ranked: Iterable[RankedLayer], hint: str | None = None) -> Top:
        self = super().__new__(cls, ranked)
        self.hint = hint
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(r.layer for r in self)
