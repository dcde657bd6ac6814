"""One forward, written down: which values were made, from which others, inside which module call.

A *value* is what a tensor holds at one moment: an in-place write makes a new value of the same tensor and of all its
aliases. Values are numbers in order of creation; tensors themselves are not kept, except for the small integer and
boolean ones that say how elements are moved about (indices, masks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fog_a.blocks.tree import LeafPath
from fog_a.finding.operations import Kind, kind_of


class Ref(NamedTuple):
    """A value among an operation's arguments."""

    value: int


@dataclass(slots=True)
class Op:
    """One operation: its arguments with `Ref`s for tensors, the values it read and made, and the call it ran in.

    Attributes:
        name: without the underscore of the in-place form.
    """

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    call: int
    kind: Kind = field(init=False)

    def __post_init__(self) -> None:
        self.kind = kind_of(self.name)


@dataclass(slots=True)
class Value:
    """What a tensor held: the operation that made it (None: it came from outside), its shape and kind."""

    op: Op | None
    shape: tuple[int, ...]
    floating: bool
    continuous: bool
    stride: tuple[int, ...] = ()
    offset: int = 0
    readers: int = 0
    nested: bool = False


@dataclass(slots=True)
class Call:
    """One execution of a module: its place in the tree of calls and the values that went in and came out."""

    id: int
    name: str
    cls: type
    parent: int
    nth: int
    last: int = -1
    """The last call below it; -1: it never came to its end."""
    inputs: dict[LeafPath, int] = field(default_factory=dict)
    outputs: dict[LeafPath, int] = field(default_factory=dict)
    children: list[int] = field(default_factory=list)
    opaque: bool = False

    def leaves(self, v: int) -> list[LeafPath]:
        """The output leaves that are this value."""
        return [path for path, w in self.outputs.items() if w == v]


@dataclass
class Trace:
    """Everything one forward did. `calls[0]` is the forward itself, `names` the model's inputs by value."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    overwritten: dict[int, int] = field(default_factory=dict)
    """The values in whose memory something else was written, and in which call first."""
    running: list[int] = field(default_factory=lambda: [0])
    """The calls that run now, from the outside inwards."""
    result: Any = None
    output: int | None = None
    out: Any = None
    """What the model's own call gave out, the last time."""
    transformed: bool = False
    """Whether calls were given tensors of `torch.func`, which operations see taken apart."""
    scripted: list[str] = field(default_factory=list)
    """The scripted modules, which take no hooks."""
    drew: bool = False
    """Whether it drew random numbers."""
    functions: set[Any] = field(default_factory=set)
    """Every operation that ran, also those that make no tensor."""

    def add(self, t: Tensor, op: Op | None) -> int:
        """A new value, of this tensor's shape and layout."""
        floating, nested = t.is_floating_point(), t.is_nested
        continuous = floating or t.is_complex()
        if t.layout == torch.strided and not nested:
            value = Value(op, tuple(t.shape), floating, continuous, t.stride(), int(t.storage_offset()))
        else:
            value = Value(op, (t.numel(),) if nested else tuple(t.shape), floating, continuous, nested=nested)
        self.values.append(value)
        return len(self.values) - 1

    def write_down(self, op: Op, ways: int = 1) -> None:
        """Append an operation. Each value that it reads has gained so many ways on."""
        for v in op.reads:
            self.values[v].readers += ways
        self.ops.append(op)

    def parameters(self, call: int) -> int:
        """How many parameters the called module has."""
        return sum(p.numel() for p in self.modules[self.calls[call].name].parameters())

    def ancestors(self, call: int) -> Iterator[int]:
        """The call itself and all around it, outwards."""
        while call >= 0:
            yield call
            call = self.calls[call].parent

    def inside(self, call: int, outer: int) -> bool:
        """Is the call this one or below it? Calls are numbered as they begin, so that all below one follow it."""
        last = self.calls[outer].last
        return outer <= call <= last if last >= 0 else outer in self.ancestors(call)
