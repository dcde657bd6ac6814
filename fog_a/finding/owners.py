"""Whose additions they are.

The **owner** of an update is the innermost call that contains the fork and the sum, the branch between them included:
BERT's `output(h, residual)` adds, but the layer around it owns the addition.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from fog_a.finding.operations import MIXING
from fog_a.finding.parts import zero_if
from fog_a.finding.paths import Flow, Update, bends_from, operands, union, walk
from fog_a.finding.sides import moved


def own(flow: Flow) -> dict[int, list[Update]]:
    """The updates of each call, by owner, without those that lead to no stream."""
    owned: dict[int, list[Update]] = defaultdict(list)
    for u in flow.updates:
        u.owner = next((c for c in flow.trace.ancestors(u.op.call) if _contains(flow, u, c)), 0)
        if _goes_on(flow, u):
            owned[u.owner].append(u)
    streams = {call: [u for u in updates if not _kept_inside(flow, u)] for call, updates in owned.items()}
    kept = {call: _leading(flow, updates) for call, updates in streams.items()}
    return {call: updates for call, updates in kept.items() if updates}


def _contains(flow: Flow, u: Update, call: int) -> bool:
    """Does the branch run inside this call: from the stream, as the call gets it or has it, to the sum? What scales or
    shifts the branch may come from outside (a condition made of the stream's own first value); the branch may not."""
    if u.projection and not _visible(flow, u.fork, call):
        return False
    inputs = set(flow.trace.calls[call].inputs.values())
    if not bends_from(flow, u.branch, u.starts, call, {v for v in inputs if flow.trunk[v] & u.starts}):
        return False
    outside = {v for v in inputs if flow.bends[v] & u.roots and not flow.trunk[v] & u.roots}
    return outside.isdisjoint(_sources(flow, u, call))


def _sources(flow: Flow, u: Update, call: int) -> set[int]:
    """The values from the branch backwards, inside the call, by its larger factors and its summands."""

    def back(v: int) -> list[int]:
        every, pieces = zero_if(flow, u, v, call)
        return pieces if every else pieces[:1]

    return set(walk([u.branch], back))


def _visible(flow: Flow, v: int, call: int) -> bool:
    """Is `v` at hand where the call's own code runs: made there, given to it, or given out by a call it made?"""
    me, op = flow.trace.calls[call], flow.trace.values[v].op
    outs = [w for c in me.children for w in flow.trace.calls[c].outputs.values()]
    return (op is not None and op.call == call) or bool(union(flow.trunk, (*me.inputs.values(), *outs)) & flow.forks[v])


# ---- does it lead to a stream?


def _goes_on(flow: Flow, u: Update) -> bool:
    """Do the calls around the sum, up to the owner, hand it on, and nothing else that is made of it, but to a further
    update? Attention mixing in the first layer's values adds deep inside a branch, and gives out something else, if
    the values beside it: no layer's update."""
    bit = flow.forks[u.sum]
    inner = itertools.takewhile(lambda c: c != u.owner, flow.trace.ancestors(u.op.call))
    outs = [
        [bool(flow.passed[v] & bit) for v in flow.trace.calls[c].outputs.values() if flow.any[v] & bit] for c in inner
    ]
    return all(any(passed) if flow.streams & bit else all(passed) for passed in outs if passed)


def _kept_inside(flow: Flow, u: Update) -> bool:
    """Is the sum read for the branches of others alone, and does nothing leave the owner but what it was mixed into?
    Then it is no stream. ResFormer's attention needs this: it adds the first layer's values to its own."""
    if flow.trunk[u.stream] & flow.sums or flow.streams & (flow.forks[u.sum] | flow.trunk[u.branch]):
        return False  # it goes on from an update, or an update from it or from what gave its branch (WaveNet's skip)

    def leaves(v: int, straight: bool) -> bool:
        outside = any(not flow.trace.inside(op.call, u.owner) for op in flow.readers[v])
        return v == flow.trace.output or (straight and outside)

    def on(step: tuple[int, bool]) -> Iterator[tuple[int, bool]]:
        v, straight = step
        for op in flow.readers[v]:
            update = flow.by_sum.get(op.makes[0])
            if update is None or update.stream == v:
                mixed = op.kind.does & MIXING and sum(bool(flow.inputs[p]) for p in operands(op, flow)) > 1
                yield from ((w, update is not None or (straight and not mixed)) for w in op.makes)

    return not any(leaves(*step) for step in walk([(u.sum, True)], on))


def _leading(flow: Flow, updates: Sequence[Update]) -> list[Update]:
    """Those whose stream goes on from another of these, or comes into the owner, or whose sum leads on. A sum of two
    linear maps, or one within a gate (a GRU's `w(y) + u(r·x)`), leads to no stream; nor does, of several on one value
    that came in, the step of a recurrence (`w[:, t] + u(h)`)."""
    forks = Counter(u.fork for u in updates)
    sums = union(flow.forks, (u.sum for u in updates))

    def comes_in(u: Update) -> bool:
        inputs = flow.trace.calls[u.owner].inputs.values()
        held = bool(flow.trunk[u.stream] & union(flow.trunk, inputs)) or moved(flow, u.stream, inputs)
        return held and forks[u.fork] == 1

    return [u for u in updates if flow.bypass[u.stream] & sums or comes_in(u) or _leads_on(flow, u)]


def _leads_on(flow: Flow, u: Update) -> bool:
    """Does the owner give the sum out, as its output or in an object that the model reads later, or is it the stream of
    a further update, or what that is a linear map of?"""
    ends = [*flow.trace.calls[u.owner].outputs.values(), *(w.stream for w in flow.updates)]
    ends += [w.fork for w in flow.updates if w.projection or w.sum in flow.coupled]
    ends += [u.sum for op in flow.readers.get(u.sum, ()) if not flow.trace.inside(op.call, u.owner)]
    return any(flow.on_way(v, u.sum) for v in ends)
