"""What layers give out beside their streams, for their parent to add: it belongs to them."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from fog_a.blocks.tree import LeafPath
from fog_a.finding.parts import Branch
from fog_a.finding.passages import through
from fog_a.finding.paths import Flow, Update
from fog_a.finding.sides import sides, summed


class Asides:
    """Tells a parent's own updates from sums of what its layers give out beside their streams."""

    def __init__(self, flow: Flow, updates: dict[int, list[Update]], busy: set[int]) -> None:
        self.flow, self.updates, self.busy = flow, updates, busy

    def is_aside(self, b: Branch) -> bool:
        """Is what is added an output of a layer beside its stream (Autoformer's trend), or made of one by a module of
        the parent's (WaveNet's skip, behind a projection)?"""
        layers = [p for p in b.parts if p.call in self.busy]
        if not layers:
            return (b.update.sum, b.update.branch) in self._sums
        return any(self._beside_streams(p.call, p.leaves) for p in layers)

    def _beside_streams(self, call: int, leaves: Iterable[LeafPath]) -> bool:
        streams = through(self.flow, call).keys()
        if streams and not streams & set(leaves):
            return True
        return call in self.updates and set(leaves) <= set(self._sides(call))

    def _sides(self, call: int) -> list[LeafPath]:
        return sides(self.flow, call, through(self.flow, call), self.updates[call]) if call > 0 else []

    @functools.cached_property
    def _sums(self) -> set[tuple[int, int]]:
        """The sums that what a layer gives out beside its streams ends in, with what is added there."""
        sums: set[tuple[int, int]] = set()
        for call in self.updates:
            for path in self._sides(call):
                sums.update(summed(self.flow, self.flow.trace.calls[call].outputs[path], call))
        return sums
