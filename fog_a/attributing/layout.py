"""Where the samples are: which tensors at a call scale with the batch, and along which axis. Measured, not guessed.

The velocity network is run on all B samples and on fewer (one, or the batch twice over), cut at its own entrance; an
axis that changed in proportion is a batch axis, also a folded one (batch × heads). The rows of the smaller run must
equal the base's: if they do not, samples talk to each other and ablations cannot share a forward. Nor can they where
the whole batch decides something (`decisions`).
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.attributing.axes import Axis, alike, axis_of
from fog_a.attributing.sighting import Decisions, Footprint, Sighting, look, recall
from fog_a.attributing.steady import SAMPLES_FIRST
from fog_a.blocks.block import Blocks, GatePoint
from fog_a.blocks.calls import Key, gate_points
from fog_a.blocks.tree import LeafPath, leaves
from fog_a.finding.blocks import Discovery
from fog_a.flows.case import Case
from fog_a.flows.convention import sample_times

Table = dict[Key, dict[LeafPath, Axis]]
Cut = dict[LeafPath, int]
"""How many rows of which arguments the network is run on."""

_TALK = "its samples depend on each other"
_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Layout]] = weakref.WeakKeyDictionary()
_REMEMBERED = 16
"""Layouts of one model that are kept: those of the cases seen last."""


@dataclass
class Layout:
    """The batch axes at the entrance and at every gated call of one model, for one shape of its batch."""

    samples: int
    entrance: dict[LeafPath, Axis] = field(default_factory=dict)
    exit: dict[LeafPath, Axis] = field(default_factory=dict)
    velocity: LeafPath | None = None
    sign: int = 1
    """Of the velocity in what is there; 0: it moves by the flow's `gain` for what moves there."""
    given: Table = field(default_factory=dict)
    returned: Table = field(default_factory=dict)
    bytes: int | None = None
    """What each further batch takes beside a plain forward; None until `weigh`."""
    problem: str | None = None
    """Why ablations cannot share a forward; a layout that has one is not used again, but measured anew."""
    noise: float = 0.0
    """How far the clean rows of a fan-out are from a plain run, relative to its norm."""
    verified: set[Hashable] = field(default_factory=set)
    """The cases, with their clean rows, of which ablations were compared with the definition."""


def layout_of(case: Case, blocks: Blocks, discovery: Discovery | None = None) -> tuple[Layout, Tensor | None]:
    """The layout of this case, and the base velocity where it was measured just now.

    It is remembered by what it was measured on: the blocks, how the model is run, the shapes and types of its batch.
    """
    table = _LAYOUTS.setdefault(case.module, {})
    calls = set(gate_points(blocks))
    for (_, way), layout in table.items():
        if way == case.key and calls <= set(layout.given) and layout.problem is None:
            return layout, None
    layout, base = measure(case, blocks, discovery)
    table[blocks.names, case.key] = layout
    while len(table) > _REMEMBERED:
        del table[next(iter(table))]
    return layout, base


def forget(module: nn.Module) -> None:
    """Forget what was remembered of a model: the next call pays as the first one did."""
    _LAYOUTS.pop(module, None)
    SAMPLES_FIRST.pop(module, None)


def weigh(layout: Layout, case: Case, blocks: Blocks) -> None:
    """Find out, in a run of its own, what further batches take: what a plain forward does, and while their pieces are
    put together at a gated call three times what it gives."""
    with Footprint() as used:
        v = case.run()
    largest = max((point.elements for point in gate_points(blocks).values()), default=0)
    layout.bytes = used.peak + 3 * largest * v.element_size()


def measure(case: Case, blocks: Blocks, discovery: Discovery | None = None) -> tuple[Layout, Tensor]:
    """The layout of this case, and the base velocity that was seen on the way."""
    calls = gate_points(blocks)
    base = (discovery and recall(discovery, calls)) or look(case, calls)
    layout = Layout(samples=len(base.v))
    layout.problem = _refusal(case, blocks, base) or _fit(layout, case, calls, base)
    return layout, base.v


def _refusal(case: Case, blocks: Blocks, base: Sighting) -> str | None:
    """What the plain run shows against sharing."""
    if base.drew:
        names = case.draws(blocks)
        return f"the model draws random numbers in eval mode (in {next(iter(names), '') or 'its own forward'})"
    if base.nested:
        return "its padded samples are packed into nested tensors, which have no rows"
    if any(times != 1 for times in base.times.values()):
        return "its blocks run another number of times than when they were found"
    if base.runs != 1:
        times = f"its velocity network runs {base.runs} times in a forward"
        return times if base.runs else "the parts of the velocity network are called, but not the network itself"
    return None


