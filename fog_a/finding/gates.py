"""Where a block is closed: at its own output, which then gives back its input, or at its parts, which give zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from fog_a.blocks.block import GatePoint, Source, TapPoint
from fog_a.blocks.tree import LeafPath
from fog_a.finding.operations import NONLINEAR
from fog_a.finding.parts import Branch, Layer
from fog_a.finding.passages import through
from fog_a.finding.paths import Flow, Update
from fog_a.finding.sides import beginnings, sides


class Gates:
    """Makes the gate points of the layers and branches of one trace. `ignored`: calls that write into the stream that
    they are given, with which the model goes on, rather than with what they give out."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.trace = flow.trace
        self.ignored: set[int | None] = set()

    def of_layer(self, layer: Layer) -> tuple[list[GatePoint], dict[LeafPath, Source], bool]:
        """The gate points of a layer (none where it cannot be closed), the streams that pass through it, and whether
        it is its parts that are closed."""
        branches = [b for b in layer.branches if b.parts]
        closable = len(branches) == len(layer.branches)
        if layer.call is None or (closable and layer.call in self.ignored):
            return self.of_branches(branches) if closable else [], {}, True
        passages = through(self.flow, layer.call)
        give: dict[LeafPath, Source | None] = dict(passages)
        left = [b for b in layer.branches if not self._carried(b.update, layer.call, give)]
        beside = sides(self.flow, layer.call, passages, [b.update for b in left if b.parts])
        give |= dict.fromkeys(beside)
        left = [b for b in left if not self._carried(b.update, layer.call, give)]
        kept = {p: s for b in left if not b.parts for p, s in self._shortcut(layer.call, b.update).items()}
        give |= kept | dict.fromkeys(sides(self.flow, layer.call, kept, ()))
        left = [b for b in left if b.parts or not self._carried(b.update, layer.call, kept)]
        if any(not b.parts for b in left) or not (give or left):
            return [], passages, True
        if not left:
            return [self._point(layer.call, give)], passages, bool(kept)
        return self._inside(layer.call, give, left, branches), passages, True

    def _shortcut(self, call: int, u: Update) -> dict[LeafPath, Source]:
        """Where a call gives out `shortcut(x) + update`, and no module gives the update: what the shortcut's gave."""
        paths, given = self.trace.calls[call].leaves(u.sum), self.flow.giving(u.stream, call)
        if not paths or not given:
            return {}
        shortcut = given[-1]
        leaf = shortcut.leaves(u.stream)[0]
        tap = TapPoint(shortcut.name, shortcut.nth, "output", leaf, self.trace.times[shortcut.name])
        return dict.fromkeys(paths, Source((), inside=tap))

    def _inside(
        self,
        call: int,
        give: dict[LeafPath, Source | None],
        open_ones: Sequence[Branch],
        branches: Sequence[Branch],
    ) -> list[GatePoint]:
        """The gates of a layer whose updates its own output cannot close: at its parts; at its output what has none."""
        outs = self.trace.calls[call].outputs
        parts: dict[int, dict[LeafPath, None]] = {}
        for path in [p for p, source in give.items() if source is None]:
            if inner := self.flow.giving(outs[path], call):
                parts.setdefault(inner[-1].id, {}).update(dict.fromkeys(inner[-1].leaves(outs[path])))
                del give[path]
        closed = {p: source for p, source in give.items() if source is not None}
        others = [b for b in branches if b not in open_ones and self._carried(b.update, call, closed)]
        if others:
            give = {p: source for p, source in give.items() if source is None}
            open_ones = [*open_ones, *others]
        for b in open_ones:
            for part in b.parts:
                parts.setdefault(part.call, {}).update(dict.fromkeys(part.leaves))
        outer = [self._point(call, give)] if give else []
        return [*outer, *(self._point(c, leaves) for c, leaves in sorted(parts.items()))]

    def _carried(self, u: Update, call: int, give: Mapping[LeafPath, Source | None]) -> bool:
        """Is the update removed where these outputs of the call give back its inputs?"""
        outs, forks = self.trace.calls[call].outputs, self.flow.forks
        bit = forks.get(u.sum, forks[u.op.makes[0]])  # what a stream begins with may be read once, by a sum
        streams = {p for p, v in outs.items() if self.flow.passed[v] & bit}
        carrying = streams or {p for p, v in outs.items() if self.flow.bypass[v] & bit}
        return bool(carrying & give.keys() if carrying else give)

    def of_branches(self, branches: Sequence[Branch]) -> list[GatePoint]:
        """A gate at each part, which gives zeros where it is closed, with what a total begins with."""
        give: dict[int, dict[Any, None]] = {}
        bent: set[int] = set()
        for b in branches:
            for p in b.parts:
                give.setdefault(p.call, {}).update(dict.fromkeys([*p.leaves, *beginnings(self.flow, p.call, p.leaves)]))
                outs = self.trace.calls[p.call].outputs
                bent |= {p.call} if any(self._bent(outs[path], b.update) for path in p.leaves) else set()
        return [replace(self._point(c, leaves), scales=c not in bent) for c, leaves in sorted(give.items())]

    def _bent(self, v: int, u: Update) -> bool:
        """Is something nonlinear done to this value before the sum?"""
        while v not in self.flow.forks:
            ops = self.flow.readers[v]
            if len(ops) != 1 or len(ops[0].makes) != 1:
                return False
            if ops[0].kind.does & NONLINEAR:
                return True
            v = ops[0].makes[0]
        return v != u.branch and bool(self.flow.bent[u.branch] & self.flow.forks[v])

    def _point(self, call_id: int, give: Any) -> GatePoint:
        """A gate at a call."""
        me = self.trace.calls[call_id]
        once = self.trace.times.get("") == 1
        size = max((prod(self.trace.values[v].shape) for v in me.outputs.values()), default=0)
        return GatePoint(me.name, me.nth, give, self.trace.times[me.name], call_id, once, elements=size)
