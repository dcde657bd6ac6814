"""Scores: one number per sample, time and layer, with what is needed to judge and to repeat them.

    FoG-A_k = E_{x,t,c}[ ‖v^{\\k} − v‖₂ / (‖v‖₂ + ε) ]     (Eq. 9)

is a mean over samples and times. The single values are kept, so that every mean comes with an error bar: samples are
the independent draws, times are not; hence a sample's values are averaged over times first, and whole samples are
resampled (scoring/statistics.py). A value that is not finite (an ablation that gave NaN or inf) is NaN here, shown as
missing and never averaged in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from fog_a.errors import BadScores, MissingDependency, ShapeMismatch
from fog_a.scores import files as score_files
from fog_a.scores import statistics
from fog_a.scores import text as score_text
from fog_a.scores.ranking import RankedLayer as RankedLayer
from fog_a.scores.ranking import Top, check_layers, overlapping, ranked
from fog_a.scores.settling import Verdict, settled
from fog_a.scores.statistics import FEW, Agreement, Array

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class FewSamples(UserWarning):
    """Too few samples for an interval to promise its level."""


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Per-sample scores of the layers of one model. Made by `attribute`, `lasp` and `gradnorm`.

    Attributes:
        values: (S, J, L) float32: samples × times × layers; NaN where an ablation was not finite. Without units:
            relative change of the velocity (contribution, ≥ 0) or a cosine (storage, in [−1, 1]).
        layers: block names in order of execution.
        times: flow times in [0, 1], or None: no time axis, J = 1.
        domains: one name per sample; "all" where none were given.
        ids: one name per sample.
        kind: "contribution", "storage" or "gradnorm".
        info: what is needed to repeat the measurement: seed, options, versions, the model's signature, notes, ….

    Raises: ShapeMismatch where the parts do not fit.

    Example:
        >>> values = np.random.default_rng(0).gamma(9.0, [[[0.02, 0.01, 0.03]]], size=(32, 4, 3))
        >>> scores = Scores(values, layers=("blocks.0", "blocks.1", "blocks.2"), times=(0.125, 0.375, 0.625, 0.875))
        >>> scores.top(2).names
        ('blocks.2', 'blocks.0')
    """

    values: Float32[Array, "S J L"]
    layers: tuple[str, ...]
    times: tuple[float, ...] | None = None
    domains: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    kind: str = "contribution"
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float32)
        if values.ndim == 2:
            values = values[:, None, :]
        values[~np.isfinite(values)] = np.nan
        values.setflags(write=False)
        count = len(values) if values.ndim else 0
        tidy = {
            "values": values,
            "layers": tuple(self.layers),
            "times": None if self.times is None else tuple(float(t) for t in self.times),
            "domains": tuple(self.domains) or ("all",) * count,
            "ids": tuple(str(i) for i in self.ids) or tuple(str(i) for i in range(count)),
            "info": dict(self.info),
        }
        for name, value in tidy.items():
            object.__setattr__(self, name, value)
        want = (len(self.ids), 1 if self.times is None else len(self.times), len(self.layers))
        if values.shape != want or len(self.domains) != count or not values.size:
            raise ShapeMismatch(
                f"values have shape {values.shape}; expected samples × times × layers = {want} for {want[0]} ids, "
                f"{len(self.domains)} domains, times {self.times} and {want[2]} layers, none of them zero"
            )

    # What is inside

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The different domains, in order of first appearance."""
        return tuple(dict.fromkeys(self.domains))

    @property
    def missing(self) -> int:
        """How many values are NaN."""
        return int(np.isnan(self.values).sum())

    def only(self, domain: str | None) -> Scores:
        """The samples of one domain (None: all of them)."""
        if domain is None:
            return self
        rows = [i for i, d in enumerate(self.domains) if d == domain]
        if not rows:
            raise ShapeMismatch(f"no sample has domain {domain!r}; there are {', '.join(self.domain_names)}")
        chosen = {"domains": (domain,) * len(rows), "ids": tuple(self.ids[i] for i in rows)}
        return replace(self, values=self.values[rows], **chosen)

    def per_sample(self, domain: str | None = None) -> Float[Array, "n L"]:
        """Each sample's score per layer: the mean over its finite times (float64), NaN where there is none."""
        values = self.only(domain).values.astype(np.float64)
        good = np.isfinite(values)
        count = good.sum(1)
        return np.where(count > 0, np.where(good, values, 0.0).sum(1) / np.maximum(count, 1), np.nan)

    # Means and how sure they are

    def mean(self, domain: str | None = None) -> Float[Array, " L"]:
        """Mean score per layer over times, then samples: Eq. 9's expectation. NaN for a layer without a value."""
        return statistics.finite_mean(self.per_sample(domain))

    def interval(
        self,
        level: float = 0.95,
        domain: str | None = None,
        *,
        resamples: int = 2000,
        seed: int = 0,
        warn: bool = True,
    ) -> Float[Array, "L 2"]:
        """Bootstrap-t interval of `mean` per layer: whole samples are resampled, the same for all layers.

        With domain=None samples are resampled within each domain. From 16 samples on, a nominal 95 % interval covers
        93–96 % for normal, exponential and log-normal(½) scores alike; below, a FewSamples warning is given.
        """
        part = self.only(domain)
        if warn and len(part.ids) < FEW:
            warnings.warn(_few(len(part.ids), level), FewSamples, stacklevel=2)
        groups = part.domains if domain is None else None
        found = statistics.bootstrap_interval(part.per_sample(), level, groups=groups, resamples=resamples, seed=seed)
        return self._possible(found)

    def curve(self, domain: str | None = None) -> Float[Array, "J L"]:
        """Mean over samples at each time."""
        values = self.only(domain).values
        return statistics.finite_mean(values.reshape(len(values), -1)).reshape(values.shape[1:])

    def curve_interval(self, level: float = 0.95, domain: str | None = None, *, seed: int = 0) -> Float[Array, "J L 2"]:
        """Interval of `curve` at each time and layer, from the same resamples throughout."""
        part = self.only(domain)
        flat = part.values.reshape(len(part.ids), -1)
        groups = part.domains if domain is None else None
        found = statistics.bootstrap_interval(flat, level, groups=groups, seed=seed)
        return self._possible(found).reshape(*part.values.shape[1:], 2)

    def _possible(self, interval: Float[Array, "N 2"]) -> Float[Array, "N 2"]:
        """Without the part that no mean of these scores can reach: a relative change is not below 0."""
        return interval if self.kind == "storage" else np.maximum(interval, 0.0)

    # Rankings

    def top(self, k: int = 3, domain: str | None = None, *, level: float = 0.95) -> Top:
        """The k layers of largest mean, largest first; equal ones: the earlier layer wins; NaN is never chosen.

        `.hint` says so where the k-th and the (k+1)-th interval overlap, or the samples are few.
        """
        self._check_k(k)
        best = ranked(self.layers, self.mean(domain), self.interval(level, domain, warn=False))
        hints = []
        if (doubt := overlapping(best, k, level)) is not None:
            sure = self.top_probability(k, domain)
            hints.append(f"{doubt}: this top {k} is the top {k} in {sure:.0%} of resamples")
        count = len(self.only(domain).ids)
        if count < FEW:
            hints.append(_few(count, level))
        return Top(best[:k], "; ".join(hints) or None)

    def top_probability(self, k: int = 3, domain: str | None = None, *, resamples: int = 2000, seed: int = 0) -> float:
        """How sure the top-k set is: the share of bootstrap resamples that have exactly this set on top."""
        self._check_k(k)
        inside = self._resampled_top(k, domain, resamples, seed)
        own = np.zeros(len(self.layers), dtype=bool)
        own[statistics.top(self.mean(domain), k)] = True
        return float((inside == own).all(1).mean())

    def inclusion_probability(
        self, k: int = 3, domain: str | None = None, *, resamples: int = 2000, seed: int = 0
    ) -> Float[Array, " L"]:
        """For each layer, the share of bootstrap resamples that have it among their top k. Sums to k."""
        self._check_k(k)
        return self._resampled_top(k, domain, resamples, seed).mean(0)

    def _resampled_top(self, k: int, domain: str | None, resamples: int, seed: int) -> Array:
        part = self.only(domain)
        groups = part.domains if domain is None else None
        return statistics.bootstrap_top(part.per_sample(), k, groups=groups, resamples=resamples, seed=seed)

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= len(self.layers):
            raise ShapeMismatch(f"k = {k}: expected 1 ≤ k ≤ {len(self.layers)}, the number of layers")

    def verdicts(
        self, k: int = 3, *, confidence: float = 0.95, look: int = 1, max_looks: int = 1
    ) -> dict[str, Verdict]:
        """For each domain, whether its top-k set may be claimed at this look; all claims together at `confidence`."""
        self._check_k(k)
        each = 1 - (1 - confidence) / len(self.domain_names)
        return {
            d: settled(self.per_sample(d), k, confidence=each, look=look, max_looks=max_looks)
            for d in self.domain_names
        }

    def agreement(self, other: Scores, k: int = 3, domain: str | None = None) -> Agreement:
        """How alike two rankings of the same layers are: overlap of the top k, Kendall's τ, Spearman's ρ."""
        self._check_k(k)
        check_layers(self.layers, other.layers)
        return statistics.agreement(self.mean(domain), other.mean(domain), k)

    # Putting together, showing, keeping

    def concat(self, *others: Scores) -> Scores:
        """These samples and the others', of the same layers and times. `info` is the first one's.

        Raises: ShapeMismatch where layers, times, kinds or models differ.
        """
        parts = (self, *others)
        for other in others:
            self._check_like(other)
        said = {
            key: list(dict.fromkeys(str(n) for p in parts for n in p.info.get(key) or ()))
            for key in ("notes", "warnings")
            if any(p.info.get(key) for p in parts)
        }
        return replace(
            self,
            values=np.concatenate([p.values for p in parts]),
            domains=tuple(d for p in parts for d in p.domains),
            ids=tuple(i for p in parts for i in p.ids),
            info={**self.info, **said},
        )

    def _check_like(self, other: Scores) -> None:
        check_layers(self.layers, other.layers)
        for name in ("times", "kind"):
            if getattr(other, name) != getattr(self, name):
                raise ShapeMismatch(
                    f"cannot concat scores whose {name} differ: {getattr(self, name)} and {getattr(other, name)}. "
                    "Measure both with the same call"
                )
        ways = [s.info.get("method", "exact") for s in (self, other)]
        if ways[0] != ways[1]:
            raise ShapeMismatch(
                f"cannot concat scores of method {ways[0]} and of {ways[1]}. Measure both with one method"
            )
        mine, theirs = self.info.get("signature"), other.info.get("signature")
        if mine and theirs and score_files.plain(mine) != score_files.plain(theirs):
            raise ShapeMismatch("cannot concat scores of two different models (their info['signature'] differ)")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, atomically. `Scores.load(path)` gives the same bits back."""
        score_files.write_json(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read JSON; nothing in the file is run. Raises BadScores where it is damaged, foreign or too new."""
        fields = score_files.read_json(path)
        try:
            return cls(**fields)
        except ShapeMismatch as error:
            raise BadScores(f"{path} is a damaged scores file: {error}. Measure again") from error

    def to_csv(self, path: str | os.PathLike[str], layout: Literal["long", "release"] = "long") -> None:
        """Write CSV: "long" has one row per sample × time × layer (sample, id, domain, time, layer, value); "release"
        the columns of the paper's released probe (step, epoch, layer, speech_foga, audio_foga; layers from 0)."""
        score_files.write_csv(self, path, layout)

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame in the columns of `to_csv`. Raises MissingDependency without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise MissingDependency(
                "to_pandas needs pandas: pip install 'fog-a[pandas]'; to_csv(path) needs nothing"
            ) from error
        return pandas.DataFrame(list(score_files.long_rows(self)), columns=list(score_files.LONG))

    def plot(self, **options: Any) -> Figure:
        """A matplotlib Figure: see `fog_a.plot_scores`, which takes the same options."""
        from fog_a.scores.plots import plot_scores

        return plot_scores(self, **options)

    def table(self, k: int | None = None, *, level: float = 0.95) -> str:
        """Means and intervals as text: the best k layers of each domain, or all layers in order of execution."""
        return score_text.table(self, k, level)

    def __repr__(self) -> str:
        return score_text.summary(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        names = ("layers", "times", "domains", "ids", "kind")
        same = all(getattr(self, n) == getattr(other, n) for n in names)
        return same and np.array_equal(self.values, other.values, equal_nan=True)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content is an array


def _few(count: int, level: float) -> str:
    return f"{count} samples: a {level:.0%} interval cannot promise its level below {FEW}; measure more samples"
