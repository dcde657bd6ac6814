"""What every value of a trace depends on, and by which kind of path.

Dependence is kept as sets of *forks*, as bits of Python integers: values that are read at least twice, in order of
time, so that the highest common bit is the latest fork.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fog_a.finding.operations import LINEAR, SCALE, base, bending, mixing
from fog_a.finding.trace import Op, Ref, Trace


@dataclass(eq=False)
class Update:
    """One addition `sum = stream + branch` that updates a stream."""

    op: Op
    sum: int
    stream: int
    branch: int
    fork: int
    projection: bool
    owner: int = 0
    order: int = 0
    roots: int = 0
    """Forks of the stream that the branch starts from: the latest, and older ones that it bends."""
    starts: int = 0
    """… and the newest value of any stream that it bends: of coupled streams another's."""


@dataclass
class Flow:
    """What every value of a trace depends on, and the updates found in it. Sets of forks are bits of integers."""

    trace: Trace
    updates: list[Update] = field(default_factory=list)
    by_sum: dict[int, Update] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)  # bits of the model inputs a value depends on
    origin: list[int] = field(default_factory=list)  # … that its trunk begins with
    any: list[int] = field(default_factory=list)  # forks it depends on
    bent: list[int] = field(default_factory=list)  # … by a nonlinear path
    mixed: list[int] = field(default_factory=list)  # … by a mixing path
    both: list[int] = field(default_factory=list)  # … by one that is both
    trunk: list[int] = field(default_factory=list)  # forks on its trunk
    level: list[int] = field(default_factory=list)  # … also through norms and pools
    bypass: list[int] = field(default_factory=list)  # … also through linear maps
    passed: list[int] = field(default_factory=list)  # … also through activations: what a sum becomes
    wholly: list[int] = field(default_factory=list)  # … with nothing else beside it that depends on them
    forks: dict[int, int] = field(default_factory=dict)  # value → its bit
    values: list[int] = field(default_factory=list)  # bit → value
    full: list[int] = field(default_factory=list)  # elements before any expansion
    named: dict[int, int] = field(default_factory=dict)  # model input → its bit
    coupled: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # order → stream, branch, fork
    linear: bool = False  # whether a mixing path alone makes an update
    givers: dict[int, list[int]] = field(default_factory=dict)  # value → the calls that give it out

    @functools.cached_property
    def readers(self) -> dict[int, list[Op]]:
        """The operations that read a value."""
        readers: dict[int, list[Op]] = {}
        for op in self.trace.ops:
            for v in op.reads:
                readers.setdefault(v, []).append(op)
        return readers

    @functools.cached_property
    def sums(self) -> int:
        """The forks that are sums of updates: what has one on its trunk carries a stream."""
        return union(self.forks, (u.sum for u in self.updates))

    @functools.cached_property
    def line(self) -> set[int]:
        """The values from which the output is reached without going through the branch of an update, but for a branch
        that is a whole network: it ends in a stream of its own."""
        outs = self.trace.calls[0].outputs.values() if self.trace.output is None else [self.trace.output]
        todo, line = list(outs), set[int]()
        while todo:
            v = todo.pop()
            if v in line:
                continue
            line.add(v)
            op, update = self.trace.values[v].op, self.by_sum.get(v)
            if op is not None:
                todo += op.reads if update is None or self._is_network(update) else [update.stream]
        return line

    def _is_network(self, u: Update) -> bool:
        ways, since = self.passed[u.branch] | self.bypass[u.branch], (o for o in self.updates if o.sum > u.fork)
        return any(ways & self.forks[o.sum] and o.sum < u.sum for o in since)

    def ancestors(self) -> set[int]:
        """The values that the output is made of."""
        todo, seen = [] if self.trace.output is None else [self.trace.output], set[int]()
        while todo:
            v = todo.pop()
            if v not in seen:
                seen.add(v)
                op = self.trace.values[v].op
                todo += () if op is None else op.reads
        return seen

    @property
    def bends(self) -> list[int]:
        """The forks on which a value depends by a path that makes it an update."""
        return self.mixed if self.linear else self.both

    def latest(self, bits: int) -> int:
        return self.values[bits.bit_length() - 1]


def operands(op: Op, flow: Flow) -> list[int]:
    """The floating values an operation moves or combines, in order of its arguments."""
    values = flow.trace.values
    args = op.args
    if base(op.name) in ("copy", "lift_fresh") and len(args) > 1:
        args = args[1:]  # what was there before is overwritten
    if base(op.name) in ("where", "masked_scatter", "native_layer_norm"):
        args = (*args, *op.kwargs.values())
    found = [
        r.value for a in (*args, *op.kwargs.values()) for r in (a if isinstance(a, list) else [a]) if isinstance(r, Ref)
    ]
    return (
        list(dict.fromkeys(v for v in found if values[v].floating))
        if found
        else [v for v in op.reads if values[v].floating]
    )


def reached(flow: Flow, start: int, forks: int, call: int = -1, homes: Any = (), carried: Any = None) -> int:
    """The forks (or homes: values that carry some) where the ways back from `start`, inside `call`, come to an end
    after something nonlinear and something mixing."""
    trace, found = flow.trace, 0
    todo, seen = [(start, not flow.linear, True)], set[tuple[int, bool, bool]]()
    while todo:
        step = todo.pop()
        v, bend, mix = step
        if step in seen or not flow.any[v] & forks:
            continue
        seen.add(step)
        if flow.forks.get(v, 0) & forks or v in homes:
            found |= 0 if bend or mix else (carried or flow.trunk)[v] & forks | flow.forks.get(v, 0) & forks
            continue
        op = trace.values[v].op
        if op is None or (v in flow.by_sum if call < 0 else not trace.inside(op.call, call)):
            continue  # by_sum: another stream
        name = base(op.name)
        bend = bend and not bending(name) and not shared(flow, op, name) & forks
        todo += [(r, bend, mix and not mixing(name)) for r in op.reads]
    return found


def shared(flow: Flow, op: Op, name: str) -> int:
    """Forks on which at least two factors of a product depend."""
    if name not in SCALE and name not in LINEAR and name not in ("addcmul", "addcdiv", "lerp"):
        return 0
    seen = twice = 0
    for v in op.reads:
        twice |= seen & flow.any[v]
        seen |= flow.any[v]
    return twice


def union(sets: list[int] | dict[int, int], values: Iterable[int]) -> int:
    out = 0
    for v in values:
        out |= sets[v]
    return out
