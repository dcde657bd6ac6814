"""Differences between arms that were run on the same seeds: how large, how sure, and what could have been seen.

Seeds are the independent units: arm a and its reference share weights at the branch, data order and noise, so their
difference d_s is taken seed by seed, and d̄ gets a Student interval with n − 1 degrees of freedom. Beside it stands the
smallest difference that this run could have detected: the Δ at which the two-sided paired t test of level α has the
given power when the differences scatter as they did, i.e. the noncentral t solution of

    P(|T_{n−1}(Δ √n / s_d)| > t_{1−α/2, n−1}) = power.

A difference smaller than that and not significant says nothing about whether there is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; the interval is infinite for one seed."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Contrast:
    """A paired difference: estimate, two-sided p (of a t test), and the smallest difference that could be detected."""

    difference: Estimate
    p: float
    detectable: float

    @property
    def seen(self) -> bool:
        """The interval excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and Student interval.

    >>> estimate([1.0, 2.0, 3.0]).mean
    2.0
    """
    x = np.asarray(values, dtype=float)
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def contrast(values: Sequence[float], reference: Sequence[float], level: float = 0.95, power: float = 0.8) -> Contrast:
    """values − reference, pair by pair."""
    d = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    e, n = estimate(d.tolist(), level), len(d)
    if n < 2:
        return Contrast(e, math.nan, math.inf)
    error = float(d.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Contrast(e, 1.0 if e.mean == 0 else 0.0, 0.0)
    p = float(2 * stats.t.sf(abs(e.mean) / error, n - 1))
    return Contrast(e, p, detectable_effect(n, 1 - level, power) * error * math.sqrt(n))


def detectable_effect(n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The standardised difference Δ/s_d that a paired t test with n pairs detects with this power.

    >>> round(detectable_effect(3), 2), round(detectable_effect(34), 2)
    (3.26, 0.5)
    """
    critical, dof = float(stats.t.ppf(1 - alpha / 2, n - 1)), n - 1
    u = (np.arange(4000) + 0.5) / 4000
    edge = critical * np.sqrt(stats.chi2.ppf(u, dof) / dof)  # |T| > critical where the mean is beyond this many s.e.

    def short(shift: float) -> float:
        return float((stats.norm.sf(edge - shift) + stats.norm.sf(edge + shift)).mean()) - power

    shift: Any = optimize.brentq(short, 0.0, 1e3)
    return float(shift) / math.sqrt(n)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm): the chance of one false claim among them stays below α.

    >>> [round(q, 3) for q in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    adjusted, worst = [math.nan] * len(p), 0.0
    for place, i in enumerate(order):
        if not math.isnan(p[i]):
            worst = max(worst, min(1.0, (len(p) - place) * p[i]))
            adjusted[i] = worst
    return adjusted
