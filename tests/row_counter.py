"""Counts the rows that chosen weights are applied to, below everything that runs a model: skipped rows are not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class RowCounter(TorchDispatchMode):
    """`rows[i]`: output elements of the matmuls and convolutions by a weight of the i-th group of modules."""

    def __init__(self, groups: Iterable[Iterable[nn.Module]]) -> None:
        super().__init__()
        self.rows: Counter[int] = Counter()
        self._group = {
            p.untyped_storage().data_ptr(): i
            for i, modules in enumerate(groups)
            for module in modules
            for p in module.parameters()
            if p.ndim > 1
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(out, Tensor) and name in ("addmm", "mm", "bmm", "convolution", "linear"):
            for x in args:
                if isinstance(x, Tensor) and x.untyped_storage().data_ptr() in self._group:
                    self.rows[self._group[x.untyped_storage().data_ptr()]] += out.numel()
                    break
        return out


def rows(run: Any, groups: list[list[nn.Module]]) -> list[int]:
    """What `run()` evaluates of each group."""
    with torch.no_grad(), RowCounter(groups) as counter:
        run()
    return [counter.rows[i] for i in range(len(groups))]
