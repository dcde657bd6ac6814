"""The clean run: what some module calls gave out, and how their operations are answered when they are skipped."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, tree
from fog_a.blocks.gate import closed, kept_inputs
from fog_a.blocks.tree import LeafPath, leaf, leaves, replaced
from fog_a.finding.skipping import Answer, Diverged, Record, Scratch, Skip

_MISFITS = (Diverged, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


Kept = tuple[Any, list[int]]
"""What a call gave out, and the versions of its tensors: another one later on says that the model wrote into it."""


class Clean:
    """Open it around the clean run, with `begin` and `end` at the calls, and around runs with `skip` and `resume` at
    those that are known, `enter` and `leave` at the others.

    Args:
        generators: where all generators stand.
        closed: blocks that are closed in the clean run and in all others.
        copies: keep copies, and give copies back: the model writes into what it was given.

    Attributes:
        kept: what each call gave out.
        random: the first module that drew random numbers, or None.
        problem: why the calls cannot be skipped, or None.
        first: the first call, and what it was called with.
        steady: whether the first call was called with the same in the last run that skipped all.
        faithful: the calls that were skipped in a run which gave the clean velocity.
    """

    def __init__(self, generators: Callable[[], Any], closed: Blocks | None = None, copies: bool = False) -> None:
        self.kept: dict[Key, Any] = {}
        self.random: str | None = None
        self.problem: str | None = None
        self.faithful: frozenset[Key] = frozenset()
        self.first: tuple[Key, dict[LeafPath, Tensor]] | None = None
        self.steady = True
        self.copies, self.generators = copies, generators
        self._shut = tuple(closed or ())
        self._closed = gate_points(self._shut)
        self._inputs: dict[Key, dict[LeafPath, Tensor]] = {}
        self._sealed: set[Key] = set()
        self._answers: dict[Key, list[Answer]] = {}
        self._versions: dict[Key, list[int]] = {}
        self._writes: dict[Key, dict[LeafPath, Tensor]] = {}
        self._running: list[tuple[Key, Record, Any, dict[LeafPath, Tensor]]] = []
        self._writing: dict[Key, list[tuple[Tensor, Tensor]]] = {}
        self._modes = contextlib.ExitStack()
        self._scratch = Scratch()

    def __enter__(self) -> Clean:
        self._writing.clear()
        return self

    def __exit__(self, *exc: object) -> None:
        self._modes.close()

    # ---- the clean run

    def open(self, key: Key, args: Any, kwargs: Any) -> Record:
        """A call begins, whose operations are to be noted in the record."""
        record, inputs = Record(self._scratch), dict(leaves(tree(args, kwargs)))
        self._running.append((key, record, self.generators(), inputs))
        if self.first is None:
            plain = {path: x for path, x in inputs.items() if x.layout is torch.strided and not x.is_nested}
            self.first = key, {path: x.clone() for path, x in plain.items()}
        return record

    def begin(self, key: Key, args: Any, kwargs: Any) -> None:
        """A call begins, whose operations are written down, unless an earlier run has shown that all stays inside."""
        self.enter(key, args, kwargs)
        if key not in self._sealed:
            self._modes.enter_context(self.open(key, args, kwargs))

    def end(self, key: Key, out: Any) -> Any:
        """The call has given this out: it is kept. What the model is to get instead, or None."""
        if key not in self._sealed:
            self._noted(key, out)
        self.kept[key], self._versions[key] = self.keeping(out)
        return self.leave(key, out)

    def keeping(self, out: Any) -> Kept:
        """What is kept of an output."""
        out = self._copied(out)
        return out, _versions(out)

    def renew(self, outputs: Mapping[Key, Kept]) -> bool:
        """Keep what these calls gave out in a run with more closed; whether that will do without another run."""
        for key, (out, versions) in outputs.items():
            self.kept[key], self._versions[key] = out, versions
        return outputs.keys() <= self._sealed and not self.overwritten

    def _copied(self, out: Any) -> Any:
        return replaced(out, {path: x.clone() for path, x in leaves(out)}) if self.copies else out

    def _noted(self, key: Key, out: Any) -> None:
        _, record, state, given = self._running.pop()
        self._modes.pop_all().close()
        record.escape(out)
        self._answers[key] = record.answers
        self._outside(key, record, given)
        self.random = self.random or (key[0] if state != self.generators() else None)
        if record.sealed:
            self._sealed.add(key)

    @property
    def running(self) -> Key | None:
        """The call that has begun and not ended."""
        return self._running[-1][0] if self._running else None

    @property
    def record(self) -> Record | None:
        """What its operations are noted in."""
        return self._running[-1][1] if self._running else None

    def _outside(self, key: Key, record: Record, given: dict[LeafPath, Tensor]) -> None:
        """What the call wrote into what it was given is written again when it is skipped."""
        places = {x.untyped_storage()._cdata: path for path, x in given.items()} if record.written else {}
        paths = [places.get(t.untyped_storage()._cdata) for t in record.written]
        if None in paths:
            self.problem = f"{key[0]} writes into something that it was not given"
            return
        self._writes[key] = {p: given[p].clone() for p in paths if p is not None}

    @property
    def overwritten(self) -> bool:
        """Whether the model wrote into something that was kept, which then has to be a copy."""
        return not self.copies and any(_versions(out) != self._versions[key] for key, out in self.kept.items())

    @property
    def bytes(self) -> int:
        """How much memory is kept, beside the operations' answers."""
        return self.bytes_of(self.kept)

    def bytes_of(self, calls: Iterable[Key]) -> int:
        """How much memory is kept of these calls."""
        kept = [x.untyped_storage() for key in calls for _, x in leaves(self.kept[key])]
        return sum({memory._cdata: memory.nbytes() for memory in kept}.values())

    # ---- runs that skip

    def skip(self, key: Key, args: Any, kwargs: Any, made: list[weakref.ref[Tensor]] | None = None) -> None:
        """A call begins, of which nothing is computed. `made`: what its operations are answered is noted there."""
        self.enter(key, args, kwargs)
        self._writing[key] = [(leaf(tree(args, kwargs), path), x) for path, x in self._writes[key].items()]
        self._modes.enter_context(Skip(self._answers[key], made))

    def resume(self, key: Key) -> Any:
        """The call ends: what it gave out in the clean run."""
        self._modes.pop_all().close()
        for place, x in self._writing.pop(key):
            place.copy_(x)
        return self.leave(key, self._copied(self.kept[key]))

    # ---- closed blocks

    def enter(self, key: Key, args: Any, kwargs: Any) -> None:
        """A call begins."""
        if key in self._closed:
            self._inputs[key] = kept_inputs(self._closed[key], args, kwargs)

    def leave(self, key: Key, out: Any) -> Any:
        """What the model gets of a call that gave this out."""
        if key not in self._closed:
            return out
        point = self._closed[key]
        block = next(b for b in self._shut if any((p.module, p.call) == key for p in b.gate_points))
        return closed(point, block, self._inputs.pop(key), out, 0.0)

    def hidden(self, key: Key) -> bool:
        """Whether nothing of what the call gives out is left: its gate is closed, and replaces all of it."""
        point = self._closed.get(key)
        if point is None or not self.whole(point):
            return False
        return all(s is None or (s.index is None and s.inside is None) for s in point.give.values())

    def whole(self, point: GatePoint) -> bool:
        """Whether a closed gate replaces all that its call gives out."""
        return {path for path, _ in leaves(self.kept[point.module, point.call])} == set(point.give)

    def closing(self, block: ResidualBlock) -> Clean:
        """The same clean run, in which this block is to be closed too."""
        twin = copy.copy(self)
        twin._shut = (*self._shut, block)
        twin._closed = gate_points(twin._shut)
        for name in ("kept", "_answers", "_versions", "_writes", "_sealed"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        return twin

    def check(
        self, modules: Mapping[str, nn.Module], calls: Mapping[Key, GatePoint], run: Callable[[], Tensor], v: Tensor
    ) -> bool:
        """With every one of these calls skipped the clean velocity must come out: a call that leaves something behind
        for others, beside its output, cannot be skipped, nor one whose Python came to other numbers. `faithful` names
        them if so."""
        made: list[weakref.ref[Tensor]] = []

        def before(key: Key, args: Any, kwargs: Any) -> None:
            self.steady = self.steady and self.entered(key, args, kwargs)
            self.skip(key, args, kwargs, made)

        self.steady = True
        try:
            with self, at_calls(modules, calls, before, lambda key, args, kwargs, out: self.resume(key)):
                again = run()
            if any(x() is not None for x in made):
                return False  # something made inside is still held: who knows by whom
        except _MISFITS:
            return False
        if again.shape != v.shape or not torch.equal(again, v):
            return False
        self.faithful = frozenset(calls)
        return True

    def entered(self, key: Key, args: Any, kwargs: Any) -> bool:
        """Whether the first call is called with what it was called with in the clean run; True for any other call."""
        if self.first is None or key != self.first[0]:
            return True
        return all(torch.equal(leaf(tree(args, kwargs), path), x) for path, x in self.first[1].items())

    def seals(self, points: Collection[GatePoint]) -> bool:
        """Whether all that these calls compute reaches others through what a closed gate replaces, if at all."""
        return all(
            (p.module, p.call) in self._sealed
            and self.whole(p)
            and not any(source is not None and source.inside for source in p.give.values())
            for p in points
        )


def _versions(out: Any) -> list[int]:
    return [0 if x.is_inference() else x._version for _, x in leaves(out)]
