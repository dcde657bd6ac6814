"""Which additions in a trace are residual updates, and what each one's stream, branch, fork and owner are.

A value's *trunk* is what it is made of by rearrangements (view, cat, slice, cast, …), by products with what does not
depend on it, and by sums. `s + b` is an **update** of the stream s when b depends on s's trunk, and does so from the
last value they share (the **fork**) by a path that holds something nonlinear and something that mixes elements:

    h_l = h_{l-1} + f_l(h_{l-1}, t, c)        s = h_{l-1} or a rearrangement of it, b = f_l, fork = h_{l-1}

Sums with a position, a time or a condition do not qualify (b does not depend on s), nor do low-rank linear bypasses
(no nonlinearity), Snake or decomposed GELU (no mixing), or U-Net skips (both operands are on one trunk). Where the
shortcut itself is a linear map, a norm or a pooling, `conv(x) + f(x)`, the update is a **projection**.

Dependence is kept as sets of forks, as bits of Python integers: values that are read at least twice, in order of time,
so that the highest common bit is the latest fork.
"""

from __future__ import annotations

import math

from fog_a.finding.coupled import chained, coupled_sums, meets, on_streams
from fog_a.finding.operations import LINEAR, MOVE, NORM, POINTWISE, POOL, SCALE, SUM, base, bending, mixing
from fog_a.finding.paths import Flow, Update, operands, reached, shared, union
from fog_a.finding.trace import Op, Trace


def analyse(trace: Trace, model_inputs: dict[int, int], linear: bool = False) -> Flow:
    """Follow the dependences of all values and find the updates. `model_inputs`: value → its bit.

    Streams may be coupled, one updated from the other only: (h, s) → (h + f(h), s + g(h')). Such sums are seen once the
    streams are known, so a trace that has some is gone through again."""
    flow = _analyse(trace, model_inputs, linear, {})
    if coupled := coupled_sums(flow):
        flow = _analyse(trace, model_inputs, linear, coupled)
        kept = {u.order: coupled[u.order] for u in flow.updates if u.order in coupled and chained(flow, u)}
        if kept != coupled:
            flow = _analyse(trace, model_inputs, linear, kept)
    streams = on_streams(flow)
    for u in flow.updates:
        newest = flow.any[u.branch] & streams
        u.starts = u.roots | (flow.forks[flow.latest(newest)] & flow.bends[u.branch] if newest else 0)
    return flow


def _analyse(
    trace: Trace, model_inputs: dict[int, int], linear: bool, coupled: dict[int, tuple[int, int, int]]
) -> Flow:
    flow = Flow(trace, named=model_inputs, linear=linear, coupled=coupled)
    n = len(trace.values)
    for name in ("inputs", "origin", "any", "bent", "mixed", "both", "trunk", "level", "bypass", "passed", "wholly"):
        setattr(flow, name, [0] * n)
    flow.full = [math.prod(v.shape) for v in trace.values]
    opaque = {c.id for c in trace.calls if c.opaque}
    for v, value in enumerate(trace.values):
        if value.op is None:
            flow.inputs[v] = flow.origin[v] = model_inputs.get(v, 0)
            _mark(flow, v)
    for order, op in enumerate(trace.ops):
        if opaque and any(c in opaque for c in trace.ancestors(op.call)):
            continue
        _follow(flow, op, order)
    return flow


def _mark(flow: Flow, v: int, always: bool = False) -> None:
    """Give a value that is read twice its bit: something may fork there."""
    if not always and flow.trace.values[v].readers < 2:
        return
    bit = 1 << len(flow.values)
    flow.forks[v] = bit
    flow.values.append(v)
    for sets in (flow.any, flow.trunk, flow.level, flow.bypass, flow.passed, flow.wholly):
        sets[v] |= bit


