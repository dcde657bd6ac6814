"""Takes a trace: watches every operation and every module call of one forward."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from fog_a.blocks.calls import Scripted, named_modules, watch
from fog_a.blocks.tree import leaves, replaced
from fog_a.finding.clean import Clean
from fog_a.finding.memory import Memory
from fog_a.finding.operations import Watching, has_schema, written
from fog_a.finding.trace import Call, Op, Ref, Trace

# what these make has the shape of their input, not its data
_BLANK = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like "
    "new_zeros new_ones new_empty new_full new_empty_strided".split()
)
_FUSED = {"addmm": "mm", "baddbmm": "bmm", "addbmm": "bmm", "addmv": "mv"}
_SIMPLE = {int, float, bool, type(None), torch.dtype, torch.device, str}
WORTH = 32768
"""A call on fewer elements is run in less time than it is skipped in, and so it is on a GPU."""
_OPAQUE = (nn.RNNBase, nn.RNNCellBase)  # a recurrence decomposes into gates and sums: to us it is one operation


class Recorder(Watching):
    """Fills a Trace while it is active, and a `Clean` at the calls of these units."""

    def __init__(self, modules: Mapping[str, nn.Module], units: Collection[str], generators: Callable[[], Any]) -> None:
        super().__init__()
        self.trace = Trace(calls=[Call(0, "", nn.Module, -1, 0)], modules=modules)
        self.memory = Memory(self.trace)
        self.units = units
        self.clean, self.generators = Clean(generators), generators
        self._states: list[Any] = []
        self._inside = 0

    # ---- module calls

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace = self.trace
        nth = trace.times.get(name, 0)
        trace.times[name] = nth + 1
        call = Call(len(trace.calls), name, type(module), trace.running[-1], nth)
        call.opaque = isinstance(module, _OPAQUE)
        call.inputs = {path: self._value_of(t) for path, t in leaves({"args": args, "kwargs": kwargs})}
        trace.calls.append(call)
        trace.calls[call.parent].children.append(call.id)
        trace.running.append(call.id)
        if name and name not in self.units:
            return
        with torch._C._DisableTorchDispatch():  # what is done here is no operation of the model
            if not name:
                self._states.append(self.generators())
            if name in self.units and self.clean.running is None and worth_keeping(args, kwargs):
                self.clean.open((name, nth), args, kwargs)

    def leave(self, name: str, module: nn.Module, out: Any) -> None:
        trace = self.trace
        while len(trace.running) > 1 and trace.calls[trace.running[-1]].name != name:
            trace.running.pop()  # a call that raised and was caught by the model never left
        call = trace.calls[trace.running[-1]]
        with torch._C._DisableTorchDispatch():
            if self.clean.running == (name, call.nth):
                self.clean.end((name, call.nth), out)
            if not name:  # a copy: a model that writes into its batch gives the batch out, which is restored
                trace.drew = self._states.pop() != self.generators() or trace.drew
                trace.out = replaced(out, {path: t.clone() for path, t in leaves(out)})
        # what was written into them, it wrote
        call.outputs = {path: self._value_of(t) for path, t in leaves(out)}
        call.last = len(trace.calls) - 1
        trace.running.pop()
        if call.opaque:
            self._fuse(call)

    def _fuse(self, call: Call) -> None:
        """Make one operation of an opaque call: its outputs depend on its inputs, what was inside is not looked at."""
        reads = tuple(dict.fromkeys(call.inputs.values()))
        op = Op(None, "opaque", (), {}, reads, tuple(call.outputs.values()), call.parent)
        self.trace.ops.append(op)
        for v in call.outputs.values():
            self.trace.values[v].op = op

    def _value_of(self, t: Tensor) -> int:
        """What a tensor at a call holds; inside `torch.func` (jvp, grad, vmap) operations see what it is made of."""
        while is_functorch_wrapped_tensor(t):
            t, self.trace.transformed = get_unwrapped(t), True
        return self.memory.value_of(t)

    # ---- operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads, arguments = list[int](), list[Tensor]()
        ordinary = has_schema(func)
        name = (func.overloadpacket.__name__ if ordinary else func.name()).rstrip("_")
        writes = written(func, args, kwargs)
        frozen_args = tuple([self._frozen(a, reads, arguments) for a in args])
        frozen_kwargs = {k: self._frozen(a, reads, arguments) for k, a in kwargs.items()}
        given = list[Tensor]()
        out = func(*args, **kwargs) if ordinary else self._holding(func, args, kwargs, given)
        reads += [self.memory.value_of(t) for t in given]
        if self.clean.record is not None and not self._inside:
            with torch._C._DisableTorchDispatch():
                self.clean.record.note(func, args, kwargs, writes, out)
        if name in _BLANK:
            reads = []
        op = Op(func, name, frozen_args, frozen_kwargs, tuple(dict.fromkeys(reads)), (), self.trace.running[-1])
        if name in _FUSED and isinstance(out, Tensor) and len(args) > 2 and args[0].numel() == out.numel():
            op = self._split(op, out)
        made = []
        for t in writes:
            for value in self.memory.values_of(t):
                self.trace.overwritten.setdefault(value, op.call)
            made.append(self.memory.write(t, op))
        for _, t in leaves(out):
            if not any(t is w for w in (*writes, *given)):
                made.append(self.memory.make(t, op, arguments))
        self.trace.functions.add(func)
        if made:
            op.makes = tuple(made)
            pieces = ordinary and len(func._schema.returns) == 1  # of chunk, split, unbind: each a way on
            self.trace.write_down(op, ways=len(made) if pieces else 1)
        return out

    def _holding(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """Run an operation that holds functions. What they compute is recorded, what they give out put into `given`."""

        def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with self:
                    out = function(*args, **kwargs)
                given.extend(t for _, t in leaves(out) if not is_functorch_wrapped_tensor(t))
                return out

            return run

        self._inside += 1
        try:
            return func(*[recorded(a) if callable(a) else a for a in args], **kwargs)
        finally:
            self._inside -= 1

    def _split(self, op: Op, out: Tensor) -> Op:
        """`addmm(h, x, W)` with a full-size h: a product that no tensor holds, and its addition to h."""
        h, *factors = op.args
        product = self.trace.add(out, None)
        made = Op(op.func, _FUSED[op.name], tuple(factors), {}, tuple(r.value for r in factors), (product,), op.call)
        self.trace.values[product].op = made
        self.trace.write_down(made)
        return Op(op.func, "add", (h, Ref(product)), {}, (h.value, product), (), op.call)

    def _frozen(self, arg: Any, reads: list[int], arguments: list[Tensor]) -> Any:
        if type(arg) in _SIMPLE:
            return arg
        if isinstance(arg, Tensor):
            value = self.memory.value_of(arg)
            reads.append(value)
            arguments.append(arg)
            if not arg.is_floating_point() and arg.numel() and value not in self.trace.kept:
                self.trace.kept[value] = arg  # an index or a mask: needed to follow elements
            return Ref(value)
        if isinstance(arg, (list, tuple)):
            return [self._frozen(a, reads, arguments) for a in arg]
        return arg


def record(
    model: nn.Module, run: Callable[[], Any], room: int, generators: Callable[[], Any]
) -> tuple[Trace, Clean | None]:
    """Run `run()` once and write down what happened inside `model`.

    Args:
        room: keep the clean run of the model's repeated units where it takes no more than so many bytes.
        generators: where all generators stand.
    """
    modules = named_modules(model)
    units = frozenset(name for name in modules if _is_unit(name)) if room and _plain(model) else frozenset[str]()
    recorder = Recorder(modules, units, generators)
    trace, clean = recorder.trace, recorder.clean
    with torch.no_grad(), watch(model, recorder.enter, recorder.leave), recorder:
        trace.result = run()
        found = next((t for _, t in leaves(trace.result) if t.is_floating_point()), None)
        trace.output = None if found is None else recorder.memory.value_of(found)
        trace.calls[0].outputs = {p: recorder.memory.value_of(t) for p, t in leaves(trace.result)}
    trace.calls[0].last = len(trace.calls) - 1
    trace.scripted = [name for name, m in model.named_modules() if isinstance(m, Scripted)]
    whole = clean.kept and not clean.running and not clean.overwritten and not trace.transformed
    return trace, clean if whole and clean.bytes <= room else None


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: a trace is a hundred thousand objects that all stay, and is searched again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def worth_keeping(args: Any, kwargs: Any) -> bool:
    """Whether a call with these arguments takes longer to run than to skip."""
    return any(x.numel() >= WORTH and x.device.type == "cpu" for _, x in leaves((args, kwargs)))


def _is_unit(name: str) -> bool:
    """Is it an entry of a list of modules, and that list in none? `blocks.3`, but not `blocks.3.ff.0`."""
    *above, last = name.split(".")
    return last.isdigit() and not any(key.isdigit() for key in above)


def _plain(model: nn.Module) -> bool:
    """Whether its parameters are torch's own, not spread over processes, say."""
    return all(type(p) is nn.Parameter for p in model.parameters())
