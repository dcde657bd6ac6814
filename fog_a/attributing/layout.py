"""Where the samples are: which tensors at a call scale with the batch, and along which axis. Measured, not guessed.

The velocity network is run on all B samples and on fewer (one, or the batch twice over), cut at its own entrance; an
axis that changed in proportion is a batch axis, also a folded one (batch × heads). The rows of the smaller run must
equal the base's: if they do not, samples talk to each other and ablations cannot share a forward.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fog_a.attributing.footprint import Footprint
from fog_a.blocks.block import Blocks, GatePoint
from fog_a.blocks.calls import Key, at_calls, gate_points, hooked, named_modules, tree
from fog_a.blocks.tree import LeafPath, leaf, leaves, replaced
from fog_a.blocks.untouched import rng_state
from fog_a.flows.case import Case

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""How far a row may be from the same row in another batch, relative to its norm: larger matmuls round otherwise."""


Place = tuple[Key, str, LeafPath]
"""A tensor at a gated call, going "in" or "out"."""


class Axis(NamedTuple):
    """The batch axis of a tensor, and how many of its rows belong to one sample: side by side (batch × heads), or
    `outer`, one in each of `fold` batches laid end to end (guidance)."""

    dim: int
    fold: int
    outer: bool = False

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The rows of samples start..stop."""
        if not self.outer:
            return x.narrow(self.dim, start * self.fold, (stop - start) * self.fold)
        return self._apart(x).narrow(self.dim + 1, start, stop - start).flatten(self.dim, self.dim + 1)

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """Several batches of samples as one."""
        if len(pieces) == 1:
            return pieces[0]
        if not self.outer:
            return torch.cat(list(pieces), self.dim)
        return torch.cat([self._apart(x) for x in pieces], self.dim + 1).flatten(self.dim, self.dim + 1)

    def _apart(self, x: Tensor) -> Tensor:
        return x.unflatten(self.dim, (self.fold, -1))


@dataclass
class Layout:
    """The batch axes at the entrance and at every gated call of one model, for one shape of its batch."""

    samples: int
    entrance: dict[LeafPath, Axis] = field(default_factory=dict)
    exit: dict[LeafPath, Axis] = field(default_factory=dict)
    velocity: LeafPath | None = None
    given: dict[Key, dict[LeafPath, Axis]] = field(default_factory=dict)
    returned: dict[Key, dict[LeafPath, Axis]] = field(default_factory=dict)
    elements: int = 0
    """Of the largest output of a gated call, for the batch as it is."""
    inside: int = 0
    """Bytes that a plain forward needs at most: what each further batch adds in a call."""
    between: int = 0
    """Bytes that each further batch adds between calls: it stands there twice while its pieces are put together."""
    problem: str | None = None
    noise: float = 0.0
    """How far the clean rows of a fan-out are from a plain run, relative to its norm."""
    verified: set[Hashable] = field(default_factory=set)
    """The cases, with their clean rows, of which ablations were compared with the definition."""


@dataclass
class _Seen:
    """What one run showed."""

    v: Tensor | None = None
    entrance: list[tuple[LeafPath, Tensor]] = field(default_factory=list)
    out: Any = None
    entered: int = 0
    shapes: dict[Place, tuple[int, ...]] = field(default_factory=dict)
    values: dict[Place, Tensor] = field(default_factory=dict)
    times: Counter[Key] = field(default_factory=Counter)
    drew: bool = False
    nested: bool = False
    bytes: int = 0
    between: int = 0


_TALK = "its samples depend on each other"


_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Layout]] = weakref.WeakKeyDictionary()
_REMEMBERED = 16
"""Layouts of one model that are kept: those of the cases seen last."""


def layout_of(case: Case, blocks: Blocks) -> tuple[Layout, Tensor | None]:
    """The layout of this case, and the base velocity where it was measured just now.

    It is remembered by what it was measured on: the blocks, how the model is run, the shapes and types of its batch.
    """
    table = _LAYOUTS.setdefault(case.module, {})
    key = (blocks.names, case.key)
    if key in table and table[key].problem is None:
        return table[key], None
    layout, base = measure(case, blocks)
    table[key] = layout
    while len(table) > _REMEMBERED:
        del table[next(iter(table))]
    return layout, base


def forget(module: nn.Module) -> None:
    """Forget what was remembered of a model: the next call pays as the first one did."""
    _LAYOUTS.pop(module, None)


def measure(case: Case, blocks: Blocks) -> tuple[Layout, Tensor]:
    """The layout for this case's batch, and the base velocity that was seen on the way."""
    calls = gate_points(blocks)
    base = _run(case, calls, None, None)
    assert base.v is not None
    layout = Layout(samples=len(base.v))
    if base.drew:
        names = case.draws(blocks)
        layout.problem = f"the model draws random numbers in eval mode (in {names[0] if names else 'its own forward'})"
    elif base.nested:
        layout.problem = "its padded samples are packed into nested tensors, which have no rows"
    elif any(times != 1 for times in base.times.values()):
        layout.problem = "its blocks run another number of times than when they were found"
    elif base.entered != 1:
        layout.problem = f"its velocity network runs {base.entered} times in a forward"
    else:
        _fill(layout, case, calls, base)
    return layout, base.v


