"""Which value each tensor of a forward holds now, though several tensors look at one piece of memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fog_a.finding.trace import Op, Trace

_Layout = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""How a tensor looks at its storage: offset, shape, stride, type."""
_Place = tuple[int, _Layout] | None


class _Reading(NamedTuple):
    """The value that a layout was last known to hold, and how many writes into the storage that value has seen."""

    value: int
    seen: int


@dataclass(slots=True)
class _Storage:
    """One piece of memory: the last reading of each layout, and all writes into it."""

    readings: dict[_Layout, _Reading] = field(default_factory=dict)
    writes: list[tuple[int, _Layout]] = field(default_factory=list)
    tensors: list[weakref.ref[Tensor]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Does a tensor that looked at it still exist? If none does, the address may be another tensor's by now."""
        while self.tensors and self.tensors[-1]() is None:
            self.tensors.pop()
        return bool(self.tensors)

    def hold(self, t: Tensor, layout: _Layout, value: int) -> None:
        self.readings[layout] = _Reading(value, len(self.writes))
        self.tensors.append(weakref.ref(t))
        if len(self.tensors) > 64:
            self.tensors = [ref for ref in self.tensors if ref() is not None]


class Memory:
    """Says which value a tensor holds, and learns which values operations leave in which tensors.

    Views share a storage, so a write through one view changes the others. Each storage keeps its writes in order, and
    each view the number of writes that its value has seen. A view that is behind gets a new value when it is next
    read, made by an "alias" operation of what it held and what was written since:

        step                     x              y              writes
        x = f(h)                 3, seen 0                     []
        y = x[:2]                3, seen 0      4, seen 0      []
        y.mul_(2)                3, seen 0      5, seen 1      [5]
        g(x) asks for x          6, seen 1      5, seen 1      [5]          6 = alias(3, 5)
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._storages: dict[int, _Storage] = {}
        self._without_storage: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def value_of(self, t: Tensor) -> int:
        """The number of what `t` holds now."""
        place = _place(t)
        if place is None:
            ref, value = self._without_storage.get(id(t), (None, -1))
            return value if ref is not None and ref() is t else self._hold(t, None, None)
        address, layout = place
        storage = self._storages.get(address)
        if storage is None or not storage.alive:
            return self._hold(t, None, place)
        reading = storage.readings.get(layout)
        if reading is None:  # an unknown view: it holds what the first one did, and all writes
            first = next(iter(storage.readings.values()))
            return self._alias(t, layout, first.value, storage.writes)
        if reading.seen == len(storage.writes):
            return reading.value
        return self._alias(t, layout, reading.value, storage.writes[reading.seen :])

    def values_of(self, t: Tensor) -> set[int]:
        """The values of all tensors that share the memory of `t`."""
        value, place = self.value_of(t), _place(t)
        return {value} if place is None else {r.value for r in self._storages[place[0]].readings.values()}

    def make(self, t: Tensor, op: Op, arguments: Iterable[Tensor]) -> int:
        """`op` returned this tensor: a view of one of its arguments, or new memory."""
        place = _place(t)
        if place is not None and place[0] in self._storages and all(_address(x) != place[0] for x in arguments):
            del self._storages[place[0]]  # whatever was known of this address is gone
        return self._hold(t, op, place)

    def write(self, t: Tensor, op: Op) -> int:
        """`op` wrote into this tensor: all its aliases fall behind by one write."""
        place = _place(t)
        value = self._hold(t, op, place)
        if place is not None:
            address, layout = place
            storage = self._storages[address]
            storage.writes.append((value, layout))
            storage.readings[layout] = _Reading(value, len(storage.writes))
        return value

    def _alias(self, t: Tensor, layout: _Layout, old: int, writes: list[tuple[int, _Layout]]) -> int:
        """A view that is behind: its new value is made of the old one and the writes since."""
        reads = list(dict.fromkeys([old, *(value for value, _ in writes)]))
        whole = [value for value, at in writes if at == layout]
        if whole:  # the last write over all of it hides what came before
            reads = reads[reads.index(whole[-1]) :]
        op = Op(None, "alias", (), {}, tuple(reads), (), self.trace.running[-1])
        value = self._hold(t, op, _place(t))
        op.makes = (value,)
        self.trace.write_down(op)
        return value

    def _hold(self, t: Tensor, op: Op | None, place: _Place) -> int:
        """A new value, which `t` holds from now on; without `op` it came from outside the forward."""
        value = self.trace.add(t, op)
        if place is None:
            self._without_storage[id(t)] = (weakref.ref(t), value)
            return value
        address, layout = place
        storage = self._storages.get(address)
        if storage is None or (op is None and not storage.alive):
            storage = self._storages[address] = _Storage()
        storage.hold(t, layout, value)
        return value


def _place(t: Tensor) -> _Place:
    """The address of the storage that a tensor looks at, and how it looks at it; None if it has no plain storage."""
    address = _address(t)
    if address is None:
        return None
    return address, (int(t.storage_offset()), tuple(t.shape), t.stride(), t.dtype)


def _address(t: Tensor) -> int | None:
    if t.is_nested:  # has no shape: torch's encoder packs padded batches so
        return None
    try:
        return t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
