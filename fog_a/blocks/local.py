"""A block's output as a descriptor that trains this block and nothing before it.

    h_{k-1}.detach() + f_k(h_{k-1}.detach(), t.detach(), c.detach())

has the value of h_k. A loss on it reaches the parameters of f_k alone: not the earlier blocks, which made h_{k-1}, and
not the networks of the conditions t and c. No second forward is needed. The block's part of the graph is walked once
more in the backward pass, from h_k to the block's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fog_a.blocks.block import ResidualBlock
from fog_a.errors import NoActivations, Unsupported


def own_parameters(block: ResidualBlock, modules: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """The trained parameters of a block's module, each once; of a block without a module, those of its parts.

    Args:
        block: from `find_blocks`.
        modules: `named_modules` of the blocks' model.
    """
    roots = [modules[name] for name in _roots(block, modules)]
    return list({p: None for m in roots for p in m.parameters() if p.requires_grad})


def check_local(block: ResidualBlock, modules: Mapping[str, nn.Module]) -> None:
    """That a loss can reach this block's parameters alone.

    Raises:
        Unsupported: other blocks or other calls use the parameters too.
    """
    own = {id(p) for p in own_parameters(block, modules)}
    roots = tuple(f"{name}." if name else "" for name in _roots(block, modules))
    elsewhere = {
        id(p)
        for name, module in modules.items()
        if not f"{name}.".startswith(roots)
        for p in module.parameters(recurse=False)
    }
    if "@" in block.name or own & elsewhere:
        raise Unsupported(
            f"block {block.name!r} shares parameters with other calls of the network, so no loss can train it alone. "
            "Align it by its stream: local=False, or local= the names of other layers"
        )


def local(h: Tensor, block: ResidualBlock, modules: Mapping[str, nn.Module]) -> Tensor:
    """The block's output h, whose gradient reaches the block's own parameters alone.

    Raises:
        NoActivations: no parameter of the block is trained.
        Unsupported: the block ran under re-entrant checkpointing or is sharded, which hides its parameters.
    """
    if type(h.grad_fn).__name__ == "CheckpointFunctionBackward":
        raise Unsupported(
            f"block {block.name!r} ran under re-entrant checkpointing, and local alignment needs the graph inside the "
            "block. Type checkpoint(..., use_reentrant=False)"
        )
    parameters = own_parameters(block, modules)
    if any(type(p).__name__ == "DTensor" for p in parameters):
        raise Unsupported("local alignment of a sharded model (FSDP2) is not supported. Type local=False, or use DDP")
    if not parameters:
        raise NoActivations(
            f"no parameter of block {block.name!r} is trained, so its local alignment cannot change it. Type "
            "requires_grad_(True) for this block, or choose another layer"
        )
    return _Local.apply([h], *parameters)  # pyright: ignore[reportReturnType]


class _Local(torch.autograd.Function):
    """Gives h out; hands its gradient to the parameters by the graph that h has."""

    @staticmethod
    def forward(ctx: Any, output: list[Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.output, ctx.parameters = output, parameters
        return output[0].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # the graph is kept: the training loss goes through it too
        options = {"retain_graph": True, "allow_unused": True}
        return None, *torch.autograd.grad(ctx.output, ctx.parameters, gradients, **options)


def _roots(block: ResidualBlock, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules that the block consists of."""
    name = block.name.split("@")[0]
    return [name] if name in modules else list(block.parts)
