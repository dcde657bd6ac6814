"""Intervals hold their level, rankings are compared rightly, and looking often does not buy a false claim."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from fog_a.errors import FogError
from fog_a.scores.settling import settled
from fog_a.scores.statistics import agreement, bootstrap_interval, bootstrap_top, finite_mean, top

ROOT = Path(__file__).resolve().parents[1]
simulated: Any = runpy.run_path(str(ROOT / "benchmarks" / "intervals.py"))
LAWS, TIES = simulated["LAWS"], simulated["TIES"]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [16, 32, 128])
def test_nominal_95_covers(law: str, n: int) -> None:
    assert 0.92 <= simulated["coverage"](law, n, 1000) <= 0.99


@pytest.mark.parametrize("law", LAWS)
def test_crops_of_a_clip_cover_too(law: str) -> None:
    """Eight crops of 16 clips, half of the variance in common: one clip counts once."""
    assert 0.92 <= simulated["coverage"](law, 16, 1000, crops=8) <= 0.99


@pytest.mark.soak
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [16, 32, 128])
def test_coverage_deep(law: str, n: int) -> None:
    assert simulated["coverage"](law, n, 1_000) >= 0.93
    assert simulated["coverage"](law, n, 1_000, crops=8) >= 0.93


@pytest.mark.parametrize("law", ["normal", "exponential", "log-normal(½)"])
def test_stratified_covers_too(law: str) -> None:
    draw, mean = LAWS[law]
    groups = ["a"] * 20 + ["b"] * 12
    shift = np.asarray([3.0 * (g == "b") for g in groups])
    rng, hits = np.random.default_rng(32), []
    for seed in range(10):
        low, high = bootstrap_interval(draw(rng, (32, 100)) + shift[:, None], groups=groups, seed=seed).T
        hits.append((low <= mean + shift.mean()) & (mean + shift.mean() <= high))
    assert 0.92 <= np.mean(hits) <= 0.99


def test_percentile_bootstrap_would_not() -> None:
    """The reason for studentizing: on the same skewed data the usual interval falls short of 92 %."""
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(32, 2000))
    weights = rng.multinomial(32, np.full(32, 1 / 32), size=1000) / 32
    low, high = np.quantile(weights @ x, [0.025, 0.975], axis=0)
    assert np.mean((low <= 1) & (high >= 1)) < 0.925


def test_strata_take_the_difference_between_domains_out() -> None:
    x = np.random.default_rng(0).normal(size=(40, 1)) + np.repeat([0.0, 10.0], 20)[:, None]
    plain = np.diff(bootstrap_interval(x))[0]
    within = np.diff(bootstrap_interval(x, groups=["a"] * 20 + ["b"] * 20))[0]
    assert within < plain / 3


def test_same_seed_same_bits_and_layers_are_paired() -> None:
    x = np.random.default_rng(0).exponential(size=(50, 3))
    assert np.array_equal(bootstrap_interval(x, seed=1), bootstrap_interval(x, seed=1))
    assert not np.array_equal(bootstrap_interval(x, seed=1), bootstrap_interval(x, seed=2))
    twin = bootstrap_interval(np.stack([x[:, 0], x[:, 0]], 1))
    assert np.array_equal(twin[0], twin[1])  # the same resamples for both columns


def test_shift_and_scale_carry_over() -> None:
    x = np.random.default_rng(0).lognormal(size=(40, 2))
    base = bootstrap_interval(x)
    assert np.allclose(bootstrap_interval(1e-4 * x), 1e-4 * base)
    assert np.allclose(bootstrap_interval(x + 1e3), base + 1e3, rtol=1e-9)


def test_nan_is_left_out_of_its_column_alone() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    holed = x.copy()
    holed[5, 1] = np.nan
    interval = bootstrap_interval(holed)
    assert np.allclose(interval[0], bootstrap_interval(x)[0])
    assert interval[1, 0] < finite_mean(holed)[1] < interval[1, 1]
    assert np.isclose(finite_mean(holed)[1], np.delete(x[:, 1], 5).mean())


@pytest.mark.parametrize("n", [2, 3, 5, 7, 8, 12])
def test_few_samples_give_finite_wide_intervals(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, 4))
    interval = bootstrap_interval(x)
    assert np.isfinite(interval).all() and (interval[:, 0] < x.mean(0)).all() and (x.mean(0) < interval[:, 1]).all()


def test_degenerate_columns() -> None:
    constant = np.full((20, 1), 0.7)
    assert np.allclose(bootstrap_interval(constant), 0.7)
    assert np.isnan(bootstrap_interval(np.ones((1, 1)))).all()
    assert np.isnan(bootstrap_interval(np.full((20, 1), np.nan))).all()
    rare = np.zeros((40, 1))
    rare[0] = 1.0  # most resamples of one stratum have no spread at all
    assert np.isfinite(bootstrap_interval(rare)).all()


@pytest.mark.parametrize("groups", [["a", "b"] * 10, ["a"] * 19 + ["b"], [str(i) for i in range(20)]])
def test_groups_of_one_are_pooled(groups: list[str]) -> None:
    interval = bootstrap_interval(np.random.default_rng(0).normal(size=(20, 1)), groups=groups)
    assert np.isfinite(interval).all() and np.diff(interval) > 0.3


@pytest.mark.parametrize("level", [0.0, 1.0, 95, "sure"])
def test_bad_level(level: Any) -> None:
    with pytest.raises(FogError, match=r"expected a number between 0 and 1, e.g. 0.95"):
        bootstrap_interval(np.zeros((20, 1)), level)


def test_seeds() -> None:
    x = np.random.default_rng(0).normal(size=(20, 1))
    for seed in (2**70, np.int64(1)):
        assert np.isfinite(bootstrap_interval(x, seed=seed)).all()  # pyright: ignore[reportArgumentType]
    with pytest.raises(FogError, match=r"seed = -1: expected a whole number ≥ 0"):
        bootstrap_interval(x, seed=-1)


def test_ties_go_to_the_lower_index_and_nan_comes_last() -> None:
    assert top(np.array([1.0, 3.0, 3.0, np.nan, 2.0]), 5).tolist() == [1, 2, 4, 0, 3]


def test_top_sets_of_resamples() -> None:
    rng = np.random.default_rng(0)
    clear = bootstrap_top(rng.normal([3.0, 0.0, 2.0], 0.1, size=(32, 3)), 2)
    assert clear.shape == (2000, 3) and (clear == [True, False, True]).all()
    tied = rng.normal(0.0, 1.0, size=(400, 1)) + np.array([[0.0, 0.0]])
    assert (bootstrap_top(tied, 1) == [True, False]).all()  # equal in every resample: the lower index
    shares = bootstrap_top(rng.normal(size=(400, 4)), 2).mean(0)
    assert np.isclose(shares.sum(), 2)


def test_agreement_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), rng.normal(size=12)
    result = agreement(a, b, 4)
    assert np.isclose(result.kendall, kendalltau(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    assert np.isclose(result.spearman, spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    assert result.overlap == len(set(np.argsort(-a)[:4]) & set(np.argsort(-b)[:4])) / 4
    assert agreement(a, a, 3) == pytest.approx((1.0, 1.0, 1.0))
    assert agreement(a, -a, 3)[1:] == pytest.approx((-1.0, -1.0))
    assert np.isnan(agreement(a, np.ones(12), 3).kendall)


def test_agreement_leaves_nan_out() -> None:
    a, b = np.array([4.0, 3.0, 2.0, np.nan]), np.array([4.0, 3.0, 2.0, 9.0])
    assert agreement(a, b, 2)[1:] == pytest.approx((1.0, 1.0))


# Stopping

EACH = 40
"""Samples of a look."""


def claims(mean: list[float], k: int, sims: int, looks: int, skewed: bool) -> tuple[float, float]:
    """Shares of simulated runs that end with a right and with a wrong claim, each stopping at its first claim."""
    rng = np.random.default_rng(len(mean) + k)
    truth = set(np.argsort(-np.asarray(mean), kind="stable")[:k].tolist())
    tied = sorted(mean)[-k] == sorted(mean)[-k - 1]
    right = wrong = 0
    for _ in range(sims):
        noise = (
            rng.exponential(1.0, (EACH * looks, len(mean)))
            if skewed
            else rng.normal(1.0, 1.0, (EACH * looks, len(mean)))
        )
        x = np.asarray(mean) * noise
        for look in range(1, looks + 1):
            verdict = settled(x[: EACH * look], k, confidence=0.9, look=look, max_looks=looks)
            if verdict:
                right, wrong = (right + 1, wrong) if set(verdict.top) == truth and not tied else (right, wrong + 1)
                break
    return right / sims, wrong / sims


@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "exponential"])
def test_a_tie_is_seldom_settled(skewed: bool) -> None:
    """Second and third layer truly equal, eight looks at 90 %: looking often must not buy a claim."""
    _, wrong = claims([2.0, 1.0, 1.0, 0.2], k=2, sims=400, looks=8, skewed=skewed)
    assert wrong <= 0.10


def test_many_tied_layers_are_seldom_settled() -> None:
    _, wrong = claims([1.0] * 6, k=2, sims=200, looks=8, skewed=True)
    assert wrong <= 0.10


def test_a_near_tie_is_seldom_settled_wrongly_and_a_clear_gap_is_settled() -> None:
    _, wrong = claims([2.0, 1.0, 0.97, 0.2], k=2, sims=300, looks=8, skewed=True)
    assert wrong <= 0.10
    right, wrong = claims([3.0, 2.0, 0.5, 0.2], k=2, sims=200, looks=8, skewed=True)
    assert right > 0.9 and wrong <= 0.02


def test_naive_stopping_would_claim_a_tie() -> None:
    """The same tie, tested at every look as though it were the only one: more than the promised 10 % claims."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        x = rng.normal([2.0, 1.0, 1.0, 0.2], 1.0, size=(1280, 4))
        wrong += any(settled(x[: EACH * look], 2, confidence=0.9) for look in range(1, 33))
    assert wrong / 300 > 0.15


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("looks", [1, 8])
def test_a_false_set_is_seldom_claimed(tie: str, looks: int) -> None:
    """Also where a large value that turns the ranking over hides in one of 50 samples. 120 runs: .05 would give 12."""
    assert simulated["false_claims"](tie, looks, 120) <= 0.1