def _fill(layout: Layout, case: Case, calls: Mapping[Key, GatePoint], base: _Seen) -> None:
    n, v = layout.samples, base.v
    assert v is not None
    candidates = [p for p, x in base.entrance if x.ndim and x.shape[0] == n]
    found = [(p, x) for p, x in leaves(base.out) if x.is_floating_point()]
    velocity = [p for p, x in found if x.shape == v.shape and torch.equal(x, v)]
    velocity_at, reasons = velocity[0] if velocity else None, list[str]()
    for fewer in (1, 2 * n) if n > 1 else (2,):
        for chosen in [candidates, *([p for p in candidates if p != left] for left in candidates)]:
            try:
                small = _run(case, calls, {p: fewer for p in chosen}, base)
                problem = _compare(layout, base, small, fewer, calls)
                problem = problem or _unfold(layout, case, calls, base, {p: fewer for p in chosen}, fewer)
            except Exception as error:  # the model does not take this cut: another one may do
                reasons.append(f"{type(error).__name__}: {error}")
                continue
            if problem is None:
                layout.entrance = {p: Axis(0, 1) for p in chosen}
                layout.velocity = velocity_at
                if velocity_at is None:
                    layout.problem = "the velocity is not what the network itself gives out"
                layout.elements = max((s.elements for s in calls.values()), default=0)
                layout.inside, layout.between = base.bytes, base.between + 2 * layout.elements * v.element_size()
                return
            reasons.append(problem)
        if _TALK in reasons:  # twice the same samples may have the statistics of the batch, and hide it
            break
    reasons = [r for r in reasons if r == _TALK] or reasons
    layout.problem = reasons[0] if reasons else "no tensor at its entrance has the batch as first axis"


def _unfold(
    layout: Layout, case: Case, calls: Mapping[Key, GatePoint], base: _Seen, rows: Mapping[LeafPath, int], fewer: int
) -> str | None:
    """Where several rows belong to a sample, see by their values whether they lie side by side or batches apart."""
    tables = {"in": layout.given, "out": layout.returned}
    places = {
        (key, side, p) for side, table in tables.items() for key in table for p, a in table[key].items() if a.fold > 1
    }
    if not places:
        return None
    whole, small = _run(case, calls, None, base, places), _run(case, calls, rows, base, places)
    for place in places:
        key, side, path = place
        x, y, n = whole.values[place], small.values[place], min(layout.samples, fewer)
        axis = tables[side][key][path]
        for guess in (axis, axis._replace(outer=True)):
            if alike(guess.rows(x, 0, n), guess.rows(y, 0, n)):
                tables[side][key][path] = guess
                break
        else:
            return f"the rows of a sample at {key[0]} are neither side by side nor batches apart"
    return None


