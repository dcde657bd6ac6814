"""Many processes: the few collectives that training with alignment needs, none of which pickles.

The joint loss of a domain m with N_m samples on W ranks is (1/N_m) Σ_r Σ_{i∈r,m} r_i. A data-parallel model averages
gradients over ranks, so each rank gives W/N_m · Σ_i r_i: N_m is reduced, a mean of rank means is not the joint mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fog_a.errors import FogError

Group = Any
"""A `torch.distributed.ProcessGroup`, or None: all ranks."""


def world(group: Group = None) -> int:
    """How many ranks train together; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def is_first(group: Group = None) -> bool:
    """Whether this process is the group's first."""
    return world(group) == 1 or dist.get_rank(group) == 0


def total(values: Tensor, group: Group = None) -> Tensor:
    """The sum over ranks, without gradient."""
    if world(group) == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values, group=group)
    return values


def to_bytes(value: Any) -> Tensor:
    """A JSON-able value as a tensor of bytes, which collectives, safetensors and weights-only loading take.

    >>> from_bytes(to_bytes({"k": 3}))
    {'k': 3}
    """
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_bytes(data: Tensor) -> Any:
    """The reverse of `to_bytes`."""
    return json.loads(bytes(data.cpu().tolist()).decode())


def from_first(value: Any, device: torch.device, group: Group = None) -> Any:
    """The first rank's JSON-able value, on every rank."""
    if world(group) == 1:
        return value
    source = dist.get_global_rank(group, 0) if group is not None else 0
    data = to_bytes(value).to(device)
    size = torch.tensor([data.numel()], device=device)
    dist.broadcast(size, src=source, group=group)
    if not is_first(group):
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=source, group=group)
    return from_bytes(data)


def once(compute: Callable[[], Any], device: torch.device, group: Group = None) -> Any:
    """`compute()` on the first rank, its JSON-able result on every rank. What it raises is raised on all of them."""
    if world(group) == 1:
        return compute()
    failure: Exception | None = None
    result: Any = None
    if is_first(group):
        try:
            result = {"result": compute()}
        except Exception as error:
            failure, result = error, {"failed": f"{type(error).__name__}: {error}"}
    result = from_first(result, device, group)
    if failure is not None:
        raise failure
    if "failed" in result:
        raise FogError(f"the first rank failed: {result['failed']}")
    return result["result"]


class _Shared(torch.autograd.Function):
    """The identity whose gradients are the mean over ranks, in one collective per backward pass.

    The first output is a zero that ties the loss to the parameters: a rank that has no sample of any domain still
    takes part in the collective, with zeros, instead of leaving the others waiting.
    """

    @staticmethod
    def forward(ctx: Any, group: Group, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.shapes = [p.shape for p in parameters]
        return (parameters[0].new_zeros(()), *(p.view_as(p) for p in parameters))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([g.reshape(-1) for g in gradients[1:]])
        dist.all_reduce(flat, group=ctx.group)
        flat /= world(ctx.group)
        parts = flat.split([s.numel() for s in ctx.shapes])
        return (None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)))


def shared(parameters: list[Tensor], group: Group = None) -> tuple[Tensor, list[Tensor]]:
    """A zero to add to the loss, and the parameters to compute with so that their gradients are in sync."""
    zero, *same = _Shared.apply(group, *parameters)  # pyright: ignore[reportGeneralTypeIssues]
    return zero, same


def inside_ddp() -> bool:
    """Whether a DistributedDataParallel forward is running: it expects each of its parameters to be in the loss."""
    wrapper = torch.nn.parallel.DistributedDataParallel
    return world() > 1 and getattr(wrapper, "_active_ddp_module", True) is not None
