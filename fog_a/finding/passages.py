"""How the stream passes through a module call: for each output element, the input element it carries.

Streams are matched by data flow, never by position or name: F5-TTS's MMDiT takes (x, c) and returns (c, x), and two
streams of equal shape cannot be told apart by shape. The rearrangements that happened inside the call are replayed on
tensors of element numbers (1..n, 0 = not from an input, -1 = from a branch alone); additions keep the numbers of the
stream, a norm or an activation those of its input if an update came before it in this call (post-norm, relu after the
addition).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fog_a.blocks.block import Source
from fog_a.blocks.tree import LeafPath
from fog_a.finding.operations import MOVE, NORM, POINTWISE, SCALE, SUM, base
from fog_a.finding.paths import Flow, Update, operands
from fog_a.finding.trace import Op, Ref

_KEEPS = frozenset("clone _to_copy to detach alias contiguous lift_fresh copy".split())


@dataclass(frozen=True)
class Carried:
    """What a value holds of the call's inputs: one whole leaf (`numbers` None), or the numbers of its elements."""

    leaf: LeafPath | None
    numbers: Tensor | None
    updated: bool
    upstream: bool
    """Whether the trunk had been updated before it came in: a stream, rather than an embedding given beside it."""
    bent: bool = False
    """Whether a norm or an activation came after the update."""


class _Conflict(Exception):
    """Two streams of the inputs meet in a sum: there is no one input element to fall back to."""


