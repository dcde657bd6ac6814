"""Not running what is known: a call's operations are answered from a recording of their shapes.

A forward hook can replace what a module gives out, but cannot keep it from running. While a `Skip` is active, between a
call's pre-hook and its hook, no operation computes anything: each is given back a tensor of the shape, strides, type
and device that the same operation returned in the clean run, with whatever happens to be in it: all of them lie on one
piece of memory, made once. The call's output is then replaced by what the clean run kept. Python in the call runs as
ever, so that nothing need be known about its batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fog_a.blocks.tree import LeafPath, leaves, replaced
from fog_a.finding.operations import Watching, has_schema, written

Answer = tuple[Any, list[Any], Tensor | tuple[Tensor, ...] | list[Tensor] | Callable[[Any, Any], Any]]
"""An operation, the numbers that Python gave it, and what is given back for it: tensors, or what is made of its
arguments."""
_PYTHON = {bool, int, float, complex}


class Diverged(Exception):
    """A call did other operations than in the clean run, or with other numbers."""


class Numbers:
    """An answer without a tensor: what was read off tensors."""

    def __init__(self, out: Any) -> None:
        self.out = out

    def __call__(self, args: Any, kwargs: Any) -> Any:
        return self.out


class Held:
    """An answer with tensors that outlive the call that made them."""

    def __init__(self, answer: Any, held: dict[LeafPath, Tensor]) -> None:
        self.answer = answer
        self.held = held

    def __call__(self, args: Any, kwargs: Any) -> Any:
        held = {path: x.detach() for path, x in self.held.items()}  # on the same memory
        return held[()] if () in held else replaced(_fresh(self.answer, args, kwargs), held)


class Record(Watching):
    """Runs a call as it is and writes down what its operations return."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__()
        self.scratch = scratch
        self.answers: list[Answer] = []
        self.made: list[dict[LeafPath, weakref.ref[Tensor]]] = []
        """What each operation gave back, to see what outlives the call."""
        self.written: list[Tensor] = []
        """Tensors from outside the call that it wrote into."""
        self._own: set[int] = set()

    @property
    def sealed(self) -> bool:
        """Whether nothing that was computed inside can reach others, but by what the call gave out."""
        return not self.written and not any(isinstance(answer, (Held, Numbers)) for *_, answer in self.answers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        changed = written(func, args, kwargs)
        out = func(*args, **kwargs)
        self.note(func, args, kwargs, changed, out)
        return out

    def note(self, func: Any, args: Any, kwargs: Any, changed: list[Tensor], out: Any) -> None:
        """An operation has run, which wrote into `changed` and gave `out`."""
        self.written += [t for t in changed if t.untyped_storage()._cdata not in self._own]
        self.answers.append((func, _numbers(func, args, kwargs), self._answer(func, out, args, kwargs)))
        fresh = {path: x for path, x in leaves(out) if not any(x is t for t in changed)}
        self.made.append({path: weakref.ref(x) for path, x in fresh.items()})
        given = {x.untyped_storage()._cdata for _, x in leaves((args, kwargs))}
        self._own |= {x.untyped_storage()._cdata for x in fresh.values()} - given

    def escape(self, out: Any) -> None:
        """What is held when the call has ended, beside what it gave out (a cache it filled), is given back as it is
        when the call is skipped."""
        public = {id(x) for _, x in leaves(out)}
        for i, refs in enumerate(self.made):
            alive = {path: x for path, ref in refs.items() if (x := ref()) is not None and id(x) not in public}
            if alive:
                func, numbers, answer = self.answers[i]
                self.answers[i] = (func, numbers, Held(answer, alive))

    def _answer(self, func: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(out, Tensor):
            if not has_schema(func) or not func._schema.is_mutable:
                return self.scratch.like(out)
            # an operation in place gives back what it was given
            given = {id(x): path for path, x in leaves({"args": args, "kwargs": kwargs})}
            if id(out) in given:
                path = given[id(out)]
                return lambda args, kwargs: _at({"args": args, "kwargs": kwargs}, path)
            return self.scratch.like(out)
        if type(out) in (tuple, list) and out and all(isinstance(x, Tensor) for x in out):
            return type(out)(self.scratch.like(x) for x in out)
        made = {path: self.scratch.like(x) for path, x in leaves(out)}
        if not made:
            return Numbers(out)
        out = replaced(out, dict.fromkeys(made))
        return lambda args, kwargs: replaced(out, {path: x.detach() for path, x in made.items()})


class Scratch:
    """Tensors laid out like others, on memory that nobody fills and all of one device share."""

    def __init__(self) -> None:
        self._memory: dict[torch.device, torch.UntypedStorage] = {}

    def like(self, x: Tensor) -> Tensor:
        if x.is_nested:
            return torch.empty_like(x)
        size = (1 + sum((n - 1) * abs(s) for n, s in zip(x.shape, x.stride(), strict=True))) * x.element_size()
        memory = self._memory.get(x.device)
        if memory is None or len(memory) < size:
            memory = self._memory[x.device] = torch.UntypedStorage(max(size, 1 << 16), device=x.device)
        return torch.empty(0, dtype=x.dtype, device=x.device).set_(memory, 0, x.shape, x.stride())  # pyright: ignore


def _fresh(answer: Any, args: Any, kwargs: Any) -> Any:
    """What is given back this time. New tensor objects: torch writes into those that it is given back."""
    if isinstance(answer, Tensor):
        return answer.detach()
    if isinstance(answer, (tuple, list)):
        return type(answer)([x.detach() for x in answer])
    return answer(args, kwargs)


def _numbers(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The numbers among the arguments, and those in a tensor that Python made of some."""
    if func is torch.ops.aten.lift_fresh.default:
        return args[0].flatten().tolist()
    return [a for a in (*args, *kwargs.values()) if type(a) in _PYTHON]


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


class Skip(Watching):
    """Answers a call's operations without running them."""

    def __init__(self, answers: list[Answer], made: list[weakref.ref[Tensor]] | None = None) -> None:
        super().__init__()
        self.answers = iter(answers)
        self.made = made
        """Where given, what is given back is noted here, to see if it is kept, and the numbers must be the same."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        expected, numbers, answer = next(self.answers, (None, None, None))
        if expected is not func or answer is None:
            raise Diverged(f"{func} where the clean run had {expected}")
        if self.made is not None and _numbers(func, args, kwargs or {}) != numbers:
            raise Diverged(f"{func} with other numbers than in the clean run: its Python keeps state")
        out = _fresh(answer, args, kwargs or {})
        if self.made is not None and not isinstance(answer, Held):
            given = {id(x) for _, x in leaves((args, kwargs))}
            self.made += [weakref.ref(x) for _, x in leaves(out) if id(x) not in given]
        return out
