"""Which of the branches that a call adds itself make up one layer: those of one list item, or of one period."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from math import gcd

from fog_a.finding.likeness import Likeness, item, pattern, period
from fog_a.finding.parts import Branch, Layer, in_order
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
            streams = [b for b in loose if self._is_stream(b)]
            groups += [[b for b in streams if b.parts == parts] for parts in dict.fromkeys(b.parts for b in streams)]
        kinds = Counter(map(self._kinds, groups))
        lists = Counter(pattern(self._name(g)) for g in groups)
        return [
            self._layer(g)
            for g in groups
            if len({b.parts for b in g}) > 1 or kinds[self._kinds(g)] > 1 or lists[pattern(self._name(g))] > 1
        ]

    def by_item(self, call: int, layers: Sequence[Layer], units: Sequence[Layer]) -> list[Layer]:
        """The layers below a call in order of execution, `units` those that are calls. A unit in the list item whose
        other parts `call` adds is a part of that layer. What has an item to itself is called by it: `layers.0`, not
        `layers.0.mlp`."""
        rows: dict[str, list[Layer]] = defaultdict(list)
        for x in sorted([*layers, *self._sublayers(call, units)], key=lambda x: x.start):
            rows[x.name or self.calls[x.call or 0].name].append(x)
        for name, row in list(rows.items()):
            home = item(name, self.calls[call].name) or name
            whole = rows.get(home, []) if home != name else []
            if whole and len(whole) == len(row) and all(y.call is None for y in whole) and all(map(_closable, row)):
                rows[home] = [_joined(y, x) for y, x in zip(whole, rows.pop(name), strict=True)]
            elif len(row) == 1 and row[0].call is None and any(c.name == name for c in self.calls):
                alone = not any(n.startswith(f"{home}.") for n in rows.keys() - {name}) and not whole
                rows[name] = [replace(row[0], name=home)] if alone else row
        return sorted((x for row in rows.values() for x in row), key=lambda x: x.start)

    def _sublayers(self, call: int, units: Sequence[Layer]) -> list[Layer]:
        """Items that hold several residual modules of one generic class with different content are one layer each."""
        by_call = {x.call: x for x in units if x.call is not None}
        out: list[Layer] = []
        for home, calls in self.like.homes(call, by_call).items():
            group, row = [by_call[c] for c in calls], self.like.row(calls)
            if len({self.calls[c].kind for c in calls}) == 1 and len(set(row)) > 1:
                out.append(Layer(None, tuple(b for x in group for b in x.branches), group[0].start, home))
            else:
                out += group
        return out

    def _layer(self, group: Group) -> Layer:
        start = min(self.calls[p.call].start for b in group for p in b.parts)
        return Layer(None, tuple(group), start, self._name(group))

    def _by_item(self, call: int, branches: Sequence[Branch]) -> tuple[list[Group], Group]:
        """Those of each execution of a list item, and those outside any list."""
        visits: list[Group] = []
        loose: Group = []
        last: dict[str, tuple[str, Group]] = {}
        for b in sorted(branches, key=lambda b: b.update.order):
            home = item(self.calls[b.parts[0].reader].name, self.calls[call].name)
            if home is None:
                loose.append(b)
                continue
            before, visit = last.get(pattern(home), ("", []))
            if before != home:
                visits.append(visit := [])
                last[pattern(home)] = home, visit
            visit.append(b)
        return [group for visit in visits for group in self._executions(visit)], loose

    def _executions(self, visit: Group) -> list[Group]:
        """One group for each time that an item runs, in a row without another item of its list: of modules that are
        called 6, 6 and 3 times, 2, 2 and 1 calls are a group."""
        calls = sorted({b.parts[0].reader for b in visit})
        names = [self.calls[c].name for c in calls]
        times, groups = Counter(names), defaultdict[int, Group](list)
        for b in visit:
            i = calls.index(b.parts[0].reader)
            groups[names[:i].count(names[i]) * gcd(*times.values()) // times[names[i]]].append(b)
        return list(groups.values())

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


def _closable(unit: Layer) -> bool:
    return unit.call is not None and all(b.parts for b in unit.branches)


def _joined(x: Layer, y: Layer) -> Layer:
    return replace(x, branches=in_order(x.branches + y.branches), start=min(x.start, y.start))
