"""Fan-out: one forward for all variants, as further rows of the batch.

The batch is repeated once per variant at the velocity network's own entrance, [clean, 1, 2, …, V], after noise and time
were drawn. A gated call runs on the rows that differ by then, the clean ones and the variants whose block came before;
then the batch is put together again: the variant whose block this is gets the clean input (its gate is closed), those
still to come the clean output. At the exit the velocities are taken, and the clean rows go on. With L blocks that is
again L(L+1)/2 block evaluations, in one forward: the best where launches, not arithmetic, take the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fog_a.attributing.layout import Layout, gain_of
from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, hooked, named_modules, tree
from fog_a.blocks.gate import carried, check_acted, mixed
from fog_a.blocks.tree import LeafPath, leaf, replaced
from fog_a.flows.case import Case


@dataclass(frozen=True)
class Plan:
    """What happens at one gated call: the batches that it is run on (0 is the clean one, i variant i), and those on
    which a gate acts, with the block that it closes and its value. All others get what the clean one gives."""

    runs: list[int]
    gated: dict[int, tuple[ResidualBlock, float]]


class FanOut:
    """Several variants in one forward: each of `chunk` with its gate at `value`."""

    def __init__(self, case: Case, blocks: Blocks, layout: Layout, chunk: Blocks, value: float) -> None:
        self.case, self.layout, self.n = case, layout, layout.samples
        self.start = {b.name: min(p.order for p in b.gate_points) for b in chunk}
        self.chunk = sorted(chunk, key=lambda b: self.start[b.name])
        shut = case.closed or ()
        self.calls = gate_points([*blocks, *shut])
        owners = {(p.module, p.call): b for b in (*blocks, *shut) for p in b.gate_points}
        closed = {b.name for b in shut}
        self.plans = {
            key: self._all_closed(key, owner) if owner.name in closed else self._plan(key, owner, value)
            for key, owner in owners.items()
        }
        self._inputs: dict[int, dict[LeafPath, Tensor]] = {}
        self._velocities: list[Tensor] = []

    def run(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The clean velocity, and each variant's."""
        with (
            hooked(self.case.module, before=self._enter, after=self._leave),
            at_calls(named_modules(self.case.module), self.calls, self._before, self._after),
        ):
            v = self.case.run(closing=False)
        p, *ablated = self._velocities
        if not self.layout.sign:
            gain = gain_of(self.case, v)
            assert gain is not None
            ablated = [v + gain * (p_k - p) for p_k in ablated]
        return v, {block.name: v_k for block, v_k in zip(self.chunk, ablated, strict=True)}

    # ---- the network's own entrance and exit

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.fired = {block.name: 0 for block in self.chunk}
        arguments, times = tree(args, kwargs), len(self.chunk) + 1
        repeated = {p: axis.join([leaf(arguments, p)] * times) for p, axis in self.layout.entrance.items()}
        arguments = replaced(arguments, repeated)
        return arguments["args"], arguments["kwargs"]

    def _leave(self, args: Any, kwargs: Any, out: Any) -> Any:
        path = self.layout.velocity or ()
        for block in self.chunk:
            check_acted(block, self.fired[block.name])
        batches = self.layout.exit[path].split(leaf(out, path), self.n)
        self._velocities = [-v if self.layout.sign < 0 else v.clone() for v in batches]
        return replaced(out, {p: axis.rows(leaf(out, p), 0, self.n) for p, axis in self.layout.exit.items()})

    # ---- a gated call

    def _plan(self, key: Key, owner: ResidualBlock, value: float) -> Plan:
        """It runs on the variants that differ from the clean batch by then, but for a closed branch: it gives zeros."""
        point = self.calls[key]
        zeros = value == 0 and self._replaced(key) and all(source is None for source in point.give.values())
        mine = {i: (owner, value) for i, b in enumerate(self.chunk, start=1) if b.name == owner.name}
        return Plan([0, *(i for i in self._started(point) if not (zeros and i in mine))], mine)

    def _all_closed(self, key: Key, owner: ResidualBlock) -> Plan:
        """A block that is closed throughout. Of what is hidden altogether, the clean batch tells the shape."""
        point = self.calls[key]
        hidden = self._replaced(key) and all(source is None or source.index is None for source in point.give.values())
        gated = dict.fromkeys(range(len(self.chunk) + 1), (owner, 0.0))
        return Plan([0] if hidden else [0, *self._started(point)], gated)

    def _started(self, point: GatePoint) -> list[int]:
        """The variants whose first gate came before."""
        return [i for i, b in enumerate(self.chunk, start=1) if self.start[b.name] < point.order]

    def _replaced(self, key: Key) -> bool:
        """Whether a closed gate replaces all that the call gives."""
        return set(self.calls[key].give) == set(self.layout.returned[key])

    def _before(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan, axes, whole = self.plans[key], self.layout.given[key], tree(args, kwargs)
        paths = {p for source in self.calls[key].give.values() if source is not None for p in source.sources}
        started = self._started(self.calls[key])
        for i in plan.gated if paths else ():
            at = [i if i in started else 0]  # what came before may have treated rows by their number
            rows = {p: axes[p].pick(leaf(whole, p), at, self.n) if p in axes else leaf(whole, p) for p in paths}
            self._inputs[i] = {p: x.clone() for p, x in rows.items()}
        few = replaced(whole, {p: axis.pick(leaf(whole, p), plan.runs, self.n) for p, axis in axes.items()})
        return few["args"], few["kwargs"]

    def _after(self, key: Key, args: Any, kwargs: Any, out: Any) -> Any:
        plan, point, new = self.plans[key], self.calls[key], {}
        for path, axis in self.layout.returned[key].items():
            ran = dict(zip(plan.runs, axis.split(leaf(out, path), self.n), strict=True))
            every = [ran.get(i, ran[0]) for i in range(len(self.chunk) + 1)]
            for i, (block, value) in plan.gated.items() if path in point.give else ():
                every[i] = self._closed(every[i], point, path, i, block, value)
            new[path] = axis.join(every)
        for block, _ in plan.gated.values():
            if block.name in self.fired:
                self.fired[block.name] += 1
        self._inputs.clear()
        return replaced(out, new)

    def _closed(
        self, y: Tensor, point: GatePoint, path: LeafPath, i: int, block: ResidualBlock, value: float
    ) -> Tensor:
        """One batch, with a gate at its value."""
        source = point.give[path]
        shut = torch.zeros_like(y) if source is None else carried(self._inputs[i], source, y, block)
        return mixed(y, shut, value)


def fanout(case: Case, blocks: Blocks, shared: Blocks, layout: Layout, value: float, size: int) -> Iterator[Tensor]:
    """The base velocity first, then each block's with its gate at `value`; at most `size` variants in a forward. The
    calls of all that are `shared`, these blocks among them, run on the rows that differ."""
    ablated: dict[str, Tensor] = {}
    base = None
    for i in range(0, len(blocks), size):
        v, velocities = FanOut(case, shared, layout, blocks[i : i + size], value).run()
        ablated.update(velocities)
        base = v if base is None else base
    assert base is not None
    yield base
    for b in blocks:
        yield ablated[b.name]
