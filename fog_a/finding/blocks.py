"""Finding the residual blocks of any model from one forward: no names, no registry.

One recorded forward (trace) says how tensors were made; streams finds the additions that update a stream, owners whose
they are and what made them, levels which calls are layers, passages how each stream passes through its layer.
"""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Literal

from torch import nn

from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock, Source, TapPoint
from fog_a.blocks.calls import named_modules
from fog_a.blocks.tree import LeafPath
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadBatch, NoBlocksFound
from fog_a.finding.levels import Layer, Levels
from fog_a.finding.likeness import pattern
from fog_a.finding.owners import Branch, giving, own
from fog_a.finding.passages import through
from fog_a.finding.sides import sides
from fog_a.finding.streams import Update, analyse
from fog_a.finding.trace import Call, Trace, record
from fog_a.flows.batches import Forward
from fog_a.flows.case import probe
from fog_a.flows.flow import Flow as WrappedFlow


def find_blocks(
    model: nn.Module | WrappedFlow,
    batch: Any,
    *,
    forward: Forward | None = None,
    level: Literal["layer", "branch"] = "layer",
    include: str | Sequence[str] | None = None,
) -> Blocks:
    """Run one forward and return the residual blocks in order of execution.

    Args:
        model: any module, or a wrapped flow.
        batch: what the model takes (see `attribute`).
        forward: `forward(model, batch) -> Tensor` where the model is not simply called.
        level: `"layer"`: the outermost repeated residual unit; `"branch"`: its single branches.
        include: glob(s) over names; only blocks that match are returned, at whatever level they stand.

    Raises:
        NoBlocksFound: says what was seen and what to type.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> fog_a.find_blocks(net, torch.randn(2, 5, 8)).names
        ('layers.0', 'layers.1', 'layers.2')
    """
    if level not in ("layer", "branch"):
        raise BadBatch(f"expected level='layer' or 'branch', got {level!r}")
    one = probe(model, batch, None, 0, forward)
    with preserved(*one.modules), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checkpointing without grad, nested tensors: of no concern here
        trace = record(one.module, one.run)
    found = Finder(one.module, trace)
    blocks = found.blocks(level, include) or Finder(one.module, trace, linear=True).blocks(level, include)
    if not blocks:
        raise NoBlocksFound(found.seen(include))
    return Blocks(blocks, one.module)


