"""The statistics of a comparison against scipy and by simulation; the Fréchet distance in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fog_a_adapters.compare.contrasts import contrast, detectable_effect, estimate, holm
from fog_a_adapters.compare.measures import frechet
from fog_a_adapters.dit.demo.distance import MelEmbedding, windows


def test_a_contrast_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7))
    c = contrast(a.tolist(), b.tolist())
    want = stats.ttest_rel(a, b)
    assert c.p == pytest.approx(want.pvalue) and c.difference.mean == pytest.approx((a - b).mean())
    low, high = want.confidence_interval(0.95)
    assert (c.difference.low, c.difference.high) == (pytest.approx(low), pytest.approx(high))
    assert c.seen == (want.pvalue < 0.05)
    assert c.detectable == pytest.approx(detectable_effect(7) * (a - b).std(ddof=1))


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_detectable_difference_is_detected_with_80_percent(n: int) -> None:
    d = np.random.default_rng(n).normal(detectable_effect(n), 1.0, (40_000, n))
    found = (stats.ttest_1samp(d, 0.0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.01)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(1)
    intervals = [estimate(rng.normal(3.0, 2.0, 3).tolist()) for _ in range(4000)]
    assert np.mean([e.low < 3 < e.high for e in intervals]) == pytest.approx(0.95, abs=0.012)


def test_one_seed_shows_nothing() -> None:
    c = contrast([1.0], [2.0])
    assert c.difference.mean == -1 and not c.seen and math.isnan(c.p) and math.isinf(c.detectable)


def test_equal_arms_differ_by_nothing() -> None:
    c = contrast([1.0, 2.0], [1.0, 2.0])
    assert c.p == 1.0 and c.detectable == 0.0 and not c.seen


def test_holm_keeps_order_and_bounds() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    mixed = holm([math.nan, 0.01])
    assert math.isnan(mixed[0]) and mixed[1] >= 0.01


def test_frechet_of_gaussians() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, generator=g, dtype=torch.float64)
    assert frechet(x, x) == pytest.approx(0.0, abs=1e-9)
    y = torch.randn(20_000, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0]) + 1
    assert frechet(x, y) == pytest.approx(3 + 0 + 1 + 4, rel=0.05)  # ‖1‖² + Σ (σ − 1)²


def test_the_embedding_is_the_principal_components_of_windows() -> None:
    mels = [torch.randn(80, 6) * torch.arange(1, 7) for _ in range(12)]
    assert windows(mels[0]).shape == (4, 12) and len(windows(torch.randn(20, 6))) == 0
    torch.testing.assert_close(windows(mels[0])[1, :6], mels[0][16:48].mean(0))
    embed = MelEmbedding.fit(mels, dim=4)
    z = embed(mels)
    cov = torch.cov(z.T)
    torch.testing.assert_close(cov, cov.diag().diag(), rtol=0, atol=1e-4)
    assert torch.all(cov.diag()[:-1] >= cov.diag()[1:])
