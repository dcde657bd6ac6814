"""Fan-out: one forward for all variants, as further rows of the batch.

The batch is repeated once per variant at the velocity network's own entrance, [clean, 1, 2, …, V], after noise and time
were drawn. A gated call runs on the rows that differ by then, the clean ones and the variants whose block came before;
then the batch is put together again: the variant whose block this is gets the clean input (its gate is closed), those
still to come the clean output. At the exit the velocities are taken, and the clean rows go on. With L blocks that is
again L(L+1)/2 block evaluations, in one forward: the best where launches, not arithmetic, take the time.

On a CPU a block is called on a tile of the rows at a time, as many as fit its cache: the same rows, 1.4 times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fog_a.attributing.axes import Axis
from fog_a.attributing.layout import Layout
from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, hooked, named_modules, tree
from fog_a.blocks.gate import carried, check_acted, mixed
from fog_a.blocks.tree import LeafPath, leaf, replaced
from fog_a.flows.case import Case


@dataclass(frozen=True)
class Variant:
    """One block at one gate value."""

    block: ResidualBlock
    value: float
    start: int
    """When its first gate is reached: from then on its rows are no longer the clean ones."""


@dataclass(frozen=True)
class Plan:
    """What happens to the rows at one gated call; row 0 is the clean batch, row i variant i."""

    tiles: list[list[int]]
    """The rows that the call is run on, a tile at a time."""
    mine: list[int]
    """Those whose gate this is."""
    started: list[int]
    """Those that differ from the clean ones."""
    order: list[Rows]
    """All rows, in order, as pieces of what ran."""


@dataclass
class Rows:
    """Rows that stand side by side in one tile's output: `start` to `stop`, as often as `times`; of variant `gated`,
    whose gate acts on them, or of none."""

    tile: int
    start: int
    stop: int
    times: int = 1
    gated: int | None = None


class FanOut:
    """Several variants in one forward."""

    def __init__(
        self, case: Case, blocks: Blocks, layout: Layout, chunk: Sequence[Variant], tile: int | None = None
    ) -> None:
        self.case = case
        self.layout = layout
        self.samples = layout.samples
        self.variants = sorted(chunk, key=lambda v: v.start)
        shut = case.closed or ()
        self.calls = gate_points([*blocks, *shut])
        self.modules = named_modules(case.module)
        self.closed = {(s.module, s.call): b for b in shut for s in b.gate_points}
        owner = {(s.module, s.call): b.name for b in (*blocks, *shut) for s in b.gate_points}
        self.plans = {key: self._plan(key, owner[key], tile) for key in self.calls}
        self._inputs: dict[int, dict[LeafPath, Tensor]] = {}
        self._rest: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._resting = False
        self._found: Tensor | None = None
        self._fired = [0] * len(self.variants)

    def run(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The clean velocity, and each variant's."""
        with (
            hooked(self.case.module, before=self._enter, after=self._leave),
            at_calls(self.modules, self.calls, self._before, self._after, lambda: self._resting),
        ):
            self.case.run(closing=False)
        assert self._found is not None and self.layout.velocity is not None
        axis, n = self.layout.exit[self.layout.velocity], self.samples
        found = self._found if self.layout.sign > 0 else -self._found
        v = [axis.rows(found, i * n, (i + 1) * n).clone() for i in range(len(self.variants) + 1)]
        for variant, times in zip(self.variants, self._fired, strict=True):
            check_acted(variant.block, times)
        return v[0], {w.block.name: v[i + 1] for i, w in enumerate(self.variants)}

    # ---- the network's own entrance and exit

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = tree(args, kwargs)
        times = len(self.variants) + 1
        given = replaced(given, {p: _repeated(leaf(given, p), axis, times) for p, axis in self.layout.entrance.items()})
        return given["args"], given["kwargs"]

    def _leave(self, args: Any, kwargs: Any, out: Any) -> Any:
        self._found = leaf(out, self.layout.velocity or ())
        return replaced(out, {p: a.rows(leaf(out, p), 0, self.samples) for p, a in self.layout.exit.items()})

    # ---- a gated call

    def _plan(self, key: Key, owner: str, tile: int | None) -> Plan:
        """Runs are the variants that differ from the clean rows by then, but for a closed branch: it gives zeros."""
        point = self.calls[key]
        zeros = set(point.give) == set(self.layout.returned[key]) and all(p is None for p in point.give.values())
        started = [i for i, w in enumerate(self.variants, start=1) if w.start < point.order]
        if key in self.closed:  # in every row: where nothing is left of what it gives, the clean rows tell its shape
            mine = list(range(len(self.variants) + 1))
            whole = set(point.give) == set(self.layout.returned[key])
            hidden = whole and all(p is None or p.index is None for p in point.give.values())
            ran = [0] if hidden else [0, *started]
        else:
            mine = [i for i, w in enumerate(self.variants, start=1) if w.block.name == owner]
            ran = [0, *(i for i in started if not (zeros and i in mine and self.variants[i - 1].value == 0))]
        size = len(ran) if tile is None else max(tile // max(point.elements, 1), 1)
        tiles = [ran[i : i + size] for i in range(0, len(ran), size)]
        return Plan(tiles, mine, started, self._order(tiles, set(mine)))

    def _order(self, tiles: list[list[int]], mine: set[int]) -> list[Rows]:
        """Where each row comes from; what did not run is the clean rows, 0."""
        place = {row: (t, j) for t, rows in enumerate(tiles) for j, row in enumerate(rows)}
        order: list[Rows] = []
        for row in range(len(self.variants) + 1):
            t, j = place.get(row, (0, 0))
            last = order[-1] if order and order[-1].gated is None and row not in mine else None
            if last is not None and (last.tile, last.stop) == (t, j) and last.times == 1:
                last.stop += 1
            elif last is not None and row not in place and (last.tile, last.start, last.stop) == (0, 0, 1) and row > 1:
                last.times += 1
            else:
                order.append(Rows(t, j, j + 1, gated=row if row in mine else None))
        return order

    def _before(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan, axes, n = self.plans[key], self.layout.given[key], self.samples
        whole = tree(args, kwargs)
        paths = {p for passage in self.calls[key].give.values() if passage is not None for p in passage.sources}
        for i in plan.mine if paths else ():
            row = i if i in plan.started else 0  # clean, unless another gate of the same block came before
            self._inputs[i] = {
                p: (axes[p].rows(leaf(whole, p), row * n, (row + 1) * n) if p in axes else leaf(whole, p)).clone()
                for p in paths
            }
        tiles = [
            replaced(whole, {p: self._chosen(leaf(whole, p), axis, rows) for p, axis in axes.items()})
            for rows in plan.tiles
        ]
        self._rest = [(t["args"], t["kwargs"]) for t in tiles[1:]]
        return tiles[0]["args"], tiles[0]["kwargs"]

    def _chosen(self, x: Tensor, axis: Axis, rows: list[int]) -> Tensor:
        """These variants' rows (0: clean) of a full batch; neighbors are taken in one piece."""
        n = self.samples
        if rows[-1] - rows[0] == len(rows) - 1:
            return axis.rows(x, rows[0] * n, (rows[-1] + 1) * n)
        return axis.join([axis.rows(x, i * n, (i + 1) * n) for i in rows])

    def _after(self, key: Key, args: Any, kwargs: Any, out: Any) -> Any:
        plan, outs = self.plans[key], [out]
        rest, self._rest, self._resting = self._rest, [], True
        try:
            outs += [self.modules[key[0]](*more, **named) for more, named in rest]
        finally:
            self._resting = False
        for i in plan.mine if key not in self.closed else ():
            self._fired[i - 1] += 1
        new = {
            path: self._together(self.calls[key], plan, path, axis, [leaf(y, path) for y in outs])
            for path, axis in self.layout.returned[key].items()
        }
        self._inputs.clear()
        return replaced(out, new)

    def _together(self, point: GatePoint, plan: Plan, path: LeafPath, axis: Axis, ys: list[Tensor]) -> Tensor:
        """The full batch of one output leaf: what ran, what is closed here, and copies of the clean rows."""
        n, pieces = self.samples, list[Tensor]()
        for rows in plan.order:
            y = axis.rows(ys[rows.tile], rows.start * n, rows.stop * n)
            if rows.gated is not None and path in point.give:
                pieces.append(self._closed(point, path, y, rows.gated))
            else:
                pieces += [y] * rows.times
        return axis.join(pieces)

    def _closed(self, point: GatePoint, path: LeafPath, y: Tensor, row: int) -> Tensor:
        """One variant's rows with its gate at its value."""
        passage, shut = point.give[path], self.closed.get((point.module, point.call))
        block, value = (shut, 0.0) if shut else (self.variants[row - 1].block, self.variants[row - 1].value)
        closed = torch.zeros_like(y) if passage is None else carried(self._inputs[row], passage, y, block)
        return mixed(y, closed, value)


def _repeated(x: Tensor, axis: Axis, times: int) -> Tensor:
    return axis.join([x] * times)


def fanout(
    case: Case, blocks: Blocks, layout: Layout, value: float, chunk: int, tile: int | None = None
) -> Iterator[Tensor]:
    """The base velocity first, then each block's with its gate at `value`; at most `chunk` variants in a forward, and
    in one call of a block as many as have `tile` elements."""
    todo = [Variant(b, value, min(s.order for s in b.gate_points)) for b in blocks]
    ablated: dict[str, Tensor] = {}
    base = None
    for i in range(0, len(todo), chunk):
        run = FanOut(case, blocks, layout, todo[i : i + chunk], tile)
        clean, velocities = run.run()
        ablated.update(velocities)
        base = clean if base is None else base
    assert base is not None
    yield base
    for b in blocks:
        yield ablated[b.name]
