"""One run of a case, looked at: what enters and leaves the network and its gated calls, and how often they run; what is
decided by the whole batch; how much memory it takes.

A number that Python reads off the batch, or a choice among the rows of all samples, may give each sample what it gives
alone in the clean run, and something else where one variant's rows would have decided otherwise (expert capacity, early
exit when all are sure, a period taken from the mean spectrum).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fog_a.blocks.block import GatePoint
from fog_a.blocks.calls import Key, at_calls, hooked, named_modules, tree
from fog_a.blocks.tree import LeafPath, leaf, leaves, replaced
from fog_a.finding.blocks import Discovery
from fog_a.finding.operations import Watching, has_schema
from fog_a.flows.case import Case

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal}
PICKS = {
    aten.topk, aten.sort, aten.argsort, aten.argmax, aten.argmin, aten.max, aten.min, aten.cumsum, aten.cumprod,
    aten.kthvalue, aten.median, aten.mode,
}  # fmt: skip
Place = tuple[Key, str, LeafPath]
"""A tensor at a gated call, going "in" or "out"."""


class Decisions(Watching):
    """Notes the decisions that are made once a gated call has run: what came before cannot depend on one.

    Attributes:
        begun: whether a gated call has run.
        reads: whether Python read a number since.
        picks: for each choice since, among how many entries it was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.reads = False
        self.picks: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.begun and decides(func):
            if not has_schema(func) or func.overloadpacket in READS:
                self.reads = True
            else:
                self.picks.append(_among(func, args, kwargs))
        return func(*args, **kwargs)


def decides(func: Any) -> bool:
    """Whether an operation may decide something by all values of a tensor: one that chooses between functions does."""
    if not has_schema(func):
        return func.name() != "flex_attention"
    packet = func.overloadpacket
    return packet in READS or (packet in PICKS and func._overloadname != "other")  # the larger of two tensors


def _among(func: Any, args: Any, kwargs: Any) -> int:
    """How many entries an operation chooses among: the size of its axis, or of the whole tensor."""
    x, arguments = args[0], func._schema.arguments
    place = next((i for i, a in enumerate(arguments) if a.name == "dim"), None)
    if place is None:
        return x.numel()
    dim = kwargs.get("dim", args[place] if place < len(args) else arguments[place].default_value)
    return x.numel() if dim is None or not x.ndim else x.shape[dim]


@dataclass
class Sighting:
    """What one run showed: the velocity, the shapes that the network was called with, what it gave out, how often it
    and its gated calls ran, the tensors there, whether random numbers were drawn and nested tensors handed on."""

    decisions: Decisions
    v: Tensor = field(default_factory=lambda: torch.empty(0))
    entrance: dict[LeafPath, tuple[int, ...]] = field(default_factory=dict)
    out: Any = None
    runs: int = 0
    times: Counter[Key] = field(default_factory=Counter)
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
) -> Sighting:
    """Run a case once and look.

    Args:
        rows: run the network on that many rows of these arguments, while its caller gets what it gave in `base`.
        values_at: keep the values there, too, not only the shapes.
    """
    seen = Sighting(Decisions())
    states: list[Any] = []

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.runs += 1
        arguments = tree(args, kwargs) if rows is None else _cut(rows, tree(args, kwargs))
        seen.entrance = {path: tuple(x.shape) for path, x in leaves(arguments) if not x.is_nested}
        states.append(case.generators())
        return arguments["args"], arguments["kwargs"]

    def leave(args: Any, kwargs: Any, out: Any) -> Any:
        seen.drew = seen.drew or states.pop() != case.generators()
        # a copy: a model that writes into its batch gives the batch out, which the next run restores
        seen.out = replaced(out, {path: x.clone() for path, x in leaves(out)})
        return None if base is None else base.out

    def before(key: Key, args: Any, kwargs: Any) -> None:
        seen.times[key] += 1
        seen.note(key, "in", tree(args, kwargs), values_at)

    def after(key: Key, args: Any, kwargs: Any, out: Any) -> None:
        seen.note(key, "out", out, values_at)
        seen.decisions.begun = True

    deciding = base is None or base.decisions.picks  # a smaller run decides nothing that the whole one did not
    with (
        seen.decisions if deciding else contextlib.nullcontext(),
        hooked(case.module, before=enter, after=leave),
        at_calls(named_modules(case.module), calls, before, after),
    ):
        seen.v = case.run().clone()
    return seen


def recall(discovery: Discovery, calls: Mapping[Key, GatePoint]) -> Sighting | None:
    """What the forward showed in which the blocks were found: no further run. None where it may have decided something,
    since the trace does not say when."""
    trace, values = discovery.trace, discovery.trace.values
    if any(map(decides, trace.functions)):
        return None
    seen = Sighting(Decisions(), discovery.v, out=trace.out, runs=trace.times.get("", 0), drew=trace.drew)
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


class Footprint(Watching):
    """`peak`: the bytes of tensors made inside that were alive together, at most. What operations use inside and free
    again (a workspace) is not seen; nor are the allocator's own rounding and caches.

    >>> import torch
    >>> with torch.no_grad(), Footprint() as used:
    ...     y = torch.zeros(1000) + torch.ones(1000)
    >>> used.peak
    12000
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for _, x in leaves((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for _, x in leaves(out):
            memory = x.untyped_storage()
            if memory._cdata not in before:  # a view takes nothing
                self._alive[memory._cdata] = (StorageWeakRef(memory), memory.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out