def _compare(layout: Layout, base: _Seen, small: _Seen, fewer: int, calls: Mapping[Key, GatePoint]) -> str | None:
    """Fill in the axes from two runs, or say why they cannot be."""
    n = layout.samples
    layout.exit.clear()
    outs = dict(leaves(base.out))
    for path, x in leaves(small.out):
        if path not in outs or not x.is_floating_point():
            continue
        axis = _axis(outs[path].shape, x.shape, n, fewer)
        if axis is None:
            continue
        layout.exit[path] = axis
        rows = min(n, fewer)
        if not alike(axis.rows(x, 0, rows), axis.rows(outs[path], 0, rows)):
            return _TALK
    if small.times != base.times:
        return "its blocks run once for each sample"
    if not layout.exit:
        return "its output does not scale with the batch"
    for key in calls:
        for side, table in (("in", layout.given), ("out", layout.returned)):
            table[key] = {}
            for (k, s, path), shape in base.shapes.items():
                if k == key and s == side and (key, side, path) in small.shapes:
                    axis = _axis(shape, small.shapes[key, side, path], n, fewer)
                    if axis is not None:
                        table[key][path] = axis
                    elif shape != small.shapes[key, side, path]:
                        return f"the tensors at {key[0]} do not scale with the batch along one axis"
    return None


def _axis(shape: Any, other: Any, n: int, m: int) -> Axis | None:
    """The one axis whose size went from a multiple of n to the same multiple of m."""
    if len(shape) != len(other):
        return None
    changed = [d for d, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    if len(changed) != 1:
        return None
    d = changed[0]
    fold, rest = divmod(shape[d], n)
    return Axis(d, fold) if rest == 0 and fold * m == other[d] else None


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of matmuls of another size."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    limit = TOLERANCE.get(a.dtype, 1e-4)
    a, b = a.double(), b.double()
    return bool((a - b).norm() <= limit * b.norm() + 1e-12)


def cut(path_rows: Mapping[LeafPath, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The entrance's arguments with as many rows as asked for: the first ones, or all of them over again."""
    given = tree(args, kwargs)
    new = {}
    for path, rows in path_rows.items():
        x = leaf(given, path)
        new[path] = x[:rows] if rows <= len(x) else torch.cat([x] * -(-rows // len(x)))[:rows]
    given = replaced(given, new)
    return given["args"], given["kwargs"]


def _run(
    case: Case,
    calls: Mapping[Key, GatePoint],
    rows: Mapping[LeafPath, int] | None,
    base: _Seen | None,
    places: Collection[Place] = (),
) -> _Seen:
    """One run that notes shapes at the calls, and values at `places`; with `rows`, on that many, while the caller gets
    the base's output."""
    seen = _Seen()
    states: list[Any] = []

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.entered += 1
        if rows is not None:
            args, kwargs = cut(rows, args, kwargs)
        seen.entrance = list(leaves(tree(args, kwargs)))
        states.append(rng_state())
        return args, kwargs

    def leave(args: Any, kwargs: Any, out: Any) -> Any:
        seen.drew = seen.drew or states.pop() != rng_state()
        # a copy: a model that writes into its batch gives the batch out, which the next run restores
        seen.out = replaced(out, {path: x.clone() for path, x in leaves(out)})
        return None if base is None else base.out

    def note(key: Key, side: str, what: Any) -> None:
        for path, x in leaves(what):
            if x.is_nested:
                seen.nested = True
                continue
            seen.shapes[key, side, path] = tuple(x.shape)
            if (key, side, path) in places:
                seen.values[key, side, path] = x.clone()

    def before(key: Key, args: Any, kwargs: Any) -> None:
        seen.times[key] += 1
        used.within = True
        note(key, "in", tree(args, kwargs))

    def after(key: Key, args: Any, kwargs: Any, out: Any) -> None:
        used.within = False
        note(key, "out", out)

    used = Footprint()
    with contextlib.ExitStack() as stack:
        if base is None:
            stack.enter_context(used)
        stack.enter_context(hooked(case.module, before=enter, after=leave))
        stack.enter_context(at_calls(named_modules(case.module), calls, before, after))
        seen.v = case.run().clone()
    seen.bytes, seen.between = used.peak, used.outside
    return seen
