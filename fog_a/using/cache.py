"""Cache schedules: at which steps of a sampling run a block computes, and at which its last update is used again.

A block's drift is summed over the steps since it computed last; where the sum would pass a threshold, it computes. One
threshold serves all blocks, chosen so that a given share of the block evaluations is computed.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import Blocks
from fog_a.errors import BadArgument, UnknownBlock, is_real, is_whole, near
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Inputs
from fog_a.scores.scores import Scores
from fog_a.using.calls import BlockOutput, NetworkCalls, When


@dataclass(frozen=True, eq=False)
class CacheSchedule:
    """When each block computes.

    Attributes:
        layers: block names.
        compute: (steps, L) bool: True where a block computes; the first step always does.
        threshold: the summed drift at which a block computes again; None for a schedule without drift.
    """

    layers: tuple[str, ...]
    compute: Bool[np.ndarray, "J L"]
    threshold: float | None = None

    @classmethod
    def every(cls, n: int, layers: Sequence[str], steps: int) -> CacheSchedule:
        """Every block at every n-th step: what is used without measuring. Raises BadArgument.

        >>> CacheSchedule.every(2, ["a"], 4).compute[:, 0].tolist()
        [True, False, True, False]
        """
        if not (is_whole(n) and is_whole(steps) and n > 0 and steps > 0):
            raise BadArgument(f"expected n and steps as whole numbers, 1 or more, got n={n!r}, steps={steps!r}")
        compute = np.repeat((np.arange(steps) % n == 0)[:, None], len(layers), axis=1)
        return cls(tuple(layers), compute)

    @property
    def share(self) -> float:
        """The share of block evaluations that are computed."""
        return float(self.compute.mean())

    def steps(self, layer: str) -> list[int]:
        """The steps at which a block computes, from 0. Raises UnknownBlock."""
        if layer not in self.layers:
            raise UnknownBlock(
                f"no layer {layer!r} in this schedule{near(layer, self.layers)}. schedule.layers has them all"
            )
        return np.flatnonzero(self.compute[:, self.layers.index(layer)]).tolist()

    def replay(self, flow: Flow | nn.Module, blocks: Blocks, *, when: When | None = None) -> Replay:
        """A context in which the flow's sampler uses old updates as scheduled; to see what that does, not for speed.

        `blocks` are from `find_blocks`, `when` says which calls of the network are steps of the run, as in `drift`.
        """
        return Replay(self, flow, blocks.named(self.layers), when)


class Replay(NetworkCalls):
    """Inside, a block that does not compute at a step gives its stream input plus the update of its last computed step.

    Every block still runs; what it gives is replaced. `calls` counts the steps. Raises BadArgument where the run has
    more or fewer steps than the schedule.
    """

    def __init__(self, schedule: CacheSchedule, flow: Flow | nn.Module, blocks: Blocks, when: When | None) -> None:
        super().__init__(flow, blocks, when)
        self.schedule = schedule
        self._updates: dict[Any, Tensor] = {}

    def begin(self, inputs: Inputs, rows: Any) -> None:
        """The next step."""
        if self.calls > len(self.schedule.compute):
            raise self._other_steps("makes another")

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        if exc[0] is None and self.calls < len(self.schedule.compute):
            raise self._other_steps(f"made {self.calls}")

    def _other_steps(self, what: str) -> BadArgument:
        return BadArgument(
            f"the schedule has {len(self.schedule.compute)} steps, and the sampler {what}: expected as many as in the "
            "run whose drift was measured. Open the context anew for each run"
        )

    def at(self, output: BlockOutput) -> Tensor:
        """What the block gives, or its stream with the old update."""
        place = (output.key, output.path)
        if self.schedule.compute[self.calls - 1, self.schedule.layers.index(output.block.name)]:
            self._updates[place] = output.update()
            return output.y
        old = self._updates[place]
        return old if output.source is None else output.closed() + old


def cache_schedule(scores: Scores, share: float = 0.5, *, domain: str | None = None) -> CacheSchedule:
    """The schedule that computes at most `share` of all block evaluations, by the drift measured in a run of its steps.

    Args:
        scores: from `drift`; `domain`: the samples to plan for (None: all).
        share: at most 1; 0.5 computes every second evaluation, most where the updates change most.

    Raises:
        BadArgument: scores of another kind, or a share that leaves less than the first step.
    """
    if getattr(scores, "kind", None) != "drift":
        raise BadArgument(f"expected scores of kind 'drift', got {getattr(scores, 'kind', type(scores).__name__)!r}")
    curve = np.nan_to_num(scores.curve(domain), nan=1e30)
    steps = len(curve) + 1
    if not is_real(share) or not 1 / steps <= share <= 1:
        raise BadArgument(f"share = {share!r}: expected {1 / steps:.3f} to 1; the first of {steps} steps is computed")
    thresholds = np.unique(np.concatenate([curve.ravel(), np.cumsum(curve, axis=0).ravel(), [0.0, np.inf]]))
    # the least threshold that keeps to the share
    least = bisect.bisect_left(thresholds, True, key=lambda threshold: bool(_plan(curve, threshold).mean() <= share))
    return CacheSchedule(scores.layers, _plan(curve, thresholds[least]), float(thresholds[least]))


def _plan(curve: Float[np.ndarray, "J L"], threshold: float) -> Bool[np.ndarray, "n L"]:
    """A block computes where the drift since it computed last exceeds the threshold."""
    compute, since = [np.ones(curve.shape[1], dtype=bool)], np.zeros(curve.shape[1])
    for step in curve:
        since = since + step
        compute.append(since > threshold)
        since = np.where(compute[-1], 0.0, since)
    return np.stack(compute)
