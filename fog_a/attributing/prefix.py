"""Prefix: one forward per variant, in which everything before its block is taken from the clean run.

All variants share what comes before their block. In the forward of variant k the gated calls before it are skipped
(`skipping`) and give back what they gave in the clean run; block k gives back its own input; from there on all runs as
usual. With L blocks that is L(L+1)/2 block evaluations, the clean run included, instead of the loop's L²; the results
are the loop's to the last bit, and the memory is one output per block.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fog_a.attributing.skipping import Answer, Diverged, Record, Scratch, Skip
from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, named_modules, tree
from fog_a.blocks.gate import check_acted, closed, kept_inputs
from fog_a.blocks.tree import LeafPath, leaf, leaves, replaced
from fog_a.blocks.untouched import rng_state
from fog_a.flows.case import Case


class Prefix:
    """The clean run's outputs, and the variants that start from them."""

    def __init__(self, case: Case, blocks: Blocks) -> None:
        self.case = case
        self.blocks = blocks
        self.calls = gate_points(blocks)
        self.modules = named_modules(case.module)
        self.owner = {(s.module, s.call): b for b in blocks for s in b.gate_points}
        self.first = {b.name: min(s.order for s in b.gate_points) for b in blocks}
        self.kept: dict[Key, Any] = {}
        self.answers: dict[Key, list[Answer]] = {}
        self.versions: dict[Key, list[int]] = {}
        self.copies = False
        self.random: str | None = None
        self.problem: str | None = None
        self.writes: dict[Key, dict[LeafPath, Tensor]] = {}
        self.runs = 0
        self._modes = contextlib.ExitStack()
        self._made: list[weakref.ref[Tensor]] | None = None

    def base(self) -> Tensor:
        """The clean run; what the gated calls give out is kept, and what their operations return is written down."""
        open_calls: list[tuple[Record, Any, dict[LeafPath, Tensor]]] = []
        scratch = Scratch()

        def before(key: Key, args: Any, kwargs: Any) -> None:
            open_calls.append((Record(scratch), rng_state(), dict(leaves(tree(args, kwargs)))))
            self._modes.enter_context(open_calls[-1][0])

        def after(key: Key, args: Any, kwargs: Any, out: Any) -> None:
            mode, state, given = open_calls.pop()
            self._leave()
            self.answers[key] = mode.answers
            self._outside(key, mode, given, out)
            self.random = self.random or (key[0] if state != rng_state() else None)
            self.kept[key] = _copied(out) if self.copies else out
            self.versions[key] = _versions(self.kept[key])
            self.runs += 1

        with self._modes, at_calls(self.modules, self.calls, before, after):
            v = self.case.run().clone()
        return self.base() if self._overwritten() else v

    @property
    def bytes(self) -> int:
        """How much memory is kept, beside the operations' answers."""
        kept = [x.untyped_storage() for out in self.kept.values() for _, x in leaves(out)]
        return sum({memory._cdata: memory.nbytes() for memory in kept}.values())

    def _outside(self, key: Key, mode: Record, given: dict[LeafPath, Tensor], out: Any) -> None:
        """What the call did beside its output: tensors that others hold now, writes into what it was given."""
        mode.escape(out)
        places = {x.untyped_storage()._cdata: path for path, x in given.items()}
        paths = [places.get(t.untyped_storage()._cdata) for t in mode.written]
        if None in paths:
            self.problem = f"{key[0]} writes into something that it was not given"
            return
        self.writes[key] = {p: given[p].clone() for p in paths if p is not None}

    def _leave(self) -> None:
        self._modes.pop_all().close()

    def faithful(self, v: Tensor) -> bool:
        """With every gated call skipped and no gate closed the clean velocity must come out: a call that leaves
        something behind for others, beside its output, cannot be skipped."""
        try:
            self._made = []
            with self._skipping(None, sys.maxsize, 1.0):
                again = self.case.run()
            if any(x() is not None for x in self._made):
                return False  # something made inside is still held: who knows by whom
        except (Diverged, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
            return False
        finally:
            self._made = None
        return again.shape == v.shape and torch.equal(again, v)

    def variant(self, block: ResidualBlock, value: float) -> Tensor:
        """v with this block's gate at `value`."""
        v, acted = self._run(block, value)
        if self._overwritten():  # the model wrote into what was kept: make it again, and give out copies from now on
            self.base()
            v, acted = self._run(block, value)
        check_acted(block, len(acted))
        return v

    def _run(self, block: ResidualBlock, value: float) -> tuple[Tensor, list[Key]]:
        with self._skipping(block, self.first[block.name], value) as acted:
            v = self.case.run().clone()
        return v, acted

    @contextlib.contextmanager
    def _skipping(self, block: ResidualBlock | None, start: int, value: float) -> Iterator[list[Key]]:
        given: dict[Key, dict[LeafPath, Tensor]] = {}
        written: dict[Key, list[tuple[Tensor, Tensor]]] = {}
        acted: list[Key] = []

        def before(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.owner[key] is block:
                given[key] = kept_inputs(self.calls[key], args, kwargs)
            if self._known(self.calls[key], start, value):
                written[key] = [(leaf(tree(args, kwargs), path), x) for path, x in self.writes[key].items()]
                self._modes.enter_context(Skip(self.answers[key], self._made))
            else:
                self.runs += 1

        def after(key: Key, args: Any, kwargs: Any, out: Any) -> Any:
            point = self.calls[key]
            if self._known(point, start, value):
                self._leave()
                for place, x in written.pop(key):
                    place.copy_(x)
                out = _copied(self.kept[key]) if self.copies else self.kept[key]
            if block is None or self.owner[key] is not block:
                return out
            acted.append(key)
            return closed(point, block, given.pop(key), out, value)

        with self._modes, at_calls(self.modules, self.calls, before, after):
            yield acted

    def _known(self, point: GatePoint, start: int, value: float) -> bool:
        """Is what this call gives out known? Up to and with the first gate it is, from the clean run; a later gate of
        the same block (another branch) need not run either if it is closed and gives nothing but zeros."""
        if point.order <= start:
            return True
        key = (point.module, point.call)
        alone = {p for p, _ in leaves(self.kept[key])} == set(point.give) and all(
            p is None for p in point.give.values()
        )
        return value == 0 and self.first[self.owner[key].name] == start and alone

    def _overwritten(self) -> bool:
        """The model wrote into something that was kept: from now on copies are kept, and copies given back."""
        changed = not self.copies and any(_versions(out) != self.versions[key] for key, out in self.kept.items())
        self.copies = self.copies or changed
        return changed


def _copied(out: Any) -> Any:
    return replaced(out, {path: x.clone() for path, x in leaves(out)})


def _versions(out: Any) -> list[int]:
    return [0 if x.is_inference() else x._version for _, x in leaves(out)]
