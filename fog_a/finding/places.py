"""Where updates are added: a tree of the module calls and of the list items that are none.

An update lies in all calls around it. Where its parts lie in an item of a list (`layers.3.attn`, `layers.3.ff`) that is
no call, as the parent of a stack adds them (Voicebox), the tree holds a place for each run of that item, too. So what a
layer is can be asked alike of both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import nn

from fog_a.finding.parts import Branch, in_order
from fog_a.finding.trace import Trace

Word = tuple[type | None, frozenset[str]]
"""The kind of a module and of the work it does: a generic wrapper around attention is not one around an MLP."""


@dataclass(eq=False)
class Place:
    """A module call, or (call None) one run of a list item that is none.

    Attributes:
        added: the updates added here, but for those of a place below.
        below: the places in it, in order of execution.
    """

    trace: Trace
    name: str
    call: int | None
    added: list[Branch] = field(default_factory=list)
    below: list[Place] = field(default_factory=list)
    _last: dict[int | str, Place] = field(default_factory=dict)
    """The calls below, and of each list below the last item."""

    def enter(self, name: str, call: int | None) -> Place:
        """A call in this place, or its item of this name: a new one, if another of its list came between."""
        key = pattern(name) if call is None else call
        if key not in self._last or self._last[key].name != name:
            self._last[key] = Place(self.trace, name, call)
            self.below.append(self._last[key])
        return self._last[key]

    @property
    def numbered(self) -> bool:
        """Is it an item of a list?"""
        return self.name[-1:].isdigit()

    @property
    def list_name(self) -> str:
        """The list that an item is in: its name without the number."""
        return re.sub(r"\d+$", "", self.name)

    @property
    def in_list(self) -> bool:
        """Does it lie in an item of a list, if it is none itself?"""
        return pattern(self.name) != self.name

    @property
    def items(self) -> list[Place]:
        """The items in it that are no calls."""
        return [p for p in self.below if p.call is None]

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All updates in it."""
        return in_order([*self.added, *(b for p in self.below for b in p.branches)])

    @functools.cached_property
    def word(self) -> Word:
        """What it is and does: two places of one word are alike."""
        cls, below = None, [p.call for p in self.below if p.call]
        if self.call is not None:
            cls, below = self.trace.calls[self.call].cls, self.trace.calls[self.call].children
        own = self.added if self.call is None else [b for b in self.branches if b.update.owner == self.call]
        makers = {c for b in own for p in b.parts for c in p.makers}
        return cls, frozenset(content(self.trace, c) for c in makers or below)

    def all(self) -> list[Place]:
        return [self, *(p for q in self.below for p in q.all())]


def grow(trace: Trace, branches: Sequence[Branch], busy: Collection[int]) -> Place:
    """The tree of places of these updates. `busy`: calls that hold updates."""
    root = Place(trace, "", 0)
    for b in branches:
        place = root
        for name, call in _way(trace, b, busy):
            place = place.enter(name, call)
        place.added.append(b)
    for place in root.all():
        place.below = [run for p in place.below for run in ([p] if p.call is not None else _runs(trace, p))]
    return root


def _way(trace: Trace, b: Branch, busy: Collection[int]) -> list[tuple[str, int | None]]:
    """The calls around an update (name and call), and the items (None) on the way to them and to the module that does
    the work of its first part, or to that part where the module holds updates itself."""
    around = [c for c in trace.ancestors(b.update.owner) if trace.calls[c].name][::-1]
    way: list[tuple[str, int | None]] = []
    for call in [*around, *(p.call if p.reader in busy else p.reader for p in b.parts[:1])]:
        name = trace.calls[call].name
        home = item(name, way[-1][0] if way else "")
        if home is not None and (home != name or call not in around):
            way.append((home, None))
        if call in around:
            way.append((name, call))
    return way


def _runs(trace: Trace, visit: Place) -> list[Place]:
    """One place for each time that an item runs, in a row without another item of its list."""
    added, below = [b.parts[0].reader for b in visit.added], [p.call or 0 for p in visit.below]
    calls = sorted({*added, *below})
    length = period([trace.calls[c].name for c in calls])
    runs = [Place(trace, visit.name, None) for _ in range(0, len(calls), length)]
    for call, b in zip(added, visit.added, strict=True):
        runs[calls.index(call) // length].added.append(b)
    for call, p in zip(below, visit.below, strict=True):
        runs[calls.index(call) // length].below.append(p)
    return runs


# ---- names


def content(trace: Trace, call: int) -> str:
    """The class of a module; of a plain sequence, the classes in it; of what calls one module only, that one's."""
    me, name = trace.calls[call], trace.calls[call].cls.__qualname__
    if me.cls is nn.Sequential:
        return f"{name}({'+'.join(trace.calls[c].cls.__qualname__ for c in me.children)})"
    inner = content(trace, me.children[0]) if len(me.children) == 1 else ""
    return f"{name}({inner})" if inner else name


def pattern(name: str) -> str:
    """A dotted path with its numbers left out: what the items of one list have in common."""
    return ".".join("*" if key.isdigit() else re.sub(r"\d+$", "*", key) for key in name.split("."))


def item(name: str, around: str) -> str | None:
    """The outermost list item below `around` that `name` lies in: `layers.3` for `layers.3.attn`, `mid1` for
    `mid1.attn`; not `convs2` for `convs2.0`, which is a list."""
    start = len(around) + 1 if around and name.startswith(f"{around}.") else 0
    keys = name[start:].split(".")
    for i, key in enumerate(keys):
        further = keys[i + 1] if i + 1 < len(keys) else None
        if key.isdigit() or (key[-1:].isdigit() and further is not None and not further.isdigit()):
            return name[:start] + ".".join(keys[: i + 1])
    return None


def period(row: Sequence[object]) -> int:
    """After how many items a row begins anew: its length where it does not."""
    n = len(row)
    return next((p for p in range(1, n) if n % p == 0 and all(row[i] == row[i % p] for i in range(n))), n)
