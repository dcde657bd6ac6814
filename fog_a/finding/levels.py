"""Which calls are layers: the outermost repeated residual units, those one counts when one says "layer 8".

From the top down: a call that adds updates itself is a layer, unless it is the parent of a stack, which adds the
branches of one list item after the other (Voicebox); those additions are grouped by item. A call that only contains
layers is a stack or a stage (go in) or, where its like is repeated and its parts are of different kinds, a layer made
of sub-layers (T5: attention, feed-forward).
"""

from __future__ import annotations

from collections.abc import Sequence

from fog_a.finding.groups import Groups
from fog_a.finding.likeness import Likeness, item, numbered, pattern
from fog_a.finding.parts import Branch, Layer, in_order, parts
from fog_a.finding.passages import chain, through
from fog_a.finding.paths import Flow, Update
from fog_a.finding.sides import Asides


class Levels:
    """Chooses the layers of one analysed trace."""

    def __init__(self, flow: Flow, owned: dict[int, list[Update]]) -> None:
        self.flow = flow
        self.calls = flow.trace.calls
        self.owned = {c: [Branch(u, tuple(parts(flow, u) or ())) for u in updates] for c, updates in owned.items()}
        self.busy = {a for c in owned for a in flow.trace.ancestors(c)}
        self.like = Likeness(flow, self.owned, self.busy)
        self.groups = Groups(flow, self.like)
        self.streams = [u for updates in owned.values() for u in updates]
        self.asides = Asides(flow, owned, self.busy)
        self._below: dict[int, list[Layer]] = {}
        self._is_layer: dict[int, bool] = {}

    # ---- the walk from the top

    def layers(self, call: int = 0) -> list[Layer]:
        """The layers below a call that is none itself, in order of execution."""
        if call not in self._below:
            self._below[call] = self._layers(call)
        return self._below[call]

    def _layers(self, call: int) -> list[Layer]:
        layers = self._added(call, lone=True)
        taken = {name for layer in layers for b in layer.branches for name in self._modules(b)}
        singles: list[Layer] = []
        for child in self.calls[call].children:
            if child not in self.busy or self.calls[child].name in taken:
                continue
            if self._is_linked(child):
                own = Layer(None, tuple(self.owned[child]), self.calls[child].start, self.calls[child].name)
                layers += [own, *self.layers(child)]
            elif self.is_layer(child):
                singles.append(Layer(child, self.inner(child), self.calls[child].start))
            else:
                layers += self.layers(child)
        return self.groups.by_item(call, layers, singles)

    def inner(self, call: int) -> tuple[Branch, ...]:
        """The branches on the way through a call, also those that calls inside it own; its own ones even where the
        stream then goes through a linear map."""
        own = [b.update for b in self.owned.get(call, [])]
        on_way = {id(u) for u in (*chain(self.flow, call), *(u for u in own if not self._within(u, own)))}
        inside = (c for c in self.owned if self.flow.trace.inside(c, call))
        branches = [b for c in inside for b in self.owned[c] if id(b.update) in on_way]
        return in_order(branches)

    def _within(self, u: Update, others: list[Update]) -> bool:
        """Is this a residual inside the branch of another?"""
        return any(o.fork < u.sum and self.flow.any[o.branch] & self.flow.forks[u.sum] for o in others if o is not u)

    # ---- is this call a layer?

    def is_layer(self, call: int) -> bool:
        """Is this call one residual unit, rather than a stack of them or a part of one? Its twins are as it is."""
        if call not in self._is_layer:
            twins = self.like.twins(call) or [call]
            self._is_layer |= dict.fromkeys(twins, any(map(self._judge, twins)))
        return self._is_layer[call]

    def _judge(self, call: int) -> bool:
        """A call without a name is none. Else it depends on who adds: the call, its only child, or several children."""
        kids = [c for c in self.calls[call].children if c in self.busy]
        if not self.calls[call].name:
            return False
        if self.owned.get(call):
            stack = self._adds_a_stack(call) or self._is_network(call)
            return not stack and (self.like.adders[self.calls[call].kind] > 1 or self._is_a_lone_unit(call))
        if len(kids) < 2:
            return any(self._wraps(call, k) for k in kids)
        return not self._holds_a_stack(call, kids) and self._is_made_of(call, kids)

    def _adds_a_stack(self, call: int) -> bool:
        """Does it add the branches of one list item after the other, as the parent of a stack (Voicebox)?"""
        groups = self._added(call)
        readers = {p.reader for group in groups for b in group.branches for p in b.parts}
        several = len(groups) > 1 or self.like.of_items(call, readers)
        return several and not self._has_lists_of_parts(call, groups)

    def _has_lists_of_parts(self, call: int, groups: Sequence[Layer]) -> bool:
        """Is it one of several in a list, whose own lists hold parts rather than layers: they add one update an item to
        what it gives out (HiFi-GAN's dilations), or it adds more than what they do?"""
        listed = len({self.calls[c].name for c in self.like.twins(call)}) > 1
        more, on_way = len(self.owned[call]) > sum(len(g.branches) for g in groups), set(chain(self.flow, call))
        return listed and (more or all(len(g.branches) == 1 and g.branches[0].update in on_way for g in groups))

    def _is_a_lone_unit(self, call: int) -> bool:
        """Without its like: does a stream pass through it (a U-Net's middle), and does it hold no stack?"""
        return not self.like.holds_list(call) and bool(through(self.flow, call))

    def _wraps(self, call: int, kid: int) -> bool:
        """Is it a list item that does nothing to the stream but call its one layer: `layers.3`, not
        `layers.3.sequential`?"""
        unnumbered = len(self.like.twins(call)) > 1 and not numbered(self.calls[kid], self.calls[call])
        return unnumbered and self.is_layer(kid) and bool(through(self.flow, call))

    def _holds_a_stack(self, call: int, kids: list[int]) -> bool:
        """Are its children layers of one kind, or items of a list that repeat, of several lists, or of an item that is
        no module?"""
        me = self.calls[call]
        signatures = {self.like.signature(self.calls[k]) for k in kids if numbered(self.calls[k], me)}
        repeats = bool(signatures & self.like.repeated) and not self.like.sequence(kids)
        several = len(self.like.lists(call, kids)) > 1
        return repeats or several or self.like.of_items(call, kids)

    def _is_made_of(self, call: int, kids: list[int]) -> bool:
        """Is it an item of a list, or does its kind run again, and are its children sub-layers of it: parts of one
        branch each, not blocks of several; all on one way through the call, not levels of a U-Net?"""
        me = self.calls[call]
        repeated = me.name[-1].isdigit() or sum(self.calls[c].kind is me.kind for c in self.busy) > 1
        return repeated and all(len(self.inner(k)) < 2 for k in kids) and len(self.inner(call)) >= len(kids)

    def _is_network(self, call: int) -> bool:
        """Is this residual as a whole, but a network or a stage of one rather than a layer? It holds layers, and
        steps through them several times, or lies in its own kind or holds it, or its layers stand elsewhere, too."""
        if self._is_nested(call) or self._steps(call):
            return len(self.layers(call)) > 1
        like = [call, *self._of_its_kind(call)]  # judged as it is
        return any(len(self.layers(c)) > 1 for c in like) and self._has_layers_elsewhere(call)

    def _steps(self, call: int) -> bool:
        """Does it add what one and the same network of layers gives several times?"""
        readers = {p.reader for b in self.owned[call] for p in b.parts if len(self.layers(p.reader)) > 1}
        return len({self.calls[c].name for c in readers}) < len(readers)

    def _is_linked(self, call: int) -> bool:
        """Does it add updates, and then run another of its kind on their stream: the first of a linked list?"""
        own = [b.update for b in self.owned.get(call, [])]
        rest = (c for c in self._of_its_kind(call) if own and self.flow.trace.inside(c, call))
        return any(not self._within(b.update, own) for c in rest for b in self.owned[c])

    def _is_nested(self, call: int) -> bool:
        inside = self.flow.trace.inside
        return any(inside(c, call) or inside(call, c) for c in self._of_its_kind(call))

    def _of_its_kind(self, call: int) -> list[int]:
        return [c for c in self.owned if self.calls[c].kind is self.calls[call].kind and c != call]

    def _has_layers_elsewhere(self, call: int) -> bool:
        """Are there layers like those in it outside all calls of its kind, and outside what adds updates itself?"""
        held = {self.like.signature(self.calls[x.call]) for x in self.layers(call) if x.call is not None}
        units = {c.id for c in self.calls if c.kind is self.calls[call].kind} | {
            c for c in self.owned if self.calls[c].name
        }
        above = {c: set(self.flow.trace.ancestors(c)) - {c} for c in self.owned}
        return any(self.like.signature(self.calls[c]) in held for c in self.owned if units.isdisjoint(above[c]))

    # ---- additions in a parent

    def _added(self, call: int, lone: bool = False) -> list[Layer]:
        """The layers whose branches `call` adds itself (see `Groups.layers`): no long skips, except what comes from the
        same list as a step (WaveNet's last layer)."""
        mine = self.owned.get(call, [])
        branches = [b for b in mine if b.parts and not self.asides.is_aside(b)]
        steps = [b for b in branches if not self._is_long(b)]
        lists = {name for b in steps for name in self._lists(b)}
        return self.groups.layers(call, [b for b in branches if b in steps or lists & self._lists(b)], lone)

    def _lists(self, b: Branch) -> set[str]:
        names = (self.calls[p.call].name for p in b.parts)
        return {pattern(name) for name in names if name[-1].isdigit()}

    def is_long(self, u: Update) -> bool:
        """Is this update a long skip, in the call that owns it, or around a whole network?"""
        inside = (o for o in self.flow.updates if self.flow.any[u.branch] & self.flow.forks[o.sum])
        whole = any(not self.flow.any[u.stream] & self.flow.forks[o.sum] for o in inside)
        return whole or any(self._is_long(b) for b in self.owned[u.owner] if b.update is u)

    def _is_long(self, b: Branch) -> bool:
        """Is the branch around a layer that its own parts do not make (a U-Net's, whose stream was scaled down by a
        convolution), or around a whole network (`x + dt * net(x, t)`)?"""
        u, flow = b.update, self.flow
        lone = len(b.parts) == 1 and b.parts[0].call in self.busy
        if lone and len(self.layers(b.parts[0].call)) > 1:
            return True
        bit, modules = flow.forks[u.fork], self._modules(b)
        return any(
            flow.any[o.stream] & bit
            and flow.any[u.branch] & flow.forks[o.sum]
            and flow.last[flow.forks[o.sum]] <= u.sum
            and modules.isdisjoint(self.calls[c].name for c in flow.trace.ancestors(o.op.call))
            for o in self.streams
        )

    def _modules(self, b: Branch) -> set[str]:
        """The names of the modules that give a branch, and of those in their list item that do its work."""
        calls = [(self.calls[p.call].name, self.calls[p.reader].name) for p in b.parts]
        return {name for pair in calls for name in pair if item(name, "") == item(pair[0], "")}
