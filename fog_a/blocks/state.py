"""What a forward may change beside its output: buffers, caches, counters, generators of the model's own, its batch.

A `State` remembers all of it once, and gives it back before the next run. Parameters are not among it, nor what only
Python knows of: a global counter, the cells of a closure.
"""

from __future__ import annotations

import operator
import pickle
import random
import types
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MODULE = set(nn.Module().__dict__) - {"_buffers"}
"""Attributes of a module that torch keeps: hooks, parameters, modules, the training flag."""
_FIXED = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, types.FunctionType}
"""Types of attributes that hold nothing which can change."""
_DEEPEST = 6
_APART = {"torch", "logging", "threading", "multiprocessing"}
"""Packages whose objects belong to the whole process, or to torch itself."""
_GENERATORS: dict[type, tuple[Callable[[Any], bytes], Callable[[Any, bytes], Any]]] = {
    torch.Generator: (
        lambda g: g.get_state().numpy().tobytes(),
        lambda g, at: g.set_state(torch.frombuffer(bytearray(at), dtype=torch.uint8)),
    ),
    np.random.Generator: (
        lambda g: pickle.dumps(g.bit_generator.state),
        lambda g, at: setattr(g.bit_generator, "state", pickle.loads(at)),
    ),
    np.random.RandomState: (lambda g: pickle.dumps(g.get_state()), lambda g, at: g.set_state(pickle.loads(at))),
    random.Random: (lambda g: pickle.dumps(g.getstate()), lambda g, at: g.setstate(pickle.loads(at))),
}
"""How the position of a generator is read and set."""


class State:
    """The state of modules and of a batch, as it is now.

    >>> net = nn.BatchNorm1d(2)
    >>> state = State(net)
    >>> _ = net(torch.randn(3, 2))
    >>> state.restore()
    >>> net.running_mean.tolist(), int(net.num_batches_tracked)
    ([0.0, 0.0], 0)
    """

    def __init__(self, *roots: Any) -> None:
        self._undo: list[Callable[[], None]] = []
        self._positions: list[Callable[[], bytes]] = []
        self._seen: dict[int, Any] = {}  # keeps the objects alive: an id is another's once its object is gone
        for root in roots:
            for part in root.modules() if isinstance(root, nn.Module) else (root,):
                self._remember(part, 0)

    def __enter__(self) -> State:
        return self

    def __exit__(self, *exc: object) -> None:
        with torch._C._DisableTorchDispatch():  # what measures or answers a run does not see it
            self.restore()

    def restore(self) -> None:
        """Give everything back as it was; what did not change is not written."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    @property
    def positions(self) -> tuple[bytes, ...]:
        """Where the generators stand now that belong to the modules or the batch."""
        return tuple(position() for position in self._positions)

    def _remember(self, x: Any, depth: int) -> None:
        if type(x) in _FIXED or id(x) in self._seen or depth > _DEEPEST or (depth and isinstance(x, nn.Module)):
            return  # a module inside is met by itself, or is another's
        undo, content = None, ()
        if isinstance(x, Tensor):
            undo = None if isinstance(x, nn.Parameter) or x.is_meta else _tensor(x)
        elif type(x) in _GENERATORS:
            position, undo = _generator(x)
            self._positions.append(position)
        elif type(x) in (list, deque, set):
            undo, content = _members(x)
        elif isinstance(x, dict):
            undo, content = _mapping(x)
        elif isinstance(x, tuple):
            content = x
        elif isinstance(x, nn.Module) or _has_attributes(x):
            undo, content = _mapping(x.__dict__, _MODULE if isinstance(x, nn.Module) else ())
        if undo is not None:
            self._seen[id(x)] = x
            self._undo.append(undo)
        for child in content:
            self._remember(child, depth + 1)


def _has_attributes(x: Any) -> bool:
    """Whether x is an object like a key cache or a counter."""
    own = type(x).__module__.split(".")[0] not in _APART and not isinstance(
        x, type | types.ModuleType | types.MethodType
    )
    return own and isinstance(getattr(x, "__dict__", None), dict)


def _tensor(x: Tensor) -> Callable[[], None]:
    value = x.detach().clone()

    def undo() -> None:  # by values: torch's batch norm writes its statistics without a new version
        if x.shape != value.shape:
            x.data = value.clone()
        elif not _equal(x, value):
            with torch.inference_mode(x.is_inference()):
                (x if x.is_inference() else x.data).copy_(value)

    return undo


def _equal(a: Tensor, b: Tensor) -> bool:
    return all(torch.equal(x, y) for x, y in zip(strided_parts(a), strided_parts(b), strict=True))


def strided_parts(x: Tensor) -> tuple[Tensor, ...]:
    """The ordinary tensors that make up x: itself, or the indices and values of a sparse one, the rows of a nested one.

    >>> [part.tolist() for part in strided_parts(torch.eye(2).to_sparse())]
    [[[0, 1], [0, 1]], [1.0, 1.0]]
    """
    if x.is_nested:
        return x.unbind()
    if x.layout is torch.sparse_coo:
        return x._indices(), x._values()
    if x.layout in (torch.sparse_csr, torch.sparse_bsr):
        return x.crow_indices(), x.col_indices(), x.values()
    if x.layout in (torch.sparse_csc, torch.sparse_bsc):
        return x.ccol_indices(), x.row_indices(), x.values()
    return (x,)


def _generator(x: Any) -> tuple[Callable[[], bytes], Callable[[], None]]:
    """Where a generator stands, and how to put it back to where it stands now."""
    read, write = _GENERATORS[type(x)]
    before = read(x)

    def undo() -> None:
        if read(x) != before:
            write(x, before)

    return lambda: read(x), undo


def _members(x: Any) -> tuple[Callable[[], None], list[Any]]:
    """How to refill a list, a deque or a set, and what it holds."""
    content = list(x)

    def undo() -> None:
        if not _same(x, content):
            x.clear()
            (x.update if isinstance(x, set) else x.extend)(content)

    return undo, content


def _mapping(x: dict[Any, Any], skip: Collection[str] = ()) -> tuple[Callable[[], None], list[Any]]:
    """How to refill a dict, but for the keys that are not its own to give back, and what it holds."""
    keys, values = list(x), list(x.values())

    def undo() -> None:
        if not (_same(x, keys) and _same(x.values(), values)):  # nearly never
            content = {key: value for key, value in zip(keys, values, strict=True) if key not in skip}
            for key in [k for k in x if k not in content and k not in skip]:
                del x[key]
            x.update(content)

    return undo, [value for key, value in zip(keys, values, strict=True) if key not in skip]


def _same(now: Collection[Any], before: list[Any]) -> bool:
    """Whether these are the same objects in the same order."""
    return len(now) == len(before) and all(map(operator.is_, now, before))
