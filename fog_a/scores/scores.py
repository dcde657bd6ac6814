"""Scores: one number per sample, time and layer, with what is needed to judge and to repeat them.

    FoG-A_k = E_{x,t,c}[ ‖v^{\\k} − v‖₂ / (‖v‖₂ + ε) ]     (Eq. 9)

is a mean over samples and times. The single values are kept, so that every mean comes with an error bar
(scores/ranking.py). A value that is not finite is NaN here: shown as missing, never averaged in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Float32

from fog_a.errors import BadScores, ShapeMismatch
from fog_a.scores import files as score_files
from fog_a.scores import tables
from fog_a.scores.joining import joined
from fog_a.scores.lists import ranks
from fog_a.scores.plots import plot_scores
from fog_a.scores.ranking import Ranked, Ranking, check_scores, rankings
from fog_a.scores.settling import Verdict, settled
from fog_a.scores.statistics import Agreement, Array, finite_mean
from fog_a.scores.top import Top

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Doubtful(UserWarning):
    """An interval may miss its level: few samples, or missing values."""


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Ranked, tables.Shown):
    """Per-sample scores of the layers of one model. Made by `attribute`, `lasp` and `gradnorm`.

    Attributes:
        values: (S, J, L) float32: samples × times × layers; NaN where an ablation was not finite. Without units:
            relative change of the velocity (contribution, ≥ 0) or a cosine (storage, in [−1, 1]).
        layers: block names in order of execution.
        times: flow times in [0, 1], or None: no time axis, J = 1.
        domains: one name per sample; "all" where none were given.
        ids: one name per sample.
        kind: "contribution", "storage", "gradnorm" or "drift".
        info: what is needed to repeat the measurement: seed, options, versions, the model's signature, notes, ….
        groups: what each sample belongs to, its id where nothing is said. Samples of one group (crops of one clip; the
            same clip twice) are not independent: they are averaged first and count once.

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
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            with np.errstate(over="ignore"):  # a float64 beyond float32 is inf, and inf is missing
                values = np.array(self.values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ShapeMismatch(f"values are no array samples × times × layers: {error}") from error
        values = values[:, None, :] if values.ndim == 2 else values
        values[~np.isfinite(values)] = np.nan
        values.setflags(write=False)
        count = len(values) if values.ndim else 0
        layers, ids, domains, groups = (tuple(map(str, x)) for x in (self.layers, self.ids, self.domains, self.groups))
        ids = ids or tuple(map(str, range(count)))
        domains, groups = domains or ("all",) * count, groups or ids
        times = None if self.times is None else tuple(map(float, self.times))
        want = (len(ids), 1 if times is None else len(times), len(layers))
        if values.shape != want or {len(domains), len(groups)} != {count} or not values.size:
            raise ShapeMismatch(
                f"values have shape {values.shape}; expected samples × times × layers = {want} for {want[0]} ids, "
                f"{len(domains)} domains, {len(groups)} groups, times {times}, {want[2]} layers, all > 0"
            )
        if not np.isfinite(times or ()).all():
            raise ShapeMismatch(f"times = {times}: expected finite numbers, e.g. (0.25, 0.75)")
        final = (values, layers, times, domains, ids, self.kind, dict(self.info), groups)
        for name, value in zip(self.fields(), final, strict=True):
            object.__setattr__(self, name, value)

    @property
    def missing(self) -> int:
        """How many values are NaN."""
        return int(np.isnan(self.values).sum())

    def only(self, domain: str | None) -> Scores:
        """The samples of one domain (None: all of them)."""
        if domain is None:
            return self
        rows = np.flatnonzero(np.array(self.domains) == domain).tolist()
        if not rows:
            raise ShapeMismatch(f"no sample has domain {domain!r}; there are {', '.join(self.domain_names)}")
        names = {name: [getattr(self, name)[i] for i in rows] for name in ("domains", "ids", "groups")}
        return replace(self, values=self.values[rows], **names)

    def per_sample(self, domain: str | None = None) -> Float[Array, "n L"]:
        """Each sample's score per layer: the mean over its finite times (float64), NaN where there is none."""
        return finite_mean(self.only(domain).values.astype(np.float64).swapaxes(0, 1))

    def ranking(self, domain: str | None = None) -> Ranking:
        """The layers of one domain, or of all samples: their means, order, intervals, and how sure that is."""
        part = self.only(domain)
        rows: dict[tuple[str, str], list[int]] = {}
        for i, group in enumerate(zip(part.domains, part.groups, strict=True)):
            rows.setdefault(group, []).append(i)
        values = part.values.astype(np.float64)
        if len(rows) < len(values):
            values = np.stack([finite_mean(values[r]) for r in rows.values()])
        about = (self.kind, self.layers, self.times, values, len(part.ids), self.info, tuple(rows))
        return Ranking(domain or "all", *about)

    def mean(self, domain: str | None = None) -> Float[Array, " L"]:
        """Mean score per layer over times, then samples: Eq. 9's expectation. NaN for a layer without a value."""
        return self.ranking(domain).mean

    def curve(self, domain: str | None = None) -> Float[Array, "J L"]:
        """Mean over samples at each time."""
        return self.ranking(domain).curve

    def interval(
        self, level: float = 0.95, domain: str | None = None, *, resamples: int = 2000, seed: int = 0, warn: bool = True
    ) -> Float[Array, "L 2"]:
        """Interval of `mean` per layer: whole groups are resampled, the same for all layers.

        From 16 groups on, a nominal 95 % interval covers .93 or more, also for skewed scores and heavy tails; below, or
        where values are missing, a Doubtful warning is given.
        """
        ranking = self.ranking(domain)
        if warn and ranking.doubts:
            warnings.warn("; ".join(ranking.doubts), Doubtful, stacklevel=2)
        return ranking.interval(level, resamples=resamples, seed=seed)

    def curve_interval(self, level: float = 0.95, domain: str | None = None, *, seed: int = 0) -> Float[Array, "J L 2"]:
        """Interval of `curve` at each time and layer, from the same resamples throughout."""
        return self.ranking(domain).curve_interval(level, seed=seed)

    def top(self, k: int = 3, domain: str | None = None, *, level: float = 0.95) -> Top:
        """The k layers of largest mean, best first (equal ones: the earlier layer). `.hint` says what to doubt."""
        return self.ranking(domain).top(k, level=level)

    def top_probability(self, k: int = 3, domain: str | None = None, *, resamples: int = 2000, seed: int = 0) -> float:
        """How sure the top-k set is: the share of bootstrap resamples that have exactly this set on top."""
        return self.ranking(domain).certainty(k, resamples=resamples, seed=seed)

    def inclusion_probability(
        self, k: int = 3, domain: str | None = None, *, resamples: int = 2000, seed: int = 0
    ) -> Float[Array, " L"]:
        """For each layer, the share of bootstrap resamples that have it among their top k. Sums to k."""
        return self.ranking(domain).inclusion(k, resamples=resamples, seed=seed)

    def verdicts(
        self, k: int = 3, *, confidence: float = 0.95, look: int = 1, max_looks: int = 1
    ) -> dict[str, Verdict]:
        """For each domain, whether its top-k set may be claimed at this look; all claims together at `confidence`."""
        each = 1 - (1 - confidence) / len(self.domain_names)
        options = {"confidence": each, "look": look, "max_looks": max_looks}
        return {r.domain: settled(r.per_group, r.check_k(k), **options) for r in rankings(self)}

    def plot(self, **options: Any) -> Figure:
        """A matplotlib Figure: see `fog_a.plot_scores`, which takes the same options."""
        return plot_scores(self, **options)

    def table(self, k: int | None = None, *, level: float = 0.95) -> str:
        """Means and intervals as text: the best k layers of each domain, or all layers in order of execution."""
        return tables.text(rankings(self), k, level)

    def metrics(self, k: int = 3) -> dict[str, float]:
        """Scalars for any logger: each layer's mean, and `top_probability(k)`; a layer without a value is left out.

        Names are `contribution/blocks.0` and `contribution/top3_certainty`; `contribution/speech/…` with domains.
        """
        return {name: value for ranking in rankings(self) for name, value in ranking.metrics(k).items()}

    def __repr__(self) -> str:
        return tables.summary(rankings(self))

    def _tables(self) -> tuple[list[tables.Table], list[str]]:
        domains, k = rankings(self), min(3, len(self.layers))
        return [tables.layer_table(d, k) for d in domains], [note for d in domains for note in d.notes]

    def ranks(self, total: int, domain: str | None = None) -> dict[str, int]:
        """PEFT's `rank_pattern`: ranks in proportion to the mean scores, 1 or more, `total` of all layers together.

        Raises: BadOutput for scores that are negative or missing. ShapeMismatch for fewer ranks than layers.
        """
        return ranks(self.layers, self.mean(domain), total)

    def agreement(self, other: Scores, k: int = 3, domain: str | None = None) -> Agreement:
        """How alike two rankings of the same layers are: overlap of the top k, Kendall's τ, Spearman's ρ."""
        return self.ranking(domain).agreement(check_scores(other).ranking(domain), k)

    def concat(self, *others: Scores) -> Scores:
        """These samples and the others', of the same layers and times. `info` is the first one's.

        A clip that several hold still counts once. Samples without ids are other samples, unless their values are the
        same. Raises ShapeMismatch where layers, times, kinds, models or their weights differ.
        """
        return type(self)(**joined([check_scores(p).fields() for p in (self, *others)]))

    def fields(self) -> dict[str, Any]:
        """All fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all. `Scores.load(path)` gives the same bits back. Raises NotWritten."""
        score_files.write_scores(path, self.fields())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read JSON; nothing in the file is run. Raises BadScores where it is absent, damaged, foreign or too new."""
        try:
            return cls(**score_files.read_scores(path))
        except ShapeMismatch as error:
            raise BadScores(f"{path} is no scores file, or a damaged one: {error}. Measure again") from error

    def to_csv(self, path: str | os.PathLike[str], layout: Literal["long", "release"] = "long") -> None:
        """Write CSV: "long" has one row per sample × time × layer (sample, id, domain, time, layer, value); "release"
        the columns of the paper's released probe (step, epoch, layer, speech_foga, audio_foga; layers from 0)."""
        score_files.write_csv(path, self.fields(), {d: self.mean(d) for d in self.domain_names}, layout)

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame in the columns of `to_csv`. Raises MissingDependency without pandas."""
        return score_files.frame(self.fields())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        same = all(x == other.fields()[name] for name, x in self.fields().items() if name not in ("info", "values"))
        return same and np.array_equal(self.values, other.values, equal_nan=True)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content is an array
