"""Flows that no adapter makes: of a bare module, of an inner module's output, of a copy of the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fog_a.blocks.calls import hooked, named_modules, unwrapped
from fog_a.errors import BadArgument, BadBatch, BadOutput, UnknownBlock, Unsupported
from fog_a.flows.batches import arguments, call, model_tensors, velocity_of
from fog_a.flows.flow import Flow
from fog_a.flows.noise import row_marks
from fog_a.flows.override import Forward, Override, reference
from fog_a.flows.register import knows
from fog_a.flows.samples import Inputs, Samples


class BareFlow(Flow):
    """A module that nothing wraps: its velocity is its output, it has no time axis, and its samples are numbered.

    Args:
        module: any `nn.Module`; what compile or DDP wrap is measured inside.
        forward: `forward(module, batch) -> Tensor` for a module that is not simply called.
        domains: one name per sample of each batch; None: all are "all".
        mask: True where v counts, broadcastable to v; None: everywhere.

    >>> import torch
    >>> flow = BareFlow(nn.Linear(3, 2))
    >>> flow.velocity(torch.ones(4, 3)).shape, flow.grid(None)
    (torch.Size([4, 2]), (None,))
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Forward | None = None,
        domains: Sequence[str] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.model, self.module = module, unwrapped(module)
        self.override = Override(forward, None if domains is None else tuple(domains), mask)

    def velocity(self, batch: Any, t: Any = None, seed: int = 0) -> Tensor:
        """The output of the module, or of the caller's forward; t and seed change nothing."""
        forward = self.override.forward
        if forward is not None:
            return velocity_of(forward(self.model, batch))
        v = _measured(self._called(batch), batch)
        if v.ndim == 0 and knows(self.model):
            raise BadBatch(
                f"{type(self.model).__name__} gives one number, its loss. An adapter reads its velocity: type "
                "fog_a.wrap(model)"
            )
        return v

    def samples(self, batch: Any) -> Samples:
        """Numbered samples, as many as the first tensor of the batch has rows."""
        return self._samples_of(batch, next((t.shape for t in model_tensors(batch) if t.ndim), (1,)), 0)

    def target(self, batch: Any, t: Any = None, seed: int = 0) -> Tensor:
        """Raises Unsupported: a bare module's output is trained towards nothing that is known."""
        raise Unsupported(
            "metric='loss' needs a flow: fog_a.wrap(net, x='x', t='t'). Of a bare module pass metric= a function "
            "(v, v_k, batch) -> (B,)"
        )

    @property
    def timeless(self) -> str:
        """Neither a bare module nor a forward= has a time axis."""
        return super().timeless or "a bare module"

    @property
    def key(self) -> Hashable:
        """All plain calls of one module are one way to run it."""
        return BareFlow if self.override.forward is None else reference(self.override.forward)

    def _samples_of(self, batch: Any, shape: Sequence[int], start: int) -> Samples:
        def rows(index: Sequence[int]) -> Any:
            raise BadBatch("a bare module's batch cannot be divided: wrap the model, or give it in smaller batches")

        ids = tuple(str(start + i) for i in range(shape[0]))
        return Samples(
            ids=ids, domains=("all",) * len(ids), rows=rows, groups=row_marks(model_tensors(batch), len(ids))
        )

    def _called(self, batch: Any) -> Any:
        """The module's output. Raises BadBatch where an adapter reads the model, or the batch is not its arguments."""
        try:
            return call(self.module, batch)
        except TypeError as error:
            misfit = _misfit(self.module, batch)
            if knows(self.model):
                misfit, advice = str(error), "An adapter reads it: type fog_a.wrap(model)"
            elif isinstance(batch, Tensor):
                advice = "Of several arguments type a tuple, (x, t), or a dict by name; a list is several batches"
            else:
                advice = "Type fog_a.Inputs(*args, **kwargs) with the arguments of its forward"
            if misfit is None:
                raise
            raise BadBatch(f"{type(self.model).__name__} cannot be called on this batch: {misfit}. {advice}") from error


def _misfit(module: nn.Module, batch: Any) -> str | None:
    """Why the batch cannot be the arguments of the module's forward, or None."""
    try:
        inputs = arguments(batch)
        inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        return str(error)
    return None


def _measured(output: Any, batch: Any) -> Tensor:
    """The tensor to measure, (B, …), of a batch.

    A list with one tensor per sample is laid in one, padded with zeros; of a list of layers' outputs, all of as many
    samples, the last, which all layers reach, is taken; of anything else the first floating tensor.

    Raises:
        BadOutput: a list of inputs and one of outputs, each of whose tensors holds all samples (several resolutions).
    """
    rows = next((len(x) for x in model_tensors(batch) if x.ndim), None)
    if isinstance(output, list) and all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim for x in output):
        shapes, count, (lists, beside) = {tuple(x.shape) for x in output}, len(output), _lists(batch)
        alike = len({len(shape) for shape in shapes}) == 1
        if 1 < count in lists and {shape[0] for shape in shapes} <= beside:
            raise BadOutput(f"expected one velocity, got {count}; pass forward=lambda model, batch: the one meant")
        if alike and (count in lists or (count == rows != 1 and any(shape[0] != rows for shape in shapes))):
            return _together(output)
        if count > 1 and (len(shapes) == 1 or {shape[0] for shape in shapes} == {rows}):
            return output[-1]
    v = velocity_of(output)
    if rows is not None and rows > 1 and v.ndim > 1 and v.shape[0] != rows and rows in v.shape[1:]:
        raise BadOutput(
            f"expected the samples on the first axis of the output, got {tuple(v.shape)} for a batch of {rows}. Pass "
            f"forward=lambda model, batch: model(batch).transpose(0, {list(v.shape).index(rows)})"
        )
    return v


