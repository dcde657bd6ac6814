"""Which of the branches that a call adds itself make up one layer: those of one list item, or of one period."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile

from fog_a.finding.likeness import Likeness, item, pattern, period
from fog_a.finding.parts import Branch, Layer
from fog_a.finding.paths import Flow, Update

Group = list[Branch]


class Groups:
    """Groups the branches of one trace."""

    def __init__(self, flow: Flow, like: Likeness) -> None:
        self.flow = flow
        self.calls = flow.trace.calls
        self.like = like

    def layers(self, call: int, branches: Sequence[Branch], lone: bool) -> list[Layer]:
        """The branches that `call` adds, as layers: by list item, or by the smallest period of their kinds. With `lone`
        also single ones outside any list, if another like them is added."""
        items, loose = self._by_item(call, branches)
        if not items and not lone:
            return []
        if any(len(group) > 1 for group in items):
            groups = [strand for group in items for strand in self._strands(group)]
        else:
            groups = self._periods([b for group in items for b in group])
        if lone:
            kinds = Counter(map(self._kinds, (*groups, *loose)))
            groups += [g for g in loose if kinds[self._kinds(g)] > 1 and self._is_stream(*g)]
        kinds = Counter(map(self._kinds, groups))
        lists = Counter(pattern(self._name(g)) for g in groups)
        return [
            self._layer(g)
            for g in groups
            if len(g) > 1 or kinds[self._kinds(g)] > 1 or lists[pattern(self._name(g))] > 1
        ]

    def _layer(self, group: Group) -> Layer:
        start = min(self.calls[p.call].start for b in group for p in b.parts)
        return Layer(None, tuple(group), start, self._name(group))

    def _by_item(self, call: int, branches: Sequence[Branch]) -> tuple[list[Group], list[Group]]:
        """Those of each execution of a list item, and those outside any list, one by one."""
        items: dict[tuple[str, int], Group] = defaultdict(list)
        loose: list[Group] = []
        for b in sorted(branches, key=lambda b: b.update.order):
            part = self.calls[b.parts[0].reader]
            home = item(part.name, self.calls[call].name)
            if home is None:
                loose.append([b])
            else:
                items[home, part.nth].append(b)
        return list(items.values()), loose

    def _is_stream(self, b: Branch) -> bool:
        """Of one module's sums in a loop: is this the stream that is given out, rather than a recurrence's state?"""
        outs = self.calls[b.update.owner].outputs.values()
        given_out = any(self.flow.on_way(v, b.update.sum) for v in outs)
        return given_out or self.flow.trace.times[self.calls[b.parts[0].reader].name] == 1

    def _kinds(self, group: Iterable[Branch]) -> tuple[str, ...]:
        return tuple(self.like.content(p.reader) for b in group for p in b.parts)

    def _strands(self, group: Group) -> list[Group]:
        """The branches of one list item by stream: each continues the one whose sum is on its trunk, or became a
        stream of the same shape by a linear map."""
        strands: list[Group] = []
        for b in group:
            home = next((s for s in strands if self._continues(s[-1].update, b.update)), None)
            if home is None:
                strands.append([b])
            else:
                home.append(b)
        apart = all(len(s) > 1 for s in strands) and len({self._name(s) for s in strands}) == len(strands)
        return strands if apart else [group]

    def _continues(self, u: Update, later: Update) -> bool:
        same = self.flow.trace.values[u.sum].shape == self.flow.trace.values[later.sum].shape
        way = self.flow.bypass if same else self.flow.trunk
        return bool(way[later.stream] & self.flow.forks[u.sum])

    def _periods(self, branches: list[Branch]) -> list[Group]:
        kinds = [self._kinds([b]) for b in branches]
        n, p = len(kinds), period(kinds)
        return [[b] for b in branches] if p == n else [branches[i : i + p] for i in range(0, n, p)]

    def _name(self, group: Group) -> str:
        """The list item that all its modules lie in; without one, all their names."""
        names = list(dict.fromkeys(self.calls[p.reader].name for b in group for p in b.parts))
        if len(names) == 1:
            return names[0]
        keys = zip(*(name.split(".") for name in names), strict=False)
        common = [key[0] for key in takewhile(lambda key: len(set(key)) == 1, keys)]
        return ".".join(common) if common and re.search(r"\d$", common[-1]) else "+".join(names)
