"""One forward, written down: which values were made, from which others, inside which module call.

A *value* is what a tensor holds at one moment: an in-place write makes a new value of the same tensor and of all its
aliases. Values are numbers in order of creation; tensors themselves are not kept, except for the small integer and
boolean ones that say how elements are moved about (indices, masks).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fog_a.blocks.calls import watch
from fog_a.blocks.tree import LeafPath, leaves

# what these make has the shape of their input, not its data
_BLANK = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like "
    "new_zeros new_ones new_empty new_full new_empty_strided".split()
)
_FUSED = {"addmm": "mm", "baddbmm": "bmm", "addbmm": "bmm", "addmv": "mv"}
_OPAQUE = (nn.RNNBase, nn.RNNCellBase)  # a recurrence decomposes into gates and sums: to us it is one operation


class Ref(NamedTuple):
    """A value among an operation's arguments."""

    value: int


@dataclass(slots=True)
class Op:
    """One operation: its arguments with `Ref`s for tensors, the values it read and made, and the call it ran in."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    call: int


@dataclass(slots=True)
class Value:
    """What a tensor held: the operation that made it (None: it came from outside), its shape and kind."""

    op: Op | None
    shape: tuple[int, ...]
    floating: bool
    continuous: bool
    stride: tuple[int, ...] = ()
    offset: int = 0
    readers: int = 0


@dataclass(slots=True)
class Call:
    """One execution of a module: its place in the tree of calls and the values that went in and came out."""

    id: int
    name: str
    kind: type
    parent: int
    nth: int
    parameters: int
    start: int = 0
    last: int = -1
    """The last call below it; -1: it never came to its end."""
    inputs: dict[LeafPath, int] = field(default_factory=dict)
    outputs: dict[LeafPath, int] = field(default_factory=dict)
    children: list[int] = field(default_factory=list)
    opaque: bool = False


@dataclass(slots=True)
class _Store:
    """One piece of memory: the values of the tensors that look at it, and the writes since."""

    members: dict[Any, tuple[int, int]] = field(default_factory=dict)  # layout → (value, how many writes it has seen)
    writes: list[tuple[int, Any]] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)


@dataclass
class Trace:
    """Everything one forward did. `calls[0]` is the forward itself, `names` the model's inputs by value."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    overwritten: set[int] = field(default_factory=set)
    result: Any = None
    output: int | None = None

    def ancestors(self, call: int) -> Iterator[int]:
        """The call itself and all around it, outwards."""
        while call >= 0:
            yield call
            call = self.calls[call].parent

    def inside(self, call: int, outer: int) -> bool:
        """Is the call this one or below it? Calls are numbered as they begin, so that all below one follow it."""
        last = self.calls[outer].last
        return outer <= call <= last if last >= 0 else outer in self.ancestors(call)


