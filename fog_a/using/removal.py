"""What can go: blocks are closed one after another, always the one whose loss then changes the velocity least.

    k_r = argmin_k ‖v^{\\S ∪ k} − v‖ / (‖v‖ + ε),    S ← S ∪ k_r

All that are left are measured again after each. A small change now is no promise for a network that is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.attributing.along import Along
from fog_a.attributing.yardstick import Metric, metric_kind
from fog_a.blocks.block import Blocks
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadArgument, BadOutput, is_whole, known_keywords
from fog_a.flows.bare import flow_of
from fog_a.flows.flow import Flow
from fog_a.flows.override import Forward
from fog_a.scores import canvas
from fog_a.scores.scores import Scores
from fog_a.scores.statistics import Array
from fog_a.scores.tables import Table
from fog_a.using.trial import Closing, Level, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Removal:
    """Which blocks went, and how far v was then from where it began. Made by `remove`.

    Attributes:
        removed: names in the order in which they went.
        kept: names of what is left, in order of execution.
        scores: samples × times × removed: ‖Δv‖/‖v‖ (or the metric) once this block has gone too.
        rounds: for each round, what every block that was left would have brought the mean to.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    scores: Scores
    rounds: tuple[dict[str, float], ...]

    @property
    def left(self) -> tuple[int, ...]:
        """How many blocks are left at each point of the curve: all of them first."""
        total = len(self.kept) + len(self.removed)
        return tuple(range(total, len(self.kept) - 1, -1))

    @property
    def curve(self) -> Float[Array, " R"]:
        """The mean change at each of `left`: 0 first."""
        return np.concatenate([[0.0], self.scores.mean()])

    def interval(self, level: float = 0.95, *, seed: int = 0, warn: bool = True) -> Float[Array, "R 2"]:
        """Interval of `curve`: whole groups of samples are resampled. The order of removal is taken as it is."""
        return np.concatenate([np.zeros((1, 2)), self.scores.interval(level, seed=seed, warn=warn)])

    def table(self) -> str:
        """One line for each removal."""
        changes = (f"{x:.4f}" for x in self.curve[1:])
        rows = list(zip(self.left[1:], self.removed, changes, strict=True))
        return Table("", ("left", "without", canvas.unit(self.scores.kind)), rows, right=(2,)).text()

    __repr__ = table

    def plot(self, *, level: float = 0.95) -> Figure:
        """The curve over what is left, with its interval. Raises MissingDependency without matplotlib."""
        fig, ((ax,),) = canvas.panels(5.2, 3.2)
        canvas.band(ax, self.left, self.curve, self.interval(level, warn=False))
        canvas.title(ax, "what can go", f"n = {len(self.scores.ids)}")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlim=(max(self.left), min(self.left)), xlabel="blocks left", ylabel=canvas.unit(self.scores.kind))
        return fig


@known_keywords
@unbroken()
def remove(
    model: nn.Module | Flow,
    batch: Any,
    keep: int,
    *,
    blocks: Blocks | Sequence[str] | None = None,
    level: Level = "layer",
    forward: Forward | None = None,
    times: int | Sequence[float] | Along | None = None,
    domains: Sequence[str] | None = None,
    mask: Bool[Tensor, "B ..."] | None = None,
    metric: Metric = None,
    seed: int = 0,
) -> Removal:
    """Close blocks one at a time, always the one that changes v least, until `keep` are left. The model stays as it is.

    What comes before a closed block is shared, not run again. What is kept for that takes no more memory than the
    weights, or 256 MiB.

    Args:
        keep: how many blocks are left, from 1 to one less than there are.
        blocks: which may go; None: those of `find_blocks` whose update depends on x_t.
        metric: as in `attribute`, like all that follows; the block goes without which it is lowest.

    Raises:
        BadArgument: keep= out of its range. UnknownBlock, BadBatch, BadOutput, Unsupported: as in `attribute`.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> what = fog_a.remove(net, torch.randn(4, 5, 8), keep=2)
        >>> len(what.removed), what.left, what.curve.shape
        (2, (4, 3, 2), (3,))
    """
    trial = Trial(flow_of(model, forward, domains, mask), batch, blocks, level, times, metric, seed)
    if len(trial.blocks) < 2:
        raise BadArgument("expected two or more blocks, got 1, and one stays. Leave blocks= out for all of them")
    if not is_whole(keep) or not 1 <= keep < len(trial.blocks):
        raise BadArgument(
            f"expected keep= as how many of {len(trial.blocks)} blocks are left, 1 to {len(trial.blocks) - 1}, "
            f"got {keep!r}"
        )
    kind = "removal" if metric is None else metric_kind(metric)
    cases = [Closing(case, trial) for case in trial.cases]
    room = room_of(cases)
    left, removed, rounds, curves = trial.blocks, list[str](), list[dict[str, float]](), list[list[Array]]()
    with preserved(*cases[0].case.modules):
        while len(left) > keep:
            changes = [list(case.changes(left, room)) for case in cases]
            means = trial.scores([np.stack(columns, axis=1) for columns in changes], left.names, kind).mean()
            if not np.isfinite(means).any():
                raise BadOutput(
                    "no block can go: v is NaN or inf without any one of them. Check the precision, or batch="
                )
            best = int(np.nanargmin(means))
            rounds.append(dict(zip(left.names, means.tolist(), strict=True)))
            removed.append(left[best].name)
            curves.append([columns[best] for columns in changes])
            cases = [case.without(left[best]) for case in cases]
            left = Blocks([b for i, b in enumerate(left) if i != best], left.model)
    scores = trial.scores([np.stack(curve, axis=1) for curve in zip(*curves, strict=True)], removed, kind)
    return Removal(tuple(removed), left.names, scores, tuple(rounds))


def room_of(cases: Sequence[Closing]) -> int:
    """Bytes that each case may keep of blocks' outputs between rounds: in all what the weights take, or 256 MiB."""
    weights = sum(p.nbytes for module in cases[0].case.modules for p in module.parameters())
    return max(weights, 2**28) // len(cases)
