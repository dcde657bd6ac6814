"""Whose additions they are, and which modules made what is added.

The **owner** of an update is the innermost call that contains the fork and the sum, the branch between them included:
BERT's `output(h, residual)` adds, but the layer around it owns the addition. The **parts** are found by walking back
from the branch operand, through rearrangements, scalings and plain sums, to the module calls that gave it: closing
their outputs removes the update and nothing else.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fog_a.blocks.tree import LeafPath
from fog_a.finding.operations import MOVE, SCALE, SUM, base, mixing
from fog_a.finding.paths import Flow, Update, operands, reached
from fog_a.finding.trace import Call

_ZERO_STAYS_ZERO = frozenset(
    "relu relu6 gelu silu tanh mish leaky_relu elu celu selu softsign hardswish glu abs sqrt erf sign".split()
)


@dataclass(frozen=True)
class Part:
    """A module call that gave (a summand of) an update: where it is closed, and how a reader would call it."""

    call: int
    leaves: tuple[LeafPath, ...]
    reader: int


@dataclass(frozen=True)
class Branch:
    """An update with the parts that can be closed."""

    update: Update
    parts: tuple[Part, ...]


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
        if (kept := [u for u in updates if forks[call, u.fork] == 1 or _leads_on(flow, u)])
    }


def _kept_inside(flow: Flow, u: Update, beside: list[Update]) -> bool:
    """Is the sum read for the branches of these others alone (values mixed with the first layer's)? It is no stream."""
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


def _leads_on(flow: Flow, u: Update) -> bool:
    """Is the sum what the owner gives out, or the stream of a further update? Of several on one value, the steps of a
    recurrence (`w[:, t] + u(h)`) lead to none."""
    bit = flow.forks[u.sum]
    ends = [*flow.trace.calls[u.owner].outputs.values(), *(w.stream for w in flow.updates if w is not u)]
    return any((flow.passed[v] | flow.bypass[v]) & bit for v in ends)


def _goes_on(flow: Flow, u: Update) -> bool:
    """Is the sum all that the calls around it, up to the owner, are for? Attention mixing in the first layer's values
    adds deep inside a branch, and gives out more than that: no layer's update."""
    bit = flow.forks[u.sum]
    inner = itertools.takewhile(lambda c: c != u.owner, flow.trace.ancestors(u.op.call))
    given = [v for c in inner for v in flow.trace.calls[c].outputs.values() if flow.any[v] & bit]
    return all(flow.passed[v] & bit for v in given)


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
    given = set(flow.trace.calls[call].inputs.values())
    todo, seen, met = [u.branch], set[int](), list[int]()
    while todo:
        v = todo.pop()
        if v in seen:
            continue
        seen.add(v)
        if v in given:
            met.append(v)
            continue
        every, pieces = _zero_if(flow, u, v, call)
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
    given = set(trace.calls[call].inputs.values())
    seen, todo, met = set[int](), [value], set[int]()
    while todo:
        v = todo.pop()
        if v in seen:
            continue
        seen.add(v)
        op = trace.values[v].op
        if v == stop or v in given or op is None or not trace.inside(op.call, call):
            met.add(v)
        else:
            todo.extend(op.reads)
    return met


def parts(flow: Flow, u: Update) -> list[Part] | None:
    """The module calls whose outputs, set to zero, remove this update; None if none do."""
    closed: dict[int, frozenset[Part] | None] = {}
    needs: dict[int, tuple[bool, list[int]]] = {}
    todo = [u.branch]
    while todo:
        v = todo.pop()
        if v in closed or v in needs:
            continue
        calls = [
            c
            for c in giving(flow, v)
            if not flow.trace.inside(u.op.call, c.id) and flow.trace.inside(c.id, u.owner) and c.id != u.owner
        ]
        if v == u.fork or flow.trunk[v] & flow.forks[u.fork]:
            closed[v] = None  # the stream itself: it must stay
        elif calls:
            closed[v] = frozenset([_part(flow, u, v, calls)])
        else:
            needs[v] = _zero_if(flow, u, v, u.owner)
            todo += needs[v][1]
    for v in sorted(needs):  # what a value is made of is older
        every, pieces = needs[v]
        found = [closed[p] for p in pieces]
        able = [c for c in found if c is not None]
        closed[v] = frozenset[Part]().union(*able[: None if every else 1]) if able else None
        if every and len(able) < len(found):
            closed[v] = None
    best = closed[u.branch]
    return None if best is None else sorted(best, key=lambda p: p.call)


def _zero_if(flow: Flow, u: Update, v: int, call: int) -> tuple[bool, list[int]]:
    """A value is zero if every one of these operands is, or (False) if the first that can be made zero is."""
    op = flow.trace.values[v].op
    if op is None or not flow.trace.inside(op.call, call):
        return True, []
    name, fork = base(op.name), flow.forks[u.fork]
    pieces = [p for p in operands(op, flow) if flow.any[p] & fork]
    if "div" in name:
        return False, pieces[:1]
    if name in SCALE:  # the larger factor is the value, the other one its gate
        return False, sorted(pieces, key=lambda p: (-flow.full[p], not giving(flow, p)))
    if name in SUM:
        rest = [p for p in operands(op, flow) if p not in pieces and not _zero(flow, p)]
        return True, [] if rest else pieces
    stays = name in MOVE or name in ("alias", "sum", "mean") or (name in _ZERO_STAYS_ZERO and len(pieces) == 1)
    return True, pieces if stays else []


def _zero(flow: Flow, v: int) -> bool:
    """Was it made as zeros, to gather a sum in?"""
    op = flow.trace.values[v].op
    return op is not None and base(op.name) in ("zeros", "zeros_like", "new_zeros", "zero")


def giving(flow: Flow, v: int) -> list[Call]:
    """The calls that have `v` among their outputs, outermost and latest last."""
    index = _index(flow)
    return [flow.trace.calls[c] for c in index.get(v, ())]


def _index(flow: Flow) -> dict[int, list[int]]:
    if not flow.givers:
        for call in flow.trace.calls[1:]:
            if call.name or call.parent > 0:
                for v in dict.fromkeys(call.outputs.values()):
                    flow.givers.setdefault(v, []).append(call.id)
    return flow.givers


def _part(flow: Flow, u: Update, v: int, calls: list[Call]) -> Part:
    frame = [c for c in calls if flow.trace.inside(u.op.call, c.parent)]
    point = (frame or calls)[-1] if frame else calls[0]
    leaves = tuple(p for p, w in point.outputs.items() if w == v)
    return Part(point.id, leaves, _reader(flow, u, v, point).id)


def _reader(flow: Flow, u: Update, v: int, point: Call) -> Call:
    """The heaviest of the owner's calls in which the branch mixes: attention rather than the norms around it."""
    trace, beside = flow.trace, set(flow.trace.calls[u.owner].children)
    able: set[int] = set()
    for w in _between(flow, u, v):
        op = trace.values[w].op
        if op is not None and mixing(base(op.name)):
            able |= beside & set(trace.ancestors(op.call))
    able -= set(trace.ancestors(u.op.call))
    return max((trace.calls[c] for c in able), key=lambda c: (c.parameters, c.id), default=point)


def _between(flow: Flow, u: Update, v: int) -> Iterator[int]:
    """The values between the fork and the branch operand, but for the smaller ones that scale or shift it."""
    seen, todo, fork = set[int](), [v], flow.forks[u.fork]
    while todo:
        w = todo.pop()
        if w in seen or flow.forks.get(w, 0) & u.starts or not flow.any[w] & fork:
            continue
        seen.add(w)
        yield w
        op = flow.trace.values[w].op
        if op is not None:
            whole = [r for r in op.reads if flow.full[r] == flow.full[w] and flow.any[r] & fork]
            todo.extend(whole if whole and base(op.name) in SCALE | SUM else op.reads)
