"""What several uses measure on: the cases of all batches and times, their blocks, and the scores of their samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.attributing.choice import Wanted, chosen
from fog_a.attributing.ratio import EPS
from fog_a.attributing.trials import Times, cases_of
from fog_a.attributing.yardstick import Measure, yardstick
from fog_a.blocks.block import Blocks
from fog_a.flows.bare import flow_of
from fog_a.flows.batches import each, signature
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow, Forward
from fog_a.flows.samples import Samples
from fog_a.scores.scores import Scores


@dataclass
class Trial:
    """The cases of each batch, which are measured on these blocks."""

    flow: Flow
    batches: list[tuple[list[Case], Any]]
    blocks: Blocks
    grid: tuple[float | None, ...]
    seed: int

    @property
    def cases(self) -> Iterator[Case]:
        """All of them."""
        return (case for cases, _ in self.batches for case in cases)

    def scores(self, values: Sequence[Float[np.ndarray, "B L"]], layers: Sequence[str], kind: str) -> Scores:
        """Of each case, in order, its samples' values."""
        parts, several, left, start = list[np.ndarray](), list[Samples](), iter(values), 0
        for cases, batch in self.batches:
            parts.append(np.stack([next(left) for _ in cases], axis=1))
            several.append(self.flow.samples_of(batch, (len(parts[-1]),), start))
            start += len(parts[-1])
        names = {
            name: tuple(n for samples in several for n in getattr(samples, name))
            for name in ("ids", "domains", "groups")
        }
        info = {"seed": self.seed, "eps": EPS, "signature": signature(self.blocks.model, self.blocks)}
        times = tuple(float(t) for t in self.grid if t is not None) or None
        return Scores(np.concatenate(parts), tuple(layers), times, kind=kind, info=info, **names)


def trial(
    model: nn.Module | Flow,
    batch: Any,
    blocks: Wanted,
    level: Literal["layer", "branch"],
    forward: Forward | None,
    times: Times,
    seed: int,
) -> Trial:
    """Open all cases, and find the blocks in the first."""
    flow, batches = flow_of(model, forward), list[tuple[list[Case], Any]]()
    grid: tuple[float | None, ...] = ()
    for number, part in enumerate(each(batch)):
        cases, grid = cases_of(flow, part, times, seed + 7919 * number)
        batches.append((cases, part))
    return Trial(flow, batches, chosen(batches[0][0][0], blocks, level).blocks, grid, seed)


def measured(case: Case, v: Tensor) -> Measure:
    """‖Δv‖/‖v‖ of this case."""
    return yardstick(None, case, v)
