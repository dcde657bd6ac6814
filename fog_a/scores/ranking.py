"""A Ranking: the layers of one domain, how large their scores are, in which order, and how sure that is.

The independent draws are groups of samples: a clip, of which a batch may hold several crops or which a loader gives
again. A group's samples are averaged first, so that a clip counts once however often it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from fog_a.errors import BadArgument, ShapeMismatch, is_whole
from fog_a.scores import statistics
from fog_a.scores.statistics import FEW, Agreement, Array
from fog_a.scores.top import RankedLayer, Top

SIGNED = ("storage", "loss", "metric", "interaction")
"""Kinds of scores that may be negative."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """The layers of one domain of Scores, from `Scores.ranking(domain)`.

    Attributes:
        domain: the domain; "all" for all samples together.
        kind, layers, times, info: as in Scores.
        values: (n, J, L) float64: a mean over its samples for each group; NaN where there is no finite value.
        samples: how many samples the groups hold.
        groups: domain and name of each group; they are resampled within their domain.
    """

    domain: str
    kind: str
    layers: tuple[str, ...]
    times: tuple[float, ...] | None
    values: Float[Array, "n J L"]
    samples: int
    info: Mapping[str, Any]
    groups: tuple[tuple[str, str], ...]

    @property
    def n(self) -> int:
        """How many independent groups there are."""
        return len(self.values)

    @property
    def strata(self) -> list[str]:
        """The domain of each group: groups are resampled within their domain."""
        return [domain for domain, _ in self.groups]

    @cached_property
    def per_group(self) -> Float[Array, "n L"]:
        """Each group's score per layer: the mean over its finite times."""
        return statistics.finite_mean(self.values.swapaxes(0, 1))

    @cached_property
    def mean(self) -> Float[Array, " L"]:
        """Mean score per layer over times, then groups: Eq. 9's expectation. NaN for a layer without a value."""
        return statistics.finite_mean(self.per_group)

    @cached_property
    def curve(self) -> Float[Array, "J L"]:
        """Mean over groups at each time."""
        return statistics.finite_mean(self.values)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Places of the layers with a finite mean, best first; equal ones: the earlier layer first."""
        return tuple(int(i) for i in statistics.top(self.mean, len(self.mean)) if np.isfinite(self.mean[i]))

    @property
    def timed(self) -> bool:
        """Whether there is more than one time."""
        return self.times is not None and len(self.times) > 1

    def interval(self, level: float = 0.95, *, resamples: int = 2000, seed: int = 0) -> Float[Array, "L 2"]:
        """Interval of `mean` per layer: whole groups are resampled within their domain, the same for all layers."""
        return self._interval(self.per_group, level, resamples, seed)

    def curve_interval(self, level: float = 0.95, *, seed: int = 0) -> Float[Array, "J L 2"]:
        """Interval of `curve` at each time and layer, from the same resamples throughout."""
        return self._interval(self.values.reshape(self.n, -1), level, 2000, seed).reshape(*self.curve.shape, 2)

    def _interval(self, x: Float[Array, "n N"], level: float, resamples: int, seed: int) -> Float[Array, "N 2"]:
        """Without the part that no mean of these scores can reach: a relative change is not below 0."""
        interval = statistics.bootstrap_interval(x, level, groups=self.strata, resamples=resamples, seed=seed)
        return interval if self.kind in SIGNED else np.maximum(interval, 0.0)

    def top(self, k: int = 3, *, level: float = 0.95) -> Top:
        """The k best layers. `.hint` speaks up where ranks k and k + 1 overlap, and where an interval is in doubt."""
        k, interval = self.check_k(k), self.interval(level)
        best = [
            RankedLayer(self.layers[i], float(self.mean[i]), (float(interval[i, 0]), float(interval[i, 1])))
            for i in self.order
        ]
        hints = []
        if k < len(best) and best[k - 1].interval[0] <= best[k].interval[1]:
            hints.append(
                f"{best[k - 1].layer} (rank {k}) and {best[k].layer} (rank {k + 1}) have overlapping {level:.0%} "
                f"intervals: this top {k} is the top {k} in {self.certainty(k):.0%} of resamples"
            )
        return Top(best[:k], "; ".join([*hints, *self.doubts]) or None)

    def certainty(self, k: int = 3, *, resamples: int = 2000, seed: int = 0) -> float:
        """How sure the top-k set is: the share of resamples that have exactly this set on top."""
        chosen = np.zeros(len(self.layers), dtype=bool)
        chosen[statistics.top(self.mean, self.check_k(k))] = True
        return float((self._tops(k, resamples, seed) == chosen).all(1).mean())

    def inclusion(self, k: int = 3, *, resamples: int = 2000, seed: int = 0) -> Float[Array, " L"]:
        """For each layer, the share of resamples that have it among their top k. Sums to k."""
        return self._tops(self.check_k(k), resamples, seed).mean(0)

    def _tops(self, k: int, resamples: int, seed: int) -> Array:
        return statistics.bootstrap_top(self.per_group, k, groups=self.strata, resamples=resamples, seed=seed)

    def agreement(self, other: Ranking, k: int = 3) -> Agreement:
        """How alike two rankings of the same layers are: overlap of the top k, Kendall's τ, Spearman's ρ."""
        check_layers(self.layers, other.layers)
        return statistics.agreement(self.mean, other.mean, self.check_k(k))

    def metrics(self, k: int = 3) -> dict[str, float]:
        """Scalars for a logger: each layer's mean, and how sure the top k is."""
        prefix = self.kind if self.domain == "all" else f"{self.kind}/{self.domain}"
        means = {f"{prefix}/{self.layers[i]}": float(self.mean[i]) for i in sorted(self.order)}
        k = min(k, len(self.layers))
        return {**means, f"{prefix}/top{k}_certainty": self.certainty(k)}

    def check_k(self, k: int) -> int:
        """k as an int. Raises ShapeMismatch where there is no such top."""
        if not is_whole(k):
            raise BadArgument(f"k = {k!r}: expected a whole number of layers, e.g. k=3")
        if not 1 <= k <= len(self.layers):
            raise ShapeMismatch(f"k = {k}: expected 1 ≤ k ≤ {len(self.layers)}, the number of layers")
        return int(k)

    # What the reader should know

    @property
    def size(self) -> str:
        """`20 samples`, `20 samples of 5 groups`."""
        return count(self.samples, "sample") + (f" of {count(self.n, 'group')}" if self.n < self.samples else "")

    @property
    def missing(self) -> int:
        """How many values are NaN."""
        return int(np.isnan(self.values).sum())

    @property
    def _lost(self) -> str:
        names = ", ".join(np.asarray(self.layers)[np.isnan(self.values).any((0, 1))][:4])
        return f"{self.missing} of {self.values.size} values are missing (not finite, or not measured): {names}"

    @property
    def _partly_lost(self) -> bool:
        """Whether a layer has some of its values, and that not because a probe measures some layers at a time."""
        lost = np.isnan(self.values)
        return bool((lost.any((0, 1)) & ~lost.all((0, 1))).any()) and not self.info.get("unmeasured")

    @property
    def doubts(self) -> list[str]:
        """Why an interval may miss its level: few independent samples, values that are missing."""
        words = []
        if self.n < FEW:
            noun = "sample" if self.n == self.samples else "independent group"
            words.append(f"{count(self.n, noun)}: intervals cannot promise their level below {FEW}; measure more")
        if self._partly_lost:
            words.append(f"{self._lost}. If they were too large to measure, these means are too low")
        return words

    @property
    def notes(self) -> list[str]:
        """What the reader should doubt, what is missing, and the measurement's own notes."""
        lost = [self._lost] if self.missing and not self._partly_lost else []
        return [*self.doubts, *lost, *(str(n) for key in ("notes", "warnings") for n in self.info.get(key) or ())]

    @property
    def noise_floor(self) -> float | None:
        """What the same arithmetic gives where nothing is ablated (the largest, where a list was kept), or None."""
        floor = self.info.get("noise_floor")
        values = np.atleast_1d(np.array(floor, dtype=np.float64))
        return float(np.nanmax(values)) if np.isfinite(values).any() else None

    @property
    def borders(self) -> list[int]:
        """Layers at which another stack begins (an encoder and a decoder, double and single blocks)."""
        stacks = self.info.get("stacks") or ()
        fits = len(stacks) == len(self.layers)
        return [i for i in range(1, len(stacks)) if stacks[i] != stacks[i - 1]] if fits else []


class Ranked:
    """What has rankings: the base of Scores. Text, pictures, pages and selection ask for no more."""

    kind: str
    layers: tuple[str, ...]
    times: tuple[float, ...] | None
    domains: tuple[str, ...]
    info: Mapping[str, Any]

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The different domains, in order of first appearance."""
        return tuple(dict.fromkeys(self.domains))

    def ranking(self, domain: str | None = None) -> Ranking:
        """The layers of one domain, or of all samples: their means, order, intervals, and how sure that is."""
        raise NotImplementedError


def check_scores(scores: Any) -> Any:
    """The same Scores. Raises BadArgument for what are none."""
    if not hasattr(scores, "ranking"):
        raise BadArgument(
            f"expected Scores, got a {type(scores).__name__}. Type attribute(model, batch), or Scores.load(path)"
        )
    return scores


def rankings(scores: Ranked, domain: str | None = None) -> list[Ranking]:
    """The ranking of each domain, or of the only one asked for. Raises BadArgument for what are no Scores."""
    check_scores(scores)
    return [scores.ranking(d) for d in (scores.domain_names if domain is None else (domain,))]


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


def count(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
