"""Finding the residual blocks of any model from one forward: no names, no registry.

One recorded forward (trace) says how tensors were made; streams finds the additions that update a stream, owners whose
they are and what made them, levels which calls are layers, passages how each stream passes through its layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.coverage import Coverage
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadBatch, NoBlocksFound
from fog_a.finding.accounts import account
from fog_a.finding.deaf import passing
from fog_a.finding.finder import Finder
from fog_a.finding.recording import record
from fog_a.flows.bare import flow_of, output_of
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow as WrappedFlow
from fog_a.flows.flow import Forward


@unbroken()
def find_blocks(
    model: nn.Module | WrappedFlow,
    batch: Any,
    *,
    forward: Forward | None = None,
    level: Literal["layer", "branch"] = "layer",
    include: str | Sequence[str] | None = None,
) -> Blocks:
    """Run one forward and return the residual blocks in order of execution.

    Args:
        model: any module, or a wrapped flow.
        batch: what the model takes (see `attribute`).
        forward: `forward(model, batch) -> Tensor` where the model is not simply called.
        level: `"layer"`: the outermost repeated residual unit; `"branch"`: its single branches.
        include: glob(s) over names; only blocks that match are returned, at whatever level they stand: layers, units
            around them or inside them, single branches.

    `coverage` of the result accounts for every residual update of that forward.

    Raises:
        NoBlocksFound: says what was seen and what to type.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> fog_a.find_blocks(net, torch.randn(2, 5, 8)).names
        ('layers.0', 'layers.1', 'layers.2')
    """
    if level not in ("layer", "branch"):
        raise BadBatch(f"expected level='layer' or 'branch', got {level!r}")
    one = Case(flow_of(model, forward), batch)
    with preserved(*one.modules), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checkpointing without grad, nested tensors: of no concern here
        trace = record(one.module, one.run)
        finder = Finder(one.module, trace)
        made = finder.blocks(level, include)
        if not made:
            finder = Finder(one.module, trace, linear=True)
            made = finder.blocks(level, include)
        if not made:
            raise NoBlocksFound(finder.seen(include))
        blocks = Blocks(of_network([m.block for m in made], one.flow.override.forward), one.module)
        still = passing(blocks, finder.work(made), one.run)
    others = [] if include is None else finder.blocks("layer", None)  # the account is the forward's, not the choice's
    rows = account(finder.flow, finder.levels, [*made, *others], finder.target)
    return Blocks(list(blocks), one.module, Coverage(rows, still))


def of_network(blocks: Sequence[ResidualBlock], forward: Forward | None) -> list[ResidualBlock]:
    """`output_of("net")` names the network: its stacks alone are main, where it has any."""
    inside = [isinstance(forward, output_of) and b.main and b.name.startswith(f"{forward.name}.") for b in blocks]
    return [replace(b, main=i) for b, i in zip(blocks, inside, strict=True)] if any(inside) else list(blocks)
