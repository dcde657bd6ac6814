"""The cases of a batch: one at each time, or at each step of a sampled trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fog_a.attributing.along import Along
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow

Times = int | Sequence[float] | Along | None


def count(flow: Flow, times: Times) -> int:
    """How many times are measured. Raises BadBatch for times that the flow does not have."""
    return times.steps if isinstance(times, Along) else len(flow.grid(times))


def cases_of(
    flow: Flow, batch: Any, times: Times, seed: int, start: int = 0
) -> tuple[list[Case], tuple[float | None, ...]]:
    """One case at each time, with the times.

    Args:
        seed: of the first case; the others have the next ones. A sampler's noise has it too.
        start: the number of samples before this batch.
    """
    if isinstance(times, Along):
        return times.cases(flow, batch, seed, start)
    grid = flow.grid(times)
    return [Case(flow, batch, t, seed + j, start) for j, t in enumerate(grid)], grid