def _follow(flow: Flow, op: Op, order: int) -> None:
    name, reads = base(op.name), op.reads
    bends, mixes = bending(name), mixing(name)
    deps, bent, mixed, both = (union(s, reads) for s in (flow.any, flow.bent, flow.mixed, flow.both))
    if bends:
        both |= mixed if not mixes else deps
        bent |= deps
    if mixes:
        both |= bent if not bends else deps
        mixed |= deps
    if not bends:
        twice = shared(flow, op, name)  # a product of two values that share a fork is nonlinear in it
        bent |= twice
        both |= twice & (mixed | (deps if mixes else 0))
    inputs = union(flow.inputs, reads)
    for v in op.makes:
        flow.inputs[v] = flow.origin[v] = inputs
        if flow.trace.values[v].continuous:  # what is looked up by a code does not depend on what was coded
            flow.any[v], flow.bent[v], flow.mixed[v], flow.both[v] = deps, bent, mixed, both
    update = _combine(flow, op, name, order)
    for v in op.makes:
        _mark(flow, v, always=update is not None)
        if v in flow.named:
            flow.inputs[v] = flow.origin[v] = flow.named[v]


def _combine(flow: Flow, op: Op, name: str, order: int) -> Update | None:
    """Set the trunks of what `op` makes; an addition may turn out to be an update."""
    values = flow.trace.values
    if not op.makes or not values[op.makes[0]].floating:
        return None
    out = op.makes[0]
    pieces = operands(op, flow)
    if name == "alias" or name in MOVE:
        if name == "expand" and pieces:
            flow.full[out] = flow.full[pieces[0]]
        for v in op.makes:
            if name in ("repeat",) or name == "expand":
                flow.full[v] = min(flow.full[v], flow.full[pieces[0]] if pieces else flow.full[v])
            _carry(flow, v, pieces, (flow.trunk, flow.level, flow.bypass, flow.passed, flow.origin))
    elif name in SUM:
        return _add(flow, op, name, order, out, pieces)
    elif (stacked := _stacked(flow, op, name)) is not None:
        return _add(flow, op, "add", order, out, stacked)
    elif name in SCALE:
        _scale(flow, name, out, pieces)
    elif name in NORM:
        _carry(flow, out, pieces[:1], (flow.level, flow.bypass, flow.passed))
    elif name in POOL or (name in ("max", "amax", "mean") and len(op.args) > 1):
        _carry(flow, out, pieces[:1], (flow.level, flow.bypass))
    elif name in LINEAR:
        moving = [v for v in pieces if flow.inputs[v]]
        if len(moving) == 1:
            flow.bypass[out] |= flow.bypass[moving[0]]
        elif len(moving) == 2:  # parallel streams mixed by weights that are computed from them (hyper-connections)
            for v, weights in (moving, moving[::-1]):
                flow.bypass[out] |= flow.trunk[v] & flow.bent[weights]
    elif name in POINTWISE and len(pieces) == 1:
        _carry(flow, out, pieces, (flow.passed,))
    return None


def _stacked(flow: Flow, op: Op, name: str) -> list[int] | None:
    """`torch.stack([h, f]).sum(0)` is an addition: the two that were stacked, if that is what is summed."""
    if name != "sum" or not op.reads:
        return None
    made, dims = flow.trace.values[op.reads[0]], op.args[1] if len(op.args) > 1 else None
    if made.op is None or base(made.op.name) != "stack" or not isinstance(dims, list) or len(dims) != 1:
        return None
    rank = len(made.shape)
    at = made.op.args[1] if len(made.op.args) > 1 else made.op.kwargs.get("dim", 0)
    return operands(made.op, flow) if dims[0] % rank == at % rank else None


def _carry(flow: Flow, out: int, pieces: list[int], kinds: tuple[list[int], ...]) -> None:
    for sets in kinds:
        sets[out] = union(sets, pieces)
    if any(sets is flow.passed for sets in kinds):
        made = 0
        for p in pieces:
            made |= flow.any[p] & ~flow.wholly[p]
        flow.wholly[out] = union(flow.wholly, pieces) & ~made


