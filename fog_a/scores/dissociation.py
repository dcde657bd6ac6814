"""Do the layers that store differ from the layers that contribute, beyond what another set of clips would change?

    depth   place of storage's best layer − place of contribution's, in layers; above 0: storage peaks deeper
    order   1 − τ between the two rankings of the layers: 0 equal, 1 unrelated, 2 reversed
    floor   1 − τ between two resamples of the same scores: what the clips alone do to each ranking
    beyond  order − the mean of both floors: 0 where one ranking is behind both

Clips (whole groups) are resampled, storage's and contribution's each for itself, since a fitted head scores half of
the samples only. Intervals are quantiles of the resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fog_a.scores import statistics
from fog_a.scores.ranking import Ranking, check_layers
from fog_a.scores.statistics import Array


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """The number and its interval, signed."""
        value, low, high = (f"{x:+.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]".replace("-", "−")


@dataclass(frozen=True)
class Dissociation:
    """How far apart storage and contribution are in one domain: see the head of this module.

    Attributes:
        domain: its name.
        depth, beyond: with intervals. order. floors: of storage and of contribution.
    """

    domain: str
    depth: Interval
    order: float
    beyond: Interval
    floors: tuple[float, float]

    def __str__(self) -> str:
        name = "" if self.domain == "all" else f"{self.domain}: "
        floors = ", ".join(f"{floor:.2f}" for floor in self.floors)
        return (
            f"{name}storage peaks {self.depth.text(0)} layers deeper; orders 1 − τ = {self.order:.2f} apart, clips "
            f"alone {floors}, beyond that {self.beyond.text(2)}"
        )


def dissociation(
    storage: Ranking, contribution: Ranking, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Dissociation | None:
    """The test for one domain; None where there are fewer than two clips or layers, or a layer has no value.

    Raises: ShapeMismatch for other layers; BadArgument for a level outside (0, 1).

    Example:
        >>> from fog_a.scores.scores import Scores
        >>> values = np.random.default_rng(0).gamma(9, size=(20, 1, 6)) * np.arange(1, 7)
        >>> layers = tuple("abcdef")
        >>> stored, contributed = Scores(values, layers, kind="storage"), Scores(values[..., ::-1], layers)
        >>> dissociation(stored.ranking(), contributed.ranking()).depth.value
        5.0
    """
    check_layers(storage.layers, contribution.layers)
    statistics.check_share("level", level)
    pair = (storage, contribution)
    if min(storage.n, contribution.n, len(storage.layers)) < 2 or not all(np.isfinite(r.mean).all() for r in pair):
        return None
    stored, contributed = (_resampled(r, resamples, seed + i) for i, r in enumerate(pair))
    apart = 1 - statistics.kendall(stored[0], contributed[0])
    floors = [1 - statistics.kendall(*both) for both in (stored, contributed)]
    tails = [(1 - level) / 2, (1 + level) / 2]

    def interval(value: float, spread: Array) -> Interval:
        return Interval(value, *(float(q) for q in np.quantile(spread, tails)))

    measured = (storage.mean[None], contribution.mean[None])
    beyond = apart - (floors[0] + floors[1]) / 2
    depth = stored[0].argmax(1) - contributed[0].argmax(1)
    return Dissociation(
        domain=storage.domain,
        depth=interval(float(measured[0].argmax() - measured[1].argmax()), depth),
        order=float(1 - statistics.kendall(*measured)[0]),
        beyond=interval(float(beyond.mean()), beyond),
        floors=(float(floors[0].mean()), float(floors[1].mean())),
    )


def _resampled(ranking: Ranking, resamples: int, seed: int) -> Float[Array, "2 R L"]:
    """The layers' means over two independent resamples of the clips, R times."""
    means = statistics.bootstrap_means(ranking.per_group, groups=ranking.strata, resamples=2 * resamples, seed=seed)
    return means.reshape(2, resamples, -1)
