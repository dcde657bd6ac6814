"""One run of a case, looked at: what enters and leaves the network and its gated calls, and how often they run."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fog_a.attributing.decisions import Decisions, decides
from fog_a.blocks.block import GatePoint
from fog_a.blocks.calls import Key, at_calls, hooked, named_modules, tree
from fog_a.blocks.tree import LeafPath, leaf, leaves, replaced
from fog_a.blocks.untouched import rng_state
from fog_a.finding.blocks import Discovery
from fog_a.flows.case import Case

Place = tuple[Key, str, LeafPath]
"""A tensor at a gated call, going "in" or "out"."""


@dataclass
class Sighting:
    """What one run showed."""

    decisions: Decisions
    v: Tensor = field(default_factory=lambda: torch.empty(0))
    entrance: dict[LeafPath, tuple[int, ...]] = field(default_factory=dict)
    """The shapes of the tensors that the network is called with."""
    out: Any = None
    """What the network gave out."""
    runs: int = 0
    """How often the network ran."""
    times: Counter[Key] = field(default_factory=Counter)
    """How often each gated call ran."""
    shapes: dict[Place, tuple[int, ...]] = field(default_factory=dict)
    values: dict[Place, Tensor] = field(default_factory=dict)
    drew: bool = False
    nested: bool = False

    def note(self, key: Key, side: str, what: Any, places: Collection[Place]) -> None:
        """The tensors at a gated call."""
        for path, x in leaves(what):
            if x.is_nested:
                self.nested = True
                continue
            self.shapes[key, side, path] = tuple(x.shape)
            if (key, side, path) in places:
                self.values[key, side, path] = x.clone()


def look(
    case: Case,
    calls: Mapping[Key, GatePoint],
    *,
    rows: Mapping[LeafPath, int] | None = None,
    base: Sighting | None = None,
    values_at: Collection[Place] = (),
    follow: bool = False,
) -> Sighting:
    """Run a case once and look.

    Args:
        rows: run the network on that many rows of these arguments, while its caller gets what it gave in `base`.
        values_at: keep the values there, too, not only the shapes.
        follow: follow what comes out of gated calls to the decisions made with it.
    """
    seen = Sighting(Decisions(follow))
    states: list[Any] = []

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.runs += 1
        arguments = tree(args, kwargs) if rows is None else _cut(rows, tree(args, kwargs))
        seen.entrance = {path: tuple(x.shape) for path, x in leaves(arguments) if not x.is_nested}
        states.append(rng_state())
        return arguments["args"], arguments["kwargs"]

    def leave(args: Any, kwargs: Any, out: Any) -> Any:
        seen.drew = seen.drew or states.pop() != rng_state()
        # a copy: a model that writes into its batch gives the batch out, which the next run restores
        seen.out = replaced(out, {path: x.clone() for path, x in leaves(out)})
        return None if base is None else base.out

    def before(key: Key, args: Any, kwargs: Any) -> None:
        seen.times[key] += 1
        seen.note(key, "in", tree(args, kwargs), values_at)

    def after(key: Key, args: Any, kwargs: Any, out: Any) -> None:
        seen.note(key, "out", out, values_at)
        seen.decisions.gated(out)

    with contextlib.ExitStack() as stack:
        if base is None or follow:  # a smaller run decides nothing that the whole one did not
            stack.enter_context(seen.decisions)
        stack.enter_context(hooked(case.module, before=enter, after=leave))
        stack.enter_context(at_calls(named_modules(case.module), calls, before, after))
        seen.v = case.run().clone()
    return seen


def recall(discovery: Discovery, calls: Mapping[Key, GatePoint]) -> Sighting:
    """What the forward showed in which the blocks were found: no further run."""
    trace, values = discovery.trace, discovery.trace.values
    seen = Sighting(Decisions(), discovery.v, out=trace.out, runs=trace.times.get("", 0), drew=trace.drew)
    seen.decisions.seen = any(map(decides, trace.functions))
    for call in trace.calls[1:]:
        sides = {"in": call.inputs, "out": call.outputs}
        if not call.name:
            seen.entrance = {path: values[v].shape for path, v in call.inputs.items() if not values[v].nested}
        if (key := (call.name, call.nth)) not in calls:
            continue
        seen.times[key] += 1
        for side, path, v in ((side, path, v) for side, inner in sides.items() for path, v in inner.items()):
            seen.nested = seen.nested or values[v].nested
            if not values[v].nested:
                seen.shapes[key, side, path] = values[v].shape
    return seen


def _cut(rows: Mapping[LeafPath, int], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with as many rows as asked for: the first ones, or all of them over again."""
    new = {}
    for path, n in rows.items():
        x = leaf(arguments, path)
        new[path] = x[:n] if n <= len(x) else torch.cat([x] * -(-n // len(x)))[:n]
    return replaced(arguments, new)
