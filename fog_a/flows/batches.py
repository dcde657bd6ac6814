"""A batch is whatever the model takes: what is refused, how it is given to the model, where the velocity comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fog_a.blocks.tree import leaves
from fog_a.errors import BadBatch, BadOutput, Unsupported
from fog_a.flows.override import Forward
from fog_a.flows.samples import Inputs


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """`forward(model, batch)`, or the model on a Tensor, a tuple, a mapping or `Inputs` as its arguments.

    >>> call(nn.Identity(), torch.ones(2)).tolist()
    [1.0, 1.0]
    """
    if forward is not None:
        return forward(model, batch)
    inputs = arguments(batch)
    return model(*inputs.args, **inputs.kwargs)


def arguments(batch: Any) -> Inputs:
    """The arguments that a batch is for a model. Raises BadBatch."""
    if isinstance(batch, Inputs):
        return batch
    if isinstance(batch, Mapping):
        return Inputs(**batch)
    if isinstance(batch, tuple | Tensor):
        return Inputs(*batch) if isinstance(batch, tuple) else Inputs(batch)
    several = "It holds several batches: give one, next(iter(batches))" if _several(batch) else ""
    raise BadBatch(
        f"expected a Tensor, a tuple, a mapping or fog_a.Inputs as a batch, got {type(batch).__name__}. "
        + (several or "For anything else pass forward=lambda model, batch: ...")
    )


def velocity_of(output: Any) -> Tensor:
    """The velocity: the output tensor, or the first floating tensor of a structured output; where that begins with a
    list (the layers' outputs), the first beside it."""
    if isinstance(output, Tensor) and output.is_floating_point():
        return output
    parts = list(output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ())
    beside = [x for x in parts if isinstance(x, Tensor) and x.ndim]
    for _, tensor in leaves(beside if parts and isinstance(parts[0], list) and beside else output):
        if tensor.is_floating_point():
            return tensor
    if any(tensor.is_complex() for _, tensor in leaves(output)):
        raise BadOutput(
            "expected an output of real numbers, got complex ones. Pass forward=lambda model, batch: "
            "torch.view_as_real(model(batch)), which has the same norm"
        )
    raise BadOutput(
        f"expected an output with a floating-point tensor, got {type(output).__name__}. "
        "Pass forward=lambda model, batch: ... that returns the tensor to measure"
    )


def _several(batch: Any) -> bool:
    alone = isinstance(batch, (Tensor, tuple, Mapping, Inputs, str))
    return isinstance(batch, Iterable) and not alone


def count_of(batch: Any) -> int | None:
    """How many batches `each` gives; None where only the last one tells.

    >>> count_of(torch.ones(3)), count_of([torch.ones(3)] * 2), count_of(iter([]))
    (1, 2, None)
    """
    if not _several(batch):
        return 1
    try:
        return len(batch)
    except TypeError:  # an iterator, or a DataLoader of an IterableDataset
        return None


def each(batch: Any) -> Iterator[Any]:
    """The batches: a list, an iterator or a DataLoader is several, anything else is one.

    >>> [*each([[torch.ones(2), torch.zeros(2)]])]  # a DataLoader makes lists of its tuples: the model's arguments
    [(tensor([1., 1.]), tensor([0., 0.]))]
    """
    if not _several(batch):
        yield batch
        return
    empty, axes = True, set[int]()
    for item in batch:
        empty, axes = False, axes | ({item.ndim} if isinstance(item, Tensor) else set())
        if len(axes) > 1:
            raise BadBatch(
                f"expected tensors of one number of axes in a list of batches, got {axes}. Type a tuple, (x, t), for "
                "one batch of several arguments"
            )
        yield tuple(item) if isinstance(item, list) else item
    if empty:
        raise BadBatch(f"expected at least one batch, got an empty {type(batch).__name__}")


def model_tensors(batch: Any) -> list[Tensor]:
    """All tensors of a batch."""
    if isinstance(batch, Inputs):
        batch = (batch.args, batch.kwargs)
    return [t for _, t in leaves(batch)]


def check_tensors(tensors: Sequence[Tensor]) -> None:
    """Raises BadBatch where a tensor of the batch has no rows to compare: empty, nested, sparse, on "meta"."""
    for x in tensors:
        if x.is_nested:
            raise BadBatch("expected a padded batch, got a nested tensor. Type torch.nested.to_padded_tensor(x, 0.0)")
        if x.layout is not torch.strided:
            raise BadBatch(f"expected dense tensors, got one of layout {x.layout}. Type x.to_dense()")
        if x.is_meta:
            raise BadBatch("expected tensors that hold data, got one on the device 'meta'. Give a batch of real data")
    if any(x.ndim and x.shape[0] == 0 for x in tensors):
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors[:4])
        raise BadBatch(f"expected at least one sample, got tensors of shape {shapes}. Give a batch that is not empty")


def check_weights(modules: Iterable[nn.Module]) -> None:
    """Raises Unsupported where a module is compiled by torch.jit or sharded by FSDP1, has lazy parameters that no
    forward has made yet, or weights on "meta" that nobody loads."""
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise Unsupported(
                "expected a module that takes hooks, got a scripted or traced one. Pass the module that was given to "
                "torch.jit.script or torch.jit.trace"
            )
        if any(type(m).__name__ == "FullyShardedDataParallel" for m in module.modules()):
            raise Unsupported(
                "expected whole weights, or weights sharded by FSDP2, got FullyShardedDataParallel (FSDP1), which "
                "gathers them outside of the hooked modules. Type torch.distributed.fsdp.fully_shard(model), or "
                "measure the plain module"
            )
        offloaded = any(hasattr(m, "_hf_hook") for m in module.modules())  # accelerate loads weights before each call
        for name, p in module.named_parameters():
            if is_lazy(p):
                raise Unsupported(
                    f"expected a model whose weights exist, got the lazy parameter {name!r}. Run one forward first: "
                    "model(batch)"
                )
            if p.is_meta and not offloaded:
                raise Unsupported(
                    f"expected a model whose weights hold data, got {name!r} on the device 'meta'. Load the weights: "
                    "model.to_empty(device='cpu'), then load_state_dict"
                )