class Finder:
    """From a trace to blocks. In a net without any nonlinear update, `linear` ones are its layers."""

    def __init__(self, module: nn.Module, trace: Trace, linear: bool = False) -> None:
        self.module = module
        self.trace = trace
        self.input_names, bits = _model_inputs(module, trace)
        self.flow = analyse(trace, bits, linear)
        self.owned = own(self.flow)
        self.levels = Levels(self.flow, self.owned)
        self.target = self._target(bits)
        self.begins: dict[int, int] = {}

    def _target(self, bits: dict[int, int]) -> int:
        """The bits of the inputs that may be x_t: floating ones with the velocity's shape."""
        values, v = self.trace.values, self.trace.output
        if v is None:
            return 0
        out = 0
        for value, bit in bits.items():
            if values[value].floating and values[value].shape == values[v].shape:
                out |= bit
        return out

    def blocks(self, level: str, include: str | Sequence[str] | None) -> list[ResidualBlock]:
        layers = self.levels.layers()
        made = [b for layer in layers for b in (self.block(layer),) if b is not None]
        if level == "branch" or include is not None:
            fine = [b for layer in layers for b in self.branches(layer)]
            if include is not None:
                globs = [include] if isinstance(include, str) else list(include)
                made = [b for b in [*made, *fine] if any(fnmatch.fnmatchcase(b.name, g) for g in globs)]
            else:
                made = fine
        return self._placed(made)

    def _placed(self, blocks: list[ResidualBlock]) -> list[ResidualBlock]:
        """Give names to repeated calls, indices in their stacks, and say which stacks depend on x_t."""
        main = {b.stack for b in blocks if b.main}
        twice = Counter(b.name for b in blocks)
        nth: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        out = []
        for b in blocks:
            name = f"{b.name}@{nth[b.name]}" if twice[b.name] > 1 else b.name
            nth[b.name] += 1
            out.append(replace(b, name=name, index=seen[b.stack], main=b.main or b.stack in main or not main))
            seen[b.stack] += 1
        return out

    def block(self, layer: Layer) -> ResidualBlock | None:
        """One layer as a block, or None where its gate cannot be closed."""
        branches = [b for b in layer.branches if b.parts]
        needs = 0
        for b in layer.branches:
            needs |= self.flow.inputs[b.update.branch]
        passages = through(self.flow, layer.call) if layer.call is not None else {}
        give: dict[LeafPath, Source | None] = dict(passages)
        open_ones = [b for b in layer.branches if not self._carried(b.update, layer.call, give)]
        if layer.call is not None:
            updates = [b.update for b in open_ones if b.parts]
            give |= dict.fromkeys(sides(self.flow, layer.call, passages, updates))
            open_ones = [b for b in open_ones if not self._carried(b.update, layer.call, give)]
        if any(not b.parts for b in open_ones) or not (passages or open_ones):
            return None
        if layer.call is None or not open_ones:
            gate_points = self._gates(branches) if layer.call is None else [self._gate(layer.call, give)]
        else:
            gate_points = self._inside(layer.call, give, open_ones, branches)
        form = "branch" if layer.call is None else "stream"
        definition = "branches" if open_ones else "identity"
        if layer.call is not None:
            me = self.trace.calls[layer.call]
            name = me.name if self.trace.times[me.name] == 1 else f"{me.name}@{me.nth}"
            taps = [self._tap(me, "output", p, me.outputs[p]) for p in self._by_main(me, passages)]
        else:
            name, taps = layer.name, self._taps(layer.branches[-1], layer.name)
        return ResidualBlock(
            name=name,
            stack=_stack(name, exact=layer.call is None),
            index=0,
            form=form,  # type: ignore[arg-type]
            definition=definition,  # type: ignore[arg-type]
            inputs=self._names(needs),
            parts=tuple(dict.fromkeys(self.trace.calls[p.reader].name for b in branches for p in b.parts)),
            main=not self.target or bool(needs & self.target),
            gate_points=tuple(gate_points),
            outputs=tuple(taps),
        )

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
            inner = [c for c in giving(self.flow, outs[path]) if c.id != call and self.trace.inside(c.id, call)]
            if inner:
                parts.setdefault(inner[-1].id, {}).update(
                    {p: None for p, v in inner[-1].outputs.items() if v == outs[path]}
                )
                del give[path]
        closed = {p: source for p, source in give.items() if source is not None}
        others = [b for b in branches if b not in open_ones and self._carried(b.update, call, closed)]
        if others and all(b.parts for b in others):
            give = {p: source for p, source in give.items() if source is None}
            open_ones = [*open_ones, *others]
        for b in open_ones:
            for part in b.parts:
                parts.setdefault(part.call, {}).update(dict.fromkeys(part.leaves))
        outer = [self._gate(call, give)] if give else []
        return [*outer, *(self._gate(c, leaves) for c, leaves in sorted(parts.items()))]

    def _carried(self, u: Update, call: int | None, give: Mapping[LeafPath, Source | None]) -> bool:
        """Is the update removed where these outputs of the call give back its inputs?"""
        if call is None:
            return False
        outs, bit = self.trace.calls[call].outputs, self.flow.forks[u.sum]
        ways = [self.flow.passed[v] | self.flow.bypass[v] for v in outs.values()]
        mine = [self.flow.passed[outs[p]] | self.flow.bypass[outs[p]] for p in give]
        return any(way & bit for way in mine) or bool(give and not any(way & bit for way in ways))

    def branches(self, layer: Layer) -> list[ResidualBlock]:
        """The single branches of a layer as blocks of their own; x + (attention + mlp) has two."""
        single = [Branch(b.update, (p,)) for b in layer.branches for p in b.parts]
        names = [self._branch_name(b) for b in single]
        twice = Counter(names)
        return [self._branch(b, name, twice[name] > 1) for b, name in zip(single, names, strict=True)]

    def _branch_name(self, b: Branch) -> str:
        me = self.trace.calls[b.parts[0].reader]
        return me.name if self.trace.times[me.name] == 1 else f"{me.name}@{me.nth}"

    def _branch(self, b: Branch, name: str, several: bool) -> ResidualBlock:
        if several:  # one module with an update for each of several streams
            name += "".join(f"[{key}]" for key in b.parts[0].leaves[0]) or f"[{b.update.order}]"
        needs = self.flow.inputs[b.update.branch]
        return ResidualBlock(
            name=name,
            stack=pattern(name),
            index=0,
            form="branch",
            definition="branches",
            inputs=self._names(needs),
            parts=(self.trace.calls[b.parts[0].reader].name,),
            main=not self.target or bool(needs & self.target),
            gate_points=tuple(self._gates([b])),
            outputs=tuple(self._taps(b, name)),
        )

    def _gates(self, branches: Sequence[Branch]) -> list[GatePoint]:
        give: dict[int, dict[Any, None]] = {}
        for b in branches:
            for p in b.parts:
                give.setdefault(p.call, {}).update(dict.fromkeys(p.leaves))
        return [self._gate(c, leaves) for c, leaves in sorted(give.items())]

    def _gate(self, call_id: int, give: Any) -> GatePoint:
        me = self.trace.calls[call_id]
        once = self.trace.times.get("") == 1
        size = max((prod(self.trace.values[v].shape) for v in me.outputs.values()), default=0)
        return GatePoint(me.name, me.nth, give, self.trace.times[me.name], call_id, once, size)

    def _by_main(self, me: Call, passages: dict[LeafPath, Source]) -> list[LeafPath]:
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
        return self.begins.get(v, self.flow.origin[v])

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

    def _taps(self, b: Branch, name: str) -> list[TapPoint]:
        """Where the sum of a parent's addition can be read: the first call that gives it out or takes it in; if that is
        a norm of the same layer (post-norm in the parent), what it gives out."""
        calls = [c for c in self.trace.calls[1:] if c.name and not self.trace.inside(b.update.owner, c.id)]
        for c in calls:
            for path, v in c.outputs.items():
                if v == b.update.sum:
                    return [self._tap(c, "output", path, v)]
        for c in calls:
            for path, v in c.inputs.items():
                if v == b.update.sum:
                    normed = [(p, w) for p, w in c.outputs.items() if self.flow.level[w] & self.flow.forks[v]]
                    if normed and self.trace.values[v].readers == 1 and self._of_layer(c, name):
                        return [self._tap(c, "output", *normed[0])]
                    return [self._tap(c, "input", path, v)]
        return self._addends(b.update)

    def _of_layer(self, norm: Call, name: str) -> bool:
        """Is this the layer's own norm, not the one after all layers? It lies inside it, or beside it in a list whose
        other norms, too, are all that reads a layer's sum."""
        if norm.name.startswith(f"{name}."):
            return True
        sums = {u.sum for u in self.flow.updates if self.trace.values[u.sum].readers == 1}
        home = norm.name.rpartition(".")[0]
        beside = [c for c in self.trace.calls[1:] if c.name != norm.name and c.kind is norm.kind]
        return any(v in sums for c in beside if c.name.rpartition(".")[0] == home for v in c.inputs.values())

    def _addends(self, u: Update) -> list[TapPoint]:
        """Where the two sides of an addition can be read whose sum no module sees: the last layer's, before a slice."""
        found: list[TapPoint] = []
        if not u.op.name.startswith("add") or set(u.op.reads) != {u.stream, u.branch} or u.op.kwargs:
            return []  # a difference, a scaled sum
        for v in (u.stream, u.branch):
            for c in self.trace.calls[1:]:
                out = [p for p, w in c.outputs.items() if w == v]
                given = [p for p, w in c.inputs.items() if w == v]
                if c.name and (out or given):
                    found.append(self._tap(c, "output", out[0], v) if out else self._tap(c, "input", given[0], v))
                    break
        return [replace(found[0], plus=found[1])] if len(found) == 2 else []

    def _tap(self, c: Call, side: Literal["input", "output"], path: LeafPath, v: int) -> TapPoint:
        return TapPoint(c.name, c.nth, side, path, self.trace.times[c.name], v in self.trace.overwritten)

    def _names(self, bits: int) -> frozenset[str]:
        return frozenset(n for i, n in enumerate(self.input_names) if bits >> i & 1)

    def seen(self, include: str | Sequence[str] | None) -> str:
        """The message for a model in which nothing was found."""
        if include is not None:
            names = ", ".join(b.name for b in self.blocks("layer", None)) or "none"
            return f"no block's name matches {include!r} (there are {names}). Pass include= a glob over these"
        sums = sum(op.name.startswith(("add", "sub")) for op in self.trace.ops)
        updates = self.flow.updates
        places = ", ".join(sorted({self.trace.calls[u.op.call].name or "(the model)" for u in updates})[:5])
        return (
            f"expected modules that compute h + f(h), found none in {type(self.module).__name__}: "
            f"{len(self.trace.calls) - 1} module calls, {sums} additions, {len(updates)} of them residual updates"
            + (f" in {places}, but in no repeated or closable unit. " if updates else ". ")
            + "If its layers are gated or recurrent there is no block to close; otherwise pass include= with their "
            "names, or forward=lambda model, batch: ... that reaches them"
        )


def _model_inputs(module: nn.Module, trace: Trace) -> tuple[list[str], dict[int, int]]:
    """The names of the model's inputs, and for each of their values the bit of its name."""
    roots = [c for c in trace.calls[1:] if c.name == ""] or [trace.calls[c] for c in trace.calls[0].children]
    names: list[str] = []
    bits: dict[int, int] = {}
    for c in roots:
        order = _parameters(module, c.name)
        for path, v in c.inputs.items():
            name = str(path[1]) if path[0] == "kwargs" else order[path[1]] if path[1] < len(order) else f"arg{path[1]}"
            name = f"{c.name}.{name}" if c.name else name
            if name not in names:
                names.append(name)
            bits.setdefault(v, 1 << names.index(name))
    return names, bits


def _parameters(module: nn.Module, name: str) -> list[str]:
    try:
        signature = inspect.signature(named_modules(module)[name].forward)
    except (ValueError, TypeError):
        return []
    return [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


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
