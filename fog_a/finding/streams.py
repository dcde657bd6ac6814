"""Which additions in a trace are residual updates, and what each one's stream, branch, fork and owner are.

A value's *trunk* is what it is made of by rearrangements (view, cat, slice, cast, …), by products with what does not
depend on it, and by sums. `s + b` is an **update** of the stream s when b depends on s's trunk, and does so from the
last value they share (the **fork**) by a path that holds something nonlinear and something that mixes elements:

    h_l = h_{l-1} + f_l(h_{l-1}, t, c)        s = h_{l-1} or a rearrangement of it, b = f_l, fork = h_{l-1}

Sums with a position, a time or a condition do not qualify (b does not depend on s), nor do low-rank linear bypasses
(no nonlinearity), Snake or decomposed GELU (no mixing), or U-Net skips (both operands are on one trunk). Where the
shortcut itself is a linear map, a norm or a pooling, `conv(x) + f(x)`, the update is a **projection**.

The table in `operations` says through which kinds of operations a stream goes on. What depends on more than the kind
stands here:

* `_factor`: which factor of a product carries the stream; `x · rsqrt(mean x²)` is a norm;
* `_add`: `x - mean x` is a norm; an update's sum goes on as its stream, but `passed` follows its branch, too;
* `_carried`: a product gated by its own input is no linear map; weights made of parallel streams may mix them.

Streams may be coupled, one updated from the other only: (h, s) → (h + f(h), s + g(h')), a momentum, an accumulator.
Their sums are seen once the streams are known. Where two streams meet in a sum, nothing is updated.
"""

from __future__ import annotations

from fog_a.finding.operations import LINEAR, MIXING, MOVE, NONLINEAR, NORM, OTHER, POINTWISE, REDUCE, SCALE, SUM, Kind
from fog_a.finding.paths import Flow, Update, bends_from, operands, shared, union
from fog_a.finding.trace import Op, Trace


def analyse(trace: Trace, model_inputs: dict[int, int], linear: bool = False) -> Flow:
    """Follow the dependences of all values and find the updates. `model_inputs`: value → its bit. A trace that has sums
    of coupled streams is gone through again."""
    flow = _analyse(Flow(trace, model_inputs, linear))
    if coupled := _coupled_sums(flow):
        flow = _analyse(Flow(trace, model_inputs, linear, coupled))
        kept = {u.sum: coupled[u.sum] for u in flow.updates if u.sum in coupled and _chained(flow, u)}
        if kept != coupled:
            flow = _analyse(Flow(trace, model_inputs, linear, kept))
    streams = flow.sums | flow.streams
    for u in flow.updates:
        newest = flow.any[u.branch] & streams
        u.starts = u.roots | (flow.forks[flow.latest(newest)] & flow.bends[u.branch] if newest else 0)
    return flow


def _analyse(flow: Flow) -> Flow:
    trace, opaque = flow.trace, {c.id for c in flow.trace.calls if c.opaque}
    for v, value in enumerate(trace.values):
        if value.op is None:
            flow.inputs[v] = flow.named.get(v, 0)
            _mark(flow, v)
    for op in trace.ops:
        if not opaque or opaque.isdisjoint(trace.ancestors(op.call)):
            _follow(flow, op)
    return flow


def _mark(flow: Flow, v: int, always: bool = False) -> None:
    """Give a value that is read twice its bit: something may fork there."""
    if always or flow.trace.values[v].readers > 1:
        bit = flow.forks[v] = 1 << len(flow.values)
        flow.values.append(v)
        for sets in (flow.any, flow.trunk, flow.level, flow.bypass, flow.passed, flow.wholly):
            sets[v] |= bit


def _follow(flow: Flow, op: Op) -> None:
    """What the operation's results depend on, and on which ways they carry a stream."""
    does, twice, inputs = op.kind.does, shared(flow, op), union(flow.inputs, op.reads)
    paths = [union(flow.paths[need & ~does], op.reads) for need in range(4)]
    if twice and not does & NONLINEAR:  # a product of two values that share a fork is nonlinear in it
        for need in (NONLINEAR, NONLINEAR | MIXING):
            paths[need] |= twice & paths[need & ~NONLINEAR]
    for v in op.makes:
        flow.inputs[v] = inputs
        if flow.trace.values[v].continuous:  # what is looked up by a code does not depend on what was coded
            for sets, bits in zip(flow.paths, paths, strict=True):
                sets[v] = bits
    floating = bool(op.makes) and flow.trace.values[op.makes[0]].floating
    update = _carried(flow, op) if floating else None
    for v in op.makes:
        _mark(flow, v, always=update is not None)
        flow.sums |= 0 if update is None else flow.forks[v]
        flow.inputs[v] = flow.named.get(v, flow.inputs[v])


