"""What interactions and removal are measured on: every batch at every time, with more and more blocks closed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fog_a.attributing.along import Times, cases_of, count
from fog_a.attributing.choice import Wanted, chosen
from fog_a.attributing.prefix import Prefix
from fog_a.attributing.variants import variants
from fog_a.attributing.yardstick import EPS, Measure, Metric, checked_metric, metric_name, yardstick
from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.flows.batches import each
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow
from fog_a.flows.provenance import provenance
from fog_a.flows.samples import names_of
from fog_a.scores.scores import Scores

Level = Literal["layer", "branch"]


class Trial:
    """All cases of a measurement, and the blocks that may be closed, in order of execution.

    Args:
        flow: from `flow_of`. batch, blocks, level, times, metric, seed: as in `attribute`.
    """

    def __init__(
        self, flow: Flow, batch: Any, blocks: Wanted, level: Level, times: Times, metric: Metric, seed: int
    ) -> None:
        checked_metric(metric, "auto")
        count(flow, times)
        self.flow, self.seed = flow, seed
        self.metric: Metric = metric
        self._batches: list[tuple[list[Case], Any]] = []
        for number, part in enumerate(each(batch)):
            cases, self._grid = cases_of(flow, part, times, seed + 7919 * number)
            self._batches.append((cases, part))
        found = chosen(self._batches[0][0][0], blocks, level).blocks
        self.blocks = found.named([b.name for b in sorted(found, key=lambda b: min(p.order for p in b.gate_points))])

    @property
    def cases(self) -> Iterator[Case]:
        """Of all batches and times."""
        return (case for cases, _ in self._batches for case in cases)

    def scores(self, values: Sequence[Float[np.ndarray, "B L"]], layers: Sequence[str], kind: str) -> Scores:
        """Each case's values, in order, as scores of all samples."""
        parts, samples, left = list[np.ndarray](), [], iter(values)
        for cases, batch in self._batches:
            start = sum(map(len, parts))
            parts.append(np.stack([next(left) for _ in cases], axis=1))
            samples.append(self.flow.samples_of(batch, (len(parts[-1]),), start))
        more = {} if self.metric is None else {"metric": metric_name(self.metric)}
        info = provenance(self.flow, self.blocks, self.seed, eps=EPS, **more)
        times = tuple(t for t in self._grid if t is not None) or None
        return Scores(np.concatenate(parts), tuple(layers), times, kind=kind, info=info, **names_of(samples))


class Closing:
    """A case, of which more and more is closed. Changes are measured from where nothing was.

    Run it under `preserved(*case.modules)`.
    """

    base: Tensor
    """v as it is by now, from the first `changes` on."""
    measure: Measure

    def __init__(self, case: Case, trial: Trial) -> None:
        self.case, self.others = case, [b for b in trial.blocks.among if b.main]
        self.metric: Metric = trial.metric
        self._prefix: Prefix | None = None

    def changes(self, blocks: Blocks, room: int | None = None) -> Iterator[Float[np.ndarray, " B"]]:
        """How far v is from where nothing was closed, once each of these blocks has gone too; runs as it is asked.

        Args:
            room: bytes for what the runs give out: closing the block of least change for good then takes no run, and
                what comes before it is not run again. None: nothing is kept.
        """
        run = variants(self.case, blocks, prefix=self._prefix, others=self.others)
        if not hasattr(self, "measure"):
            self.measure = yardstick(self.metric, self.case, run.base)
        self._prefix, self.base = run.prefix, run.base
        changes = (self.measure(v, block.name) for v, block in zip(run.ablated, blocks, strict=True))
        return changes if run.prefix is None or room is None else _holding(run.prefix, blocks, changes, room)

    def without(self, block: ResidualBlock) -> Closing:
        """The same with this block closed for good; what comes before it is shared."""
        twin = copy.copy(self)
        if self._prefix is None:
            twin.case = self.case.closing(Blocks([block], self.case.module))
        else:
            twin._prefix = self._prefix.closing(block)
            twin.case = twin._prefix.case
        return twin


def _holding(
    prefix: Prefix, blocks: Blocks, changes: Iterator[Float[np.ndarray, " B"]], room: int
) -> Iterator[Float[np.ndarray, " B"]]:
    """The changes; the run of least change is kept whatever the room."""
    prefix.room, least, best = room, np.inf, None
    for block, change in zip(blocks, changes, strict=True):
        if change.mean() < least and prefix.last is not None:
            least, best = change.mean(), (block.name, prefix.last)
        yield change
    if best is not None:
        prefix.twins.setdefault(*best)
