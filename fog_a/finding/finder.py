"""From a trace to blocks: the layers and branches, with their gate points, taps, names and stacks."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fog_a.blocks.block import GatePoint, ResidualBlock, Source
from fog_a.blocks.tree import LeafPath
from fog_a.errors import NoBlocksFound, near
from fog_a.finding.accounts import Made
from fog_a.finding.deaf import Work
from fog_a.finding.gates import Gates
from fog_a.finding.inputs import model_inputs
from fog_a.finding.levels import Levels
from fog_a.finding.owners import own
from fog_a.finding.parts import Branch, Layer, Part, begun
from fog_a.finding.paths import union
from fog_a.finding.places import pattern
from fog_a.finding.streams import analyse
from fog_a.finding.taps import Taps
from fog_a.finding.trace import Trace


class Finder:
    """From a trace to blocks. In a net without any nonlinear update, `linear` ones are its layers."""

    def __init__(self, module: nn.Module, trace: Trace, linear: bool = False) -> None:
        self.module = module
        self.trace = trace
        self.input_names, bits, self.target = model_inputs(trace)
        self.flow = analyse(trace, bits, linear)
        self.owned = own(self.flow)
        self.levels = Levels(self.flow, self.owned)
        self.gates, self.taps = Gates(self.flow), Taps(self.flow, self.target)

    def blocks(self, level: str, include: str | Sequence[str] | None) -> list[Made]:
        """The blocks in order of execution, each with the updates that it closes."""
        layers = _once(self._with_beginnings(self.levels.layers()))
        made = [m for layer in layers if (m := self.layer(layer))]
        if include is None and level == "layer":
            return self._placed(made)
        fine = [m for layer in layers for m in self.branches(layer)]
        if include is None:
            return self._placed(fine)
        globs = [include] if isinstance(include, str) else list(include)
        named = [*self._placed(made), *self._placed(fine), *self._elsewhere(layers)]
        every = {m.block.name: m for m in reversed(named)}
        matches = {g: [name for name in every if fnmatch.fnmatchcase(name, g)] for g in globs}
        chosen = [m for name, m in every.items() if any(name in names for names in matches.values())]
        if chosen and (idle := [g for g, names in matches.items() if not names]):
            raise NoBlocksFound(self.seen(idle[0]))
        return self._placed(sorted(chosen, key=lambda m: m.block.gate_points[0].order))

    def ignore(self, made: Sequence[Made]) -> bool:
        """From now on those of these blocks that write into the stream that they give back are closed at their parts:
        the model goes on with what they write into. Whether there are any."""
        self.gates.ignored = {m.call for m in made if self._written(m)}
        return bool(self.gates.ignored)

    def _with_beginnings(self, layers: Sequence[Layer]) -> list[Layer]:
        """A layer's stream may begin inside it, with what its like adds (attention over the sums of groups of layers):
        that is a part of its update."""
        work = {pattern(self.trace.calls[c].name) for x in layers for p in x.parts for c in (p.call, p.reader)}
        out = []
        for layer in layers:
            new = [] if layer.call is None else begun(self.flow, layer.call, [b.update for b in layer.branches])
            alike = [b for b in new if any(pattern(self.trace.calls[p.call].name) in work for p in b.parts)]
            out.append(replace(layer, branches=(*alike, *layer.branches)))
        return out

    def _elsewhere(self, layers: Sequence[Layer]) -> list[Made]:
        """What else the trace has, at whatever level: units inside layers or around them, single branches."""
        taken = {layer.call for layer in layers}
        units = [Layer(c, self.levels.inner(c)) for c in self.levels.owned if c > 0 and c not in taken]
        loose = [Layer(None, tuple(branches)) for branches in self.levels.owned.values()]
        made = [m for unit in units if self.trace.calls[unit.call or 0].name and (m := self.layer(unit))]
        return [*made, *(m for layer in [*loose, *units] for m in self.branches(layer))]

    def _placed(self, made: list[Made]) -> list[Made]:
        """Give names to repeated calls, indices in their stacks, and say which stacks depend on x_t."""
        main = {m.block.stack for m in made if m.block.main}
        twice = Counter(m.block.name for m in made)
        nth: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        out = []
        for m in made:
            b = m.block
            name = f"{b.name}@{nth[b.name]}" if twice[b.name] > 1 else b.name
            nth[b.name] += 1
            block = replace(b, name=name, index=seen[b.stack], main=b.main or b.stack in main or not main)
            out.append(replace(m, block=block))
            seen[b.stack] += 1
        return out

    def layer(self, layer: Layer) -> Made | None:
        """One layer as a block, or None where its gate cannot be closed."""
        gate_points, passages, apart = self.gates.of_layer(layer)
        if not gate_points:
            return None
        if layer.call is None:
            name, taps = layer.name, self.taps.of_branches(layer.branches, layer.name)
        else:
            name, taps = self._called(layer.call), self.taps.of_call(layer.call, passages)
        return self._made(
            layer.call,
            layer.branches,
            name=name,
            stack=_stack(name, exact=layer.call is None),
            form="branch" if layer.call is None else "stream",
            definition="branches" if apart else "identity",
            gate_points=tuple(gate_points),
            outputs=tuple(taps),
        )

    def branches(self, layer: Layer) -> list[Made]:
        """The single branches of a layer as blocks of their own; x + (attention + mlp) has two. What one gate closes is
        one block, though it be added in two places."""
        by_part: dict[Part, list[Branch]] = {}
        for b in layer.branches:
            for p in b.parts:
                by_part.setdefault(p, []).append(Branch(b.update, (p,)))
        twice = Counter(self._called(p.reader) for p in by_part)
        out = []
        for part, group in by_part.items():
            name = self._called(part.reader)
            if twice[name] > 1:  # one module with an update for each of several streams
                output = "".join(f"[{key}]" for key in part.leaves[0])
                name = name + output if output else self._called(part.call)
            out.append(
                self._made(
                    None,
                    tuple(group),
                    name=name,
                    stack=pattern(name),
                    form="branch",
                    definition="branches",
                    gate_points=tuple(self.gates.of_branches(group)),
                    outputs=tuple(self.taps.of_branches(group, name)),
                )
            )
        return out

    def _made(self, call: int | None, branches: Sequence[Branch], **fields: Any) -> Made:
        needs, parts = 0, tuple(dict.fromkeys(p for b in branches for p in b.parts))
        for b in branches:
            needs |= self.flow.inputs[b.update.branch]
        block = ResidualBlock(
            index=0,
            inputs=frozenset(n for i, n in enumerate(self.input_names) if needs >> i & 1),
            parts=tuple(dict.fromkeys(self.trace.calls[p.reader].name for p in parts)),
            main=not self.target or bool(needs & self.target),
            **fields,
        )
        return Made(block, tuple(b.update for b in branches), call, parts)

    def _called(self, call: int) -> str:
        me = self.trace.calls[call]
        return me.name if self.trace.times[me.name] == 1 else f"{me.name}@{me.nth}"

    def work(self, made: Sequence[Made]) -> Work:
        """Of each block the calls that do its work, with their outputs that carry no stream; its own call, with the
        streams that it gives back and writes into."""
        return {m.block.name: (*(self._heard(p.reader) for p in m.parts), *self._written(m)) for m in made}

    def _heard(self, call: int) -> GatePoint:
        me, flow = self.trace.calls[call], self.flow
        streams = flow.sums | union(flow.trunk, me.inputs.values())
        return self._point(call, {path: None for path, v in me.outputs.items() if not flow.trunk[v] & streams})

    def _written(self, m: Made) -> list[GatePoint]:
        if m.call is None:
            return []
        trace, points = self.trace, [point for point in m.block.gate_points if point.order == m.call]
        paths = {path for point in points for s in point.give.values() if s is not None for path in s.sources}
        writers = {path: trace.overwritten.get(trace.calls[m.call].inputs[path]) for path in paths}
        give = {p: Source((p,)) for p, c in writers.items() if c is not None and trace.inside(c, m.call)}
        return [self._point(m.call, give)] if give else []

    def _point(self, call: int, give: Mapping[LeafPath, Source | None]) -> GatePoint:
        me = self.trace.calls[call]
        return GatePoint(me.name, me.nth, give, self.trace.times[me.name], call)

    def seen(self, include: str | Sequence[str] | None) -> str:
        """The message for a model in which nothing was found."""
        if include is not None:
            names = [m.block.name for m in self.blocks("layer", None)]
            hint = near(include, names) if isinstance(include, str) else ""
            there = ", ".join(names) or "none"
            return f"no block's name matches {include!r} (there are {there}){hint}. Pass include= a glob over these"
        scripted = self.trace.scripted
        sums = sum(op.name.startswith(("add", "sub")) for op in self.trace.ops)
        updates = self.flow.updates
        if any(v.continuous and not v.floating for v in self.trace.values):
            reason = "its streams hold complex numbers, in which updates are not followed. Let it compute in pairs of "
            return f"expected modules that compute h + f(h), found none: {reason}real numbers (torch.view_as_real)"
        places = ", ".join(sorted({self.trace.calls[u.op.call].name or "(the model)" for u in updates})[:5])
        return (
            f"expected modules that compute h + f(h), found none in {type(self.module).__name__}: "
            f"{len(self.trace.calls) - 1} module calls, {sums} additions, {len(updates)} of them residual updates"
            + (f" in {places}, but in no repeated or closable unit. " if updates else ". ")
            + (f"{scripted[0]} is scripted and takes no hooks: wrap what it was made of. " if scripted else "")
            + "If its layers are gated or recurrent there is no block to close; otherwise pass include= with their "
            "names, or forward=lambda model, batch: ... that reaches them"
        )


def _once(layers: Sequence[Layer]) -> list[Layer]:
    """What the same parts give is one layer, though its parent adds it again for every later one (`sum(outputs)`)."""
    every: dict[Any, Layer] = {}
    for layer in layers:
        key = tuple(b.parts for b in layer.branches) if layer.call is None else layer.call
        first = every.setdefault(key, layer)
        if first is not layer:
            every[key] = replace(first, branches=(*first.branches, *layer.branches))
    return list(every.values())


def _stack(name: str, exact: bool) -> str:
    """The part of a path before its first number: `transformer_blocks` for `transformer_blocks.3`; if `exact`, with
    what follows it: `layers.*.0` and `layers.*.1` are two streams of one list."""
    name = name.split("@")[0].split("+")[0]
    keys = name.split(".")
    for i, key in enumerate(keys):
        if re.search(r"\d$", key):
            stem = re.sub(r"[_\-]?\d+$", "", key)
            head = ".".join([*keys[:i], *([stem] if stem else [])])
            return ".".join([*keys[:i], "*", *keys[i + 1 :]]) if exact and len(keys) > i + 1 else head
    return name
