"""Similarities against their definitions, and the ridge against numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fog_a.errors import BadBatch, ShapeMismatch
from fog_a.probing.ridge import GRID, fit_ridge
from fog_a.probing.similarity import cknna, cosine, linear_cka, shuffled_cosine, unbiased_hsic


def test_cosine() -> None:
    x, y = torch.randn(7, 3, 5), torch.randn(7, 3, 5)
    torch.testing.assert_close(cosine(x, y), torch.nn.functional.cosine_similarity(x, y, dim=-1))
    assert cosine(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0
    assert cosine(x.bfloat16(), y).dtype == torch.float32


def test_shuffled_cosine_is_the_mean_over_all_others() -> None:
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    for i in range(5):
        others = [float(cosine(x[i], y[j])) for j in range(5) if j != i]
        assert math.isclose(float(shuffled_cosine(x, y)[i]), float(np.mean(others)), abs_tol=1e-6)
    assert shuffled_cosine(x[:1], y[:1]).isnan().all()


def test_unbiased_hsic_is_unbiased() -> None:
    """The mean over all quadruples of different samples, which is its definition as a U-statistic."""
    n = 6
    x, y = torch.randn(n, 2).double(), torch.randn(n, 3).double()
    k, l = x @ x.T, y @ y.T  # noqa: E741
    total = [
        k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q]
        for i, j, q, r in itertools.permutations(range(n), 4)
    ]
    assert math.isclose(unbiased_hsic(k, l), float(torch.stack(total).mean()), rel_tol=1e-9)


def test_cka() -> None:
    x = torch.randn(40, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    assert math.isclose(linear_cka(x, 5 * x @ rotation + 3), 1, abs_tol=1e-5)
    wide = [linear_cka(torch.randn(20, 500), torch.randn(20, 500)) for _ in range(20)]
    assert abs(float(np.mean(wide))) < 0.02  # the biased estimate gives about .96 here
    assert math.isnan(linear_cka(x[:3], x[:3]))
    with pytest.raises(ShapeMismatch, match="of the same samples"):
        linear_cka(x, x[:5])


def test_cknna() -> None:
    x = torch.randn(40, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    assert math.isclose(cknna(x, 5 * x @ rotation), 1, abs_tol=1e-9)
    unit = torch.nn.functional.normalize(x, dim=-1)
    y = torch.nn.functional.normalize(torch.randn(40, 5), dim=-1)
    assert math.isclose(cknna(unit, y, k=39), linear_cka(unit, y), abs_tol=1e-6)  # everybody is a neighbor
    noise = float(np.mean([cknna(torch.randn(40, 20), torch.randn(40, 20), k=5) for _ in range(20)]))
    half = float(np.mean([cknna(a, a + torch.randn(40, 20), k=5) for a in torch.randn(20, 40, 20)]))
    assert -0.1 < noise < 0.2 < half < 0.9
    assert math.isnan(cknna(x[:3], x[:3]))


def test_ridge_against_numpy() -> None:
    z, y = torch.randn(30, 4), torch.randn(30, 2)
    head = fit_ridge(z, y, torch.arange(30), grid=[0.1])
    gram = (z.T @ z).double().numpy()
    penalty = 0.1 * np.diag(gram).mean()
    expected = np.linalg.solve(gram + penalty * np.eye(4), (z.T @ y).double().numpy())
    np.testing.assert_allclose(head.weight.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert head.samples == 30 and head(z).shape == (30, 2)


def test_ridge_cross_validation_by_brute_force() -> None:
    """The penalty of least left-out error, and that error, by fitting each fold anew."""
    torch.manual_seed(3)
    z = torch.randn(24, 6).repeat_interleave(3, 0) + 0.1 * torch.randn(72, 6)
    y = (z @ torch.randn(6, 2) + 3 * torch.randn(24, 2).repeat_interleave(3, 0)).double()
    groups = torch.arange(24).repeat_interleave(3)
    z = z.double()
    unit = float((z.T @ z).diagonal().mean())
    errors = []
    for penalty in GRID:
        error = 0.0
        for fold in range(5):
            out = groups % 5 == fold
            a, b = z[~out], y[~out]
            w = torch.linalg.solve(a.T @ a + penalty * unit * torch.eye(6).double(), a.T @ b)
            error += float((y[out] - z[out] @ w).square().sum())
        errors.append(error)
    head = fit_ridge(z, y, groups)
    assert head.penalty == GRID[int(np.argmin(errors))]
    assert math.isclose(head.explained, 1 - min(errors) / float(y.square().sum()), rel_tol=1e-6)


@pytest.mark.parametrize(("rows", "width", "dim"), [(30, 50, 3), (30, 4, 60), (12, 50, 60)])
def test_ridge_of_few_rows(rows: int, width: int, dim: int) -> None:
    """Fewer rows than columns: solved among the rows, with the same solution."""
    z, y = torch.randn(3 * rows, width), torch.randn(rows, dim).repeat_interleave(3, 0)
    head = fit_ridge(z, y, torch.arange(rows).repeat_interleave(3), grid=[0.01, 1.0])
    gram = (z.T @ z).double()
    unit = gram.diagonal().mean()
    expected = torch.linalg.solve(gram + head.penalty * unit * torch.eye(width).double(), (z.T @ y).double())
    torch.testing.assert_close(head.weight.double(), expected, rtol=1e-4, atol=1e-5)


def test_ridge_of_noise_predicts_nothing() -> None:
    """Copies of one sample do not make it sure of itself."""
    z = torch.randn(20, 50).repeat_interleave(12, 0) + 0.01 * torch.randn(240, 50)
    y = torch.randn(20, 8).repeat_interleave(12, 0)
    head = fit_ridge(z, y, torch.arange(20).repeat_interleave(12))
    assert head.penalty >= 1 and head.explained < 0.1


def test_ridge_needs_samples() -> None:
    with pytest.raises(BadBatch, match="at least 2 samples"):
        fit_ridge(torch.randn(4, 2), torch.randn(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ShapeMismatch, match="of one length"):
        fit_ridge(torch.randn(4, 2), torch.randn(3, 2), torch.arange(4))
