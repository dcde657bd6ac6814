"""Which modules made what is added.

The **parts** of an update are found by walking back from the branch operand, through rearrangements, scalings and plain
sums, to the module calls that gave it: closing their outputs removes the update and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from fog_a.blocks.tree import LeafPath
from fog_a.finding.operations import MIXING, MOVE, SCALE, SUM
from fog_a.finding.paths import Flow, Update, operands, union, walk
from fog_a.finding.trace import Call, Op

_ZERO_STAYS_ZERO = frozenset(
    "relu relu6 gelu silu tanh mish leaky_relu elu celu selu softsign hardswish glu abs sqrt erf sign".split()
)


@dataclass(frozen=True)
class Part:
    """A module call that gave (a summand of) an update: where it is closed, and how a reader would call it: the
    heaviest of the owner's calls that work on it (`makers`), attention rather than the norms around it."""

    call: int
    leaves: tuple[LeafPath, ...]
    reader: int
    makers: tuple[int, ...] = field(compare=False)


@dataclass(frozen=True)
class Branch:
    """An update with the parts that can be closed."""

    update: Update
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Layer:
    """A call that is one residual unit, or (call None) branches that a parent adds."""

    call: int | None
    branches: tuple[Branch, ...]
    name: str = ""

    @property
    def parts(self) -> list[Part]:
        return [p for b in self.branches for p in b.parts]

    @property
    def first(self) -> int:
        """The first call that does its work."""
        return min((p.call for p in self.parts), default=0) if self.call is None else self.call


def in_order(branches: Iterable[Branch]) -> tuple[Branch, ...]:
    return tuple(sorted(branches, key=lambda b: b.update.sum))


def parts(flow: Flow, u: Update) -> tuple[Part, ...]:
    """The module calls whose outputs, set to zero, remove this update; none where nothing does."""
    closing: dict[int, frozenset[Part]] = {}
    needs: dict[int, tuple[bool, list[int]]] = {}

    def back(v: int) -> list[int]:
        calls = [c for c in flow.giving(v, u.owner) if not flow.trace.inside(u.op.call, c.id)]
        if v == u.fork or flow.trunk[v] & flow.forks[u.fork]:
            closing[v] = frozenset()  # the stream itself: it must stay
        elif calls:
            closing[v] = frozenset([_part(flow, u, v, calls)])
        else:
            needs[v] = zero_if(flow, u, v, u.owner)
            return needs[v][1]
        return []

    for v in sorted(walk([u.branch], back)):  # what a value is made of is older
        if v in needs:
            every, pieces = needs[v]
            able = [closing[p] for p in pieces if closing[p]]
            enough = len(able) == len(pieces) if every else bool(able)
            closing[v] = frozenset[Part]().union(*able[: None if every else 1]) if enough else frozenset()
    return tuple(sorted(closing[u.branch], key=lambda p: p.call))


def begun(flow: Flow, call: int, updates: Collection[Update]) -> list[Branch]:
    """What the streams of these updates begin with, where modules inside the call make it anew: updates of nothing."""
    outside, beginnings = union(flow.trunk, flow.trace.calls[call].inputs.values()), dict[int, Branch]()
    for w in flow.updates:
        v, bent = w.stream, flow.bends[w.stream] & outside
        if not bent or w.projection or flow.passed[v] & (outside | flow.sums):
            continue
        if any(w is u or flow.on_way(u.stream, w.sum) for u in updates):
            fork = flow.latest(bent)
            new = replace(w, sum=v, branch=v, fork=fork, owner=call, roots=outside, starts=flow.forks[fork])
            beginnings[v] = Branch(new, parts(flow, new))
    return [b for b in beginnings.values() if b.parts]


def zero_if(flow: Flow, u: Update, v: int, call: int) -> tuple[bool, list[int]]:
    """A value is zero if every one of these operands is, or (False) if the first that can be made zero is."""
    op = flow.trace.values[v].op
    if op is None or not flow.trace.inside(op.call, call):
        return True, []
    fork = flow.forks[u.fork]
    pieces = [p for p in operands(op, flow) if flow.any[p] & fork]
    if "div" in op.name:
        return False, pieces[:1]
    if op.kind is SCALE:  # the larger factor is the value, the other one its gate
        return False, sorted(pieces, key=lambda p: (-flow.full[p], not flow.givers[p]))
    if op.kind is SUM:
        rest = [p for p in operands(op, flow) if p not in pieces and not _zero(flow, p)]
        return True, [] if rest or _shifts(op) else pieces
    stays = op.kind is MOVE or op.name in ("sum", "mean") or (op.name in _ZERO_STAYS_ZERO and len(pieces) == 1)
    return True, pieces if stays else []


def _zero(flow: Flow, v: int) -> bool:
    """Was it made as zeros, to gather a sum in?"""
    op = flow.trace.values[v].op
    return op is not None and op.name in ("zeros", "zeros_like", "new_zeros", "zero")


def _shifts(op: Op) -> bool:
    """Is a number added?"""
    return op.name in ("add", "sub") and any(isinstance(a, (int, float)) and a != 0 for a in op.args[:2])


def _part(flow: Flow, u: Update, v: int, calls: list[Call]) -> Part:
    frame = [c for c in calls if flow.trace.inside(u.op.call, c.parent)]
    point = (frame or calls)[-1] if frame else calls[0]
    makers = _makers(flow, u, v)
    if not makers or any(_goes_on(flow, u, c) for c in makers):
        makers = {point.id}
    return Part(
        point.id,
        tuple(point.leaves(v)),
        max(makers, key=lambda c: (flow.trace.parameters(c), c)),
        tuple(sorted(makers)),
    )


def _goes_on(flow: Flow, u: Update, call: int) -> bool:
    """Does a call add to a stream that is read after this update, too (a control network's, beside what it gives)?"""
    sums = (w.sum for w in flow.updates if flow.trace.inside(w.op.call, call))
    return any(flow.last[flow.forks[s]] > u.sum for s in sums)


def _makers(flow: Flow, u: Update, v: int) -> set[int]:
    """The owner's calls in which the branch mixes."""
    trace, beside = flow.trace, set(flow.trace.calls[u.owner].children)
    able: set[int] = set()
    for w in _between(flow, u, v):
        op = trace.values[w].op
        if op is not None and op.kind.does & MIXING:
            made_in = [c.id for c in flow.givers[w]] if op.name == "opaque" else [op.call]
            able |= beside & {a for c in made_in for a in trace.ancestors(c)}
    return able - set(trace.ancestors(u.op.call))


def _between(flow: Flow, u: Update, v: int) -> Iterator[int]:
    """The values between the fork and the branch operand, but for the smaller ones that scale or shift it."""
    fork = flow.forks[u.fork]

    def inner(values: Iterable[int]) -> list[int]:
        return [w for w in values if flow.any[w] & fork and not flow.forks.get(w, 0) & u.starts]

    def back(w: int) -> list[int]:
        op = flow.trace.values[w].op
        if op is None:
            return []
        whole = [r for r in op.reads if flow.full[r] == flow.full[w] and flow.any[r] & fork]
        return inner(whole if whole and op.kind in (SCALE, SUM) else op.reads)

    return walk(inner([v]), back)
