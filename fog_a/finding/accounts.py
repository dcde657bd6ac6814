"""What became of every residual update of a trace: the rows of `blocks.coverage`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fog_a.blocks.block import ResidualBlock
from fog_a.blocks.coverage import CoverageRow, State
from fog_a.finding.levels import Levels
from fog_a.finding.parts import Part, begun
from fog_a.finding.paths import Flow, Update, union, walk
from fog_a.finding.sides import left_open, moved, summed


@dataclass(frozen=True)
class Made:
    """A block, the updates that it closes, the call that it is (None: the parent adds), the parts that do its work."""

    block: ResidualBlock
    updates: tuple[Update, ...]
    call: int | None
    parts: tuple[Part, ...]

    @property
    def calls(self) -> list[int]:
        """The calls that do its work."""
        return [c for c in (self.call, *(p.reader for p in self.parts)) if c is not None]


def account(flow: Flow, levels: Levels, made: Sequence[Made], target: int) -> tuple[CoverageRow, ...]:
    """One row for each update, in order of execution, then what blocks give beside their streams. `target`: the bits of
    the inputs that may be x_t; what does not depend on them is on no way to the output that counts."""
    by_update = {id(u): m for m in reversed(made) for u in m.updates}
    reaching = flow.made_of([] if flow.trace.output is None else [flow.trace.output])
    given = {pair: m for m in reversed(made) for pair in _given(flow, m)}
    for u in flow.updates:  # what a block gives beside its stream, added by the parent
        if id(u) not in by_update and (m := given.get((u.sum, u.branch))):
            by_update[id(u)] = m
    seen = {u.sum for u in flow.updates if not target or flow.inputs[u.branch] & target}
    calls = flow.trace.calls
    whole = any(call.name == "" for call in calls[1:])  # what its caller adds, a skip to v, is no update of the network
    own = [u for u in flow.updates if u.op.call or not whole]
    rows: list[CoverageRow] = []
    closed = {v: True for m in made for v in _replaced(flow, m)}  # and the sums so far
    for u in own:
        row = _row(flow, levels, u, made, by_update.get(id(u)), u.sum in reaching & seen)
        if row.state == "open" and _around(flow, u, made, closed):
            row = replace(row, state="around", reason="arithmetic around a network, whose layers are closed one by one")
        closed[u.sum] = row.state != "open"
        rows.append(row)
    going = {u.stream for m in made for u in m.updates}
    return (*rows, *(row for m in made for row in (*_begun(flow, m), *_beside(flow, m, going))))


def _begun(flow: Flow, m: Made) -> Iterator[CoverageRow]:
    """What a block's stream begins with, where that is made inside the block: an update of nothing, closed with it or
    (unless it is a linear map, a shortcut, or the gate gives the block's input back) left open."""
    closed, mine = {u.branch for u in m.updates if u.branch == u.sum}, [u for u in m.updates if u.branch != u.sum]
    for b in begun(flow, m.call, mine) if m.call is not None else ():
        name, v = flow.trace.calls[b.parts[-1].call].name, b.update.branch
        if v in closed:
            yield CoverageRow(name, "closed", m.block.name)
        elif m.block.definition != "identity" and not flow.bypass[v] & b.update.roots:
            reason = f"begins the stream that {m.block.name} adds to: it stays when the block is closed"
            yield CoverageRow(name, "open", "", reason)


def _around(flow: Flow, u: Update, made: Sequence[Made], closed: Mapping[int, bool]) -> bool:
    """Does the branch come from what gates close, by steps outside all blocks (`a x - b net(x)`)?"""
    blocks = [c for m in made for c in m.calls]
    sums = union(flow.forks, (v for v, shut in closed.items() if shut and v in flow.forks))

    def back(v: int) -> list[int]:
        op = flow.trace.values[v].op
        before = () if op is None or v in closed else op.reads
        return [w for w in before if w != u.fork and flow.trace.values[w].op and flow.any[w] & flow.forks[u.fork]]

    def is_outside(v: int) -> bool:
        op = flow.trace.values[v].op
        if op is None or flow.passed[v] & sums:  # what a block makes of its closed sum
            return True
        return not any(flow.trace.inside(op.call, c) for c in blocks)

    way = list(walk([u.branch], back))
    return any(v in closed for v in way) and all(closed[v] if v in closed else is_outside(v) for v in way)


def _row(
    flow: Flow, levels: Levels, u: Update, made: Sequence[Made], closing: Made | None, reaches: bool
) -> CoverageRow:
    place, reason = flow.trace.calls[u.op.call].name or "(the model)", ""
    block = closing.block if closing is not None else None
    state: State = "closed"
    if block is not None and not block.main:
        state, reason = "side", f"depends only on {', '.join(sorted(block.inputs)) or 'constants'}"
    elif block is None:
        within = next((m for m in made if _inside(flow, u, m)), None)
        stays = within is not None and _stays(flow, u, within)
        block = None if within is None or stays else within.block
        state = "inside" if block is not None else "open" if reaches else "apart"
        reason = _reason(flow, levels, u, made) if state == "open" else ""
        if within is not None and state == "open":
            reason = f"in {within.block.name}, before what it closes: it stays when the block is closed"
    return CoverageRow(place, state, "" if block is None else block.name, reason)


def _inside(flow: Flow, u: Update, m: Made) -> bool:
    """Is the update made in the block's call or parts, or on the way from its fork to its branch?"""
    if any(flow.trace.inside(u.op.call, c) for c in m.calls):
        return True
    return any(flow.in_branch(u, w) and not flow.trunk[w.stream] & flow.forks[u.sum] for w in m.updates)


def _stays(flow: Flow, u: Update, m: Made) -> bool:
    """Does an update in the block's call reach the output when the block is closed, but for what is given out beside
    it, and not by the branch of another update of the block?"""
    if m.call is None or not flow.trace.inside(u.op.call, m.call) or any(flow.in_branch(u, w) for w in m.updates):
        return False
    closed, outs = _replaced(flow, m), flow.trace.calls[m.call].outputs
    ends = closed | {outs[p] for p in left_open(flow, m.call, closed, m.updates)}

    def before(v: int) -> Sequence[int]:
        op = flow.trace.values[v].op
        return () if v in ends or op is None else op.reads

    return flow.trace.output is not None and u.sum in walk([flow.trace.output], before)


def _given(flow: Flow, m: Made) -> list[tuple[int, int]]:
    """The sums, with the summand, that end in what the block gives out beside its stream and its gate closes."""
    if m.call is None:
        return []
    return [pair for v in _replaced(flow, m, zeros=True) for pair in summed(flow, v, m.call)]


def _replaced(flow: Flow, m: Made, zeros: bool = False) -> set[int]:
    """The values in whose place the closed block gives others; `zeros`: nothing but zeros."""
    points = m.block.gate_points
    given = ((flow.trace.calls[point.order], path, source) for point in points for path, source in point.give.items())
    return {call.outputs[path] for call, path, source in given if not (zeros and source)}


def _reason(flow: Flow, levels: Levels, u: Update, made: Sequence[Made]) -> str:
    """Why no block closes an update that leads to the output."""
    branch = next((b for b in levels.owned.get(u.owner, ()) if b.update is u), None)
    if branch is None:
        return "added inside a branch, or to what no later layer goes on from"
    if levels.is_head(branch):
        names = ", ".join(flow.trace.calls[p.reader].name for p in branch.parts)
        return f"{names} reads a layer's output for this total alone: a head, which include= reaches"
    if any(flow.in_branch(o, u) for m in made for o in m.updates):
        return "taken for a long skip: its branch holds layers"
    if not branch.parts:
        shortcut = ", its shortcut is not the identity" if u.projection else ""
        derived = ", or it is a sum of torch.func's derivative, which gates close as well" * flow.trace.transformed
        compiled = f", or {flow.trace.scripted[0]} does, scripted: it takes no hooks" if flow.trace.scripted else ""
        return f"no module gives the update{shortcut}{derived}{compiled}"
    return "belongs to no repeated unit"


def _beside(flow: Flow, m: Made, going: Collection[int]) -> Iterator[CoverageRow]:
    """What its call, or the parts that its parent adds, give out beside the stream. Where its parts alone are closed,
    its call's output is what is left: the stream, if updates of blocks go on from it (`going`), or made of them."""
    closed, outside = _replaced(flow, m), {point.order for point in m.block.gate_points}
    since = -1 if m.call is not None else max(u.sum for u in m.updates)
    for call in [m.call] if m.call is not None else [p.call for p in m.parts]:
        outs = flow.trace.calls[call].outputs
        for path in left_open(flow, call, closed, m.updates, since):
            v, inner = outs[path], call not in outside
            if inner and (any(_is_of(flow, w, v) for w in going) or not _stands(flow, v, call, closed)):
                continue
            leaf = "".join(f"[{key!r}]" for key in path)
            reason = f"output {leaf} is read later: it stays when the block is closed"
            yield CoverageRow(m.block.name, "beside", m.block.name, reason)


def _is_of(flow: Flow, stream: int, v: int) -> bool:
    """Is this stream the value, or does it go on from it?"""
    return bool(flow.forks.get(v, 0) & flow.trunk[stream]) or moved(flow, stream, (v,))


def _stands(flow: Flow, v: int, call: int, closed: Collection[int]) -> bool:
    """Is a value that a call makes also made of what comes in, rather than of what is closed inside the call alone?"""

    def before(w: int) -> Sequence[int]:
        op = flow.trace.values[w].op
        return () if w in closed or op is None or not flow.trace.inside(op.call, call) else op.reads

    ends = (w for w in walk([v], before) if w not in closed and not before(w))
    return any(flow.inputs[w] for w in ends)
