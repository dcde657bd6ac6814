"""Reading blocks: the outputs h_l of a forward, with their graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fog_a.blocks.block import Blocks, ResidualBlock, TapPoint, checked_blocks
from fog_a.blocks.calls import Key, at_calls, named_modules, tree
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.tree import leaf
from fog_a.blocks.untouched import eager
from fog_a.errors import NoActivations


class tap(contextlib.AbstractContextManager["tap"]):
    """Record the outputs h_l of `blocks`: `h[name]`, with their graph if grad is on; the last call wins.

    A block with several streams has its first in `h[name]` and all of them in `h.all[name]`. Where no module emits
    h_l (additions in a parent's forward) it is read where the next module takes it in, or made of its two addends. For
    long-lived use: `open()`, `close()`, both without harm when called twice, and `clear()` to drop what was recorded.
    Calls at which `when()` is False are neither recorded nor counted.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 8)
        >>> with fog_a.tap(fog_a.find_blocks(net, x)) as h:
        ...     y = net(x)
        >>> h["layers.1"].shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, blocks: Blocks, *, when: Callable[[], bool] = lambda: True) -> None:
        self.blocks = checked_blocks(blocks)
        self.when = when
        self.all: dict[str, tuple[Tensor, ...]] = {}
        self._outputs: dict[str, dict[int, Tensor]] = {}
        self._addends: dict[tuple[str, int], dict[bool, Tensor]] = {}
        self._stack: contextlib.ExitStack | None = None
        self._around = contextlib.ExitStack()

    def open(self) -> tap:
        if self._stack is None:
            modules = named_modules(self.blocks.model)
            with unbroken(), contextlib.ExitStack() as stack:
                for block in self.blocks:
                    for i, point in enumerate(block.outputs):
                        for part in (point,) if point.plus is None else (point, point.plus):
                            stack.enter_context(self._read(modules, block.name, i, part, point))
                self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        if self._stack is not None:
            with unbroken():
                self._stack.close()
                self._stack = None

    def clear(self) -> None:
        self.all.clear()
        self._outputs.clear()
        self._addends.clear()

    def __enter__(self) -> tap:
        with contextlib.ExitStack() as stack:
            stack.enter_context(unbroken())
            stack.enter_context(eager())
            self.open()
            self._around = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
        self._around.close()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.all:
            check_readable([self.blocks[name]])
            raise NoActivations(
                f"nothing was recorded of {name!r}: expected a forward of the model while the tap is open, got none. "
                "Run it inside `with fog_a.tap(blocks)`; code compiled before the tap was opened does not see it"
            )
        return self.all[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self.all

    def __iter__(self) -> Iterator[str]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def _keep(self, name: str, i: int, h: Tensor, part: TapPoint, point: TapPoint) -> None:
        outputs = self._outputs.setdefault(name, {})
        h = h.clone() if part.overwritten else h
        if point.plus is not None:
            addends = self._addends.setdefault((name, i), {})
            addends[part is point] = h
            if len(addends) < 2:
                return
            h = addends[True] + addends[False]
            addends.clear()
        outputs[i] = h
        self.all[name] = tuple(outputs[j] for j in sorted(outputs))

    def _read(
        self, modules: Mapping[str, nn.Module], name: str, i: int, part: TapPoint, point: TapPoint
    ) -> contextlib.AbstractContextManager[None]:
        def before(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if part.side == "input":
                self._keep(name, i, leaf(tree(args, kwargs), part.leaf), part, point)

        def after(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if part.side == "output":
                self._keep(name, i, leaf(out, part.leaf), part, point)

        return at_calls(modules, {(part.module, part.call): part}, before, after, lambda: not self.when())


def check_readable(blocks: Iterable[ResidualBlock]) -> None:
    """Raises NoActivations that names all of these whose output no module sees."""
    blocks = list(blocks)
    unseen = [b.name for b in blocks if not b.outputs]
    if unseen:
        rest = [b.name for b in blocks if b.outputs]
        others = f"leave them out: type blocks={rest!r}" if rest else "take other layers"
        raise NoActivations(
            f"the output of {', '.join(map(repr, unseen))} cannot be read: expected a module that gives it out or "
            f"takes it in, the model goes on without one. Let it pass through an nn.Identity there, or {others}"
        )
