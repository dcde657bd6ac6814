"""Which places are like which others: of one kind, doing the same work, items of one list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import nn

from fog_a.finding.parts import Branch
from fog_a.finding.places import Place
from fog_a.finding.trace import Trace

Word = tuple[type | None, frozenset[str]]
"""The kind of a module and of the work it does: a generic wrapper around attention is not one around an MLP."""


class Likeness:
    """Compares the places of one trace."""

    def __init__(self, trace: Trace, owned: Mapping[int, Sequence[Branch]], root: Place) -> None:
        self.calls, self.owned = trace.calls, owned
        lists: dict[tuple[str, Word], set[str]] = defaultdict(set)
        for place in root.all():
            if place.numbered:
                lists[place.list_name, self.word(place)].add(place.name)
        self.repeated = {word for (_, word), names in lists.items() if len(names) > 1}
        """Words that stand twice in one list."""

    def word(self, place: Place) -> Word:
        kind, branches, below = None, place.added, [p.call for p in place.below if p.call]
        if place.call is not None:
            me, branches = self.calls[place.call], self.owned.get(place.call, ())
            kind, below = me.kind, me.children
        makers = {c for b in branches for p in b.parts for c in p.makers}
        return kind, frozenset(map(self.content, makers or below))

    def content(self, call: int) -> str:
        """The kind of a module; of a plain sequence, the kinds in it; of what calls one module only, that one's."""
        me = self.calls[call]
        if me.kind is nn.Sequential:
            return f"{me.kind.__qualname__}({'+'.join(self.calls[c].kind.__qualname__ for c in me.children)})"
        inner = self.content(me.children[0]) if len(me.children) == 1 else ""
        return f"{me.kind.__qualname__}({inner})" if inner else me.kind.__qualname__

    def work(self, branches: Sequence[Branch]) -> tuple[str, ...]:
        """What the modules of these branches do."""
        return tuple(self.content(p.reader) for b in branches for p in b.parts)