def _carried(flow: Flow, op: Op) -> Update | None:
    """Carry streams on to what `op` makes; an addition may turn out to be an update."""
    pieces = operands(op, flow) if op.kind is SUM else _stacked(flow, op)
    if pieces:
        return _add(flow, op, pieces)
    pieces, out = operands(op, flow), op.makes[0]
    kind, carriers = _carriers(flow, op, pieces)
    if op.name in ("expand", "repeat") and pieces:
        flow.full[out] = min(flow.full[out], flow.full[pieces[0]])
    for v in op.makes:
        flow.carry(v, kind, carriers)
    moving = [v for v in pieces if flow.inputs[v]]
    if kind is LINEAR and len(moving) == 2:
        # parallel streams mixed by weights that are computed from them (hyper-connections)
        flow.bypass[out] = union([flow.trunk[v] & flow.bent[w] for v, w in (moving, moving[::-1])], (0, 1))
    if kind is SCALE:  # gated by its own input: no linear map
        others = [v for v in pieces if v not in carriers]
        flow.bypass[out] &= flow.trunk[out] | ~union(flow.paths[MIXING], others)
    return None


def _carriers(flow: Flow, op: Op, pieces: list[int]) -> tuple[Kind, list[int]]:
    """As which kind of operation it carries streams on, and those of which operands."""
    kind = op.kind
    if kind is SCALE:
        return _factor(flow, op, pieces)
    if kind is LINEAR:
        moving = [v for v in pieces if flow.inputs[v]]
        return kind, moving if len(moving) == 1 else []
    if kind is POINTWISE:
        return kind, pieces if len(pieces) == 1 else []
    if kind is REDUCE:
        return kind, pieces[:1] if op.name in ("max", "amax", "mean") and len(op.args) > 1 else []
    return kind, pieces if kind is MOVE else pieces[:1]


def _stacked(flow: Flow, op: Op) -> list[int]:
    """`torch.stack([h, f]).sum(0)` is an addition: the two that were stacked, if that is what is summed."""
    if op.name != "sum" or not op.reads:
        return []
    made, dims = flow.trace.values[op.reads[0]], op.args[1] if len(op.args) > 1 else None
    if made.op is None or made.op.name != "stack" or not isinstance(dims, list) or len(dims) != 1:
        return []
    rank = len(made.shape)
    at = made.op.args[1] if len(made.op.args) > 1 else made.op.kwargs.get("dim", 0)
    return operands(made.op, flow) if dims[0] % rank == at % rank else []


def _factor(flow: Flow, op: Op, pieces: list[int]) -> tuple[Kind, list[int]]:
    """A product carries its full-size factor (of two, the updated one) if the others do not depend on its trunk."""
    size = flow.full[op.makes[0]]
    whole = [v for v in (pieces[:1] if "div" in op.name else pieces) if flow.full[v] == size]
    whole = [v for v in whole if len(whole) == 1 or flow.trunk[v] & flow.sums] or whole
    mixed = flow.paths[MIXING]
    for v in whole:
        others = [w for w in pieces if w != v]
        common = {w: c for w in others if (c := flow.any[w] & flow.trunk[v])}
        if not common and (len(whole) == 1 or not union(flow.inputs, others)):
            return SCALE, [v]
        if common and len(whole) == 1 and not any(mixed[w] & flow.forks[flow.latest(c)] for w, c in common.items()):
            return NORM, [v]  # x · rsqrt(mean x²)
    return OTHER, []


