"""Streams that are coupled, and streams that meet.

Of coupled streams one is updated from the other only: (h, s) → (h + f(h), s + g(h')), a momentum, an accumulator. Their
sums are seen once the streams are known. Where two streams meet in a sum, nothing is updated.
"""

from __future__ import annotations

from fog_a.finding.operations import base
from fog_a.finding.paths import Flow, Update, operands


def on_streams(flow: Flow) -> int:
    """The forks that lie on streams."""
    streams = 0
    for u in flow.updates:
        streams |= flow.trunk[u.stream] | flow.forks[u.sum]
    return streams


def coupled_sums(flow: Flow) -> dict[int, tuple[int, int, int]]:
    """Sums of a stream and something made of another stream's newest value: order → (stream, branch, that value)."""
    streams, found = on_streams(flow), {}
    for order, op in enumerate(flow.trace.ops if streams else ()):
        if base(op.name) not in ("add", "sub") or not op.makes:
            continue
        update = flow.by_sum.get(op.makes[0])
        if update is not None and not update.projection:
            continue
        pair = [v for v in operands(op, flow) if flow.full[v] == flow.full[op.makes[0]]]
        if len(pair) != 2:
            continue
        for s, b in (pair, pair[::-1]) if base(op.name) == "add" else (pair,):
            newest = flow.latest(flow.any[b] & streams) if flow.any[b] & streams else None
            bit = 0 if newest is None else flow.forks[newest]
            if flow.bends[b] & bit and not (flow.any[s] | flow.passed[b]) & bit:
                found[order] = (s, b, newest)
    return found


def chained(flow: Flow, u: Update) -> bool:
    """Does the coupled stream go on from another update of it, made of another value, or to one, or meet one in a sum
    (totals of several stages)?"""
    mine, others = flow.forks[u.sum], 0
    for o in flow.updates:
        others |= flow.forks[o.sum] if o.fork != u.fork else 0
        if o.fork != u.fork and (flow.trunk[u.stream] & flow.forks[o.sum] or flow.trunk[o.stream] & mine):
            return True
    return any(trunk & mine and trunk & others for trunk in flow.trunk)


def meets(flow: Flow, b: int, fork: int) -> bool:
    """Is `b` itself a stream, normed, that does not come from this fork? Two lanes meet, nothing is updated."""
    bit = flow.forks[fork]
    return any(flow.level[b] & flow.forks[w.sum] and not flow.any[w.stream] & bit for w in flow.updates)
