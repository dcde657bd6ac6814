"""Decisions of a whole batch: a number that Python reads off, or a choice among the rows of all samples.

Such a model may give each sample what it gives alone in the clean run, and something else where one variant's rows
would have decided otherwise (expert capacity, early exit when all are sure, a period taken from the mean spectrum).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fog_a.blocks.tree import leaves

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal}
PICKS = {
    aten.topk, aten.sort, aten.argsort, aten.argmax, aten.argmin, aten.max, aten.min, aten.cumsum, aten.cumprod,
    aten.kthvalue, aten.median, aten.mode,
}  # fmt: skip


class Decisions(TorchDispatchMode):
    """Notes decisions about values that come out of gated calls; `gated(out)` says what these give.

    Attributes:
        seen: whether any operation that may decide ran at all.
        reads: whether Python read a number that depends on a gated call.
        picks: for each choice that depends on one, how many rows it chose among.

    Args:
        follow: follow values from the gated calls on. Without it only `seen` is known, for a tenth of the time.
    """

    def __init__(self, follow: bool = False) -> None:
        super().__init__()
        self.follow = follow
        self.seen = self.reads = False
        self.picks: list[int] = []
        self._marked: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing compiled runs inside; torch's guard would import its compiler

    def gated(self, out: Any) -> None:
        """What a gated call gave out."""
        self._marked |= {_memory(x) for _, x in leaves(out)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        deciding = decides(func)
        self.seen = self.seen or deciding
        out = func(*args, **(kwargs or {}))
        if self.follow:
            self._follow(func, deciding, args, kwargs or {}, out)
        return out

    def _follow(self, func: Any, deciding: bool, args: Any, kwargs: Any, out: Any) -> None:
        depends = any(_memory(x) in self._marked for _, x in leaves((args, kwargs)))
        fresh = {_memory(x) for _, x in leaves(out)}
        if not depends:
            self._marked -= fresh  # memory that was freed and is used again
            return
        self._marked |= fresh
        if deciding and func.overloadpacket in READS:
            self.reads = True
        elif deciding:
            self.picks.append(_among(func, args, kwargs))


def decides(func: Any) -> bool:
    """Whether an operation may decide something by all values of a tensor."""
    packet = func.overloadpacket
    return packet in READS or (packet in PICKS and func._overloadname != "other")  # the larger of two tensors


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata if not x.is_nested and x.layout is torch.strided else id(x)


def _among(func: Any, args: Any, kwargs: Any) -> int:
    """How many entries an operation chooses among: the size of its axis, or of the whole tensor."""
    x, arguments = args[0], func._schema.arguments
    place = next((i for i, a in enumerate(arguments) if a.name == "dim"), None)
    if place is None:
        return x.numel()
    dim = kwargs.get("dim", args[place] if place < len(args) else arguments[place].default_value)
    return x.numel() if dim is None or not x.ndim else x.shape[dim]