def _add(flow: Flow, op: Op, pieces: list[int]) -> Update | None:
    name, out, shape = op.name, op.makes[0], flow.trace.values[op.makes[0]].shape
    whole = [v for v in pieces if flow.full[v] == flow.full[out]]
    if name in ("addcmul", "addcdiv", "lerp") and pieces:
        whole = pieces[:1] + [v for v in pieces[1:] if flow.full[v] == flow.full[out]][:1]
    if name in ("index_add", "scatter_add"):  # chosen elements only: the update may be smaller than the stream
        whole = pieces
    if len(pieces) == 2 and len(whole) == 1 and flow.any[pieces[1 - pieces.index(whole[0])]] & flow.trunk[whole[0]]:
        flow.carry(out, NORM, whole)  # x - mean x: part of a norm
        return None
    pair = whole if len(whole) == 2 else [v for v in pieces if flow.trace.values[v].shape == shape]
    update = _update(flow, op, pair, both_ways=name != "sub") if len(pair) == 2 else None
    if out in flow.coupled:
        s, b, fork = flow.coupled[out]
        update = Update(op, out, s, b, fork, False, flow.forks[fork])
    flow.carry(out, SUM, whole if update is None else [] if update.projection else [update.stream])
    if update is not None:
        flow.passed[out], flow.wholly[out] = union(flow.passed, whole), union(flow.wholly, whole)
        flow.by_sum[out] = update
    return update


def _update(flow: Flow, op: Op, pair: list[int], both_ways: bool) -> Update | None:
    """The update that a sum of these two is, if any: of the first by the second or (not a difference) the other way."""
    a, b = pair
    if flow.trunk[a] & flow.trunk[b] & flow.wholly[a] & flow.wholly[b]:
        return None
    for roots_of, projection in ((_roots, False), (_projected, True)):
        for s, f in ((a, b), (b, a)) if both_ways else ((a, b),):
            if flow.full[s] < flow.full[f] and flow.passed[f] & flow.sums:
                continue  # an embedding, expanded to the size of a stream
            if found := roots_of(flow, s, f):
                return Update(op, op.makes[0], s, f, found[0], projection, found[1])
    return None


def _roots(flow: Flow, s: int, b: int) -> tuple[int, int] | None:
    """The fork and all roots of an update of s by b."""
    common = flow.trunk[s] & flow.any[b]
    if not common or flow.wholly[b] & flow.trunk[s]:  # b is that stream itself, normed: two streams meet
        return None
    fork = flow.latest(common)
    bit = flow.forks[fork]
    # linear in the newest value, perhaps not in an older one (weights made once)
    roots = bit if flow.bends[b] & bit else union(flow.trunk, bends_from(flow, b, common)) & common
    return (fork, roots | bit) if roots & ~bit or flow.bends[b] & bit else None


def _projected(flow: Flow, s: int, b: int) -> tuple[int, int] | None:
    """The fork of an update by b of s, which is a linear map, a norm or a pooling of it."""
    common = flow.bypass[s] & flow.any[b] & ~flow.bypass[b]
    if not common or flow.trunk[s] & flow.any[b]:
        return None
    bit = flow.forks[fork := flow.latest(common)]
    if any(flow.trunk[s] & flow.forks[u.sum] for u in flow.updates if u.sum > fork):
        return None  # it is another stream
    if any(flow.forks[u.sum] & (flow.trunk if flow.any[u.stream] & bit else flow.level)[b] for u in flow.updates):
        return None  # b is the stream, or another one, normed: two lanes meet, nothing is updated
    return (fork, bit) if flow.paths[3][b] & bit else None


# ---- coupled streams


def _coupled_sums(flow: Flow) -> dict[int, tuple[int, int, int]]:
    """Sums of a stream and something made of another stream's newest value: sum → (stream, branch, that value)."""
    streams, found = flow.sums | flow.streams, {}
    for op in flow.trace.ops if streams else ():
        if op.name not in ("add", "sub") or not op.makes:
            continue
        update = flow.by_sum.get(op.makes[0])
        pair = [v for v in operands(op, flow) if flow.full[v] == flow.full[op.makes[0]]]
        if len(pair) != 2 or (update is not None and not update.projection):
            continue
        for s, b in (pair, pair[::-1]) if op.name == "add" else (pair,):
            newest = flow.any[b] & streams
            bit = flow.forks[flow.latest(newest)] if newest else 0
            if flow.bends[b] & bit and not (flow.any[s] | flow.passed[b]) & bit:
                found[op.makes[0]] = (s, b, flow.latest(newest))
    return found


def _chained(flow: Flow, u: Update) -> bool:
    """Does the coupled stream go on from another update of it, made of another value, or to one, or meet one in a sum
    (totals of several stages)?"""
    mine, others = flow.forks[u.sum], [o for o in flow.updates if o.fork != u.fork]
    if any(flow.bypass[u.stream] & flow.forks[o.sum] or flow.bypass[o.stream] & mine for o in others):
        return True
    sums = union(flow.forks, (o.sum for o in others))
    return any(trunk & mine and trunk & sums for trunk in flow.trunk)
