"""Which calls are like which others: of one kind, doing the same work, items of one list.

Lists are seen in names (`layers.3.attn` lies in `layers.3`), never in what the names say.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from fog_a.finding.parts import Branch
from fog_a.finding.paths import Flow
from fog_a.finding.trace import Call


def pattern(name: str) -> str:
    """A dotted path with its numbers left out: what the items of one list have in common."""
    return ".".join("*" if key.isdigit() else re.sub(r"\d+$", "*", key) for key in name.split("."))


def item(name: str, parent: str) -> str | None:
    """The list item, directly below `parent`, that `name` lies in: `layers.3` for `layers.3.attn`."""
    rest = name[len(parent) + 1 :] if parent and name.startswith(parent + ".") else name
    keys = rest.split(".")
    for i, key in enumerate(keys):
        if key.isdigit() or (re.search(r"\d$", key) and i < len(keys) - 1):
            head = ".".join(keys[: i + 1])
            return f"{parent}.{head}" if parent and rest != name else head
    return None


def numbered(call: Call, parent: Call) -> bool:
    """Is it an item of a list, seen from the call it lies in?"""
    return re.search(r"\d", call.name[len(parent.name) :]) is not None


def period(row: Sequence[object]) -> int:
    """After how many items a row begins anew: its length where it does not."""
    n = len(row)
    return next((p for p in range(1, n) if n % p == 0 and all(row[i] == row[i % p] for i in range(n))), n)


class Likeness:
    """Compares the calls of one trace that hold updates (`busy`)."""

    def __init__(self, flow: Flow, owned: Mapping[int, Sequence[Branch]], busy: set[int]) -> None:
        self.flow, self.calls, self.owned, self.busy = flow, flow.trace.calls, owned, busy
        self._places: dict[tuple[str, type], list[int]] = defaultdict(list)
        for call in self.calls[1:]:
            if call.id in busy:
                self._places[pattern(call.name), call.kind].append(call.id)
        self.adders = Counter(kind for kind, _ in {(self.calls[c].kind, self.calls[c].name) for c in owned})
        self.repeated = self._repeated()

    def twins(self, call: int) -> list[int]:
        """The calls of its kind, at its place in a list, that call what it calls."""
        me = self.calls[call]
        return [c for c in self._places[pattern(me.name), me.kind] if self._inside(c) == self._inside(call)]

    def _inside(self, call: int) -> list[str]:
        start = len(self.calls[call].name)
        return [self.calls[k].name[start:] for k in self.calls[call].children if k in self.busy]

    def _repeated(self) -> set[object]:
        """Signatures seen at two places of one list."""
        places: dict[tuple[str, object], set[str]] = defaultdict(set)
        for call in self.calls[1:]:
            if call.id in self.busy and (match := re.match(r"(.*?)\d+$", call.name)):
                places[match[1], self.signature(call)].add(call.name)
        return {sign for (_, sign), found in places.items() if len(found) > 1}

    def signature(self, call: Call) -> object:
        """The kind of a module and of the work it does: a generic wrapper around attention is not one around an MLP."""
        makers = {c for b in self.owned.get(call.id, []) for p in b.parts for c in p.makers}
        return call.kind, frozenset(map(self.content, makers or call.children))

    def work(self, call: Call) -> frozenset[str]:
        work = {p.reader for b in self.owned.get(call.id, []) for p in b.parts} or set(call.children)
        return frozenset(self.content(c) for c in work)

    def content(self, call: int) -> str:
        """The kind of a module; of a plain sequence, the kinds in it; of what calls one module only, that one's."""
        me = self.calls[call]
        if me.kind is nn.Sequential:
            return f"{me.kind.__qualname__}({'+'.join(self.calls[c].kind.__qualname__ for c in me.children)})"
        inner = self.content(me.children[0]) if len(me.children) == 1 else ""
        return f"{me.kind.__qualname__}({inner})" if inner else me.kind.__qualname__

    def sequence(self, kids: list[int]) -> bool:
        """Are these one generic wrapper around different work, in an order that does not repeat (feed-forward,
        attention, convolution, feed-forward)?"""
        row = self.row(kids)
        return len({self.calls[k].kind for k in kids}) == 1 and period(row) == len(row)

    def of_items(self, call: int, parts: Iterable[int]) -> bool:
        """Do several of these share a list item that is no module with a forward? Then the call runs a stack, if only
        of one layer. A list of its own whose name ends in a number (`convs2`) is no such item."""
        names = {c.name for c in self.calls}
        homes = {home: len(calls) for home, calls in self.homes(call, parts).items() if home not in names}
        keys = {home: home.removeprefix(f"{self.calls[call].name}.") for home, n in homes.items() if n > 1}
        return any(key.isdigit() or "." in key for key in keys.values())

    def holds_list(self, call: int) -> bool:
        """Are there like layers in a list inside this call?"""
        below = [c for c in self.busy if c != call and self.flow.trace.inside(c, call)]
        return any(self.signature(self.calls[c]) in self.repeated for c in below)

    def lists(self, call: int, kids: list[int]) -> set[str]:
        homes = [item(self.calls[k].name, self.calls[call].name) for k in kids]
        return {re.sub(r"\d+$", "", home) for home in homes if home is not None}

    def homes(self, call: int, kids: Iterable[int]) -> dict[str, list[int]]:
        """Calls made by `call`, by the list item they lie in."""
        homes: dict[str, list[int]] = defaultdict(list)
        for k in kids:
            name = self.calls[k].name
            homes[item(name, self.calls[call].name) or name].append(k)
        return homes

    def row(self, calls: list[int]) -> tuple[object, ...]:
        return tuple(self.signature(self.calls[c]) for c in calls)
