"""The batch axis of a tensor: which of its axes counts the samples, and how many rows each sample has there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""How far a row may be from the same row in another batch, relative to its norm: larger matmuls round otherwise."""


class Axis(NamedTuple):
    """The batch axis of a tensor, and how many of its rows belong to one sample: side by side (batch × heads), or
    `outer`, one in each of `fold` batches laid end to end (guidance)."""

    dim: int
    fold: int
    outer: bool = False

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The rows of samples start..stop."""
        if not self.outer:
            return x.narrow(self.dim, start * self.fold, (stop - start) * self.fold)
        return self._apart(x).narrow(self.dim + 1, start, stop - start).flatten(self.dim, self.dim + 1)

    def split(self, x: Tensor, n: int) -> list[Tensor]:
        """The batches of n samples that x is made of."""
        if not self.outer:
            return list(x.split(n * self.fold, self.dim))
        return [y.flatten(self.dim, self.dim + 1) for y in self._apart(x).split(n, self.dim + 1)]

    def pick(self, x: Tensor, batches: Sequence[int], n: int) -> Tensor:
        """These batches of n samples of x, in order."""
        first, last = batches[0], batches[-1]
        if last - first == len(batches) - 1:
            return self.rows(x, first * n, (last + 1) * n)
        parts = self.split(x, n)
        return self.join([parts[i] for i in batches])

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """Several batches of samples as one."""
        if len(pieces) == 1:
            return pieces[0]
        if not self.outer:
            return torch.cat(list(pieces), self.dim)
        return torch.cat([self._apart(x) for x in pieces], self.dim + 1).flatten(self.dim, self.dim + 1)

    def _apart(self, x: Tensor) -> Tensor:
        return x.unflatten(self.dim, (self.fold, -1))


def axis_of(shape: Sequence[int], other: Sequence[int], n: int, m: int) -> Axis | None:
    """The one axis whose size went from a multiple of n, for n samples, to the same multiple of m, for m samples.

    >>> axis_of((5, 6, 8), (5, 2, 8), 3, 1)
    Axis(dim=1, fold=2, outer=False)
    """
    if len(shape) != len(other):
        return None
    changed = [d for d, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    if len(changed) != 1:
        return None
    fold, rest = divmod(shape[changed[0]], n)
    return Axis(changed[0], fold) if rest == 0 and fold * m == other[changed[0]] else None


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of matmuls of another size."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    limit: Any = TOLERANCE.get(a.dtype, 1e-4)
    a, b = a.double(), b.double()
    return bool((a - b).norm() <= limit * b.norm() + 1e-12)
