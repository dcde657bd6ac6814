"""Which calls are layers: the outermost repeated residual units, those one counts when one says "layer 8".

From the top down, over the tree of places: an item of a list, or a call that adds updates itself, is a layer, unless it
is a stage, which holds a list that repeats, or a network as a whole. What a call adds to the parts of list items that
are no calls (Voicebox) is grouped by item.
"""

from __future__ import annotations

from collections import Counter

from fog_a.finding.groups import Groups
from fog_a.finding.parts import Branch, Layer, in_order, parts
from fog_a.finding.passages import chain, through
from fog_a.finding.paths import Flow, Update
from fog_a.finding.places import Place, grow, item, pattern, period
from fog_a.finding.sides import Asides


class Levels:
    """Chooses the layers of one analysed trace."""

    def __init__(self, flow: Flow, owned: dict[int, list[Update]]) -> None:
        self.flow, self.trace, self.calls = flow, flow.trace, flow.trace.calls
        self.owned = {c: [Branch(u, parts(flow, u)) for u in updates] for c, updates in owned.items()}
        self.updates = [u for updates in owned.values() for u in updates]
        busy = {a for c in owned for a in self.trace.ancestors(c)}
        asides = Asides(flow, owned, busy)
        root = grow(self.trace, in_order(b for bs in self.owned.values() for b in bs if not asides.is_aside(b)), busy)
        self.places = {p.call: p for p in root.all() if p.call is not None}
        self.groups = Groups(flow)
        items = {(p.list_name, p.word, p.name) for p in root.all() if p.numbered}
        times = Counter((list_name, word) for list_name, word, _ in items)
        self.repeated = {word for (_, word), n in times.items() if n > 1}
        """Words that stand twice in one list."""
        self._layers_in: dict[int, list[Layer]] = {}

    # ---- the walk from the top

    def layers(self, call: int = 0) -> list[Layer]:
        """The layers below a call that is none itself, in order of execution."""
        if call not in self._layers_in:
            self._layers_in[call] = self._layers(self.places[call]) if call in self.places else []
        return self._layers_in[call]

    def _layers(self, place: Place) -> list[Layer]:
        groups = self.groups.of(place, self._steps(place))
        taken = {name for _, x in groups for b in x.branches for name in self._modules(b)}
        layers = [x for home, x in groups if home is None]
        for p in place.below:
            if p.call is not None:
                layers += self._units(p.call, taken)
            else:
                units = [x for q in p.below if q.call is not None for x in self._units(q.call, taken)]
                layers += self.groups.in_item(p, [x for home, x in groups if home is p], units)
        return sorted(layers, key=lambda x: x.first)

    def _units(self, call: int, taken: set[str]) -> list[Layer]:
        """The layers that a call is or holds, where it is no part of a layer that was taken."""
        me = self.calls[call]
        if me.name in taken:
            return []
        if self._is_linked(call):
            return [Layer(None, tuple(self.owned[call]), me.name), *self.layers(call)]
        return [Layer(call, self.inner(call))] if self._is_layer(call) else self.layers(call)

    def inner(self, call: int) -> tuple[Branch, ...]:
        """The branches on the way through a call, also those that calls inside it own; its own ones even where the
        stream then goes through a linear map."""
        own = [b.update for b in self.owned.get(call, [])]
        on_way = {id(u) for u in (*chain(self.flow, call), *(u for u in own if not self._within(u, own)))}
        inside = (c for c in self.owned if self.trace.inside(c, call))
        return in_order(b for c in inside for b in self.owned[c] if id(b.update) in on_way)

    def _within(self, u: Update, others: list[Update]) -> bool:
        """Is this a residual inside the branch of another?"""
        return any(self.flow.in_branch(u, o) for o in others)

    # ---- is this call a layer?

    def _is_layer(self, call: int) -> bool:
        """Is this call one residual unit, rather than a stack of them or a part of one?"""
        place, cls, adds = self.places[call], self.calls[call].cls, call in self.owned
        if self._is_stage(call) or (adds and self._is_network(call)):
            return False
        again = len({p.name for c, p in self.places.items() if self.calls[c].cls is cls}) > 1 or self._picks(call)
        if adds:
            return again or self._is_lone_unit(call)
        return (again or place.numbered) and self._is_made_of(call, self._kids(place))

    def _is_lone_unit(self, call: int) -> bool:
        """Without its like: does a stream pass through it (a U-Net's middle), and does it hold no stack?"""
        below = (p.word for p in self.places[call].all()[1:])
        return self.repeated.isdisjoint(below) and bool(through(self.flow, call))

    def _is_made_of(self, call: int, kids: list[Place]) -> bool:
        """Are its children sub-layers of it: none adds to a stream twice, as a block of several does; all on one way
        through the call, not levels of a U-Net?"""
        if len(kids) < 2:
            return bool(through(self.flow, call))
        single = all(k.call is not None and not self._adds_in_a_row(k.call) for k in kids)
        return single and len(self.inner(call)) >= len(kids)

    def _adds_in_a_row(self, call: int) -> bool:
        updates = [b.update for b in self.inner(call)]
        return any(self.flow.on_way(later.stream, u.sum) for u in updates for later in updates)

    def _is_stage(self, call: int) -> bool:
        """Does it hold a list that repeats, several lists, or a single item? A list of what one generic class does to
        different modules (a conformer's feed-forward, attention, convolution) is a layer's; so are lists of parts in an
        item, or the like of one, that adds more itself, or one update for each of them to what it gives out (HiFi-GAN's
        dilations)."""
        place = self.places[call]
        kids = self._kids(place)
        words, lists = [p.word for p in kids], {p.list_name for p in kids if p.numbered}
        items = [p for p in kids if p.call is None]
        by_itself = any(b.parts for b in place.added) or (items and self._gives_out(call, items))
        if not lists or self._picks(call) or (by_itself and any(p.in_list for p in self._likes(place))):
            return False
        if len(kids) > 1 and len({cls for cls, _ in words}) == 1 and period(words) == len(words):
            return False
        return len(kids) == 1 or len(lists) > 1 or bool(items) or not self.repeated.isdisjoint(words)

    def _picks(self, call: int) -> bool:
        """Does it run with one item of its lists, and again with another (FNO's `blocks(x, i)`)?"""
        runs = [self._kids(p) for p in self.places.values() if p.name == self.calls[call].name]
        return all(len(kids) == 1 for kids in runs) and len({kids[0].name for kids in runs}) > 1

    def _likes(self, place: Place) -> list[Place]:
        return [p for p in self.places.values() if p.word == place.word]

    def _gives_out(self, call: int, items: list[Place]) -> bool:
        """Does each item add one update to what the call gives out?"""
        on_way = set(map(id, chain(self.flow, call)))
        return all(len(p.branches) == 1 and id(p.branches[0].update) in on_way for p in items)

    def _kids(self, place: Place) -> list[Place]:
        """The items and units in a place, seen through containers, without what lies in a branch of its own."""
        added = [b.update for b in place.added]
        below = [p for p in place.below if not all(self._within(b.update, added) for b in p.branches)]
        units = [p for p in below if p.numbered or p.added or len(self.owned.get(p.call or 0, ())) == 1]
        return [kid for p in below for kid in ([p] if p in units else self._kids(p))]

    def _is_network(self, call: int) -> bool:
        """Is this residual as a whole, but a network or a stage of one rather than a layer? It holds layers, and
        steps through them several times, or lies in its own kind or holds it, or its layers stand elsewhere, too."""
        inside, like = self.trace.inside, self._of_its_kind(call)
        nested = any(inside(c, call) or inside(call, c) for c in like)
        if nested or self._runs_twice(call):
            return len(self.layers(call)) > 1
        return any(len(self.layers(c)) > 1 for c in (call, *like)) and self._has_layers_elsewhere(call)

    def _runs_twice(self, call: int) -> bool:
        """Does it add what one and the same network of layers gives several times?"""
        readers = {p.reader for b in self.owned[call] for p in b.parts if len(self.layers(p.reader)) > 1}
        return len({self.calls[c].name for c in readers}) < len(readers)

    def _is_linked(self, call: int) -> bool:
        """Does it add updates, and then run another of its kind on their stream: the first of a linked list?"""
        own = [b.update for b in self.owned.get(call, [])]
        rest = (c for c in self._of_its_kind(call) if own and self.trace.inside(c, call))
        return any(not self._within(b.update, own) for c in rest for b in self.owned[c])

    def _of_its_kind(self, call: int) -> list[int]:
        return [c for c in self.owned if self.calls[c].cls is self.calls[call].cls and c != call]

    def _has_layers_elsewhere(self, call: int) -> bool:
        """Are there layers like those in it outside all calls of its kind, and outside what adds updates itself?"""
        held = {self.places[x.call].word for x in self.layers(call) if x.call is not None}
        units = {*self._of_its_kind(call), call, *(c for c in self.owned if self.calls[c].name)}
        return any(
            place.word in held and units.isdisjoint({*self.trace.ancestors(c)} - {c})
            for c, place in self.places.items()
            if c in self.owned
        )

    # ---- long skips

    def _steps(self, place: Place) -> list[Branch]:
        """What a call adds: no long skips, no heads, but what comes from the list of a step (WaveNet's last layer)."""
        added = [b for p in (place, *place.items) for b in p.added if b.parts]
        steps = [b for b in added if not self._is_long(b) and not self.is_head(b)]
        lists = {name for b in steps for name in self._lists(b)}
        return [b for b in added if b in steps or lists & self._lists(b)]

    def _lists(self, b: Branch) -> set[str]:
        names = (self.calls[p.call].name for p in b.parts)
        return {pattern(name) for name in names if name[-1].isdigit()}

    def _is_long(self, b: Branch) -> bool:
        """Is the branch around a layer that its own parts do not make (a U-Net's, whose stream was scaled down by a
        convolution), or around a whole network (`x + dt * net(x, t)`)?"""
        u, flow = b.update, self.flow
        whole = not all(self.calls[p.reader].name for p in b.parts)  # the model, as `forward=` calls it in each step
        if whole or (len(b.parts) == 1 and len(self.layers(b.parts[0].call)) > 1):
            return True
        bit, modules = flow.forks[u.fork], self._modules(b)
        return any(
            flow.any[o.stream] & bit
            and flow.any[u.branch] & flow.forks[o.sum]
            and flow.last[flow.forks[o.sum]] <= u.sum
            and modules.isdisjoint(self.calls[c].name for c in flow.trace.ancestors(o.op.call))
            for o in self.updates
        )

    def is_head(self, b: Branch) -> bool:
        """Does a module read a layer's output for a total that no other update of its owner reads (an output pyramid)?
        A skip that is made with a layer's update is none, nor is a network of layers."""
        bit, flow, beside = self.flow.forks[b.update.sum], self.flow, self.owned[b.update.owner]
        read = any(flow.any[o.update.branch] & bit for o in beside)
        if b.update.sum not in flow.coupled or read or any(self.layers(p.call) for p in b.parts):
            return False
        others = (o for own in self.owned.values() for o in own if o.update.sum not in flow.coupled)
        makers = {m for o in others for p in o.parts for m in p.makers}
        return makers.isdisjoint(m for p in b.parts for m in p.makers)

    def _modules(self, b: Branch) -> set[str]:
        """The names of the modules that give a branch, and of those in their list item that do its work."""
        calls = [(self.calls[p.call].name, self.calls[p.reader].name) for p in b.parts]
        return {name for pair in calls for name in pair if item(name, "") == item(pair[0], "")}
