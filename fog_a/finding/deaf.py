"""A closed block is deaf: whatever its parts compute does not reach the output.

With all gates closed the model runs twice, once with what the parts of the blocks give changed: v must keep its bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import Counter, Key, hooked, named_modules
from fog_a.blocks.gate import gate
from fog_a.blocks.tree import leaves, replaced
from fog_a.errors import NotResidual

_MISFITS = (ArithmeticError, AssertionError, LookupError, NotResidual, RuntimeError, TypeError, ValueError)
"""What a model raises at values that it was not made for."""

Parts = Mapping[str, Sequence[tuple[Key, int]]]
"""Of each block, by name: the calls that do its work, each with how often that module runs in a forward."""


def passing(blocks: Blocks, parts: Parts, run: Callable[[], Tensor]) -> tuple[str, ...] | None:
    """The blocks whose parts still reach the output when all gates are closed; None: the model failed so."""
    heard = {b.name: parts[b.name] for b in blocks if parts.get(b.name)}
    try:
        with gate(blocks, 0.0):
            still = run()
        return tuple(_passing(blocks, heard, run, still))
    except torch.OutOfMemoryError:
        raise
    except _MISFITS:  # where the parts give what they never gave
        return None


def _passing(blocks: Blocks, parts: Parts, run: Callable[[], Tensor], still: Tensor) -> list[str]:
    """By halves, so that one block among many is named after a few forwards."""
    if not parts or _deaf(blocks, parts, run, still):
        return []
    names = list(parts)
    if len(names) == 1:
        return names
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    return [name for half in halves for name in _passing(blocks, {n: parts[n] for n in half}, run, still)]


def _deaf(blocks: Blocks, parts: Parts, run: Callable[[], Tensor], still: Tensor) -> bool:
    calls = {key: times for part in parts.values() for key, times in part}
    with _changed(blocks.model, calls), gate(blocks, 0.0):  # changed first: the gate then has the last word
        v = run()
    return v.shape == still.shape and bool(((v == still) | (v.isnan() & still.isnan())).all())


@contextlib.contextmanager
def _changed(model: nn.Module, calls: Mapping[Key, int]) -> Iterator[None]:
    """These calls give something else while this lasts."""
    modules = named_modules(model)
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(name for name, _ in calls):
            wanted = {call for other, call in calls if other == name}
            count = Counter(next(times for (other, _), times in calls.items() if other == name))

            def after(
                args: object, kwargs: object, out: object, wanted: set[int] = wanted, count: Counter = count
            ) -> object:
                if count.begin() not in wanted:
                    return None
                floats = {path: t for path, t in leaves(out) if t.is_floating_point()}
                return replaced(out, {path: t * 1.25 + 0.125 for path, t in floats.items()})

            stack.enter_context(hooked(modules[name], after=after))
        with torch.no_grad():
            yield
