"""The linear head that tells a teacher's features from descriptors best, in closed form.

    W = argmin ‖Y − Z W‖² + λ ‖W‖² = (ZᵀZ + λ I)⁻¹ ZᵀY

without a bias, as BiT-C's heads are. λ is the one of a fixed grid, relative to the mean of ZᵀZ's eigenvalues, with the
least squared error in a cross-validation that leaves out whole samples: layers and times of one sample are copies of
each other, so generalized cross-validation over rows, which takes them for independent, would choose λ far too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fog_a.errors import BadBatch, ShapeMismatch

GRID = tuple(10.0 ** (e / 2) for e in range(-10, 7))
"""Penalties tried, in units of the mean eigenvalue of ZᵀZ."""

FOLDS = 5


@dataclass(frozen=True)
class Ridge:
    """A fitted head.

    Attributes:
        weight: W, so that `z @ weight` speaks the teacher's language.
        penalty: the λ chosen, in units of the mean eigenvalue.
        samples: how many different samples it was fitted on.
        explained: 1 − (cross-validated squared error) / ‖Y‖²: how much of Y it predicts for samples it has not seen.
    """

    weight: Float[Tensor, "D E"]
    penalty: float
    samples: int
    explained: float

    def __call__(self, z: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        return z.to(self.weight) @ self.weight


def fit_copies(
    z: Float[Tensor, "n c D"], y: Float[Tensor, "n E"], clip: Int[Tensor, "n"], *, center: bool = False
) -> Ridge:
    """Fits the head on c descriptors of each sample, such as its layers and times; `center`: about their means."""
    copies = z.shape[1]
    rows, targets = z.flatten(0, 1), y.repeat_interleave(copies, 0)
    if center:
        rows, targets = rows - rows.mean(0), targets - targets.mean(0)
    return fit_ridge(rows, targets, clip.repeat_interleave(copies))


def fit_ridge(
    z: Float[Tensor, "n D"], y: Float[Tensor, "_ E"], groups: Int[Tensor, "_"], grid: Sequence[float] = GRID
) -> Ridge:
    """Fits the head on rows (z, y); rows of one group (sample) are left out together when λ is chosen.

    Raises BadBatch below two groups, ShapeMismatch where z, y and groups differ in length.

    >>> z, w = torch.randn(64, 5), torch.randn(5, 3)
    >>> head = fit_ridge(z, z @ w, torch.arange(64))
    >>> bool(torch.allclose(head.weight, w, atol=1e-2))
    True
    """
    if not len(z) == len(y) == len(groups):
        raise ShapeMismatch(f"expected z, y and groups of one length, got {len(z)}, {len(y)}, {len(groups)}")
    names, index = groups.unique(return_inverse=True)
    count = len(names)
    if count < 2:
        raise BadBatch(f"a ridge head needs at least 2 samples to fit and to choose its penalty, got {count}")
    folds = min(FOLDS, count)
    first = torch.from_numpy(np.unique(groups.numpy(), return_index=True)[1])
    into, out = (
        _axes(z),
        _axes(y[first]) if torch.equal(y, y[first][index]) else torch.eye(y.shape[1], dtype=torch.double, device="cpu"),
    )
    width = z.shape[1]
    z, y = z.double() @ into, y.double() @ out  # exact: what is left out is not there
    parts = [(z[index % folds == f], y[index % folds == f]) for f in range(folds)]
    squares = [a.T @ a for a, _ in parts]  # D × D of each fold: all that cross-validation needs
    crosses = [a.T @ b for a, b in parts]
    whole, cross = torch.stack(squares).sum(0), torch.stack(crosses).sum(0)
    unit = float(whole.trace().clamp(min=1e-30)) / width
    error = torch.zeros(len(grid), dtype=torch.double, device="cpu")
    for square, c in zip(squares, crosses, strict=True):
        values, vectors = torch.linalg.eigh(whole - square)
        rotated = vectors.T @ (cross - c)  # the other folds' solution is V (Λ + λ)⁻¹ of this
        predicted, observed = vectors.T @ square @ vectors, vectors.T @ c
        for i, penalty in enumerate(grid):
            w = rotated / (values.clamp(min=0) + penalty * unit)[:, None]
            error[i] += (w * (predicted @ w)).sum() - 2 * (w * observed).sum()  # ‖y − z w‖² − ‖y‖²
    best = int(error.argmin())
    values, vectors = torch.linalg.eigh(whole)
    weight = vectors @ ((vectors.T @ cross) / (values.clamp(min=0) + grid[best] * unit)[:, None])
    explained = -float(error[best] / y.square().sum().clamp(min=1e-30))
    return Ridge((into @ weight @ out.T).float(), grid[best], count, explained)


def _axes(x: Float[Tensor, "n D"]) -> Float[Tensor, "D r"]:
    """Orthonormal axes that hold every row of x: n of them where rows are fewer than columns, else all D."""
    n, width = x.shape
    return torch.linalg.qr(x.double().T).Q if n < width else torch.eye(width, dtype=torch.double, device="cpu")
