"""Which calls are layers: the outermost repeated residual units, those one counts when one says "layer 8".

From the top down: a call that adds updates itself is a layer, unless it is the parent of a stack, which adds the
branches of one list item after the other (Voicebox); those additions are grouped by item. A call that only contains
layers is a stack or a stage (go in) or, where its like is repeated and its parts are of different kinds, a layer made
of sub-layers (T5: attention, feed-forward).
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fog_a.blocks.tree import LeafPath
from fog_a.finding.likeness import Likeness, item, numbered, pattern, period
from fog_a.finding.parts import Branch, parts
from fog_a.finding.passages import chain, through
from fog_a.finding.paths import Flow, Update
from fog_a.finding.sides import sides, summed
from fog_a.finding.trace import Call


@dataclass(frozen=True)
class Layer:
    """A call that is one residual unit, or (call None) branches that a parent adds."""

    call: int | None
    branches: tuple[Branch, ...]
    start: int
    name: str = ""


class Levels:
    """Chooses the layers of one analysed trace."""

    def __init__(self, flow: Flow, owned: dict[int, list[Update]]) -> None:
        self.flow = flow
        self.calls = flow.trace.calls
        self.owned = {c: self._branches(updates) for c, updates in owned.items()}
        self.busy = {a for c in owned for a in flow.trace.ancestors(c)}
        self.like = Likeness(flow, self.owned, self.busy)
        self._below: dict[int, list[Layer]] = {}
        self._is_layer: dict[int, bool] = {}

    def _branches(self, updates: list[Update]) -> list[Branch]:
        return [Branch(u, tuple(parts(self.flow, u) or ())) for u in updates]

    # ---- the walk from the top

    def layers(self, call: int = 0) -> list[Layer]:
        """The layers below a call that is none itself, in order of execution."""
        if call not in self._below:
            self._below[call] = self._layers(call)
        return self._below[call]

    def _layers(self, call: int) -> list[Layer]:
        found: list[Layer] = []
        taken: set[int] = set()
        for layer in self._groups(call, lone=True):
            found.append(layer)
            taken |= {p.call for b in layer.branches for p in b.parts}
        singles: list[Layer] = []
        for child in self.calls[call].children:
            if child not in self.busy or child in taken:
                continue
            if self.is_layer(child):
                singles.append(Layer(child, self.inner(child), self.calls[child].start))
            else:
                found += self.layers(child)
        found += self._sublayers(call, singles)
        return sorted(self._contained(call, found), key=lambda layer: layer.start)

    def _contained(self, call: int, found: list[Layer]) -> list[Layer]:
        """A layer that has a list item to itself is called by it: `layers.0`, not `layers.0.mlp`."""
        names = [layer.name or self.calls[layer.call or 0].name for layer in found]
        out = []
        for layer in found:
            lone = layer.call is None and any(c.name == layer.name for c in self.calls)
            home = item(layer.name, self.calls[call].name) if lone else None
            lonely = home is not None and sum(n == home or n.startswith(f"{home}.") for n in names) == 1
            out.append(replace(layer, name=home) if home is not None and lonely else layer)
        return out

    def inner(self, call: int) -> tuple[Branch, ...]:
        """The branches on the way through a call, also those that calls inside it own; its own ones even where the
        stream then goes through a linear map."""
        own = [b.update for b in self.owned.get(call, [])]
        inside = {id(u) for u in (*chain(self.flow, call), *(u for u in own if not self._within(u, own)))}
        found = [
            b
            for branches in self.owned.values()
            for b in branches
            if id(b.update) in inside and self.flow.trace.inside(b.update.owner, call)
        ]
        found = [b for b in found if not self._spans(b.update, [x.update for x in found])] or found
        return tuple(sorted(found, key=lambda b: b.update.order))

    def _spans(self, u: Update, others: list[Update]) -> bool:
        """A long skip: its branch contains other steps of the same trunk, which ends in it."""
        fork = self.flow.forks[u.fork]
        return any(
            o is not u
            and self.flow.trunk[o.stream] & fork
            and self.flow.any[u.branch] & self.flow.forks[o.sum]
            and not self._lives_on(o.sum, u.sum)
            for o in others
        )

    def _skips(self, b: Branch, beside: Sequence[Branch]) -> bool:
        """Is this a long skip, around other layers of the same trunk or (a U-Net's, by addition) of one that ends in
        it?"""
        u, any_of, forks = b.update, self.flow.any, self.flow.forks
        if self._spans(u, [x.update for x in beside]):
            return True
        layers = (x.update for branches in self.owned.values() for x in branches)
        deeper = [o for o in layers if any_of[u.branch] & forks[o.sum] and any_of[o.stream] & forks[u.fork]]
        outside = [o for o in deeper if not any(self.flow.trace.inside(o.op.call, p.call) for p in b.parts)]
        return any(not self._lives_on(o.sum, u.sum) for o in outside)

    def _lives_on(self, v: int, after: int) -> bool:
        """Is the stream with this value still there after another value was made?"""
        bit, later = self.flow.forks[v], range(after + 1, len(self.flow.trunk))
        return any((self.flow.trunk[w] | self.flow.level[w] | self.flow.bypass[w]) & bit for w in later)

    def _aside(self, b: Branch) -> bool:
        """Is this what layers give out beside their stream, for the parent to add to another? Then it is theirs."""
        through_module = not any(p.call in self.busy for p in b.parts)
        if through_module and (b.update.sum, b.update.branch) in self._beside:
            return True
        given = [(p, self._sides(p.call)) for p in b.parts if p.call in self.owned]
        passages = [(p, through(self.flow, p.call)) for p in b.parts if p.call in self.busy]
        aside = any(found and not found.keys() & set(p.leaves) for p, found in passages)
        return aside or any(set(p.leaves) <= set(leaves) for p, leaves in given)

    def _sides(self, call: int) -> list[LeafPath]:
        updates = [b.update for b in self.owned[call]]
        return sides(self.flow, call, through(self.flow, call), updates) if call > 0 else []

    @functools.cached_property
    def _beside(self) -> set[tuple[int, int]]:
        """The sums that what a call gives beside its streams ends in, with what is added there."""
        found: set[tuple[int, int]] = set()
        for call in self.owned:
            outs = self.calls[call].outputs
            for path in self._sides(call):
                found.update(summed(self.flow, outs[path], call))
        return found

    def _within(self, u: Update, others: list[Update]) -> bool:
        """Is this a residual inside the branch of another?"""
        return any(o.fork < u.sum and self.flow.any[o.branch] & self.flow.forks[u.sum] for o in others if o is not u)

    def _holds_layers(self, call: int) -> bool:
        """Is this residual as a whole, but a network or a stage of one rather than a layer? It holds layers, and is the
        same module each time it runs, or lies in its own kind or holds it, or its layers stand elsewhere, too."""
        me, flow = self.calls[call], self.flow
        if call not in self.busy or len(inner := self.layers(call)) < 2:
            return False
        again = {
            c.name for c in self.calls if c.kind is me.kind and c.id in self.busy and not flow.trace.inside(c.id, call)
        }
        if flow.trace.times[me.name] > 1 and not again - {me.name}:
            return True
        owners = [self.calls[c] for c in self.owned]
        nested = (c.id for c in owners if c.kind is me.kind and c.id != call)
        if any(flow.trace.inside(c, call) or flow.trace.inside(call, c) for c in nested):
            return True
        held = {self.like.signature(self.calls[x.call]) for x in inner if x.call is not None}
        units = [c.id for c in self.calls if c.kind is me.kind]
        outside = (c for c in owners if not any(flow.trace.inside(c.id, unit) for unit in units))
        return any(self.like.signature(c) in held for c in outside)

    def is_layer(self, call: int) -> bool:
        if call not in self._is_layer:
            self._is_layer[call] = self._judge(call)
        return self._is_layer[call]

    def _judge(self, call: int) -> bool:
        me = self.calls[call]
        if not me.name:
            return False
        kids = [c for c in me.children if c in self.busy]
        mine = self.owned.get(call, [])
        alike = self.like.alike(me)
        if mine:
            groups = self._groups(call)
            listed = alike and me.name[-1].isdigit()
            apart = len(mine) > sum(len(g.branches) for g in groups)  # it adds more than what lies in its lists
            readers = {p.reader for g in groups for b in g.branches for p in b.parts}
            several = len(groups) > 1 or (len(groups) == 1 and self.like.of_items(call, readers))
            if several and not (listed and (apart or all(len(g.branches) == 1 for g in groups))):
                return False
            if self._holds_layers(call):
                return False
            if alike or self.like.adders[me.kind] > 1:
                return True
            return not self.like.holds_list(call) and bool(through(self.flow, call))
        if len(kids) < 2:
            return alike and any(self._wraps(me, self.calls[k]) for k in kids)
        listed = {self.like.signature(self.calls[k]) for k in kids if numbered(self.calls[k], me)}
        again = bool(listed & self.like.repeated) and not self.like.sequence(kids)
        if self.like.one_kind(kids) or again or len(self.like.lists(call, kids)) > 1 or self.like.of_items(call, kids):
            return False
        alike = alike or me.name[-1].isdigit() or sum(self.calls[c].kind is me.kind for c in self.busy) > 1
        # parts of one branch each, not blocks of several; and on one way through the call, no levels of a U-Net
        return alike and all(len(self.inner(k)) < 2 for k in kids) and len(self.inner(call)) >= len(kids)

    def _wraps(self, me: Call, kid: Call) -> bool:
        """A list item that does nothing to the stream but call its one layer: `layers.3`, not `layers.3.sequential`."""
        return (
            me.name.rpartition(".")[2].isdigit()
            and not numbered(kid, me)
            and self.is_layer(kid.id)
            and bool(through(self.flow, me.id))
        )

    # ---- additions in a parent

    def _groups(self, call: int, lone: bool = False) -> list[Layer]:
        """The branches that `call` adds itself, as layers: by list item, or by the smallest period of their kinds; with
        `lone` also single ones outside any list, if another like them is added."""
        mine = self._steps(
            [b for b in self.owned.get(call, []) if b.parts and not self._aside(b)], self.owned.get(call, [])
        )
        items: dict[tuple[str, int], list[Branch]] = defaultdict(list)
        alone: list[list[Branch]] = []
        for b in sorted(mine, key=lambda b: b.update.order):
            part = self.calls[b.parts[0].reader]
            home = item(part.name, self.calls[call].name)
            if home is not None:
                items[home, part.nth].append(b)
            else:
                alone.append([b])
        if not items and not lone:
            return []
        if any(len(group) > 1 for group in items.values()):
            groups = [strand for group in items.values() for strand in self._strands(group)]
        else:
            groups = self._periods([b for group in items.values() for b in group])
        kinds = Counter(self._kinds(g) for g in (*groups, *alone))
        groups += [g for g in alone if kinds[self._kinds(g)] > 1 and self._kept(*g)] if lone else []
        kinds = Counter(self._kinds(g) for g in groups)
        lists = Counter(pattern(self._name(g)) for g in groups)
        kept = [g for g in groups if len(g) > 1 or kinds[self._kinds(g)] > 1 or lists[pattern(self._name(g))] > 1]
        return [
            Layer(None, tuple(g), min(self.calls[p.call].start for b in g for p in b.parts), self._name(g))
            for g in kept
        ]

    def _steps(self, branches: list[Branch], beside: Sequence[Branch]) -> list[Branch]:
        """Those that are no long skips. What comes from the same list as a step is one (WaveNet's last layer)."""
        steps = [b for b in branches if not self._skips(b, beside) and not self._around(b, beside)]
        lists = {
            pattern(self.calls[p.call].name) for b in steps for p in b.parts if self.calls[p.call].name[-1].isdigit()
        }
        return [b for b in branches if b in steps or lists & {pattern(self.calls[p.call].name) for p in b.parts}]

    def is_long(self, u: Update) -> bool:
        """Is this update a long skip, in the call that owns it, or around a whole network?"""
        beside = self.owned[u.owner]
        me = next(b for b in beside if b.update is u)
        inside = (o for o in self.flow.updates if self.flow.any[u.branch] & self.flow.forks[o.sum])
        whole = any(not self.flow.any[u.stream] & self.flow.forks[o.sum] for o in inside)
        return self._skips(me, beside) or self._around(me, beside) or whole

    def _around(self, b: Branch, beside: Sequence[Branch]) -> bool:
        """Is this around a whole network (`x + dt * net(x, t)`), the only one that is added here?"""
        names = {self.calls[p.call].name for x in beside for p in x.parts}
        return len(names) == 1 and len(b.parts) == 1 and len(self.layers_in(b.parts[0].call)) > 1

    def layers_in(self, call: int) -> list[Layer]:
        return self.layers(call) if call in self.busy else []

    def _kept(self, b: Branch) -> bool:
        """Of one module's sums in a loop: is theirs the stream that is given out, rather than a recurrence's state?"""
        bit, outs = self.flow.forks[b.update.sum], self.calls[b.update.owner].outputs.values()
        given = any((self.flow.passed[v] | self.flow.bypass[v]) & bit for v in outs)
        return given or self.flow.trace.times[self.calls[b.parts[0].reader].name] == 1

    def _kinds(self, group: list[Branch]) -> tuple[str, ...]:
        return tuple(self.like.content(p.reader) for b in group for p in b.parts)

    def _strands(self, group: list[Branch]) -> list[list[Branch]]:
        """The branches of one list item by stream: each continues the one whose sum is on its trunk, or became a
        stream of the same shape by a linear map."""
        strands: list[list[Branch]] = []
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

    def _periods(self, branches: list[Branch]) -> list[list[Branch]]:
        kinds = [self._kinds([b]) for b in branches]
        n, p = len(kinds), period(kinds)
        return [[b] for b in branches] if p == n else [branches[i : i + p] for i in range(0, n, p)]

    def _name(self, group: list[Branch]) -> str:
        names = list(dict.fromkeys(self.calls[p.reader].name for b in group for p in b.parts))
        if len(names) == 1:
            return names[0]
        split = [n.split(".") for n in names]
        common = []
        for keys in zip(*split, strict=False):
            if len(set(keys)) > 1:
                break
            common.append(keys[0])
        name = ".".join(common) if common and re.search(r"\d$", common[-1]) else "+".join(names)
        return name

    def _sublayers(self, call: int, singles: list[Layer]) -> list[Layer]:
        """Items that hold several residual modules of one generic class with different content are one layer each."""
        found = {layer.call: layer for layer in singles if layer.call is not None}
        out: list[Layer] = []
        for home, calls in self.like.homes(call, found).items():
            group, row = [found[c] for c in calls], self.like.row(calls)
            kinds = {self.calls[c].kind for c in calls}
            if len(group) > 1 and len(kinds) == 1 and len(set(row)) > 1 and self.like.rows[row] > 1:
                out.append(Layer(None, tuple(b for x in group for b in x.branches), group[0].start, home))
            else:
                out += group
        return out
