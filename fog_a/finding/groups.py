"""Which of the updates that a call adds itself make up one layer: those of one list item, or of one period."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import takewhile

from fog_a.finding.parts import Branch, Layer, Part, in_order
from fog_a.finding.paths import Flow, Update
from fog_a.finding.places import Place, content, pattern, period

Group = tuple[Place | None, Layer]
"""A layer that a parent adds, and the list item that it is all in."""


class Groups:
    """Groups the updates that one call adds."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.calls = flow.trace.calls

    def of(self, place: Place, steps: Collection[Branch]) -> list[Group]:
        """These updates of a call by item, or by what gives them; single ones only if another like them is added."""
        groups: list[Group] = []
        for p in place.items:
            groups += [(p, self._layer(strand)) for strand in self._strands([b for b in p.added if b in steps])]
        if all(len(x.branches) == 1 for _, x in groups):
            groups = self._periods(self._parallel(groups))
        loose = [b for b in place.added if b in steps and self._is_stream(b)]
        for parts in dict.fromkeys(b.parts for b in loose):
            groups.append((None, self._layer([b for b in loose if b.parts == parts])))
        work = Counter(self._work(x) for _, x in groups)
        lists = Counter(pattern(x.name) for _, x in groups)
        return [
            (p, x)
            for p, x in groups
            if len({b.parts for b in x.branches}) > 1 or work[self._work(x)] > 1 or lists[pattern(x.name)] > 1
        ]

    def in_item(self, place: Place, added: Sequence[Layer], units: Sequence[Layer]) -> list[Layer]:
        """The layers of a list item, of what is added to it and what is residual by itself: one, where several parts
        are added, or where its units are of one generic class with different content. What has an item to itself is
        called by it: `layers.0`, not `layers.0.mlp`."""
        if len(added) == 1 and len(added[0].branches) > 1:
            return [_joined([*added, *units], added[0].name)]
        if len(added) == 1 and not units and all(self._is_in(place, p) for p in added[0].parts):
            return [replace(added[0], name=place.name)]
        words = {p.word for p in place.below}
        if not added and len(place.below) == len(units) and len(words) > 1 == len({cls for cls, _ in words}):
            return [_joined(units, place.name)]
        return [*added, *units]

    def _is_in(self, place: Place, p: Part) -> bool:
        return f"{self.calls[p.reader].name}.".startswith(f"{place.name}.")

    def _work(self, layer: Layer) -> tuple[str, ...]:
        """What the modules of its branches do."""
        return tuple(content(self.flow.trace, p.reader) for p in layer.parts)

    def _layer(self, branches: Sequence[Branch]) -> Layer:
        return Layer(None, tuple(branches), self._name(branches))

    def _is_stream(self, b: Branch) -> bool:
        """Of one module's sums in a loop: is this the stream that is given out, rather than a recurrence's state?"""
        outs = self.calls[b.update.owner].outputs.values()
        given_out = any(self.flow.on_way(v, b.update.sum) for v in outs)
        return given_out or self.flow.trace.times[self.calls[b.parts[0].reader].name] == 1

    def _strands(self, branches: Sequence[Branch]) -> list[list[Branch]]:
        """The updates of one list item by stream: each continues the one whose sum is on its trunk, or became a stream
        of the same shape by a linear map."""
        strands: list[list[Branch]] = []
        for b in branches:
            home = next((s for s in strands if self._continues(s[-1].update, b.update)), None)
            if home is None:
                strands.append([b])
            else:
                home.append(b)
        apart = all(len(s) > 1 for s in strands) and len(set(map(self._name, strands))) == len(strands)
        return strands if apart else [list(branches)]

    def _continues(self, u: Update, later: Update) -> bool:
        same = self.flow.trace.values[u.sum].shape == self.flow.trace.values[later.sum].shape
        way = self.flow.bypass if same else self.flow.trunk
        return bool(way[later.stream] & self.flow.forks[u.sum])

    def _parallel(self, groups: list[Group]) -> list[Group]:
        """What items of several lists make of one value, and the parent adds in one sum, is a layer."""
        joined: list[Group] = []
        for home, x in groups:
            last, u = joined[-1][1].branches if joined else (), x.branches[0].update
            lists = {pattern(self._name([b])) for b in (*last, *x.branches)}
            if last and last[-1].update.sum == u.stream and last[-1].update.fork == u.fork and len(lists) > len(last):
                joined[-1] = (None, self._layer([*last, *x.branches]))
            else:
                joined.append((home, x))
        return joined

    def _periods(self, groups: list[Group]) -> list[Group]:
        """Where each item holds one update: those of one period are a layer (attention, feed-forward)."""
        n, p = len(groups), period([self._work(x) for _, x in groups])
        if p in (1, n):
            return groups
        return [(None, self._layer([b for _, x in groups[i : i + p] for b in x.branches])) for i in range(0, n, p)]

    def _name(self, branches: Sequence[Branch]) -> str:
        """The list item that all their modules lie in; without one, all their names."""
        names = list(dict.fromkeys(self.calls[p.reader].name for b in branches for p in b.parts))
        if len(names) == 1:
            return names[0]
        keys = zip(*(name.split(".") for name in names), strict=False)
        common = [key[0] for key in takewhile(lambda key: len(set(key)) == 1, keys)]
        return ".".join(common) if common and common[-1][-1].isdigit() else "+".join(names)


def _joined(layers: Sequence[Layer], name: str) -> Layer:
    return Layer(None, in_order(b for x in layers for b in x.branches), name)
