"""What a layer gives out beside its stream.

What ends in a sum that reaches v (a prediction, a trend, WaveNet's skip) is a part of the layer's update: it is closed
with it. What is read otherwise (values, masks, caches, codes) stays.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator

from fog_a.blocks.tree import LeafPath
from fog_a.finding.operations import MOVE, SUM
from fog_a.finding.parts import Branch
from fog_a.finding.passages import through
from fog_a.finding.paths import Flow, Update, linear, operands, union, walk
from fog_a.finding.places import pattern
from fog_a.finding.trace import Op


def sides(flow: Flow, call: int, streams: Collection[LeafPath], updates: Collection[Update]) -> list[LeafPath]:
    """The output leaves of a layer that are closed with it, beside those that carry its streams."""
    outs = flow.trace.calls[call].outputs
    main = {outs[p] for p in streams} | _carrying(flow, call, updates)
    return [p for p, v in _beside(flow, call, main).items() if summed(flow, v, call)] if main else []


def left_open(
    flow: Flow, call: int, closed: Collection[int], updates: Collection[Update], since: int = -1
) -> list[LeafPath]:
    """The output leaves of a layer, or of a part of one whose last sum is `since`, beside its streams, that are read
    later, and that stay when these values are closed."""

    def is_later(op: Op) -> bool:
        return not flow.trace.inside(op.call, call) and max(op.makes, default=since) > since

    beside = _beside(flow, call, {*closed, *_carrying(flow, call, updates)})
    first = {v: p for p, v in reversed(beside.items())}  # one value may be given out twice
    return [p for v, p in reversed(first.items()) if any(map(is_later, flow.readers[v]))]


def _carrying(flow: Flow, call: int, updates: Collection[Update]) -> set[int]:
    """What a call gives out of the streams of these updates."""
    outs = flow.trace.calls[call].outputs.values()
    return {v for v in outs for u in updates if flow.passed[v] & flow.forks[u.sum]}


def _beside(flow: Flow, call: int, taken: Collection[int]) -> dict[LeafPath, int]:
    """What a call makes and gives out beside these values."""
    me, values = flow.trace.calls[call], flow.trace.values
    others = {p: v for p, v in me.outputs.items() if v not in taken and values[v].floating and flow.bent[v]}
    return {p: v for p, v in others.items() if not moved(flow, v, me.inputs.values())}


def moved(flow: Flow, v: int, inputs: Collection[int]) -> bool:
    """Is the value one of these, or a rearrangement of it (tokens in reverse order)?"""

    def back(w: int) -> list[int]:
        op = flow.trace.values[w].op
        pieces = operands(op, flow) if op is not None and op.kind is MOVE and w not in inputs else []
        return pieces if len(pieces) == 1 else []

    return any(w in inputs for w in walk([v], back))


def beginnings(flow: Flow, call: int, leaves: Collection[LeafPath]) -> list[LeafPath]:
    """The output leaves of a part, beside those that are its update, that end in a sum and neither are an update of it
    nor carry a stream: the total begins with them."""
    outs, updates = flow.trace.calls[call].outputs, {(u.sum, u.branch) for u in flow.updates}
    beside = [p for p in sides(flow, call, leaves, ()) if not flow.trunk[outs[p]] & flow.sums]
    return [p for p in beside if updates.isdisjoint(summed(flow, outs[p], call))]


def summed(flow: Flow, v: int, call: int) -> list[tuple[int, int]]:
    """Where what is made of this value by linear steps, outside the call, ends in a sum on the way to the output:
    (sum, summand)."""

    def readers(w: int) -> list[Op]:
        return [op for op in flow.readers[w] if not flow.trace.inside(op.call, call)]

    def on(step: tuple[int, bool]) -> Iterator[tuple[int, bool]]:
        w, joined = step
        for op in readers(w):
            if linear(op, flow) and not _is_sum(flow, op, joined):
                yield from ((m, joined or op.name in ("stack", "cat")) for m in op.makes)

    ends = ((op, w) for w, joined in walk([(v, False)], on) for op in readers(w) if _is_sum(flow, op, joined))
    return [(op.makes[0], w) for op, w in ends if op.makes[0] in flow.line(v)]


def _is_sum(flow: Flow, op: Op, joined: bool) -> bool:
    """An addition of two, or a sum over what was stacked or joined."""
    return joined if op.name in ("sum", "mean") else op.kind is SUM and len(operands(op, flow)) > 1


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
        if b.update.sum not in self.flow.coupled and any(self._gives_values(p.call, b.update) for p in layers):
            return False
        return any(self._beside_streams(p.call, p.leaves) for p in layers)

    def _gives_values(self, call: int, u: Update) -> bool:
        """Is what passes through it, beside this update of another stream, begun by its like: values, no stream?"""
        me, calls = self.flow.trace.calls[call], self.flow.trace.calls
        alike = [c.id for c in calls if c.cls is me.cls and pattern(c.name) == pattern(me.name)]
        another = not union(self.flow.trunk, me.outputs.values()) & self.flow.trunk[u.stream]
        return another and not all(through(self.flow, c) for c in alike)

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
