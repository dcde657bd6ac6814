"""Prefix: one forward per variant, in which everything before its block is taken from the clean run.

All variants share what comes before their block. In the forward of variant k the gated calls before it are skipped
(`skipping`) and give back what they gave in the clean run; block k gives back its own input; from there on all runs as
usual. With L blocks that is L(L+1)/2 block evaluations, the clean run included, instead of the loop's L²; the results
are the loop's to the last bit, and the memory is one output per block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, named_modules
from fog_a.blocks.gate import check_acted, closed, kept_inputs
from fog_a.blocks.tree import LeafPath, leaves
from fog_a.finding.clean import Clean
from fog_a.flows.case import Case


class Prefix:
    """The clean run, and the variants that start from it.

    Args:
        clean: the clean run where it was made already, with its velocity v.
    """

    def __init__(self, case: Case, blocks: Blocks, clean: Clean | None = None, v: Tensor | None = None) -> None:
        self.case = case
        self.calls = gate_points(blocks)
        self.modules = named_modules(case.module)
        self.owner = {(s.module, s.call): b for b in blocks for s in b.gate_points}
        self.first = {b.name: min(s.order for s in b.gate_points) for b in blocks}
        self.clean = clean or Clean()
        self.v = self.base() if clean is None or v is None else v

    def base(self) -> Tensor:
        """The clean run; what the gated calls give out is kept, and what their operations return is written down."""
        clean = self.clean
        with clean, at_calls(self.modules, self.calls, clean.begin, lambda key, args, kwargs, out: clean.end(key, out)):
            v = self.case.run().clone()
        return self._with_copies() if clean.overwritten else v

    def _with_copies(self) -> Tensor:
        """The model writes into what is kept: the clean run again, and copies are kept and given back from now on."""
        self.clean = Clean(copies=True)
        return self.base()

    def faithful(self) -> bool:
        """Whether the clean velocity comes out with every gated call skipped."""
        return self.clean.faithful == frozenset(self.calls) or self.again()

    def again(self) -> bool:
        """The same, tried once more: state around the blocks that moved meanwhile shows."""
        return self.clean.check(self.modules, self.calls, self.case.run, self.v)

    def variant(self, block: ResidualBlock, value: float) -> Tensor:
        """v with this block's gate at `value`."""
        v, acted = self._run(block, value)
        if self.clean.overwritten:
            self._with_copies()
            v, acted = self._run(block, value)
        check_acted(block, len(acted))
        return v

    def _run(self, block: ResidualBlock, value: float) -> tuple[Tensor, list[Key]]:
        with self._skipping(block, self.first[block.name], value) as acted:
            v = self.case.run().clone()
        return v, acted

    @contextlib.contextmanager
    def _skipping(self, block: ResidualBlock, start: int, value: float) -> Iterator[list[Key]]:
        inputs: dict[Key, dict[LeafPath, Tensor]] = {}
        acted: list[Key] = []

        def before(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.owner[key] is block:
                inputs[key] = kept_inputs(self.calls[key], args, kwargs)
            if self._known(self.calls[key], start, value):
                self.clean.skip(key, args, kwargs)

        def after(key: Key, args: Any, kwargs: Any, out: Any) -> Any:
            point = self.calls[key]
            if self._known(point, start, value):
                out = self.clean.resume(key)
            if self.owner[key] is not block:
                return out
            acted.append(key)
            return closed(point, block, inputs.pop(key), out, value)

        with self.clean, at_calls(self.modules, self.calls, before, after):
            yield acted

    def _known(self, point: GatePoint, start: int, value: float) -> bool:
        """Is what this call gives out known? Up to and with the first gate it is, from the clean run; a later gate of
        the same block (another branch) need not run either if it is closed and gives nothing but zeros."""
        if point.order <= start:
            return True
        key = (point.module, point.call)
        alone = {p for p, _ in leaves(self.clean.kept[key])} == set(point.give) and all(
            p is None for p in point.give.values()
        )
        return value == 0 and self.first[self.owner[key].name] == start and alone