class Replay:
    """Follows the streams inside one call."""

    def __init__(self, flow: Flow, call: int) -> None:
        self.flow = flow
        self.call = call
        trace = flow.trace
        inputs = {p: v for p, v in trace.calls[call].inputs.items() if trace.values[v].floating}
        self.leaf_of: dict[int, LeafPath] = {}
        self.first: dict[LeafPath, int] = {}
        self.size = 0
        for path, v in inputs.items():
            if v not in self.leaf_of:
                self.leaf_of[v] = path
                self.first[path] = self.size
                self.size += math.prod(trace.values[v].shape)
        self._known: dict[int, Carried | None] = {}

    def passages(self) -> dict[LeafPath, Source]:
        """The outputs that carry an updated stream, and where each of their elements comes from."""
        found: dict[LeafPath, Source] = {}
        bent: set[LeafPath] = set()
        for path, v in self.flow.trace.calls[self.call].outputs.items():
            if not self.flow.trace.values[v].floating or v in self.leaf_of:
                continue
            try:
                carried = self.carried(v)
            except (_Conflict, RuntimeError):  # torch refuses to replay what is no pure rearrangement
                continue
            if carried is not None and carried.updated:
                passage = self._passage(v, carried)
                if passage is not None:
                    found[path] = passage
                    bent |= {path} if carried.bent else set()
        pure = {p.sources for path, p in found.items() if path not in bent}
        return {path: p for path, p in found.items() if path not in bent or p.sources not in pure}  # not a normed copy

    def carried(self, v: int) -> Carried | None:
        """What value `v` holds of the inputs; values are visited in order of time, so that depth is no limit."""
        todo = [v]
        while todo:
            w = todo[-1]
            if w in self._known:
                todo.pop()
                continue
            before = [p for p in self._before(w) if p not in self._known]
            if before:
                todo += before
            else:
                self._known[w] = self._made(w)
                todo.pop()
        return self._known[v]

    def _inside(self, v: int) -> Op | None:
        op = self.flow.trace.values[v].op
        return op if op is not None and self.flow.trace.inside(op.call, self.call) else None

    def _before(self, v: int) -> list[int]:
        if v in self.leaf_of:
            return []
        op = self._inside(v)
        if op is None:
            return []
        update = self.flow.by_sum.get(v)
        if update is not None:
            return [] if update.projection else [update.stream]
        name = base(op.name)
        if name in MOVE or name == "alias":
            return operands(op, self.flow)
        if name in ("index_add", "scatter_add"):
            return operands(op, self.flow)[:1]
        if name in SUM or name in SCALE or name in NORM or name in POINTWISE:
            return [p for p in operands(op, self.flow) if self.flow.full[p] == self.flow.full[v]]
        return []

    def _made(self, v: int) -> Carried | None:
        values = self.flow.trace.values
        if v in self.leaf_of:
            upstream = any(
                self.flow.trunk[v] & self.flow.forks[u.sum] for u in self.flow.updates if u.sum in self.flow.forks
            )
            return Carried(self.leaf_of[v], None, False, upstream)
        before = [(p, self._known[p]) for p in self._before(v)]
        held = [(p, c) for p, c in before if c is not None]
        op = self._inside(v)
        if not held or op is None:
            return None
        update, name = self.flow.by_sum.get(v), base(op.name)
        if update is not None:
            return self._filled(v, self._fit(v, *held[0], updated=True))
        if name in _KEEPS and values[held[0][0]].shape == values[v].shape:
            return held[0][1]
        if name in MOVE or name == "alias":
            return self._moved(v, op, dict(held))
        if name in SUM:
            return self._summed(v, op, held)
        if name in SCALE:
            trunk, level = self.flow.trunk, self.flow.level
            whole = [h for h in held if not trunk[h[0]] or trunk[h[0]] & trunk[v]]
            whole = whole or [h for h in held if h[1].updated and level[h[0]] & level[v]]  # x · rsqrt(mean x²)
            return self._fit(v, *whole[0]) if whole else None
        return replace(self._fit(v, *held[0]), bent=True) if held[0][1].updated else None  # a norm or activation

    def _summed(self, v: int, op: Op, held: list[tuple[int, Carried]]) -> Carried | None:
        if len(held) == 1:
            return self._fit(v, *held[0], updated=held[0][1].updated or self._computed(op, held[0][0]))
        main = [(p, c) for p, c in held if c.upstream or c.updated]
        if len(main) == 1:
            return self._fit(v, *main[0])
        numbers = [self._numbers(p, c) for p, c in held]
        updated = any(c.updated for _, c in held)
        if all(n.shape == numbers[0].shape and torch.equal(n, numbers[0]) for n in numbers):
            return self._fit(v, *held[0], updated=updated)
        if main:
            raise _Conflict
        return self._fit(v, *held[0])

    def _computed(self, op: Op, stream: int) -> bool:
        """Is something added that the call computes of another of its streams (coupled streams, an accumulator)?"""
        mine = 0
        for v in self.leaf_of:
            mine |= self.flow.trunk[v]
        rest = (p for p in operands(op, self.flow) if p != stream and self._inside(p) is not None)
        return any(self.flow.bends[p] & mine for p in rest)

    def _fit(self, v: int, p: int, c: Carried, updated: bool | None = None) -> Carried:
        """The same elements in `v`, which has p's shape or one that p is broadcast to."""
        updated = c.updated if updated is None else updated
        shape = self.flow.trace.values[v].shape
        if self.flow.trace.values[p].shape == shape:
            return replace(c, updated=updated)
        return replace(c, leaf=None, numbers=self._numbers(p, c).expand(shape), updated=updated)

    def _filled(self, v: int, c: Carried) -> Carried:
        """Elements that only the branch fills (channels padded with zeros) are marked: to give back they are none."""
        if c.numbers is None or bool(c.numbers.all()):
            return c
        return replace(c, numbers=torch.where(c.numbers == 0, -1, c.numbers))

    def _numbers(self, p: int, c: Carried) -> Tensor:
        if c.numbers is not None:
            return c.numbers
        assert c.leaf is not None
        shape = self.flow.trace.values[p].shape
        return torch.arange(1, math.prod(shape) + 1).reshape(shape) + self.first[c.leaf]

    def _moved(self, v: int, op: Op, held: Mapping[int, Carried]) -> Carried | None:
        """Replay a rearrangement on element numbers."""
        trace = self.flow.trace
        flags = (any(c.updated for c in held.values()), any(c.upstream for c in held.values()))
        if op.func is None:
            return Carried(None, self._overwritten(v, op, held), *flags)

        def number(value: int) -> Tensor:
            if value in held:
                return self._laid_out(value, self._numbers(value, held[value]))
            if value in trace.kept:
                return trace.kept[value]
            shape = trace.values[value].shape
            return torch.zeros(shape, dtype=torch.long)

        def thaw(arg: object) -> object:
            if isinstance(arg, Ref):
                return number(arg.value)
            if isinstance(arg, list):
                return [thaw(a) for a in arg]
            return 0 if isinstance(arg, float) and not math.isfinite(arg) else arg

        kwargs = {
            k: thaw(a)
            for k, a in op.kwargs.items()
            if k not in ("dtype", "layout", "device", "pin_memory", "memory_format")
        }
        out = op.func(*(thaw(a) for a in op.args), **kwargs)
        parts = list(out) if isinstance(out, (tuple, list)) else [out]
        numbers = parts[op.makes.index(v) if len(parts) > 1 else 0]
        return Carried(None, numbers, *flags) if bool((numbers != 0).any()) else None

    def _laid_out(self, p: int, numbers: Tensor) -> Tensor:
        """A copy laid out in memory as `p` was: only so can it be viewed as `p` could."""
        q = self.flow.trace.values[p]
        if len(q.stride) < len(q.shape) or 0 in q.stride:  # no strides, or several elements in one place
            return numbers.clone()
        return torch.empty_strided(q.shape, q.stride, dtype=torch.long).copy_(numbers)

    def _overwritten(self, v: int, op: Op, held: Mapping[int, Carried]) -> Tensor:
        """Another tensor wrote into this one's memory: lay both out in it, in order."""
        values = self.flow.trace.values
        places = [(p, values[p]) for p in op.reads] + [(v, values[v])]
        end = max(
            q.offset + sum((n - 1) * s for n, s in zip(q.shape, q.stride, strict=True)) + 1
            for _, q in places
            if math.prod(q.shape)
        )
        memory = torch.zeros(end, dtype=torch.long)
        for p, q in places[:-1]:
            view = memory.as_strided(q.shape, q.stride, q.offset)
            view.copy_(self._numbers(p, held[p]) if p in held else torch.zeros(q.shape, dtype=torch.long))
        q = values[v]
        return memory.as_strided(q.shape, q.stride, q.offset).clone()

    def _passage(self, v: int, c: Carried) -> Source | None:
        if c.numbers is None:
            assert c.leaf is not None
            return Source((c.leaf,))
        return self._simplest(c.numbers)

    def _simplest(self, numbers: Tensor) -> Source | None:
        """One whole leaf if it is that, perhaps with its axes permuted; else the elements one by one."""
        if not bool((numbers > 0).any()) or bool((numbers < 0).any()):
            return None
        flat = numbers.reshape(-1)
        values = self.flow.trace.values
        for v, path in self.leaf_of.items():
            shape, first = values[v].shape, self.first[path]
            n = math.prod(shape)
            if n != flat.numel() or int(flat.min()) != first + 1 or int(flat.max()) != first + n:
                continue
            whole = torch.arange(first + 1, first + n + 1).reshape(shape)
            for dims in itertools.permutations(range(len(shape))) if len(shape) <= 5 else [tuple(range(len(shape)))]:
                if tuple(shape[d] for d in dims) == tuple(numbers.shape) and torch.equal(whole.permute(dims), numbers):
                    return Source((path,), None if list(dims) == sorted(dims) else dims)
        return Source(tuple(self.leaf_of.values()), None, numbers.clone(), self.size)


def through(flow: Flow, call: int) -> dict[LeafPath, Source]:
    """The streams that pass through a call: output leaf → how it is made of the inputs when the updates are removed."""
    return Replay(flow, call).passages()


def chain(flow: Flow, call: int) -> list[Update]:
    """The updates inside `call` whose sums reach its outputs by additions, rearrangements, norms and activations."""
    bits = 0
    for v in flow.trace.calls[call].outputs.values():
        bits |= flow.passed[v]
    return [u for u in flow.updates if bits & flow.forks[u.sum] and flow.trace.inside(u.op.call, call)]
