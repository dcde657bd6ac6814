"""How much memory a forward needs at most, beside the model and its batch: counted operation by operation.

What operations use inside and free again (a workspace) is not seen; nor are the allocator's own rounding and caches.
"""

from __future__ import annotations

from typing import Any

from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fog_a.blocks.tree import leaves


class Footprint(TorchDispatchMode):
    """`peak`: the bytes of tensors made inside that were alive together, at most; `outside`: the same, but not counted
    while `within` is set.

    >>> import torch
    >>> with torch.no_grad(), Footprint() as used:
    ...     y = torch.zeros(1000) + torch.ones(1000)
    >>> used.peak
    12000
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.outside = 0
        self.within = False
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `skipping`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for _, x in leaves((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for _, x in leaves(out):
            memory = x.untyped_storage()
            if memory._cdata not in given:  # a view takes nothing
                self._alive[memory._cdata] = (StorageWeakRef(memory), memory.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        now = sum(size for _, size in self._alive.values())
        self.peak = max(self.peak, now)
        self.outside = max(self.outside, 0 if self.within else now)
        return out
