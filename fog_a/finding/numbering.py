"""Element numbers: which element of a call's inputs each element of a value is.

The floating inputs of the call are laid end to end and numbered 1..n. A rearrangement is replayed on these numbers: 0
stands for what is not from an input, -1 for what only a branch fills.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fog_a.blocks.block import Source
from fog_a.blocks.gate import broadcasts
from fog_a.blocks.tree import LeafPath
from fog_a.finding.trace import Op, Ref, Trace

_NOT_REPLAYED = ("dtype", "layout", "device", "pin_memory", "memory_format")


class Numbering:
    """The numbers of one call's inputs."""

    def __init__(self, trace: Trace, call: int) -> None:
        self.trace = trace
        self.leaf_of: dict[int, LeafPath] = {}
        self.first: dict[LeafPath, int] = {}
        self.size = 0
        for path, v in trace.calls[call].inputs.items():
            if trace.values[v].floating and v not in self.leaf_of:
                self.leaf_of[v] = path
                self.first[path] = self.size
                self.size += math.prod(trace.values[v].shape)

    def of_leaf(self, leaf: LeafPath, shape: tuple[int, ...]) -> Tensor:
        """The numbers of a whole input, in this shape."""
        return torch.arange(1, math.prod(shape) + 1, device="cpu").reshape(shape) + self.first[leaf]

    def rearranged(self, v: int, op: Op, numbers: Mapping[int, Tensor]) -> Tensor:
        """The numbers of `v`, which `op` made by moving elements of values that have these numbers."""
        if op.func is None:
            return self._overwritten(v, op, numbers)

        def tensor(value: int) -> Tensor:
            if value in numbers:
                return self._laid_out(value, numbers[value])
            if value in self.trace.kept:
                return self.trace.kept[value]
            return torch.zeros(self.trace.values[value].shape, dtype=torch.long, device="cpu")

        def thaw(arg: object) -> object:
            if isinstance(arg, Ref):
                return tensor(arg.value)
            if isinstance(arg, list):
                return [thaw(a) for a in arg]
            return 0 if isinstance(arg, float) and not math.isfinite(arg) else arg

        kwargs = {k: thaw(a) for k, a in op.kwargs.items() if k not in _NOT_REPLAYED}
        out = op.func(*(thaw(a) for a in op.args), **kwargs)
        pieces = list(out) if isinstance(out, (tuple, list)) else [out]
        return pieces[op.makes.index(v) if len(pieces) > 1 else 0]

    def _laid_out(self, p: int, numbers: Tensor) -> Tensor:
        """A copy laid out in memory as `p` was: only so can it be viewed as `p` could."""
        value = self.trace.values[p]
        if len(value.stride) < len(value.shape) or 0 in value.stride:  # no strides, or several elements in one place
            return numbers.clone()
        return torch.empty_strided(value.shape, value.stride, dtype=torch.long, device="cpu").copy_(numbers)

    def _overwritten(self, v: int, op: Op, numbers: Mapping[int, Tensor]) -> Tensor:
        """Another tensor wrote into this one's memory: lay both out in it, in order."""
        values = [self.trace.values[p] for p in (*op.reads, v)]
        ends = (
            value.offset + sum((n - 1) * s for n, s in zip(value.shape, value.stride, strict=True)) + 1
            for value in values
            if math.prod(value.shape)
        )
        memory = torch.zeros(max(ends), dtype=torch.long, device="cpu")
        for p, value in zip(op.reads, values[:-1], strict=True):
            view = memory.as_strided(value.shape, value.stride, value.offset)
            view.copy_(numbers[p] if p in numbers else torch.zeros(value.shape, dtype=torch.long, device="cpu"))
        made = values[-1]
        return memory.as_strided(made.shape, made.stride, made.offset).clone()

    def source(self, numbers: Tensor) -> Source | None:
        """Where these elements come from: one whole leaf, perhaps broadcast or with its axes permuted, else one by
        one; None where there are none, or some that only the branch fills."""
        if not bool((numbers > 0).any()) or bool((numbers < 0).any()):
            return None
        low, high = int(numbers.min()), int(numbers.max())
        for v, path in self.leaf_of.items():
            shape, first = self.trace.values[v].shape, self.first[path]
            if (low, high) != (first + 1, first + math.prod(shape)):
                continue
            whole, axes = self.of_leaf(path, shape), tuple(range(len(shape)))
            if _is_broadcast(whole, numbers):
                return Source((path,), broadcast=True)
            for dims in itertools.permutations(axes) if len(shape) <= 5 else [axes]:
                if tuple(shape[d] for d in dims) == tuple(numbers.shape) and torch.equal(whole.permute(dims), numbers):
                    return Source((path,), None if dims == axes else dims)
        return Source(tuple(self.leaf_of.values()), None, numbers.clone(), self.size)


def _is_broadcast(whole: Tensor, numbers: Tensor) -> bool:
    """Are these the same elements, repeated along other axes?"""
    smaller = whole.numel() < numbers.numel() and broadcasts(whole.shape, numbers.shape)
    return smaller and torch.equal(whole.expand(numbers.shape), numbers)