def _lists(batch: Any) -> tuple[set[int], set[int]]:
    """The lengths of the lists of tensors that a model is given, and the numbers of rows of the tensors beside."""
    parts = [*batch.args, *batch.kwargs.values()] if isinstance(batch, Inputs) else batch
    parts = parts.values() if isinstance(parts, Mapping) else parts if isinstance(parts, (list, tuple)) else ()
    lists = [part for part in parts if isinstance(part, list) and all(isinstance(x, Tensor) for x in part)]
    return {len(part) for part in lists}, {len(part) for part in parts if isinstance(part, Tensor) and part.ndim}


def _together(samples: Sequence[Tensor]) -> Tensor:
    """Tensors of one number of axes in one, each padded with zeros at the end of every axis."""
    largest = [max(sizes) for sizes in zip(*(x.shape for x in samples), strict=True)]
    ends = [[n for m, size in zip(largest[::-1], x.shape[::-1], strict=True) for n in (0, m - size)] for x in samples]
    return torch.stack([nn.functional.pad(x, end) for x, end in zip(samples, ends, strict=True)])


def flow_of(
    model: nn.Module | Flow,
    forward: Forward | None = None,
    domains: Sequence[str] | None = None,
    mask: Tensor | None = None,
) -> Flow:
    """The flow of what a public call is given: a flow from `wrap` as it is, a bare module as a `BareFlow`.

    Args:
        forward: the caller's own way to run the model; then there is no time axis.
        domains, mask: the caller's own, in place of the adapter's.

    Raises:
        BadBatch: neither a module nor a flow, a class in place of an object for example. BadArgument: `forward` is no
            function.
    """
    if forward is not None and not callable(forward):
        raise BadArgument(
            f"expected forward= as a function (model, batch) -> Tensor, got {forward!r}. For an inner module's output "
            "type forward=fog_a.output_of('its.name')"
        )
    if isinstance(model, Flow):
        return model.overridden(forward, domains, mask)
    if isinstance(model, nn.Module):
        return BareFlow(model, forward, domains, mask)
    what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise BadBatch(f"expected an nn.Module, or a flow from fog_a.wrap, got {what}. Give the model object itself")


def twin(flow: Flow, model: nn.Module) -> Flow:
    """This flow with all that it reads of its model, or of its network, taken from a copy.

    Args:
        model: a deep copy of `flow.model` or `flow.module`, or torch's AveragedModel of either.

    Raises:
        Unsupported: its modules are others.
    """
    inner = unwrapped(model)
    inner = unwrapped(inner.module) if isinstance(inner, AveragedModel) else inner
    copies = named_modules(inner)
    for original in (flow.model, flow.module):
        if isinstance(original, nn.Module) and named_modules(original).keys() == copies.keys():
            memo = {id(module): copies[name] for name, module in named_modules(original).items()}
            return copy.deepcopy(flow, {**memo, id(original): inner})
    raise Unsupported(
        f"expected a copy of {type(flow.model).__name__} or of its network {type(flow.module).__name__}, got "
        f"{type(inner).__name__} with other modules. Type ema=copy.deepcopy(model), and average its weights in training"
    )


@dataclass(frozen=True)
class output_of:
    """A `forward=` that gives the output of one inner module: the velocity of a model that returns something else.

    Args:
        name: the inner module, as in `named_modules()`. Of several calls in one forward, the last one counts.
        forward: `forward(model, batch)` for a model that is not simply called.

    Raises:
        UnknownBlock: no such module. BadOutput: the module is not called in this forward.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    >>> output_of("0")(net, torch.ones(4, 3)).shape
    torch.Size([4, 2])
    """

    name: str
    forward: Forward | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        modules = named_modules(model)
        if self.name not in modules:
            last = self.name.split(".")[-1]
            near = [name for name in modules if name.split(".")[-1] == last][:3]
            hint = f"; near: {', '.join(near)}" if near else ""
            raise UnknownBlock(
                f"output_of({self.name!r}): no module of {type(model).__name__}{hint}. named_modules() lists them"
            )
        outputs: list[Any] = []
        with hooked(modules[self.name], after=lambda args, kwargs, out: outputs.append(out)):
            call(model, batch, self.forward)
        if not outputs:
            raise BadOutput(
                f"module {self.name!r} was not called in this forward. Name the module that gives the velocity"
            )
        return velocity_of(outputs[-1])
