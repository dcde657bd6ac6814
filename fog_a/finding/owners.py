"""Whose additions they are.

The **owner** of an update is the innermost call that contains the fork and the sum, the branch between them included:
BERT's `output(h, residual)` adds, but the layer around it owns the addition.
"""

from __future__ import annotations

import itertools
from collections import Counter

from fog_a.finding.parts import zero_if
from fog_a.finding.paths import Flow, Update, reached, union


def own(flow: Flow) -> dict[int, list[Update]]:
    """The updates of each call, by owner."""
    owned: dict[int, list[Update]] = {}
    for u in flow.updates:
        u.owner = _owner(flow, u)
        if u.owner >= 0 and (u.op.call == u.owner or _goes_on(flow, u)):
            owned.setdefault(u.owner, []).append(u)
    owned = {call: [u for u in updates if not _kept_inside(flow, u, updates)] for call, updates in owned.items()}
    forks = Counter((call, u.fork) for call, updates in owned.items() for u in updates)
    return {
        call: kept
        for call, updates in owned.items()
        if (
            kept := [
                u for u in updates if (forks[call, u.fork] == 1 and _lives(flow, u, updates)) or _leads_on(flow, u)
            ]
        )
    }


def _kept_inside(flow: Flow, u: Update, beside: list[Update]) -> bool:
    """Is the sum read for the branches of these others alone? Then it is no stream. ResFormer's attention needs this:
    it adds the first layer's values, after a projection, to its own."""
    if not any(o is not u and o.fork < u.sum and flow.any[o.branch] & flow.forks[u.sum] for o in beside):
        return False
    if any(flow.trunk[u.stream] & flow.forks[o.sum] or flow.trunk[o.stream] & flow.forks[u.sum] for o in flow.updates):
        return False  # it goes on from an update, or an update from it
    todo, seen = [u.sum], set[int]()
    while todo:
        v = todo.pop()
        if v == flow.trace.output or any(not flow.trace.inside(op.call, u.owner) for op in flow.readers.get(v, ())):
            return False
        for op in flow.readers.get(v, ()):
            update = flow.by_sum.get(op.makes[0])
            if update is None or update.stream == v or update.owner != u.owner:
                todo += [w for w in op.makes if w not in seen]
                seen.update(op.makes)
    return True


def _lives(flow: Flow, u: Update, beside: list[Update]) -> bool:
    """Does the stream come into the owner, or go on from another of these? A sum of two linear maps, or one within a
    gate (a GRU's `w(y) + u(r·x)`), may do neither: then it leads to no stream."""
    if any(flow.bypass[u.stream] & flow.forks[o.sum] for o in beside if o is not u):
        return True
    return not u.projection and bool(
        flow.trunk[u.stream] & union(flow.trunk, flow.trace.calls[u.owner].inputs.values())
    )


def _leads_on(flow: Flow, u: Update) -> bool:
    """Is the sum what the owner gives out, or the stream of a further update? Of several on one value, the steps of a
    recurrence (`w[:, t] + u(h)`) lead to none."""
    bit = flow.forks[u.sum]
    others = [w for w in flow.updates if w is not u]
    ends = [*flow.trace.calls[u.owner].outputs.values(), *(w.stream for w in others)]
    ends += [w.fork for w in others if w.order in flow.coupled]
    return any((flow.passed[v] | flow.bypass[v]) & bit for v in ends)


def _goes_on(flow: Flow, u: Update) -> bool:
    """Do the calls around the sum, up to the owner, hand it on, and nothing else that is made of it, but to a further
    update? Attention mixing in the first layer's values adds deep inside a branch, and gives out something else, if
    the values beside it: no layer's update."""
    bit = flow.forks[u.sum]
    inner = itertools.takewhile(lambda c: c != u.owner, flow.trace.ancestors(u.op.call))
    outs = [
        [bool(flow.passed[v] & bit) for v in flow.trace.calls[c].outputs.values() if flow.any[v] & bit] for c in inner
    ]
    further = any(flow.trunk[w.stream] & bit for w in flow.updates if w is not u)
    return all(any(passed) if further else all(passed) for passed in outs if passed)


def _owner(flow: Flow, u: Update) -> int:
    bit = flow.forks[u.sum]
    for call in flow.trace.ancestors(u.op.call):
        if _contains(flow, u, call):
            return call
        if not any(flow.passed[v] & bit for v in flow.trace.calls[call].outputs.values()):
            return -1  # an adder deep inside a branch (a value residual): its sum is not handed on
    return -1


def _contains(flow: Flow, u: Update, call: int) -> bool:
    """Does the branch run inside this call: from the stream, as the call gets it or has it, to the sum? What scales or
    shifts the branch may come from outside (a condition made of the stream's own first value); the branch may not."""
    roots = u.roots
    trunk = flow.bypass if u.projection else flow.trunk
    if u.projection and not _visible(flow, u.fork, call):
        return False
    homes = frozenset(v for v in flow.trace.calls[call].inputs.values() if trunk[v] & roots)
    starts = frozenset(v for v in flow.trace.calls[call].inputs.values() if trunk[v] & u.starts)
    if not reached(flow, u.branch, u.starts, call, starts, carried=trunk):
        return False
    met = met_inputs(flow, u.branch, call, u.fork)
    if not any(flow.bends[w] & roots for w in met if w not in homes and w != u.fork):
        return True
    return not any(flow.bends[w] & roots for w in _sources(flow, u, call) if w not in homes)


def _sources(flow: Flow, u: Update, call: int) -> list[int]:
    """Where the way back from the branch by its larger factors and summands enters the call, or () if it ends in it."""
    inputs = set(flow.trace.calls[call].inputs.values())
    todo, seen, met = [u.branch], set[int](), list[int]()
    while todo:
        v = todo.pop()
        if v in seen:
            continue
        seen.add(v)
        if v in inputs:
            met.append(v)
            continue
        every, pieces = zero_if(flow, u, v, call)
        if not pieces:
            return []
        todo += pieces if every else pieces[:1]
    return met


def _visible(flow: Flow, v: int, call: int) -> bool:
    """Is `v` at hand where the call's own code runs: made there, given to it, or given out by a call it made?"""
    me, bit = flow.trace.calls[call], flow.forks[v]
    op = flow.trace.values[v].op
    outs = [w for c in me.children for w in flow.trace.calls[c].outputs.values()]
    return (op is not None and op.call == call) or any(flow.trunk[w] & bit for w in [*me.inputs.values(), *outs])


def met_inputs(flow: Flow, value: int, call: int, stop: int) -> set[int]:
    """Walk back from `value` through the operations inside `call`: the values from outside that are met on the way."""
    trace = flow.trace
    inputs = set(trace.calls[call].inputs.values())
    seen, todo, met = set[int](), [value], set[int]()
    while todo:
        v = todo.pop()
        if v in seen:
            continue
        seen.add(v)
        op = trace.values[v].op
        if v == stop or v in inputs or op is None or not trace.inside(op.call, call):
            met.add(v)
        else:
            todo.extend(op.reads)
    return met
