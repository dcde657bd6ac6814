"""A closed block is deaf: whatever its parts compute does not reach the output.

With all gates closed the model runs twice, once with what the parts of the blocks give changed: v must keep its bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import Counter, Key, hooked, named_modules
from fog_a.blocks.gate import gate
from fog_a.blocks.tree import LeafPath, leaves, replaced
from fog_a.errors import NotResidual
from fog_a.flows.case import same_bits

_MISFITS = (ArithmeticError, AssertionError, LookupError, NotResidual, RuntimeError, TypeError, ValueError)
"""What a model raises at values that it was not made for."""

Work = dict[str, dict[Key, dict[int, tuple[LeafPath, ...]]]]
"""Of each block, by name: the modules that do its work, with how often they run; of each of their calls the outputs."""


def passing(blocks: Blocks, work: Work, run: Callable[[], Tensor]) -> tuple[str, ...] | None:
    """The blocks whose parts still reach the output when all gates are closed; None: the model failed so."""
    heard = {b.name: work[b.name] for b in blocks if b.name in work}
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
    with _changed(blocks.model, work), gate(blocks, 0.0):  # changed first: the gate then has the last word
        v = run()
    return same_bits(v, still)


@contextlib.contextmanager
def _changed(model: nn.Module, work: Work) -> Iterator[None]:
    """These outputs are others while this lasts."""
    modules = named_modules(model)
    outputs: dict[Key, dict[int, set[LeafPath]]] = {}
    for key, call, paths in (
        (k, c, p) for calls in work.values() for k, found in calls.items() for c, p in found.items()
    ):
        outputs.setdefault(key, {}).setdefault(call, set()).update(paths)
    with contextlib.ExitStack() as stack:
        for (name, times), changes in outputs.items():
            count = Counter(times)

            def after(
                args: object,
                kwargs: object,
                out: object,
                changes: Mapping[int, set[LeafPath]] = changes,
                count: Counter = count,
            ) -> object:
                paths = changes.get(count.begin(), set())
                floats = {path: t for path, t in leaves(out) if path in paths and t.is_floating_point()}
                return replaced(out, {path: t * 1.25 + 0.125 for path, t in floats.items()}) if floats else None

            stack.enter_context(hooked(modules[name], after=after))
        with torch.no_grad():
            yield
