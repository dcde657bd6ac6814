"""Prefix: one forward per variant, in which everything before its block is taken from the clean run.

All variants share what comes before their block. In the forward of variant k the gated calls before it are skipped
(`skipping`) and give back what they gave in the clean run; block k gives back its own input; from there on all runs as
usual. With L blocks that is L(L+1)/2 block evaluations, the clean run included, instead of the loop's L²; the results
are the loop's to the last bit, and the memory is one output per block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, named_modules
from fog_a.blocks.gate import check_acted, closed, kept_inputs
from fog_a.blocks.tree import LeafPath
from fog_a.finding.clean import Clean, Kept
from fog_a.flows.case import Case


class Run(NamedTuple):
    """A variant's run: the block that was closed, what the calls after it gave out, and v."""

    block: str
    outputs: dict[Key, Kept]
    v: Tensor


class Prefix:
    """The clean run, and the variants that start from it.

    While `holding`, the `last` run's outputs are kept: set `held` to it, and `closing` its block need not run again.

    Args:
        clean: the clean run where it was made already, with its velocity v.
    """

    def __init__(self, case: Case, blocks: Blocks, clean: Clean | None = None, v: Tensor | None = None) -> None:
        self.case, self.blocks = case, blocks
        everything = [*blocks, *(case.closed or ())]
        self.calls = gate_points(everything)
        self.modules = named_modules(case.module)
        self.first = {b.name: min(s.order for s in b.gate_points) for b in everything}
        self.clean = clean or Clean(case.generators, case.closed)
        self.holding = False
        self.last: Run | None = None
        self.held: Run | None = None
        self.v = self.base() if clean is None or v is None else v

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
        self.clean, self.held = Clean(self.case.generators, self.case.closed, copies=True), None
        return self.base()

    def _known(self, start: int) -> set[Key]:
        """The calls that need not run: those up to the first gate, and those of which a closed block leaves nothing."""
        return {k for k, p in self.calls.items() if p.order <= start or (k in self.clean.kept and self.clean.hidden(k))}

    def closing(self, block: ResidualBlock) -> Prefix:
        """The same with this block closed for good: what comes before it is shared, what comes after it runs once."""
        left = Blocks([b for b in self.blocks if b.name != block.name], self.blocks.model)
        case = self.case.closing(Blocks([block], self.blocks.model))
        clean, run = self.clean.closing(block), self.held
        if run is not None and run.block == block.name and clean.renew(run.outputs):
            return Prefix(case, left, clean, run.v)
        twin = Prefix(case, left, clean, self.v)
        twin.v = twin.base(self.first[block.name])
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
        self.last, acted = self._run(block, value)
        if self.clean.overwritten:
            self._with_copies()
            self.last, acted = self._run(block, value)
        check_acted(block, acted)
        return self.last.v

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
            if self.holding and key not in known:
                outputs[key] = clean.keeping(out)
            out = clean.resume(key) if key in known else clean.leave(key, out)
            if key not in points:
                return out
            acted += 1
            return closed(points[key], block, inputs.pop(key), out, value)

        with clean, at_calls(self.modules, self.calls, before, after):
            v = self.run()
        return Run(block.name, outputs, v), acted
