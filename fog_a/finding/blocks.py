"""Finding the residual blocks of any model from one forward: no names, no registry.

One recorded forward (trace) says how tensors were made; streams finds the additions that update a stream, owners whose
they are and what made them, levels which calls and list items are layers, passages how each stream passes through its
layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.calls import gate_points, named_modules
from fog_a.blocks.coverage import Coverage
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import keep_memory
from fog_a.errors import BadBatch, NoBlocksFound
from fog_a.finding.accounts import Made, account
from fog_a.finding.clean import Clean
from fog_a.finding.deaf import Work, passing
from fog_a.finding.finder import Finder
from fog_a.finding.recording import record, uncollected
from fog_a.finding.trace import Trace
from fog_a.flows.bare import flow_of, output_of
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow as WrappedFlow
from fog_a.flows.override import Forward

ROOM = 2**28
"""Bytes that may be kept of the forward in which blocks are found."""


@dataclass
class Discovery:
    """What finding gave: the blocks, and all that its one forward showed of the case.

    Attributes:
        v: the velocity of that forward.
        clean: its repeated units, where they could be kept.
    """

    case: Case
    blocks: Blocks
    trace: Trace
    v: Tensor
    clean: Clean | None


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
    return discover(Case(flow_of(model, forward), batch), level, include).blocks


def discover(
    case: Case,
    level: Literal["layer", "branch"] = "layer",
    include: str | Sequence[str] | None = None,
    room: int = ROOM,
) -> Discovery:
    """The blocks of a case, and the forward that they were found in. `room`: bytes that may be kept of it."""
    if level not in ("layer", "branch"):
        raise BadBatch(f"expected level='layer' or 'branch', got {level!r}")
    keep_memory()
    with case.opened(), uncollected(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checkpointing without grad, nested tensors: of no concern here
        trace, clean = record(case.module, case.run, room, case.generators)
        v = trace.result.clone()
        finder = Finder(case.module, trace)
        made = finder.blocks(level, include)
        if not made:
            finder = Finder(case.module, trace, linear=True)
            made = finder.blocks(level, include)
        if not made:
            raise NoBlocksFound(finder.seen(include))
        blocks, work = _measured(case, made), finder.work(made)
        still = () if clean and _sealed(case, blocks, work, clean, v) else passing(blocks, work, case.run)
        if still and finder.ignore([m for m in made if m.block.name in still]):
            made = finder.blocks(level, include)
            blocks = _measured(case, made)
            still = passing(blocks, finder.work(made), case.run)
    others = [] if include is None else finder.blocks("layer", None)  # the account is the forward's, not the choice's
    rows = account(finder.flow, finder.levels, [*made, *others], finder.target)
    return Discovery(case, Blocks(list(blocks), case.module, Coverage(rows, still)), trace, v, clean)


def _measured(case: Case, made: Sequence[Made]) -> Blocks:
    """Those of the network that is measured."""
    return Blocks(of_network([m.block for m in made], case.flow.override.forward), case.module)


def _sealed(case: Case, blocks: Blocks, work: Work, clean: Clean, v: Tensor) -> bool:
    """Whether all parts work inside calls that can be skipped altogether: v comes out without anything computed there,
    so nothing passes but what these calls give out, and that is what a closed gate replaces."""
    calls = gate_points(blocks)
    inside = all(
        done.times == 1 and any(f"{done.module}.".startswith(f"{point.module}.") for point in block.gate_points)
        for block in blocks
        for done in work[block.name]
    )
    return (
        inside
        and all(point.times == 1 for point in calls.values())
        and clean.seals(calls.values())
        and clean.check(named_modules(case.module), calls, case.run, v)
    )


def of_network(blocks: Sequence[ResidualBlock], forward: Forward | None) -> list[ResidualBlock]:
    """`output_of("net")` names the network: its stacks alone are main, where it has any."""
    inside = [isinstance(forward, output_of) and b.main and b.name.startswith(f"{forward.name}.") for b in blocks]
    return [replace(b, main=i) for b, i in zip(blocks, inside, strict=True)] if any(inside) else list(blocks)
