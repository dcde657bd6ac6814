"""The calls of a network inside any sampler: each as the sampler makes it, and what its blocks give out in it.

Nothing is known of the sampler but that it calls the network. So what has a row for each sample, and along which axis,
is measured at the first call of each shape, on the call's own arguments.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fog_a.attributing.layout import Layout, layout_of
from fog_a.blocks.block import Blocks, ResidualBlock, Source
from fog_a.blocks.calls import Key, at_calls, gate_points, hooked, named_modules
from fog_a.blocks.gate import carried, kept_inputs
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.tree import LeafPath, leaf, replaced
from fog_a.blocks.untouched import eager, preserved
from fog_a.errors import BadArgument, UnknownBlock, misfit
from fog_a.flows.bare import BareFlow, flow_of
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Inputs

When = Callable[[Inputs], bool | Bool[Tensor, "B"]]
"""Whether a call of the network counts, or which of its rows do."""


@dataclass(frozen=True)
class BlockOutput:
    """One output leaf of a gated call: what the block gave there, and what stands there when it is closed."""

    block: ResidualBlock
    key: Key
    path: LeafPath
    y: Tensor
    inputs: Mapping[LeafPath, Tensor]
    source: Source | None

    def closed(self) -> Tensor:
        """The stream as it came in, or zeros."""
        return carried(self.inputs, self.source, self.y, self.block)

    def update(self) -> Tensor:
        """What the block adds."""
        return self.y if self.source is None else self.y - self.closed()


class NetworkCalls(contextlib.AbstractContextManager[Any], abc.ABC):
    """Hooks around the calls of a flow's network and of some of its blocks; what they do is the subclass's.

    Raises:
        UnknownBlock: names, or blocks of another model. BadArgument: `when` is no function, or gives no bools.
    """

    layout: Layout
    """Of the call that runs."""

    def __init__(self, flow: Flow | nn.Module, blocks: Blocks, when: When | None = None) -> None:
        self.net = BareFlow(flow_of(flow).module)
        if not isinstance(blocks, Blocks) or not blocks or blocks.model is not self.net.module:
            got = "those of another model" if isinstance(blocks, Blocks) and blocks else repr(blocks)[:60]
            raise UnknownBlock(
                f"expected blocks of this flow's network, at least one, got {got}. "
                "Type find_blocks(flow, batch).named([...])"
            )
        if when is not None and (not callable(when) or misfit(when, 1)):
            raise BadArgument(f"expected when= as a function of a call's Inputs, got {when!r:.60}")
        self.blocks, self.when = blocks, when
        self.calls = 0
        self._counts = self._paused = False
        self._layouts: dict[Hashable, Layout] = {}
        self._stack = contextlib.ExitStack()

    @abc.abstractmethod
    def begin(self, inputs: Inputs, rows: Bool[Tensor, "*B"]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A call begins, of which these rows count (one bool: all). New (args, kwargs) for it, or None."""

    @abc.abstractmethod
    def at(self, output: BlockOutput) -> Tensor:
        """What a block gives out, in the place of `output.y`."""

    def end(self, out: Any) -> Any:
        """A call ends. A new output for it, or None."""

    def __enter__(self) -> Self:
        owner = {(p.module, p.call, path): b for b in self.blocks for p in b.gate_points for path in p.give}
        points = gate_points(self.blocks)
        kept: dict[Key, dict[LeafPath, Tensor]] = {}

        def before(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[key] = kept_inputs(points[key], args, kwargs)

        def after(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            inputs = kept.pop(key)
            gives = points[key].give.items()
            outputs = [BlockOutput(owner[*key, path], key, path, leaf(out, path), inputs, s) for path, s in gives]
            return replaced(out, {output.path: self.at(output) for output in outputs})

        with contextlib.ExitStack() as stack:
            stack.enter_context(unbroken())
            stack.enter_context(eager())
            modules = named_modules(self.blocks.model)
            stack.enter_context(at_calls(modules, points, before, after, lambda: self._paused or not self._counts))
            stack.enter_context(hooked(self.net.module, before=self._before, after=self._after))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._paused:
            return None
        inputs = Inputs(*args, **kwargs)
        rows = self._counting(inputs)
        self._counts = bool(rows.any())
        if not self._counts:
            return None
        case = Case(self.net, inputs)
        if case.layout not in self._layouts:  # where the rows are in a call of this shape
            with self.plain(), preserved(*case.modules):
                self._layouts[case.layout] = layout_of(case, self.blocks)[0]
        self.layout = self._layouts[case.layout]
        if rows.ndim and len(rows) != self.layout.samples:
            raise BadArgument(
                f"when= gave {len(rows)} bools for a call on {self.layout.samples} rows. Give one or each"
            )
        self.calls += 1
        return self.begin(inputs, rows)

    def _counting(self, inputs: Inputs) -> Bool[Tensor, "*B"]:
        told: Any = True if self.when is None else self.when(inputs)
        rows = torch.as_tensor(told) if isinstance(told, (bool, list, Tensor, np.bool_, np.ndarray)) else None
        if rows is None or rows.dtype is not torch.bool or rows.ndim > 1:
            raise BadArgument(f"expected when= to give True or False, or a bool for each row, got {told!r}")
        return rows

    def _after(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if self._paused or not self._counts:
            return None
        self._counts = False
        return self.end(out)

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """Calls of the network in here are let alone."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