@pytest.mark.soak
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("looks", [1, 8, 20])
def test_false_claims_deep(tie: str, looks: int) -> None:
    assert simulated["false_claims"](tie, looks, 1000) <= 0.05


def test_verdict_says_why() -> None:
    x = np.random.default_rng(0).normal([3.0, 2.0, 0.0], 0.5, size=(200, 3))
    yes = settled(x, 2, look=2, max_looks=5)
    assert yes and yes.top == (0, 1) and yes.rival == (1, 2) and yes.threshold == pytest.approx(0.005)
    assert "the top 2 holds at 95% confidence after look 2" in yes.reason
    no = settled(x[:182], 2)
    assert not no and "182 complete samples: at least 183 are needed to tell at 95% confidence" in no.reason
    assert "nothing to tell apart" in settled(x, 3).reason
    assert settled(np.repeat([[2.0, 1.0]], 183, 0), 1)  # constant and different
    assert not settled(np.ones((183, 2)), 1)  # constant and equal


def test_dead_layer_is_never_chosen_and_holed_rows_are_left_out() -> None:
    x = np.random.default_rng(0).normal([3.0, 2.0, 0.0], 0.1, size=(200, 3))
    x[:, 0] = np.nan
    x[:10, 1] = np.nan
    verdict = settled(x, 1)
    assert verdict and verdict.top == (1,) and verdict.samples == 190
    assert "10 samples with missing values are left out" in verdict.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"look": 4, "max_looks": 3}, "look 4 of 3: expected 1 ≤ look ≤ max_looks"),
        ({"confidence": 95}, "confidence = 95: expected a number between 0 and 1"),
        ({"k": 4}, "k = 4: expected 1 ≤ k ≤ 3"),
    ],
)
def test_settled_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(FogError, match=message):
        settled(np.zeros((20, 3)), **{"k": 2, **options})  # pyright: ignore[reportArgumentType]
