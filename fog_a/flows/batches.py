"""A batch is whatever the model takes: how it is given to the model, and where the velocity is in what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.blocks.block import Blocks
from fog_a.blocks.tree import leaves
from fog_a.errors import BadBatch, BadOutput
from fog_a.flows.flow import Forward
from fog_a.flows.samples import Inputs


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """`forward(model, batch)`, or the model on a Tensor, a tuple, a mapping or `Inputs` as its arguments.

    >>> call(nn.Identity(), torch.ones(2)).tolist()
    [1.0, 1.0]
    """
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Inputs):
        return model(*batch.args, **batch.kwargs)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple):
        return model(*batch)
    if isinstance(batch, Tensor):
        return model(batch)
    raise BadBatch(
        f"expected a Tensor, a tuple, a mapping or fog_a.Inputs as a batch, got {type(batch).__name__}. "
        "For anything else pass forward=lambda model, batch: ..."
    )


def velocity_of(output: Any) -> Tensor:
    """The velocity: the output tensor, or the first floating tensor of a structured output."""
    if isinstance(output, Tensor) and output.is_floating_point():
        return output
    for _, tensor in leaves(output):
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
    """The batches: a list, an iterator or a DataLoader is several, anything else is one."""
    if not _several(batch):
        yield batch
        return
    empty = True
    for item in batch:
        empty = False
        yield item
    if empty:
        raise BadBatch(f"expected at least one batch, got an empty {type(batch).__name__}")


def signature(model: nn.Module, blocks: Blocks) -> dict[str, Any]:
    """What tells one model's scores from another's: class, block names, number of parameters."""
    kind = type(model)
    if any(base.__name__ == "FSDPModule" for base in kind.__bases__):
        kind = kind.__bases__[-1]  # FSDP2 makes a class FSDPNet of Net: not another model
    sizes = {id(p): p.numel() for m in model.modules() for p in m._parameters.values() if p is not None}
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "blocks": list(blocks.names),
        "parameters": sum(sizes.values()),  # a parameter that modules share counts once
    }


def model_tensors(batch: Any) -> list[Tensor]:
    """All tensors of a batch."""
    if isinstance(batch, Inputs):
        batch = (batch.args, batch.kwargs)
    return [t for _, t in leaves(batch)]


def synchronized(v: Tensor) -> None:
    """Wait until v is there: CUDA calls return early."""
    if v.is_cuda:
        torch.cuda.synchronize(v.device)
