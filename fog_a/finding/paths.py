"""What every value of a trace depends on, and by which kind of path.

Sets of *forks* are kept as bits of Python integers: a fork is a value that is read at least twice, and they are in
order of time, so that the highest common bit is the latest one.

`paths[need][v]` are the forks on which v depends by a path that holds what is needed: anything, something nonlinear,
something that mixes elements, or both. They are one recursion over the operations:

    paths[need][out] = ∪ paths[need & ~what the operation does][operand]

The *ways* (trunk, level, bypass, passed) are narrower: a stream goes on along them, through the kinds of operations
that the table in `operations` says.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fog_a.finding.operations import LINEAR, MIXING, MOVE, NONLINEAR, POOL, SCALE, SUM, Kind
from fog_a.finding.trace import Call, Op, Ref, Trace


@dataclass(eq=False)
class Update:
    """One addition `sum = stream + branch` that updates a stream.

    Attributes:
        roots: forks of the stream that the branch starts from: the latest, and older ones that it bends.
        starts: … and the newest value of any stream that it bends: of coupled streams another's.
    """

    op: Op
    sum: int
    stream: int
    branch: int
    fork: int
    projection: bool
    roots: int
    starts: int = 0
    owner: int = 0


@dataclass
class Flow:
    """What every value of a trace depends on, and the updates found in it.

    Attributes:
        named: model input → its bit. inputs: bits of the model inputs that a value depends on.
        linear: whether a mixing path alone makes an update.
        coupled: sums that update a stream from another one's value: sum → stream, branch, that value.
        forks: value → its bit. values: bit → value.
        full: elements before any expansion.
        trunk: forks that a value is a rearrangement or a multiple of, or a sum with. level: … also through norms and
            pools. bypass: … and linear maps. passed: … through norms and activations: what a sum becomes.
        wholly: … with nothing else beside it that depends on them.
    """

    trace: Trace
    named: dict[int, int]
    linear: bool = False
    coupled: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def zeros() -> list[int]:
            return [0] * len(self.trace.values)

        self.inputs, self.trunk, self.level, self.bypass, self.passed, self.wholly = (zeros() for _ in range(6))
        self.ways = {"trunk": self.trunk, "level": self.level, "bypass": self.bypass, "passed": self.passed}
        self.paths = [zeros() for _ in range(4)]
        self.any, self.bent = self.paths[0], self.paths[NONLINEAR]
        self.bends = self.paths[MIXING if self.linear else NONLINEAR | MIXING]
        """The forks on which a value depends by a path that makes it an update."""
        self.full = [math.prod(v.shape) for v in self.trace.values]
        self.forks: dict[int, int] = {}
        self.values: list[int] = []
        self.by_sum: dict[int, Update] = {}
        self._lines: dict[int, set[int]] = {}
        self.sums = 0
        """The forks that are sums of updates: what has one on its trunk carries a stream."""

    def carry(self, v: int, kind: Kind, operands: Collection[int]) -> None:
        """The streams of these operands go on to `v`, through an operation of this kind."""
        for way in kind.ways:
            self.ways[way][v] = union(self.ways[way], operands)
        if "passed" in kind.ways:
            others = [self.any[w] & ~self.wholly[w] for w in operands]
            self.wholly[v] = union(self.wholly, operands) & ~union(others, range(len(others)))

    @property
    def updates(self) -> Collection[Update]:
        """All updates, in order of time."""
        return self.by_sum.values()

    @functools.cached_property
    def streams(self) -> int:
        """The forks on the streams of updates."""
        return union(self.trunk, (u.stream for u in self.updates))

    @functools.cached_property
    def readers(self) -> dict[int, list[Op]]:
        """The operations that read a value and make another."""
        readers: dict[int, list[Op]] = defaultdict(list)
        for op in self.trace.ops:
            for v in op.reads if op.makes else ():
                readers[v].append(op)
        return readers

    @functools.cached_property
    def givers(self) -> dict[int, list[Call]]:
        """The calls that give a value out, outermost and latest last."""
        givers: dict[int, list[Call]] = defaultdict(list)
        for call in self.trace.calls[1:]:
            if call.name or call.parent > 0:
                for v in dict.fromkeys(call.outputs.values()):
                    givers[v].append(call)
        return givers

    def giving(self, v: int, inside: int) -> list[Call]:
        """The calls below this one that give a value out, outermost and latest last."""
        return [c for c in self.givers[v] if c.id != inside and self.trace.inside(c.id, inside)]

    def line(self, v: int) -> set[int]:
        """The values from which the output is reached, through the branch of an update that does not hold `v`, too, by
        linear steps alone or from where it starts: what is added inside a later layer is none of them, what is added
        inside a network around `v` is, and a total that is added to the stream."""
        outs = self.trace.calls[0].outputs.values() if self.trace.output is None else [self.trace.output]
        around = self.any[v] & union(self.forks, (u.fork for u in self.updates))
        if around not in self._lines:
            self._lines[around] = self.made_of(outs, around)
        return self._lines[around]

    def made_of(self, values: Iterable[int], around: int = -1) -> set[int]:
        """All values that these are made of; through the branches of updates that start at none of these forks, by
        linear steps alone or from where they start."""

        def before(step: tuple[int, bool]) -> Iterator[tuple[int, bool]]:
            v, straight = step
            op, update = self.trace.values[v].op, self.by_sum.get(v)
            if op is None or (straight and not (update or linear(op, self) or op.kind is SUM)):
                return
            for r in op.reads:
                aside = update is not None and r == update.branch and not self.forks[update.fork] & around
                yield r, straight or aside
            if update is not None:
                yield update.fork, straight

        return {v for v, _ in walk([(v, False) for v in values], before)}

    def in_branch(self, o: Update, u: Update) -> bool:
        """Does the update `o` lie in the branch of `u`, since its fork?"""
        return u.fork < o.sum and bool(self.any[u.branch] & self.forks[o.sum])

    def on_way(self, v: int, total: int) -> bool:
        """Did this sum become `v`, by additions, norms and activations or by a linear map?"""
        return bool((self.passed[v] | self.bypass[v]) & self.forks[total])

    @functools.cached_property
    def last(self) -> dict[int, int]:
        """Fork → the last value whose stream goes through it. One that goes on after the outer sum (cross-attention to
        a second stream) makes no long skip."""
        last: dict[int, int] = {}
        seen = 0
        for v in reversed(range(len(self.bypass))):
            new = self.bypass[v] & ~seen
            seen |= new
            while new:
                last[new & -new] = v
                new &= new - 1
        return last

    def latest(self, bits: int) -> int:
        return self.values[bits.bit_length() - 1]


State = TypeVar("State", bound=Hashable)


def walk(starts: Iterable[State], onward: Callable[[State], Iterable[State]]) -> Iterator[State]:
    """All that is reached from these by such steps, each once."""
    todo, seen = list(starts), set[State]()
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            yield state
            todo += onward(state)


def operands(op: Op, flow: Flow) -> list[int]:
    """The floating values an operation moves or combines, in order of its arguments."""
    args = op.args
    if op.name in ("copy", "lift_fresh") and len(args) > 1:
        args = args[1:]  # what was there before is overwritten
    every = (*args, *op.kwargs.values())
    found = [r.value for a in every for r in (a if isinstance(a, list) else [a]) if isinstance(r, Ref)]
    return [v for v in dict.fromkeys(found or op.reads) if flow.trace.values[v].floating]


def linear(op: Op, flow: Flow) -> bool:
    """Is the result zero where the one operand that depends on the input is?"""
    if op.kind in (MOVE, POOL) or (op.kind is SUM and len(operands(op, flow)) == 1):
        return True
    return op.kind in (SCALE, LINEAR) and sum(bool(flow.inputs[p]) for p in operands(op, flow)) == 1


def bends_from(flow: Flow, start: int, forks: int, call: int | None = None, homes: Collection[int] = ()) -> list[int]:
    """The values (with these forks, or among `homes`) from which `start` is made, inside `call` or inside one stream,
    by something nonlinear and something mixing."""

    def is_end(v: int) -> bool:
        return bool(flow.forks.get(v, 0) & forks) or v in homes

    def back(step: tuple[int, int]) -> list[tuple[int, int]]:
        v, need = step
        op = flow.trace.values[v].op
        if is_end(v) or op is None or (v in flow.by_sum if call is None else not flow.trace.inside(op.call, call)):
            return []  # by_sum: another stream
        need &= ~op.kind.does
        if need & NONLINEAR and shared(flow, op) & forks:
            need &= ~NONLINEAR
        return [(r, need) for r in op.reads if flow.any[r] & forks]

    needed = MIXING if flow.linear else NONLINEAR | MIXING
    return [v for v, need in walk([(start, needed)], back) if not need and is_end(v)]


def shared(flow: Flow, op: Op) -> int:
    """Forks on which at least two factors of a product depend."""
    if op.kind not in (SCALE, LINEAR) and op.name not in ("addcmul", "addcdiv", "lerp"):
        return 0
    seen = twice = 0
    for v in op.reads:
        twice |= seen & flow.any[v]
        seen |= flow.any[v]
    return twice


def union(sets: Sequence[int] | dict[int, int], values: Iterable[int]) -> int:
    """Whatever is in the set of any of these values."""
    out = 0
    for v in values:
        out |= sets[v]
    return out
