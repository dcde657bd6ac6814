"""The dissociation test: it finds planted distances, and no distance where only the clips differ."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a.scores.dissociation import dissociation
from fog_a.scores.ranking import Ranking
from fog_a.scores.scores import Scores
from fog_a.scores.statistics import kendall


def scores(means: list[float], kind: str, seed: int, n: int = 24, spread: float = 0.1) -> Ranking:
    """One domain; each clip's score of a layer scatters by `spread` of its mean."""
    m = np.array(means)
    values = m * (1 + spread * np.random.default_rng(seed).standard_normal((n, 2, len(m))))
    return Scores(values, tuple(map(str, range(len(m)))), times=(0.2, 0.8), kind=kind).ranking()


KINDS = ("storage", "contribution")
RISING, PEAKED = [1.0, 2, 3, 4, 5, 6], [1.0, 2, 6, 5, 4, 3]


def test_a_planted_distance_is_found() -> None:
    test = dissociation(scores(RISING, "storage", 0), scores(PEAKED, "contribution", 1))
    assert test is not None
    assert test.depth.value == 3 and test.depth.low > 0
    discordant = [(RISING[i] - RISING[j]) * (PEAKED[i] - PEAKED[j]) < 0 for i, j in itertools.combinations(range(6), 2)]
    assert test.order == pytest.approx(2 * np.mean(discordant))
    assert test.beyond.low > 0 and max(test.floors) < test.order


def test_the_same_ranking_under_other_clips_is_no_distance() -> None:
    """Of 40 pairs with one ranking behind both, nearly all intervals hold 0; nearly equal layers may swap."""
    flat = [1.0, 1.02, 1.04, 1.06, 1.08, 1.1]
    stored, contributed = ([scores(flat, k, 2 * s + i, spread=0.3) for s in range(40)] for i, k in enumerate(KINDS))
    pairs = [dissociation(a, b) for a, b in zip(stored, contributed, strict=True)]
    held = [p is not None and p.beyond.low <= 0 and p.depth.low <= 0 <= p.depth.high for p in pairs]
    assert np.mean(held) >= 0.9
    assert all(p is not None and min(p.floors) > 0.2 for p in pairs)  # the clips alone swap such layers


def test_without_clips_there_is_no_test() -> None:
    one, other = scores(RISING, "storage", 0, n=1), scores(PEAKED, "contribution", 1)
    assert dissociation(one, other) is None
    assert dissociation(scores([1.0], "storage", 0), scores([1.0], "contribution", 1)) is None  # one layer
    with pytest.raises(ShapeMismatch, match="layers"):
        dissociation(scores(RISING[:4], "storage", 0), other)
    with pytest.raises(BadArgument, match="level = 2: expected a number between 0 and 1"):
        dissociation(scores(RISING, "storage", 0), other, level=2)


def test_kendall_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).random((2, 5, 7))
    for x, y in ((a, b), (a.round(1), b.round(1))):  # without and with equal scores
        np.testing.assert_allclose(kendall(x, y), [scipy.kendalltau(*rows)[0] for rows in zip(x, y, strict=True)])
