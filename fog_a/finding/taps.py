"""Where a block's output h_l can be read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Literal

from fog_a.blocks.block import Source, TapPoint
from fog_a.blocks.tree import LeafPath
from fog_a.finding.parts import Branch
from fog_a.finding.paths import Flow, Update, union
from fog_a.finding.trace import Call

Side = Literal["input", "output"]


class Taps:
    """Makes the tap points of one trace. `target`: the bits of the inputs that may be x_t."""

    def __init__(self, flow: Flow, target: int) -> None:
        self.flow = flow
        self.trace = flow.trace
        self.target = target
        self.firsts = [v for v, bit in flow.forks.items() if flow.trunk[v] == bit]
        self.begins: dict[int, int] = {}

    def of_call(self, call: int, passages: Mapping[LeafPath, Source]) -> list[TapPoint]:
        """The outputs that carry the call's streams."""
        me = self.trace.calls[call]
        return [self._tap(me, "output", p, me.outputs[p]) for p in self._by_main(me, passages)]

    def of_branches(self, branches: Sequence[Branch], name: str) -> list[TapPoint]:
        """Where the last sum of a parent's additions can be read, or another to which the same part is added: WaveNet's
        total is read after all layers, its stream by the next."""
        sums = [b for b in reversed(branches) if b.parts == branches[-1].parts]
        return next(filter(None, (self._of_sum(b, name) for b in sums)), [])

    def _of_sum(self, b: Branch, name: str) -> list[TapPoint]:
        """The first call that gives a sum out or takes it in; if that is a norm of the same layer (post-norm in the
        parent), what it gives out."""
        v, trace = b.update.sum, self.trace
        calls = [c for c in trace.calls[1:] if c.name and not trace.inside(b.update.owner, c.id)]
        spot = self._spot(v, calls, ("output",)) or self._spot(v, calls)
        if spot is None:
            around = [trace.calls[c] for c in trace.ancestors(b.update.owner) if c > 0]
            outs = [self._tap(c, "output", p, v) for c in around for p in c.leaves(v)]
            return self._addends(b.update) or outs[:1]
        c, side, _ = spot
        normed = [(p, w) for p, w in c.outputs.items() if self.flow.level[w] & self.flow.forks[v]]
        if side == "input" and normed and trace.values[v].readers == 1 and self._of_layer(c, name):
            return [self._tap(c, "output", *normed[0])]
        return [self._tap(*spot, v)]

    def _spot(
        self, v: int, calls: Iterable[Call], sides: Sequence[Side] = ("output", "input")
    ) -> tuple[Call, Side, LeafPath] | None:
        """The first call, with side and leaf, at which a value can be read."""
        for c in calls:
            for side in sides:
                for path, w in (c.outputs if side == "output" else c.inputs).items():
                    if w == v:
                        return c, side, path
        return None

    def _of_layer(self, norm: Call, name: str) -> bool:
        """Is this the layer's own norm, not the one after all layers? It lies inside it, or beside it in a list whose
        other norms, too, are all that reads a layer's sum."""
        if norm.name.startswith(f"{name}."):
            return True
        sums = {u.sum for u in self.flow.updates if self.trace.values[u.sum].readers == 1}
        home = norm.name.rpartition(".")[0]
        beside = [c for c in self.trace.calls[1:] if c.name != norm.name and c.cls is norm.cls]
        return any(v in sums for c in beside if c.name.rpartition(".")[0] == home for v in c.inputs.values())

    def _addends(self, u: Update) -> list[TapPoint]:
        """Where the two sides of an addition can be read whose sum no module sees: the last layer's, before a slice."""
        if not u.op.name.startswith("add") or set(u.op.reads) != {u.stream, u.branch} or u.op.kwargs:
            return []  # a difference, a scaled sum
        calls = [c for c in self.trace.calls[1:] if c.name]
        stream, branch = (self._tap(*spot, v) if (spot := self._spot(v, calls)) else None for v in (u.stream, u.branch))
        return [replace(stream, plus=branch)] if stream and branch else []

    def _by_main(self, me: Call, passages: Mapping[LeafPath, Source]) -> list[LeafPath]:
        """A call's output streams, the one that begins with x_t first. Streams that are joined and cut again (FLUX's
        single blocks) depend on each other: each begins where its own elements do."""
        for path, passage in passages.items():
            bits = 0
            for source in self._used(me, passage):
                bits |= self._begin(me.inputs[source])
            self.begins[me.outputs[path]] = bits
        paths = list(passages) or [p for p, v in me.outputs.items() if self.trace.values[v].floating][:1]
        return sorted(paths, key=lambda p: not self._begin(me.outputs[p]) & self.target)

    def _begin(self, v: int) -> int:
        """The model inputs that a stream begins with, as bits."""
        if v not in self.begins:
            flow, trunk = self.flow, self.flow.trunk[v]
            self.begins[v] = union(flow.inputs, [w for w in self.firsts if trunk & flow.forks[w]] or [v])
        return self.begins[v]

    def _used(self, me: Call, passage: Source) -> list[LeafPath]:
        """The sources that a passage has elements of."""
        if passage.index is None:
            return list(passage.sources)
        ends = list(itertools.accumulate(prod(self.trace.values[me.inputs[s]].shape) for s in passage.sources))
        starts = [0, *ends[:-1]]
        return [
            source
            for source, start, end in zip(passage.sources, starts, ends, strict=True)
            if bool(((passage.index > start) & (passage.index <= end)).any())
        ]

    def _tap(self, c: Call, side: Side, path: LeafPath, v: int) -> TapPoint:
        return TapPoint(c.name, c.nth, side, path, self.trace.times[c.name], v in self.trace.overwritten)