def _scale(flow: Flow, name: str, out: int, pieces: list[int]) -> None:
    """A product carries its full-size factor if the others do not depend on that one's trunk."""
    size = flow.full[out]
    whole = [v for v in (pieces[:1] if "div" in name else pieces) if flow.full[v] == size]
    small = [v for v in pieces if flow.full[v] != size]
    for v in whole:
        others = [w for w in pieces if w != v]
        common = [c for w in others if (c := flow.any[w] & flow.trunk[v])]
        if common and len(whole) == 1 and small:  # x · rsqrt(mean x²): a norm
            if not any(flow.mixed[w] & flow.forks[flow.latest(c)] for w, c in zip(others, common, strict=False)):
                _carry(flow, out, [v], (flow.level, flow.bypass, flow.passed))
        elif common:
            continue
        elif len(whole) == 1 or not any(flow.inputs[w] for w in others):
            _carry(flow, out, [v], (flow.trunk, flow.level, flow.bypass, flow.passed, flow.origin))
            return


def _add(flow: Flow, op: Op, name: str, order: int, out: int, pieces: list[int]) -> Update | None:
    size = flow.full[out]
    whole = [v for v in pieces if flow.full[v] == size]
    if name in ("addcmul", "addcdiv", "lerp") and pieces:
        whole = pieces[:1] + [v for v in pieces[1:] if flow.full[v] == size][:1]
    if name in ("index_add", "scatter_add"):  # chosen elements only: the update may be smaller than the stream
        whole = pieces
    if len(pieces) == 2 and len(whole) == 1 and flow.any[pieces[1 - pieces.index(whole[0])]] & flow.trunk[whole[0]]:
        _carry(flow, out, whole, (flow.level, flow.bypass, flow.passed))  # x - mean x: part of a norm
        return None
    update = None
    shape = flow.trace.values[out].shape
    pair = whole if len(whole) == 2 else [v for v in pieces if flow.trace.values[v].shape == shape]
    if len(pair) == 2 and not flow.trunk[pair[0]] & flow.trunk[pair[1]] & flow.wholly[pair[0]] & flow.wholly[pair[1]]:
        a, b = pair
        update = _update(flow, op, order, a, b, out) or (None if name == "sub" else _update(flow, op, order, b, a, out))
        update = update or _projection(flow, op, order, a, b, out)
        update = update or (None if name == "sub" else _projection(flow, op, order, b, a, out))
    if order in flow.coupled:
        s, b, fork = flow.coupled[order]
        update = Update(op, out, s, b, fork, projection=False, order=order, roots=flow.forks[fork])
    carried = whole if update is None else [] if update.projection else [update.stream]
    _carry(flow, out, carried, (flow.trunk, flow.level, flow.bypass, flow.passed, flow.origin))
    if update is not None:
        _carry(flow, out, whole, (flow.passed,))
        flow.wholly[out] = union(flow.wholly, whole)
        if update.projection:
            _carry(flow, out, [update.stream], (flow.origin,))
        flow.updates.append(update)
        flow.by_sum[out] = update
    return update


def _update(flow: Flow, op: Op, order: int, s: int, b: int, out: int) -> Update | None:
    common = flow.trunk[s] & flow.any[b]
    if not common or flow.wholly[b] & flow.trunk[s]:  # b is that stream itself, normed: two streams meet
        return None
    fork = flow.latest(common)
    roots = flow.forks[fork]
    if not flow.bends[b] & roots:
        roots |= reached(flow, b, common)  # linear in the newest value, not in an older one (weights made once)
        if roots == flow.forks[fork]:
            return None
    return Update(op, out, s, b, fork, projection=False, order=order, roots=roots)


def _projection(flow: Flow, op: Op, order: int, s: int, b: int, out: int) -> Update | None:
    common = flow.bypass[s] & flow.any[b] & ~flow.bypass[b]
    if not common or flow.trunk[s] & flow.any[b]:
        return None
    fork = flow.latest(common)
    updated = any(flow.trunk[s] & flow.forks[u.sum] for u in flow.updates if u.sum > fork)  # it is another stream
    if updated or not flow.both[b] & flow.forks[fork] or meets(flow, b, fork):
        return None
    return Update(op, out, s, b, fork, projection=True, order=order, roots=flow.forks[fork])