class Recorder(TorchDispatchMode):
    """Fills a Trace while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace(calls=[Call(0, "", nn.Module, -1, 0, 0)])
        self._stack = [0]
        self._stores: dict[int, _Store] = {}
        self._foreign: dict[int, tuple[Any, int]] = {}  # tensors without ordinary storage

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # compiled code is off while a trace is taken; torch's guard would import its compiler: a second

    # ---- module calls

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace = self.trace
        nth = trace.times.get(name, 0)
        trace.times[name] = nth + 1
        parameters = sum(p.numel() for p in module.parameters())
        call = Call(len(trace.calls), name, type(module), self._stack[-1], nth, parameters, len(trace.ops))
        call.opaque = isinstance(module, _OPAQUE)
        call.inputs = {path: self.value_of(t) for path, t in leaves({"args": args, "kwargs": kwargs})}
        trace.calls.append(call)
        trace.calls[call.parent].children.append(call.id)
        self._stack.append(call.id)

    def leave(self, name: str, module: nn.Module, out: Any) -> None:
        while len(self._stack) > 1 and self.trace.calls[self._stack[-1]].name != name:
            self._stack.pop()  # a call that raised and was caught by the model never left
        call = self.trace.calls[self._stack[-1]]
        call.outputs = {path: self.value_of(t) for path, t in leaves(out)}  # what was written into them, it wrote
        call.last = len(self.trace.calls) - 1
        self._stack.pop()
        if call.opaque:
            self._fuse(call)

    def _fuse(self, call: Call) -> None:
        """Make one operation of an opaque call: its outputs depend on its inputs, what was inside is not looked at."""
        reads = tuple(dict.fromkeys(call.inputs.values()))
        op = Op(None, "opaque", (), {}, reads, tuple(call.outputs.values()), call.parent)
        self.trace.ops.append(op)
        for path, old in call.outputs.items():
            value = self.trace.values[old]
            call.outputs[path] = old
            value.op = op

    # ---- operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads: list[int] = []
        name = func.overloadpacket.__name__
        writes = written(func, args, kwargs)
        frozen_args = tuple(self._frozen(a, reads) for a in args)
        frozen_kwargs = {k: self._frozen(a, reads) for k, a in kwargs.items()}
        out = func(*args, **kwargs)
        if name.rstrip("_") in _BLANK:
            reads = []
        op = Op(func, name, frozen_args, frozen_kwargs, tuple(dict.fromkeys(reads)), (), self._stack[-1])
        if name.rstrip("_") in _FUSED and len(args) > 2 and args[0].numel() == _size(out):
            op = self._split(op, name, out)
        made = []
        for t in writes:
            self.trace.overwritten |= self._held(t)
            made.append(self._write(t, op))
        for _, t in leaves(out):
            if not any(t is w for w in writes):
                made.append(self._new(t, op, args, kwargs))
        if made:
            op.makes = tuple(made)
            for v in op.reads:  # a list of pieces (chunk, split, unbind) is as many ways on
                self.trace.values[v].readers += len(made) if len(func._schema.returns) == 1 else 1
            self.trace.ops.append(op)
        return out

    def _split(self, op: Op, name: str, out: Tensor) -> Op:
        """`addmm(h, x, W)` with a full-size h: a product that no tensor holds, and its addition to h."""
        h, *factors = op.args
        product = self._add(out, None)
        made = Op(
            op.func, _FUSED[name.rstrip("_")], tuple(factors), {}, tuple(r.value for r in factors), (product,), op.call
        )
        self.trace.values[product].op = made
        for v in made.reads:
            self.trace.values[v].readers += 1
        self.trace.ops.append(made)
        return Op(op.func, "add", (h, Ref(product)), {}, (h.value, product), (), op.call)

    def _frozen(self, arg: Any, reads: list[int]) -> Any:
        if isinstance(arg, Tensor):
            value = self.value_of(arg)
            reads.append(value)
            if not arg.is_floating_point() and arg.numel() and value not in self.trace.kept:
                self.trace.kept[value] = arg  # an index or a mask: needed to follow elements
            return Ref(value)
        if isinstance(arg, (list, tuple)):
            return [self._frozen(a, reads) for a in arg]
        return arg

    # ---- tensors and their values

    def value_of(self, t: Tensor) -> int:
        """The number of what `t` holds now."""
        place = _place(t)
        if place is None:
            known = self._foreign.get(id(t))
            if known is not None and known[0]() is t:
                return known[1]
            return self._register(t, None)
        store, layout = self._stores.get(place[0]), place[1]
        if store is None or not any(r() is not None for r in store.alive):
            return self._register(t, None)
        if layout in store.members:
            value, seen = store.members[layout]
            if seen == len(store.writes):
                return value
            return self._alias(t, store, layout, value, store.writes[seen:])
        base = next(iter(store.members.values()))[0] if store.members else None
        return self._alias(t, store, layout, base, store.writes)

    def _alias(self, t: Tensor, store: _Store, layout: Any, old: int | None, writes: list[tuple[int, Any]]) -> int:
        """Another tensor wrote into this memory: what `t` holds now is what it held and what was written over it."""
        reads: tuple[int, ...] = tuple(dict.fromkeys([*([] if old is None else [old]), *(w for w, _ in writes)]))
        whole = [w for w, at in writes if at == layout]
        if whole:  # everything it held was overwritten at least once
            reads = reads[reads.index(whole[-1]) :]
        op = Op(None, "alias", (), {}, reads, (), self._stack[-1])
        value = self._register(t, op)
        op.makes = (value,)
        for v in reads:
            self.trace.values[v].readers += 1
        self.trace.ops.append(op)
        return value

    def _held(self, t: Tensor) -> set[int]:
        """All values that lie in the memory of `t`: of other views of it, too."""
        now, place = self.value_of(t), _place(t)
        return {now} if place is None else {value for value, _ in self._stores[place[0]].members.values()}

    def _write(self, t: Tensor, op: Op) -> int:
        place = _place(t)
        if place is None or place[0] not in self._stores:
            return self._register(t, op)
        store = self._stores[place[0]]
        value = self._add(t, op)
        store.writes.append((value, place[1]))
        store.members[place[1]] = (value, len(store.writes))
        store.alive.append(weakref.ref(t))
        return value

    def _new(self, t: Tensor, op: Op, args: Any, kwargs: Any) -> int:
        place = _place(t)
        if place is not None:
            shared = any((p := _place(x)) is not None and p[0] == place[0] for _, x in leaves((args, kwargs)))
            if not shared:  # fresh memory: whatever was known of this address is gone
                self._stores.pop(place[0], None)
        return self._register(t, op)

    def _register(self, t: Tensor, op: Op | None) -> int:
        value = self._add(t, op)
        place = _place(t)
        if place is None:
            self._foreign[id(t)] = (weakref.ref(t), value)
            return value
        store = self._stores.setdefault(place[0], _Store())
        if op is None and not any(r() is not None for r in store.alive):
            self._stores[place[0]] = store = _Store()
        store.members[place[1]] = (value, len(store.writes))
        store.alive.append(weakref.ref(t))
        if len(store.alive) > 64:
            store.alive = [r for r in store.alive if r() is not None]
        return value

    def _add(self, t: Tensor, op: Op | None) -> int:
        plain = t.layout == torch.strided and not t.is_nested
        layout = (t.stride(), int(t.storage_offset())) if plain else ((), 0)
        continuous = t.is_floating_point() or t.is_complex()
        shape = (t.numel(),) if t.is_nested else tuple(t.shape)
        value = Value(op, shape, t.is_floating_point(), continuous, *layout)
        self.trace.values.append(value)
        return len(self.trace.values) - 1


def _place(t: Tensor) -> tuple[int, Any] | None:
    """Which memory a tensor looks at, and how."""
    if t.is_nested:  # has no shape: torch's encoder packs padded batches so
        return None
    try:
        storage = t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
    return storage, (t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)


def _size(out: Any) -> int:
    return out.numel() if isinstance(out, Tensor) else -1


_WRITES: dict[Any, tuple[tuple[int, str], ...]] = {}


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among the arguments that `func` writes into."""
    places = _WRITES.get(func)
    if places is None:
        schema = func._schema.arguments
        marked = [(i, a.name) for i, a in enumerate(schema) if a.alias_info is not None and a.alias_info.is_write]
        places = _WRITES[func] = tuple(marked)
    found = []
    for i, name in places:
        arg = kwargs[name] if name in kwargs else args[i] if i < len(args) else None
        found += [t for _, t in leaves(arg)]
    return found


def record(model: nn.Module, run: Callable[[], Any]) -> Trace:
    """Run `run()` once and write down what happened inside `model`."""
    recorder = Recorder()
    with torch.no_grad(), watch(model, recorder.enter, recorder.leave), recorder:
        recorder.trace.result = run()
        found = next((t for _, t in leaves(recorder.trace.result) if t.is_floating_point()), None)
        recorder.trace.output = None if found is None else recorder.value_of(found)
        recorder.trace.calls[0].outputs = {p: recorder.value_of(t) for p, t in leaves(recorder.trace.result)}
    recorder.trace.calls[0].last = len(recorder.trace.calls) - 1
    return recorder.trace
