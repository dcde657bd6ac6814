"""What can go: blocks are closed one after another, always the one whose loss then changes the velocity least.

    k_r = argmin_k ‖v^{\\S ∪ k} − v‖ / (‖v‖ + ε),    S ← S ∪ k_r

All that are left are measured again after each. A small change now is no promise for a network that is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from torch import nn

from fog_a.attributing.along import Along
from fog_a.attributing.prefix import Prefix
from fog_a.attributing.variants import variants
from fog_a.attributing.ways import is_whole
from fog_a.attributing.yardstick import Measure
from fog_a.blocks.block import Blocks
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadArgument, BadOutput, known_keywords
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow, Forward
from fog_a.scores import canvas
from fog_a.scores.scores import Scores
from fog_a.using.trial import measured, trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray


@dataclass(frozen=True, repr=False)
class Removal:
    """Which blocks went, and how far v was then from where it began. Made by `remove`.

    Attributes:
        removed: names in the order in which they went.
        kept: names of what is left, in order of execution.
        scores: Scores of kind "removal", samples × times × removed: ‖Δv‖/‖v‖ once this block has gone too.
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
        return tuple(total - r for r in range(len(self.removed) + 1))

    @property
    def curve(self) -> Float[Array, " R"]:
        """Mean ‖Δv‖/‖v‖ at each of `left`: 0 first."""
        return np.concatenate([[0.0], self.scores.mean()])

    def interval(self, level: float = 0.95, *, seed: int = 0, warn: bool = True) -> Float[Array, "R 2"]:
        """Interval of `curve`: whole groups of samples are resampled. The order of removal is taken as it is."""
        return np.concatenate([np.zeros((1, 2)), self.scores.interval(level, seed=seed, warn=warn)])

    def table(self) -> str:
        """One line for each removal."""
        lines = [f"{'left':>4}  {'without':<{max(map(len, self.removed))}}  ‖Δv‖/‖v‖"]
        steps = zip(self.left[1:], self.removed, self.curve[1:], strict=True)
        return "\n".join([*lines, *(f"{n:>4}  {name:<{len(lines[0]) - 16}}  {x:.4f}" for n, name, x in steps)])

    def plot(self, *, level: float = 0.95) -> Figure:
        """‖Δv‖/‖v‖ over what is left, with its interval.

        Raises:
            MissingDependency: without matplotlib.
        """
        fig = canvas.figure(5.2, 3.2)
        ax = fig.subplots()
        canvas.band(ax, self.left, self.curve, self.interval(level, warn=False), canvas.PALETTE[0])
        ax.set_xlim(max(self.left), min(self.left))
        canvas.tidy(ax)
        canvas.title(ax, "what can go", f"n = {len(self.scores.ids)}")
        canvas.axis(ax, "blocks left", "‖Δv‖ / ‖v‖")
        return fig

    def __repr__(self) -> str:
        return self.table()


@known_keywords
@unbroken()
def remove(
    model: nn.Module | Flow,
    batch: Any,
    keep: int,
    *,
    blocks: Blocks | Sequence[str] | None = None,
    level: Literal["layer", "branch"] = "layer",
    forward: Forward | None = None,
    times: int | Sequence[float] | Along | None = None,
    seed: int = 0,
) -> Removal:
    """Close blocks one at a time, always the one that changes v least, until `keep` are left. The model stays as it is.

    What comes before a closed block is shared, not run again.

    Args:
        model, batch, level, forward, times, seed: as in `attribute`.
        keep: how many blocks are left, from 1 to one less than there are.
        blocks: which may go: `Blocks` or names. None: those of `find_blocks` whose update depends on x_t.

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
    if not is_whole(keep) or keep < 1:
        raise BadArgument(f"expected keep= as how many blocks are left, 1 or more, got {keep!r}")
    run = trial(model, batch, blocks, level, forward, times, seed)
    if keep >= len(run.blocks):
        raise BadArgument(
            f"expected keep= below the {len(run.blocks)} blocks that there are, got {keep}: nothing is to go then"
        )
    states = [_Case(case) for case in run.cases]
    left, removed, rounds = run.blocks, list[str](), list[dict[str, float]]()
    while len(left) > keep:
        columns = [state.measured(left) for state in states]
        values = run.scores(columns, left.names, "removal").mean()
        if not np.isfinite(values).any():
            raise BadOutput("no block can go: v is NaN or inf without any one of them. Check the precision, or batch=")
        best = int(np.nanargmin(values))
        rounds.append(dict(zip(left.names, values.tolist(), strict=True)))
        removed.append(left[best].name)
        for state in states:
            state.close(left[best : best + 1], best)
        left = Blocks([b for i, b in enumerate(left) if i != best], left.model, left.coverage)
    for state in states:
        state.case.close()
    scores = run.scores([np.stack(state.curve, axis=1) for state in states], removed, "removal")
    return Removal(tuple(removed), left.names, scores, tuple(rounds))


class _Case:
    """One case, of which more and more is closed."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.curve: list[Array] = []
        self._measure: Measure | None = None
        self._prefix: Prefix | None = None
        self._last: list[Array] = []

    def measured(self, blocks: Blocks) -> Float[Array, "B L"]:
        """How far v is from where it began once each of these blocks has gone too."""
        with preserved(*self.case.modules):
            run = variants(self.case, blocks, prefix=self._prefix)
            if self._measure is None:
                self._measure = measured(self.case, run.base)
            self._last = [self._measure(v_k, b.name) for v_k, b in zip(run.ablated, blocks, strict=True)]
        self._prefix = run.prefix
        return np.stack(self._last, axis=1)

    def close(self, block: Blocks, place: int) -> None:
        """This block goes for good."""
        self.curve.append(self._last[place])
        with preserved(*self.case.modules):
            self._prefix = None if self._prefix is None else self._prefix.closing(block[0])
        self.case = self.case.closing(block) if self._prefix is None else self._prefix.case
