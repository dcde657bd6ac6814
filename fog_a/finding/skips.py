"""Long skips: updates around other layers, which are no layers themselves."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from fog_a.finding.parts import Branch
from fog_a.finding.paths import Flow, Update


class LongSkips:
    """Tells long skips from layers among the updates of one trace.

        h ─┬─────────────────────── + ──→        the outer sum is a long skip: other updates lie between its fork
           └─ + ── + ── + ── conv ──┘            and its branch, and their stream ends in it

    A parallel stream that goes on after the outer sum (cross-attention to a second stream) makes no long skip.
    """

    def __init__(self, flow: Flow, updates: Iterable[Update]) -> None:
        self.flow = flow
        self.updates = list(updates)

    def around(self, u: Update, others: Iterable[Update]) -> bool:
        """Is the update around one of these, which goes on from its very stream?"""
        return any(self._between(u, o, self.flow.trunk) and self._ends_in(o, u) for o in others)

    def is_long(self, b: Branch, beside: Sequence[Branch]) -> bool:
        """Is the branch around another that its owner adds, or around a layer that its own parts do not make (a
        U-Net's, whose stream was scaled down by a convolution)?"""
        u, inside = b.update, self.flow.trace.inside
        deeper = (o for o in self.updates if self._between(u, o, self.flow.any))
        outside = (o for o in deeper if not any(inside(o.op.call, p.call) for p in b.parts))
        return self.around(u, [x.update for x in beside]) or any(self._ends_in(o, u) for o in outside)

    def _between(self, u: Update, o: Update, way: list[int]) -> bool:
        """Does `o` lie between the fork and the branch of `u`? `way` says how its stream comes from that fork."""
        return bool(way[o.stream] & self.flow.forks[u.fork] and self.flow.any[u.branch] & self.flow.forks[o.sum])

    def _ends_in(self, o: Update, u: Update) -> bool:
        """Does the stream that `o` updates end in the sum of `u`?"""
        return self._last[self.flow.forks[o.sum]] <= u.sum

    @functools.cached_property
    def _last(self) -> dict[int, int]:
        """Fork → the last value whose stream goes through it."""
        last: dict[int, int] = {}
        seen = 0
        for v in reversed(range(len(self.flow.trunk))):
            new = (self.flow.trunk[v] | self.flow.level[v] | self.flow.bypass[v]) & ~seen
            seen |= new
            while new:
                last[new & -new] = v
                new &= new - 1
        return last
