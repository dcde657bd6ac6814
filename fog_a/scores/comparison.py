"""Several Scores of the same layers and samples compared: checkpoints of a training, two trainings, two precisions.

    d_k = E_i[ s_ik − r_ik ]        s, r: one Scores and the reference; i: sample; k: layer

Samples are paired by domain and group (their id, where nothing is said), so what both have in common cancels. The
interval of a difference is then narrower than those of its parts suggest. Each interval is at its level alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a.scores import canvas, statistics
from fog_a.scores.canvas import INK, SOFT, unit
from fog_a.scores.curves import draw_ranks
from fog_a.scores.joining import check_alike
from fog_a.scores.ranking import Ranked, Ranking, check_scores
from fog_a.scores.statistics import FEW, Agreement, Array
from fog_a.scores.tables import Shown, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Comparison(Shown):
    """What `fog_a.compare_scores` found; its text is a table, in a notebook with its picture.

    Attributes:
        names: of the scores, in their order; numbers are training steps.
        reference: the name that the others are compared with.
        layers, kind, domain: as in the scores.
        n: how many groups of samples are in all of them: these are compared.
        mean: (N, L) of these groups.
        difference: (N, L) mean − the reference's mean, paired by group; 0 for the reference.
        interval: (N, L, 2) of the difference.
        rank: (N, L) of each layer by its mean, 1 is the best.
        agreement: for each name with the reference: overlap of the top k, Kendall's τ, Spearman's ρ.
        k, level: of the marked layers and of the intervals.
        notes: what the reader should doubt.
    """

    names: tuple[str | int | float, ...]
    reference: str | int | float
    layers: tuple[str, ...]
    kind: str
    domain: str
    n: int
    mean: Float[Array, "N L"]
    difference: Float[Array, "N L"]
    interval: Float[Array, "N L 2"]
    rank: Int[Array, "N L"]
    agreement: tuple[Agreement, ...]
    k: int
    level: float
    notes: tuple[str, ...] = ()

    def changed(self, name: str | int | float) -> tuple[str, ...]:
        """The layers whose difference to the reference has an interval without 0, the largest first."""
        if name not in self.names:
            raise BadArgument(f"no scores are named {name!r}; there are {', '.join(map(repr, self.names))}")
        i = self.names.index(name)
        apart = (self.interval[i, :, 0] > 0) | (self.interval[i, :, 1] < 0)
        order = np.argsort(-np.abs(self.difference[i]), kind="stable")
        return tuple(self.layers[k] for k in order if apart[k])

    def plot(self) -> Figure:
        """A matplotlib Figure: the rank of each layer that is ever among the best k, and the paired differences."""
        steps = all(isinstance(name, int | float) for name in self.names)
        fig, ((left, right),) = canvas.panels(10.4, 3.8, 1, 2, width_ratios=[1.0, 1.25])
        x: Any = self.names if steps else range(len(self.names))
        draw_ranks(left, self.rank, x, self.k)
        right.axhline(0, color=SOFT, linewidth=0.9)
        right.set_ylabel(unit(self.kind))
        to = f"difference to {'step ' if steps else ''}{self.reference}"
        canvas.title(right, to, f"n = {self.n} pairs, {self.level:.0%} intervals")
        if steps:
            for i in np.flatnonzero((self.rank <= self.k).any(0)):
                canvas.band(right, x, self.difference[:, i], self.interval[:, i], f"L{i + 1}")
            canvas.end_labels(right)
            canvas.step_axis(left)
            canvas.step_axis(right)
        else:
            self._draw_names(right)
            left.set_xticks(x, list(map(str, self.names)), parse_math=False)
            left.margins(x=0.12)
        return fig

    def _draw_names(self, ax: Axes) -> None:
        """A point with its interval for each layer, a color for each name."""
        depth = np.arange(len(self.layers))
        for n, i in enumerate(self._others):
            x = depth + 0.5 * ((n + 0.5) / len(self._others) - 0.5)
            (points,) = ax.plot(x, self.difference[i], "o", markersize=4, label=str(self.names[i]))
            ax.vlines(x, *self.interval[i].T, color=points.get_color(), linewidth=1.4)
        canvas.layer_axis(ax, self.layers)
        if len(self._others) > 1:
            ax.legend(frameon=False, fontsize=9, labelcolor=INK)

    @property
    def _others(self) -> list[int]:
        return [i for i, name in enumerate(self.names) if name != self.reference]

    @property
    def _table(self) -> Table:
        rows = []
        for k, layer in enumerate(self.layers):
            row = [layer, *self.rank[:, k].tolist()]
            for i in self._others:
                low, high = self.interval[i, k]
                star = "*" if low > 0 or high < 0 else " "
                row.append(f"{self.difference[i, k]:+.4f} [{low:+.4f}, {high:+.4f}]{star}")
            rows.append(row)
        whose = "" if self.domain == "all" else f" · {self.domain}"
        what = f"differences to {self.reference}, {self.level:.0%} intervals"
        columns = ["layer", *(f"rank {name}" for name in self.names)]
        columns += [f"{self.names[i]} − {self.reference}" for i in self._others]
        best = np.flatnonzero((self.rank <= self.k).any(0)).tolist()
        caption = f"{self.kind}{whose} · {self.n} paired samples · {what}"
        return Table(caption, columns, rows, frozenset(best), right=range(1, len(columns)))

    def table(self) -> str:
        """Ranks and differences as text; `*` marks a difference whose interval has no 0."""
        return "\n".join([self._table.text(), *(f"! {note}" for note in self.notes)])

    __repr__ = table

    def _tables(self) -> tuple[list[Table], tuple[str, ...]]:
        return [self._table], self.notes


def compare_scores(
    scores: Mapping[Any, Ranked],
    *,
    against: str | int | float | None = None,
    domain: str | None = None,
    k: int = 3,
    level: float = 0.95,
) -> Comparison:
    """Paired differences of several scores with intervals, and the rank of each layer in each of them.

    Args:
        scores: name → Scores of the same layers, times and samples; a number as name is a training step.
        against: the name that the others are compared with; None: the first.
        domain: one domain, or None: all samples together.
        k: how many layers are marked as the best.
        level: of the intervals, each alone.

    Raises:
        BadArgument: fewer than two scores, or an unknown name.
        ShapeMismatch: other layers, times or kinds, or no sample that all have.

    Example:
        >>> from fog_a.scores.scores import Scores
        >>> rng = np.random.default_rng(0)
        >>> before = rng.gamma(9.0, [[[0.02, 0.01, 0.03]]], size=(32, 1, 3))
        >>> scores = {0: before, 1000: before + [0.0, 0.2, 0.001]}
        >>> made = compare_scores({step: Scores(x, ("a", "b", "c")) for step, x in scores.items()})
        >>> made.changed(1000)
        ('b', 'c')
    """
    if not isinstance(scores, Mapping) or len(scores) < 2:
        got = f"{len(scores)} of them" if isinstance(scores, Mapping) else f"a {type(scores).__name__}"
        raise BadArgument(
            f"compare_scores takes two Scores or more by name, got {got}. "
            'Type fog_a.compare_scores({"before": scores, "after": others})'
        )
    names = tuple(sorted(scores) if all(isinstance(name, int | float) for name in scores) else scores)
    reference = names[0] if against is None else against
    if reference not in scores:
        raise BadArgument(f"against = {against!r}: expected one of {', '.join(map(repr, names))}")
    ranked = [check_scores(scores[name]).ranking(domain) for name in names]
    values, strata, notes = _paired(ranked)
    at, k = names.index(reference), ranked[0].check_k(k)
    apart = values - values[at]
    mean = statistics.finite_mean(values.swapaxes(0, 1))
    interval = [statistics.bootstrap_interval(x, level, groups=strata) for x in apart]
    first = ranked[0]
    return Comparison(
        names, reference, first.layers, first.kind, first.domain, values.shape[1], mean,
        statistics.finite_mean(apart.swapaxes(0, 1)), np.stack(interval), statistics.ranks(mean),
        tuple(statistics.agreement(m, mean[at], k) for m in mean), k, level, notes,
    )  # fmt: skip


def _paired(ranked: list[Ranking]) -> tuple[Float[Array, "N n L"], tuple[str, ...], tuple[str, ...]]:
    """Each one's scores of the groups that all have, the groups' domains, and what to doubt."""
    first = ranked[0]
    for other in ranked[1:]:
        check_alike(vars(first), vars(other))
    places = [{group: i for i, group in enumerate(r.groups)} for r in ranked]
    common = [group for group in first.groups if all(group in place for place in places)]
    if not common:
        raise ShapeMismatch(
            f"no sample is in all of these scores: the first begins with {first.groups[0][1]!r}, another with "
            f"{ranked[1].groups[0][1]!r}. Measure all on the same batches, with the same ids"
        )
    values = np.stack([r.per_group[[place[g] for g in common]] for r, place in zip(ranked, places, strict=True)])
    notes = []
    if (most := max(r.n for r in ranked)) > len(common):
        notes.append(f"{len(common)} of up to {most} samples are in all of them: only these are compared")
    if len({repr(r.info.get("seed")) for r in ranked}) > 1:
        notes.append("measured with different seeds: the noise is another, and the intervals are wider than need be")
    if len(common) < FEW:
        notes.append(f"{len(common)} samples: intervals cannot promise their level below {FEW}; measure more")
    return values, tuple(domain for domain, _ in common), tuple(notes)
