"""What is refused before the model runs: batches without rows, models without weights, seeds out of range."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fog_a.errors import BadArgument, BadBatch, Unsupported

LAST_SEED = 2**63 - 1
"""The largest seed that torch takes."""


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
    """Raises Unsupported where a module has lazy parameters that no forward has made yet, or weights on "meta"."""
    for module in modules:
        for name, p in module.named_parameters():
            if is_lazy(p):
                raise Unsupported(
                    f"expected a model whose weights exist, got the lazy parameter {name!r}. Run one forward first: "
                    "model(batch)"
                )
            if p.is_meta:
                raise Unsupported(
                    f"expected a model whose weights hold data, got {name!r} on the device 'meta'. Load the weights: "
                    "model.to_empty(device='cpu'), then load_state_dict"
                )


def checked_seed(seed: Any) -> int:
    """The seed as an int; numpy's integers are taken. Raises BadArgument for others, and out of range."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise BadArgument(f"expected seed= as a whole number, got {seed!r}. Type seed=0") from None
    if not -LAST_SEED <= number <= LAST_SEED:
        raise BadArgument(f"expected seed= between -2**63 + 1 and 2**63 - 1, got {number}. Type a smaller number")
    return number