def _fit(layout: Layout, case: Case, calls: Mapping[Key, GatePoint], base: Sighting) -> str | None:
    """Fill in the axes from the first cut of the batch that the model takes; or the reason why there is none."""
    reasons: list[str] = []
    for cut, rows in _cuts(base, layout.samples):
        if rows > layout.samples > 1 and _TALK in reasons:
            break  # twice the same samples may have the statistics of the batch, and hide it
        try:
            small = look(case, calls, rows=cut, base=base)
            problem = (
                _compare(layout, base, small, rows, calls)
                or _unfold(layout, case, calls, base, cut, rows)
                or _deciding(base.decisions, small.decisions)
            )
        except Exception as error:  # the model does not take this cut: another one may do
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            layout.entrance = {p: Axis(0, 1) for p in cut}
            layout.velocity, layout.sign = _velocity_at(base, gain_of(case, base.v) is not None)
            return None if layout.velocity is not None else "the velocity is not what the network itself gives out"
        reasons.append(problem)
    reasons = [r for r in reasons if r == _TALK] or reasons
    return reasons[0] if reasons else "no tensor at its entrance has the batch as first axis"


def _cuts(base: Sighting, n: int) -> Iterator[tuple[Cut, int]]:
    """Which arguments to cut, and to how many rows: all that have n, then all but one of them."""
    candidates = [p for p, shape in base.entrance.items() if shape and shape[0] == n]
    for rows in (1, 2 * n) if n > 1 else (2,):
        for paths in [candidates, *([p for p in candidates if p != left] for left in candidates)]:
            yield dict.fromkeys(paths, rows), rows


def _velocity_at(base: Sighting, turned: bool) -> tuple[LeafPath | None, int]:
    """Where the velocity is in what the network gives out; −1: a network whose time runs to noise gives −v; 0: where
    what the flow itself turned into v may be."""
    tensors = [(p, x) for p, x in leaves(base.out) if x.is_floating_point() and x.shape == base.v.shape]
    places = ((p, sign) for p, x in tensors for sign in (1, -1) if torch.equal(sign * x, base.v))
    return next(places, (tensors[0][0], 0) if turned and tensors else (None, 1))


def gain_of(case: Case, v: Tensor) -> Tensor | None:
    """dv/dp of each sample, in the axes of v; None where v is not what the flow itself makes of the network's p."""
    gain = None if case.flow.override.forward is not None else case.flow.gain(sample_times(case.t, v))
    return None if gain is None else gain.to(v.dtype).reshape(-1, *[1] * (v.ndim - 1))


def _compare(layout: Layout, base: Sighting, small: Sighting, rows: int, calls: Mapping[Key, GatePoint]) -> str | None:
    """Fill in the axes from two runs, or say why they cannot be."""
    n = layout.samples
    layout.exit.clear()
    outs = dict(leaves(base.out))
    for path, x in leaves(small.out):
        axis = axis_of(outs[path].shape, x.shape, n, rows) if path in outs and x.is_floating_point() else None
        if axis is None:
            continue
        layout.exit[path] = axis
        if not alike(axis.rows(x, 0, min(n, rows)), axis.rows(outs[path], 0, min(n, rows))):
            return _TALK
    if small.times != base.times:
        return "its blocks run once for each sample"
    if not layout.exit:
        return "its output does not scale with the batch"
    layout.given, layout.returned = ({key: {} for key in calls} for _ in range(2))
    for (key, side, path), shape in base.shapes.items():
        other = small.shapes.get((key, side, path), shape)
        axis = axis_of(shape, other, n, rows)
        if axis is not None:
            (layout.given if side == "in" else layout.returned)[key][path] = axis
        elif shape != other:
            return f"the tensors at {key[0]} do not scale with the batch along one axis"
    return None


def _unfold(
    layout: Layout, case: Case, calls: Mapping[Key, GatePoint], base: Sighting, cut: Cut, rows: int
) -> str | None:
    """Where several rows belong to a sample, see by their values whether they lie side by side or batches apart."""
    tables = {"in": layout.given, "out": layout.returned}
    places = {
        (key, side, p) for side, table in tables.items() for key in table for p, a in table[key].items() if a.fold > 1
    }
    if not places:
        return None
    whole = look(case, calls, base=base, values_at=places)
    small = look(case, calls, rows=cut, base=base, values_at=places)
    for place in places:
        key, side, path = place
        x, y, n = whole.values[place], small.values[place], min(layout.samples, rows)
        axis = tables[side][key][path]
        for guess in (axis, axis._replace(outer=True)):
            if alike(guess.rows(x, 0, n), guess.rows(y, 0, n)):
                tables[side][key][path] = guess
                break
        else:
            return f"the rows of a sample at {key[0]} are neither side by side nor batches apart"
    return None


def _deciding(base: Decisions, small: Decisions) -> str | None:
    """Whether the whole batch decides something that may depend on the blocks."""
    if base.reads or small.reads:
        return "Python reads a number off the whole batch, which may be another one where a block is closed"
    return "it chooses among the rows of all samples" if base.picks != small.picks else None
