"""Where updates are added: a tree of the module calls and of the list items that are none.

An update lies in all calls around it. Where its parts lie in an item of a list (`layers.3.attn`, `layers.3.ff`) that is
no call, as the parent of a stack adds them (Voicebox), the tree holds a place for each run of that item, too. So what a
layer is can be asked alike of both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fog_a.finding.parts import Branch, in_order
from fog_a.finding.trace import Trace

Step = tuple[str, int | None]
"""A place on the way to an update: its name and its call, None for an item that is none."""
Way = tuple[list[Step], Branch]


@dataclass(eq=False)
class Place:
    """A module call, or (call None) one run of a list item that is none.

    Attributes:
        added: the updates added here, but for those of a place below.
        below: the places in it, in order of execution.
    """

    name: str
    call: int | None
    added: list[Branch] = field(default_factory=list)
    below: list[Place] = field(default_factory=list)

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

    def all(self) -> list[Place]:
        return [self, *(p for q in self.below for p in q.all())]


def grow(trace: Trace, branches: Sequence[Branch], busy: Collection[int]) -> Place:
    """The tree of places of these updates. `busy`: calls that hold updates."""
    return _grow(trace, Place("", 0), [(_steps(trace, b, busy), b) for b in branches])


def _steps(trace: Trace, b: Branch, busy: Collection[int]) -> list[Step]:
    """The calls around an update, and the items on the way to them and to the module that does the work of its first
    part, or to that part where the module holds updates itself."""
    around = [c for c in trace.ancestors(b.update.owner) if trace.calls[c].name][::-1]
    steps: list[Step] = []
    for call in [*around, *(p.call if p.reader in busy else p.reader for p in b.parts[:1])]:
        name = trace.calls[call].name
        home = item(name, steps[-1][0] if steps else "")
        if home is not None and (home != name or call not in around):
            steps.append((home, None))
        if call in around:
            steps.append((name, call))
    return steps


def _grow(trace: Trace, place: Place, ways: Sequence[Way]) -> Place:
    runs: list[tuple[Step, list[Way]]] = []
    last: dict[int | str, tuple[Step, list[Way]]] = {}
    for steps, b in ways:
        if not steps:
            place.added.append(b)
            continue
        step, *rest = steps
        name, call = step
        key = pattern(name) if call is None else call
        if key not in last or last[key][0] != step:
            last[key] = step, []
            runs.append(last[key])
        last[key][1].append((rest, b))
    for (name, call), run in runs:
        for ways in _runs(trace, run) if call is None else [run]:
            place.below.append(_grow(trace, Place(name, call), ways))
    return place


def _runs(trace: Trace, visit: Sequence[Way]) -> list[list[Way]]:
    """One group for each time that an item runs, in a row without another item of its list."""
    workers = [b.parts[0].reader if b.parts else b.update.owner for _, b in visit]
    calls = sorted(set(workers))
    length = period([trace.calls[c].name for c in calls])
    runs: dict[int, list[Way]] = defaultdict(list)
    for way, worker in zip(visit, workers, strict=True):
        runs[calls.index(worker) // length].append(way)
    return list(runs.values())


# ---- names


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
