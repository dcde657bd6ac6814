"""A closed block is deaf: whatever its parts compute does not reach the output.

With all gates closed the model runs twice, once with what the parts of the blocks give changed: v must keep its bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fog_a.blocks.block import Blocks, GatePoint
from fog_a.blocks.calls import Key, at_calls, merged, named_modules
from fog_a.blocks.gate import gate
from fog_a.blocks.tree import leaves, replaced
from fog_a.errors import NotResidual
from fog_a.flows.case import same_bits

_MISFITS = (ArithmeticError, AssertionError, LookupError, NotResidual, RuntimeError, TypeError, ValueError)
"""What a model raises at values that it was not made for."""

Work = dict[str, tuple[GatePoint, ...]]
"""Of each block, by name: the calls that do its work, with their outputs (None), and inputs that they write into."""


def passing(blocks: Blocks, work: Work, run: Callable[[], Tensor]) -> tuple[str, ...] | None:
    """The blocks whose parts still reach the output when all gates are closed; None: the model failed so."""
    heard = {b.name: work[b.name] for b in blocks if work.get(b.name)}
    try:
        with gate(blocks, 0.0):
            still = run()
        return tuple(_passing(blocks, heard, run, still))
    except torch.OutOfMemoryError:
        raise
    except _MISFITS:  # where the parts give what they never gave
        return None


def _passing(blocks: Blocks, work: Work, run: Callable[[], Tensor], still: Tensor) -> list[str]:
    """By halves, so that one block among many is named after a few forwards."""
    if not work or _deaf(blocks, work, run, still):
        return []
    names = list(work)
    if len(names) == 1:
        return names
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    return [name for half in halves for name in _passing(blocks, {n: work[n] for n in half}, run, still)]


def _deaf(blocks: Blocks, work: Work, run: Callable[[], Tensor], still: Tensor) -> bool:
    calls = merged(point for points in work.values() for point in points)

    def change(key: Key, args: object, kwargs: object, out: object) -> object:
        give = calls[key].give
        for path, x in leaves({"args": args, "kwargs": kwargs}):
            if give.get(path) is not None:
                x.mul_(1.25).add_(0.125)
        floats = {path: t for path, t in leaves(out) if path in give and t.is_floating_point()}
        return replaced(out, {path: t * 1.25 + 0.125 for path, t in floats.items()}) if floats else None

    with (
        at_calls(named_modules(blocks.model), calls, lambda key, args, kwargs: None, change),
        gate(blocks, 0.0),  # after the change: the gate has the last word
        torch.no_grad(),
    ):
        v = run()
    return same_bits(v, still)
