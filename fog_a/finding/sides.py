"""What a layer gives out beside its stream.

What ends in a sum that reaches v (a prediction, a trend, WaveNet's skip) is a part of the layer's update: it is closed
with it. What is read otherwise (values, masks, caches, codes) stays.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

from fog_a.blocks.tree import LeafPath
from fog_a.finding.operations import LINEAR, MOVE, POOL, SCALE, SUM, base
from fog_a.finding.parts import Branch
from fog_a.finding.passages import through
from fog_a.finding.paths import Flow, Update, operands, union
from fog_a.finding.places import pattern
from fog_a.finding.trace import Op


def sides(flow: Flow, call: int, streams: Collection[LeafPath], updates: Collection[Update]) -> list[LeafPath]:
    """The output leaves of a layer that are closed with it, beside those that carry its streams."""
    outs, trace = flow.trace.calls[call].outputs, flow.trace
    main = {outs[p] for p in streams} | {
        v for v in outs.values() for u in updates if flow.passed[v] & flow.forks[u.sum]
    }
    if not main:
        return []
    taken = {*main, *trace.calls[call].inputs.values()}
    fresh = {p: v for p, v in outs.items() if trace.values[v].floating and v not in taken and flow.bent[v]}
    return [p for p, v in fresh.items() if summed(flow, v, call)]


def beginnings(flow: Flow, call: int, leaves: Collection[LeafPath]) -> list[LeafPath]:
    """The output leaves of a part, beside those that are its update, that end in a sum and neither are an update of it
    nor carry a stream: the total begins with them."""
    outs, updates = flow.trace.calls[call].outputs, {(u.sum, u.branch) for u in flow.updates}
    beside = [p for p in sides(flow, call, leaves, ()) if not flow.trunk[outs[p]] & flow.sums]
    return [p for p in beside if updates.isdisjoint(summed(flow, outs[p], call))]


def summed(flow: Flow, v: int, call: int) -> list[tuple[int, int]]:
    """Where what is made of this value by linear steps, outside the call, ends in a sum on the way to the output:
    (sum, summand)."""
    found: list[tuple[int, int]] = []
    todo, seen = [(v, False)], set[int]()
    while todo:
        w, joined = todo.pop()
        if w in seen:
            continue
        seen.add(w)
        for op in flow.readers.get(w, ()):
            if flow.trace.inside(op.call, call) or not op.makes:
                continue
            if _is_sum(flow, op, joined):
                if op.makes[0] in flow.line:
                    found.append((op.makes[0], w))
            elif _linear(flow, op):
                todo += [(m, joined or base(op.name) in ("stack", "cat")) for m in op.makes]
    return found


def _is_sum(flow: Flow, op: Op, joined: bool) -> bool:
    """An addition of two, or a sum over what was stacked or joined."""
    name = base(op.name)
    return joined if name in ("sum", "mean") else name in SUM and len(operands(op, flow)) > 1


def _linear(flow: Flow, op: Op) -> bool:
    """Is the result zero where the one operand that depends on the input is?"""
    name = base(op.name)
    if name in MOVE or name in POOL or name == "alias" or (name in SUM and len(operands(op, flow)) == 1):
        return True
    return name in (SCALE | LINEAR) and sum(bool(flow.inputs[p]) for p in operands(op, flow)) == 1


def left_open(flow: Flow, call: int, closed: Collection[int], updates: Collection[Update]) -> list[LeafPath]:
    """The output leaves of a layer that it makes itself, that are read later, and that stay when these values are
    closed."""
    me, trace = flow.trace.calls[call], flow.trace
    streams = {v for v in me.outputs.values() for u in updates if flow.passed[v] & flow.forks[u.sum]}
    taken = {*me.inputs.values(), *streams, *closed}
    made = {p: v for p, v in me.outputs.items() if v not in taken and flow.bent[v] and trace.values[v].floating}
    return [p for p, v in made.items() if any(not trace.inside(op.call, call) for op in flow.readers.get(v, ()))]


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
        if b.update.order not in self.flow.coupled and any(self._gives_values(p.call, b.update) for p in layers):
            return False
        return any(self._beside_streams(p.call, p.leaves) for p in layers)

    def _gives_values(self, call: int, u: Update) -> bool:
        """Is what passes through it, beside this update of another stream, begun by its like: values, no stream?"""
        me, calls = self.flow.trace.calls[call], self.flow.trace.calls
        alike = [c.id for c in calls if c.kind is me.kind and pattern(c.name) == pattern(me.name)]
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
