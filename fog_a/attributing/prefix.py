"""Prefix: one forward per variant, in which everything before its block is taken from the clean run.

All variants share what comes before their block. In the forward of variant k the gated calls before it are skipped
(`skipping`) and give back what they gave in the clean run; block k gives back its own input; from there on all runs as
usual. With L blocks that is L(L+1)/2 block evaluations, the clean run included, instead of the loop's L²; the results
are the loop's to the last bit, and the memory is one output per block.

When block b is closed for good, the variants of the blocks before b are known up to b: variant k then starts at b, from
what the calls gave out when k alone was closed beside those that were. `room` says how much of that is kept.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from torch import Tensor

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, named_modules
from fog_a.blocks.gate import check_acted, closed, kept_inputs
from fog_a.blocks.tree import LeafPath
from fog_a.finding.clean import Clean, Kept
from fog_a.flows.case import Case


class Run(NamedTuple):
    """A variant's run: what the calls from its block on gave out, and v."""

    outputs: dict[Key, Kept]
    v: Tensor


class Prefix:
    """The clean run, and the variants that start from it.

    Args:
        clean: the clean run where it was made already, with its velocity v.

    Attributes:
        room: bytes that may be kept of what calls gave out in variants. None: none.
        twins: block → the prefix in which it is closed too, made of its variant's run: closing it runs nothing.
        last: of the last variant.
    """

    def __init__(self, case: Case, blocks: Blocks, clean: Clean | None = None, v: Tensor | None = None) -> None:
        self.case, self.blocks = case, blocks
        everything = [*blocks, *(case.closed or ())]
        self.calls = gate_points(everything)
        self.modules = named_modules(case.module)
        self.first = {b.name: min(s.order for s in b.gate_points) for b in everything}
        self.clean = clean or Clean(case.generators, case.closed)
        self.room: int | None = None
        self._forget()
        self.v = self.base() if clean is None or v is None else v

    def _forget(self) -> None:
        """Nothing is kept of any variant."""
        self.twins: dict[str, Prefix] = {}
        self.last: Prefix | None = None
        self._taken = 0
        self._begun: dict[str, tuple[Prefix, ResidualBlock]] = {}
        """Block → the prefix without it, and the block after it that was closed for good since: its variant there."""

    def base(self, start: int = -1) -> Tensor:
        """The clean run; what the gated calls give out is kept, and what their operations return is written down.
        Calls up to `start` are known already."""
        clean, known = self.clean, self._known(start)

        def before(key: Key, args: Any, kwargs: Any) -> None:
            (clean.skip if key in known else clean.begin)(key, args, kwargs)

        def after(key: Key, args: Any, kwargs: Any, out: Any) -> Any:
            return clean.resume(key) if key in known else clean.end(key, out)

        with clean, at_calls(self.modules, self.calls, before, after):
            v = self.run()
        return self._with_copies() if clean.overwritten else v

    def run(self) -> Tensor:
        """v, in which the clean run's own hooks close what is closed."""
        return self.case.run(closing=False).clone()

    def _with_copies(self) -> Tensor:
        """The model writes into what is kept: the clean run again, and copies are kept and given back from now on."""
        self.clean = Clean(self.case.generators, self.case.closed, copies=True)
        self._forget()
        return self.base()

    def _known(self, start: int) -> set[Key]:
        """The calls that need not run: those up to the first gate, and those of which a closed block leaves nothing."""
        return {k for k, p in self.calls.items() if p.order <= start or (k in self.clean.kept and self.clean.hidden(k))}

    def closing(self, block: ResidualBlock) -> Prefix:
        """The same with this block closed for good: what comes before it is shared, what comes after it runs once."""
        twin = self.twins.get(block.name)
        if twin is None:
            twin = self._twin(block)
            twin.v = twin.base(self.first[block.name])
        twin._forget()
        twin._begun = {k: (p, block) for k, p in self.twins.items() if self.first[k] < self.first[block.name]}
        return twin

    def _twin(self, block: ResidualBlock) -> Prefix:
        twin = copy.copy(self)
        twin.blocks = Blocks([b for b in self.blocks if b.name != block.name], self.blocks.model)
        twin.case = self.case.closing(Blocks([block], self.blocks.model))
        twin.clean = self.clean.closing(block)
        twin._forget()
        return twin

    def faithful(self) -> bool:
        """Whether the clean velocity comes out with every gated call skipped."""
        return self.clean.faithful == frozenset(self.calls) or self._skipped()

    def steady(self) -> bool:
        """The same, once more: state that moved meanwhile, around the blocks or in their Python, shows."""
        return self._skipped() and self.clean.steady

    def _skipped(self) -> bool:
        return self.clean.check(self.modules, self.calls, self.run, self.v)

    def variant(self, block: ResidualBlock, value: float) -> Tensor:
        """v with this block's gate at `value`."""
        start, shut = self._begun.get(block.name, (self, block))
        run, acted = start._run(shut, value)
        if start.clean.overwritten:
            start._with_copies()
            run, acted = start._run(shut, value)
        check_acted(shut, acted)
        if self.room is not None:
            self._keep(block, start._twin(shut), run, self.room)
        return run.v

    def _keep(self, block: ResidualBlock, twin: Prefix, run: Run, room: int) -> None:
        self.last, twin.v = twin if twin.clean.renew(run.outputs) else None, run.v
        later = [key for key, point in self.calls.items() if point.order > self.first[block.name]]
        taken = self._taken + twin.clean.bytes_of(later)
        if self.last is not None and taken <= room:
            self.twins[block.name], self._taken = twin, taken

    def _run(self, block: ResidualBlock, value: float) -> tuple[Run, int]:
        """The run, and how often the gate acted."""
        clean, points, acted = self.clean, gate_points([block]), 0  # another block may have its gate at the same call
        inputs: dict[Key, dict[LeafPath, Tensor]] = {}
        outputs: dict[Key, Kept] = {}
        known = self._known(self.first[block.name])
        if value == 0:  # a later gate of the block (another branch) that gives nothing but zeros
            known |= {k for k, p in points.items() if clean.whole(p) and all(s is None for s in p.give.values())}

        def before(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if key in points:
                inputs[key] = kept_inputs(points[key], args, kwargs)
            (clean.skip if key in known else clean.enter)(key, args, kwargs)

        def after(key: Key, args: Any, kwargs: Any, out: Any) -> Any:
            nonlocal acted
            if self.room is not None and key not in known:
                outputs[key] = clean.keeping(out)
            out = clean.resume(key) if key in known else clean.leave(key, out)
            if key not in points:
                return out
            acted += 1
            return closed(points[key], block, inputs.pop(key), out, value)

        with clean, at_calls(self.modules, self.calls, before, after):
            v = self.run()
        return Run(outputs, v), acted
