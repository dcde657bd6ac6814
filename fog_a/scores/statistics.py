"""Error bars for means over samples, how sure a top-k set is, and how alike two rankings are.

**Intervals** are bootstrap-t (studentized; Efron 1979, Hall 1992). For a mean m with standard error e,

    t* = (m* − m) / e*,     interval = [m − q_hi(t*)·e,  m − q_lo(t*)·e],

with the quantiles of t* over resamples of whole samples: all layers share the same resamples (paired), and strata
(domains) are resampled each within itself. Bootstrap-t follows skewed scores and falls short on heavy tails (.92 for
Student's t₃); Student's t does the reverse (.85 for log-normal(1), 16 samples). So each limit is the wider of both,
and 1 + 2/n times as far from m: a nominal .95 then covers .93 or more (`benchmarks/intervals.py`).

Arrays are numpy, x is (n, L): samples × layers, NaN where nothing was measured (never averaged in).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fog_a.errors import BadArgument, is_real

FEW = 16
"""Below this many samples no interval here can promise its level on skewed data."""

STUDENT = 8
"""Below this many samples the bootstrap has too few distinct resamples: Student's t is used instead."""

Array = np.ndarray


def finite_mean(x: Float[Array, "n *axes"]) -> Float[Array, "*axes"]:
    """Mean over the finite rows of each column, NaN where there is none."""
    good = np.isfinite(x)
    count = good.sum(0)
    return np.where(count > 0, np.where(good, x, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def bootstrap_interval(
    x: Float[Array, "n L"],
    level: float = 0.95,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Float[Array, "L 2"]:
    """Two-sided intervals for the mean of each column, paired across columns: see the head of this module.

    Args:
        x: one row per sample; entries that are not finite are left out of their column.
        level: the promised coverage, in (0, 1). It is held from about 16 samples on (`FEW`).
        groups: one label per row; resampling stays within a label (stratified).
        resamples: number of bootstrap resamples.
        seed: of the resamples; the same seed gives the same interval, bit for bit.

    Returns: lower and upper limits; NaN for a column with fewer than two values, [m, m] for a constant one.

    Raises: BadArgument for a level outside (0, 1).

    Example:
        >>> x = np.random.default_rng(0).exponential(size=(32, 1))
        >>> lo, hi = bootstrap_interval(x)[0]
        >>> bool(lo < 1 < hi)
        True
    """
    from scipy.special import stdtrit

    check_share("level", level)
    x = np.asarray(x, dtype=np.float64)
    m, count, parts = finite_mean(x), np.isfinite(x).sum(0), _strata(len(x), groups)
    d = x - m  # centered: sums of squares keep their digits
    e = _moments(d, parts, [np.ones((1, len(p))) for p in parts]).error[0]
    tail = (1 - level) / 2
    reach = np.tile(stdtrit(np.maximum(count - len(parts), 1), 1 - tail), (2, 1))  # in standard errors, down and up
    if len(x) >= STUDENT:
        star = _moments(d, parts, _resample(parts, resamples, seed))
        # A resample of one value repeated has no spread of its own: it borrows the sample's.
        spread = np.where(star.error > 1e-9 * e, star.error, np.where(e > 0, e, 1.0))
        low, high = np.quantile(star.mean / spread, [tail, 1 - tail], axis=0)
        reach = np.maximum(reach, [high, -low]) * (1 + 2 / len(x))
    interval = np.stack([m - reach[0] * e, m + reach[1] * e], axis=-1)
    interval[count < 2] = np.nan
    return interval


def bootstrap_means(
    x: Float[Array, "n L"], *, groups: Sequence[str] | None = None, resamples: int = 2000, seed: int = 0
) -> Float[Array, "R L"]:
    """The mean of each column in each bootstrap resample; NaN where it drew no finite value."""
    parts = _strata(len(x), groups)
    star = _moments(np.asarray(x, dtype=np.float64), parts, _resample(parts, resamples, seed))
    return np.where(star.number > 0, star.mean, np.nan)


def bootstrap_top(
    x: Float[Array, "n L"],
    k: int,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Bool[Array, "R L"]:
    """Which layers are in the top-k set of each bootstrap resample."""
    mean = bootstrap_means(x, groups=groups, resamples=resamples, seed=seed)
    inside = np.zeros(mean.shape, dtype=bool)
    np.put_along_axis(inside, top(mean, k), True, axis=1)
    return inside


class _Moments(NamedTuple):
    mean: Float[Array, "R L"]
    error: Float[Array, "R L"]
    number: Float[Array, "R L"]


def _moments(x: Float[Array, "n L"], parts: list[Array], weights: Iterable[Array]) -> _Moments:
    """Mean, standard error (with the variance within strata) and number of the weighted finite rows."""
    good = np.isfinite(x)
    x, good = np.where(good, x, 0.0), good.astype(np.float64)
    total = count = scatter = np.zeros((1, x.shape[1]))
    for rows, w in zip(parts, weights, strict=True):
        n, s1, s2 = w @ good[rows], w @ x[rows], w @ x[rows] ** 2
        safe = np.maximum(n, 1.0)
        within = np.maximum(s2 / safe - (s1 / safe) ** 2, 0.0) * safe / np.maximum(safe - 1.0, 1.0)
        total, count, scatter = total + s1, count + n, scatter + n * within
    safe = np.maximum(count, 1.0)
    return _Moments(total / safe, np.sqrt(scatter) / safe, count)


def _strata(n: int, groups: Sequence[str] | None) -> list[Int[Array, " m"]]:
    """Row numbers of each group. Groups of one sample are pooled: alone they show no spread."""
    labels = np.zeros(n) if groups is None else np.asarray(groups)
    parts = [np.flatnonzero(labels == g) for g in dict.fromkeys(labels.tolist())]
    single, several = [p for p in parts if len(p) == 1], [p for p in parts if len(p) > 1]
    if len(single) == 1 and several:
        several[-1] = np.sort(np.concatenate([several[-1], *single]))
    elif single:
        several.append(np.concatenate(single))
    return several


def _resample(parts: list[Array], resamples: int, seed: int) -> Iterator[Float[Array, "R m"]]:
    """For each stratum, how often each of its samples is drawn in each resample."""
    try:
        rng = np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise BadArgument(f"seed = {seed!r}: expected a whole number ≥ 0, e.g. seed=0") from None
    for m in map(len, parts):
        draws = rng.integers(m, size=(resamples, m)) + np.arange(resamples)[:, None] * m
        yield np.bincount(draws.ravel(), minlength=resamples * m).reshape(resamples, m).astype(np.float64)


def check_share(name: str, value: float) -> None:
    """Raises BadArgument for a number that is not between 0 and 1."""
    if not is_real(value) or not 0 < value < 1:
        raise BadArgument(f"{name} = {value!r}: expected a number between 0 and 1, e.g. 0.95")


def top(mean: Float[Array, "... L"], k: int) -> Int[Array, "... k"]:
    """Indices of the k largest, largest first; equal ones: the lower index wins; NaN comes last."""
    return np.argsort(-np.where(np.isfinite(mean), mean, -np.inf), axis=-1, kind="stable")[..., :k]


def ranks(means: Float[Array, "N L"]) -> Int[Array, "N L"]:
    """The rank of each layer in each row, from 1."""
    return np.argsort(top(means, means.shape[1]), axis=1) + 1


class Agreement(NamedTuple):
    """How alike two rankings of the same layers are.

    Attributes:
        overlap: share of the top-k that both have, in [0, 1].
        kendall: Kendall's τ-b over all layers, in [−1, 1]; NaN if one ranking is constant.
        spearman: Spearman's ρ over all layers, in [−1, 1]; NaN if one ranking is constant.
    """

    overlap: float
    kendall: float
    spearman: float


def agreement(a: Float[Array, " L"], b: Float[Array, " L"], k: int) -> Agreement:
    """Compare two rankings by their scores. Layers that are NaN in either are left out of τ and ρ.

    Example:
        >>> same = agreement(np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 1.0, 2.0, 0.0]), k=2)
        >>> same.overlap, round(same.kendall, 3), round(same.spearman, 3)
        (0.5, 0.667, 0.8)
    """
    from scipy.stats import spearmanr

    overlap = len(set(top(a, k).tolist()) & set(top(b, k).tolist())) / k
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Agreement(overlap, float("nan"), float("nan"))
    rho: Any = spearmanr(a, b)
    return Agreement(overlap, float(kendall(a[None], b[None])[0]), float(rho.statistic))


def kendall(a: Float[Array, "R L"], b: Float[Array, "R L"]) -> Float[Array, " R"]:
    """Kendall's τ-b of each row of a with that of b; 0 where one of them is constant.

    >>> kendall(np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), np.array([[1.0, 3.0, 2.0]] * 2)).round(3)
    array([0.333, 0.   ])
    """
    one, other = np.triu_indices(a.shape[1], 1)
    x, y = (np.sign(means[:, one] - means[:, other]) for means in (a, b))
    return (x * y).sum(1) / np.sqrt(np.maximum((x != 0).sum(1) * (y != 0).sum(1), 1))
