"""How the stream passes through a module call: for each output element, the input element it carries.

Streams are matched by data flow, never by position or name: F5-TTS's MMDiT takes (x, c) and returns (c, x), and two
streams of equal shape cannot be told apart by shape. The rearrangements that happened inside the call are replayed on
the numbers of the input elements; additions keep the numbers of the stream, a norm or an activation those of its input
if an update came before it in this call (post-norm, relu after the addition).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fog_a.blocks.block import Source
from fog_a.blocks.tree import LeafPath
from fog_a.finding.numbering import Numbering
from fog_a.finding.operations import MOVE, SCALE, SUM
from fog_a.finding.paths import Flow, Update, operands, walk
from fog_a.finding.trace import Op

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
        self.values = flow.trace.values
        self.numbering = Numbering(flow.trace, call)
        self._known: dict[int, Carried | None] = {}

    def passages(self) -> dict[LeafPath, Source]:
        """The outputs that carry an updated stream, and where each of their elements comes from."""
        streams: dict[LeafPath, tuple[Source, bool]] = {}
        for path, v in self.flow.trace.calls[self.call].outputs.items():
            if self.values[v].floating and v not in self.numbering.leaf_of:
                with contextlib.suppress(_Conflict, RuntimeError):  # torch replays pure rearrangements alone
                    c = self.carried(v)
                    source = self._source(c) if c is not None and c.updated else None
                    if c is not None and source is not None:
                        streams[path] = source, c.bent
        pure = {source.sources for source, bent in streams.values() if not bent}  # a normed copy of one is no stream
        return {path: source for path, (source, bent) in streams.items() if not bent or source.sources not in pure}

    def carried(self, v: int) -> Carried | None:
        """What value `v` holds of the inputs."""
        for w in sorted(walk([v], self._before)):  # what a value is made of is older
            if w not in self._known:
                self._known[w] = self._follow(w)
        return self._known[v]

    def _inside(self, v: int) -> Op | None:
        op = self.values[v].op
        return op if op is not None and self.flow.trace.inside(op.call, self.call) else None

    def _before(self, v: int) -> list[int]:
        """The operands that `v` may hold elements of."""
        op, update = self._inside(v), self.flow.by_sum.get(v)
        if v in self.numbering.leaf_of or op is None:
            return []
        if update is not None:
            return [] if update.projection else [update.stream]
        if "passed" not in op.kind.ways:
            return []
        pieces = operands(op, self.flow)
        if op.kind is MOVE:
            return pieces
        whole = [p for p in pieces if self.flow.full[p] == self.flow.full[v]]
        return whole + [p for p in pieces if op.kind is SUM and self._is_total(p) and p not in whole]

    def _is_total(self, v: int) -> bool:
        """Is this an input of the call that begins as a parameter? A sum broadcasts it, and is its update."""
        return v in self.numbering.leaf_of and not self.flow.inputs[v]

    def _follow(self, v: int) -> Carried | None:
        """What `v` holds, from what its operands hold: one rule for each kind of operation."""
        if v in self.numbering.leaf_of:
            upstream = bool(self.flow.trunk[v] & self.flow.sums)
            return Carried(self.numbering.leaf_of[v], None, updated=False, upstream=upstream)
        op = self._inside(v)
        held = {p: c for p in self._before(v) if (c := self._known[p]) is not None}
        if op is None or not held:
            return None
        p, c = next(iter(held.items()))
        if v in self.flow.by_sum:
            if self._inside(self.flow.by_sum[v].branch) is None:
                raise _Conflict  # the sum of two inputs: the update is another call's
            return self._filled(self._fit(v, p, replace(c, updated=True)))
        if op.name in _KEEPS and self.values[p].shape == self.values[v].shape:
            return c
        if op.kind is MOVE:
            return self._moved(v, op, held)
        if op.kind is SUM:
            return self._summed(v, op, held)
        if op.kind is SCALE:
            return self._scaled(v, held)
        return replace(self._fit(v, p, c), bent=True) if c.updated else None  # a norm or an activation

    def _moved(self, v: int, op: Op, held: Mapping[int, Carried]) -> Carried | None:
        """A rearrangement, replayed on element numbers."""
        numbers = self.numbering.rearranged(v, op, {p: self._numbers(p, c) for p, c in held.items()})
        if op.func is not None and not bool((numbers != 0).any()):
            return None
        updated, upstream = any(c.updated for c in held.values()), any(c.upstream for c in held.values())
        return Carried(None, numbers, updated, upstream)

    def _scaled(self, v: int, held: Mapping[int, Carried]) -> Carried | None:
        """A product holds what its factor on the trunk does; in `x · rsqrt(mean x²)`, a norm by hand, the updated x."""
        trunk, passed = self.flow.trunk, self.flow.passed
        factors = [p for p in held if not trunk[p] or trunk[p] & trunk[v]]
        factors = factors or [p for p, c in held.items() if c.updated and passed[p] & passed[v]]
        return self._fit(v, factors[0], held[factors[0]]) if factors else None

    def _summed(self, v: int, op: Op, held: Mapping[int, Carried]) -> Carried | None:
        """A sum that is no update of its own stream.

        addends that hold input elements      the sum holds
        h, alone                              h; updated, if the call computes the other addend of another stream
        h, the only stream, and embeddings    h
        the same elements twice               these elements, updated if one of them is
        two streams                           nothing that could be given back
        embeddings only                       the first
        """
        whole = {p: c for p, c in held.items() if self.flow.full[p] == self.flow.full[v]}
        held = whole or held  # only a total is smaller than the sum
        p, c = next(iter(held.items()))
        if len(held) == 1:
            return self._fit(v, p, replace(c, updated=c.updated or self._computes_addend(op, p)))
        streams = [q for q, other in held.items() if other.upstream or other.updated]
        if len(streams) == 1:
            return self._fit(v, streams[0], held[streams[0]])
        if self._same_elements(held):
            return self._fit(v, p, replace(c, updated=any(other.updated for other in held.values())))
        if streams:
            raise _Conflict
        return self._fit(v, p, c)

    def _same_elements(self, held: Mapping[int, Carried]) -> bool:
        first, *others = (self._numbers(p, c) for p, c in held.items())
        return all(numbers.shape == first.shape and torch.equal(numbers, first) for numbers in others)

    def _computes_addend(self, op: Op, stream: int) -> bool:
        """Is something added that the call computes of another of its streams (coupled streams, an accumulator)?"""
        mine = 0
        for v in self.numbering.leaf_of:
            mine |= self.flow.trunk[v]
        addends = (p for p in operands(op, self.flow) if p != stream and self._inside(p) is not None)
        return any(self.flow.bends[p] & mine for p in addends)

    def _fit(self, v: int, p: int, c: Carried) -> Carried:
        """The elements of p in `v`, which has p's shape or one that p is broadcast to."""
        shape = self.values[v].shape
        if self.values[p].shape == shape:
            return c
        return replace(c, leaf=None, numbers=self._numbers(p, c).expand(shape))

    def _filled(self, c: Carried) -> Carried:
        """Elements that only the branch fills (channels padded with zeros) are marked: to give back they are none."""
        if c.numbers is None or bool(c.numbers.all()):
            return c
        return replace(c, numbers=torch.where(c.numbers == 0, -1, c.numbers))

    def _numbers(self, p: int, c: Carried) -> Tensor:
        if c.numbers is not None:
            return c.numbers
        assert c.leaf is not None
        return self.numbering.of_leaf(c.leaf, self.values[p].shape)

    def _source(self, c: Carried) -> Source | None:
        if c.numbers is not None:
            return self.numbering.source(c.numbers)
        assert c.leaf is not None
        return Source((c.leaf,))


def through(flow: Flow, call: int) -> dict[LeafPath, Source]:
    """The streams that pass through a call: output leaf → how it is made of the inputs when the updates are removed."""
    return Replay(flow, call).passages()


def chain(flow: Flow, call: int) -> list[Update]:
    """The updates inside `call` whose sums reach its outputs by additions, rearrangements, norms and activations, or by
    the streams of such updates, if through the linear maps that mix several streams."""
    bits = 0
    for v in flow.trace.calls[call].outputs.values():
        bits |= flow.passed[v]
    way: list[Update] = []
    for u in reversed([*flow.updates]):
        if flow.forks[u.sum] & bits and flow.trace.inside(u.op.call, call):
            way.append(u)
            bits |= flow.bypass[u.stream]
    return way[::-1]
