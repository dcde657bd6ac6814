"""Rankings of layers: the best of them, with what the reader should doubt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fog_a.errors import ShapeMismatch
from fog_a.scores import statistics
from fog_a.scores.statistics import Array


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


def ranked(layers: Sequence[str], mean: Float[Array, " L"], interval: Float[Array, "L 2"]) -> list[RankedLayer]:
    """All layers with a finite mean, best first; equal ones: the earlier layer first."""
    order = [int(i) for i in statistics.top(mean, len(mean)) if np.isfinite(mean[i])]
    return [RankedLayer(layers[i], float(mean[i]), (float(interval[i, 0]), float(interval[i, 1]))) for i in order]


def overlapping(best: Sequence[RankedLayer], k: int, level: float) -> str | None:
    """Says so where the k-th and the (k+1)-th interval overlap."""
    if k >= len(best) or best[k - 1].interval[0] > best[k].interval[1]:
        return None
    return f"{best[k - 1].layer} (rank {k}) and {best[k].layer} (rank {k + 1}) have overlapping {level:.0%} intervals"


def check_layers(a: Sequence[str], b: Sequence[str]) -> None:
    """Raises ShapeMismatch where two measurements are not of the same layers in the same order."""
    if tuple(a) == tuple(b):
        return
    odd = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    name = [x[odd] if odd < len(x) else "nothing" for x in (a, b)]
    raise ShapeMismatch(
        f"the layers differ: {len(a)} and {len(b)} of them, first at place {odd}: {name[0]} and {name[1]}. "
        "Both must be measured on the same blocks: pass blocks= to attribute"
    )
