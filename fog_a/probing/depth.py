"""What every layer of a net holds of every sample, beside what the teachers say of it.

    z_i^{(l)}(t_j) = LayerNorm( mean over valid τ of h_{l,τ} )     at x_t(t_j)                                   Eq. 3

for samples i, times t_j and layers l, and z_i^{(0)} at the conditioning interface. Read in one forward per batch and
time, in eval mode and without gradient; the model is left as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.tap import check_readable, tap
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadBatch, NoActivations, ShapeMismatch
from fog_a.finding.blocks import find_blocks
from fog_a.flows.batches import each
from fog_a.flows.case import Case, picked
from fog_a.flows.flow import Flow
from fog_a.flows.frames import interface_mask
from fog_a.flows.provenance import provenance
from fog_a.flows.samples import Samples
from fog_a.teachers.descriptors import descriptor
from fog_a.teachers.teacher import Features, Teachers, route, sources_of

FeaturesOfBatches = Features | Sequence[Features] | Callable[[Any], Features] | None
"""Features in the teachers' place: of the one batch, one entry for each batch, or features(batch)."""


@dataclass(frozen=True)
class Reading:
    """How a model is run: around(flow, batch, seed) is open while a batch runs, describe(h, mask) makes a vector."""

    flow: Flow
    describe: Callable[[Tensor, Tensor | None], Tensor] = descriptor
    around: Callable[[Any, Any, int], contextlib.AbstractContextManager[Any]] = lambda *_: contextlib.nullcontext()


def blocks_of(flow: Flow, batch: Any, blocks: Blocks | Sequence[str] | None) -> Blocks:
    """The blocks that are asked for, by name or as they are; or the main ones."""
    if isinstance(blocks, Blocks):
        return blocks
    candidates = find_blocks(flow, batch)
    return candidates.main if blocks is None else candidates.named(list(blocks))


@dataclass(frozen=True)
class Depth:
    """The descriptors of S samples, J times and L layers, on the CPU in float32.

    Attributes:
        provenance: what `info` begins with.
        z: z_i^{(l)}(t_j).
        interface: z_i^{(0)}, or None.
        targets: domain → (which of the S samples, their teacher's features).
        single: whether one teacher speaks of all domains.
    """

    layers: tuple[str, ...]
    times: tuple[float, ...] | None
    provenance: dict[str, Any]
    z: Float[Tensor, "S J L D"]
    interface: Float[Tensor, "S E"] | None
    ids: tuple[str, ...]
    domains: tuple[str, ...]
    groups: tuple[str, ...]
    targets: dict[str, tuple[list[int], Float[Tensor, "n E"]]]
    single: bool


def read_depth(
    reading: Reading,
    batch: Any,
    teachers: Teachers | None,
    *,
    features: FeaturesOfBatches = None,
    blocks: Blocks | Sequence[str] | None = None,
    times: int | Sequence[float] | None = None,
    seed: int = 0,
) -> Depth:
    """Runs the model on every batch at every time and collects descriptors and features.

    Raises:
        ShapeMismatch: blocks of different widths. BadBatch: no batch, or a domain without a teacher.
        NoActivations: a block that did not run. BadFeatures: features that do not fit.
    """
    grid = reading.flow.grid(times)
    axis = tuple(t for t in grid if t is not None) or None
    single, zs, interfaces = True, [], []
    ids, domains, groups = (), (), ()
    targets: dict[str, tuple[list[int], list[Tensor]]] = {}
    for number, item in enumerate(each(batch)):
        here = _features_of(features, item, number)
        sources_of(teachers, reading.flow.override.domains or reading.flow.samples(item).domains, here)
        blocks = blocks_of(reading.flow, item, blocks)
        samples, z, interface = _batch(reading, item, blocks, grid, seed + 7919 * number, len(ids))
        single = not isinstance(here if here is not None else teachers, Mapping)
        for domain, routed in route(teachers, samples, features=here).items():
            rows, parts = targets.setdefault(domain, ([], []))
            rows += [len(ids) + i for i in routed.rows]
            parts.append(routed.features.cpu())
        zs.append(z)
        interfaces.append(interface)
        ids, domains, groups = ids + samples.ids, domains + samples.domains, groups + samples.groups
    assert isinstance(blocks, Blocks)  # each() raises where there is no batch
    return Depth(
        blocks.names, axis, provenance(reading.flow, blocks, seed), torch.cat(zs),
        None if any(z0 is None for z0 in interfaces) else torch.cat(interfaces), ids, domains, groups,
        {domain: (rows, torch.cat(parts)) for domain, (rows, parts) in targets.items()}, single,
    )  # fmt: skip


def _batch(
    reading: Reading, batch: Any, blocks: Blocks, times: Sequence[float | None], seed: int, start: int
) -> tuple[Samples, Float[Tensor, "B J L D"], Float[Tensor, "B E"] | None]:
    """One batch at every time."""
    flow, columns = reading.flow, []
    check_readable(blocks)
    cases = [Case(flow, batch, t, seed + j, start) for j, t in enumerate(times)]  # attribute's seeds: the same x_t
    with preserved(*flow.modules, seed=seed), reading.around(flow, batch, seed), tap(blocks) as h:
        for case in cases:
            h.clear()
            v, samples = case.run(), case.samples
            silent = [b.name for b in blocks if b.name not in h]
            if silent:
                raise NoActivations(
                    f"blocks {', '.join(silent[:4])} did not run in this forward: find them on this batch"
                )
            layers = [reading.describe(*flow.tokens(h[b.name], b, samples)) for b in blocks]
            _one_row_each(layers, blocks, len(samples))
            columns.append(_one_width(layers, blocks))
            if not start and case is cases[0]:
                _check_square(case, blocks, h)
                flow.doubt_tokens(h.all, samples, v)
        z, samples = torch.stack(columns, 1).cpu(), cases[-1].samples
        c = flow.interface(batch)
        interface = None if c is None else reading.describe(c, interface_mask(samples.mask, c)).cpu()
    return samples, z, interface


def _check_square(case: Case, blocks: Blocks, h: tap) -> None:
    """Where as many samples as tokens do not tell their axes apart, one sample less does."""
    n, flow = len(case.samples), case.flow
    square = [b for b in blocks if n > 1 and h[b.name].ndim == 3 and h[b.name].shape[:2] == (n, n)]
    if not square:
        return
    batch = picked(case.batch, 0, n, range(n - 1)) if flow.timeless else case.samples.rows(range(n - 1))
    fewer, rows = Case(flow, batch, case.t, case.seed, case.start), list[Tensor]()
    with tap(Blocks(square, blocks.model)) as outputs:
        fewer.run()
    for b in square:
        try:
            rows.append(flow.tokens(outputs[b.name], b, fewer.samples)[0])
        except ShapeMismatch:
            rows.append(outputs[b.name])
    _one_row_each(rows, square, n - 1)


def _one_row_each(layers: list[Tensor], blocks: Iterable[ResidualBlock], count: int) -> None:
    for z, block in zip(layers, blocks, strict=True):
        if len(z) != count:
            raise ShapeMismatch(
                f"{block.name!r} gave {len(z)} rows for {count} samples: if its axes are (T, B, D), type "
                'fog_a.wrap(..., stream="TBD"); otherwise the adapter\'s tokens() must fold them'
            )


def _one_width(layers: list[Tensor], blocks: Blocks) -> Float[Tensor, "B L D"]:
    widths = {z.shape[-1] for z in layers}
    if len(widths) > 1:
        of = {d: [b.name for b, z in zip(blocks, layers, strict=True) if z.shape[-1] == d] for d in sorted(widths)}
        raise ShapeMismatch(
            f"one head reads one width, but the blocks have {len(widths)}. Ask for one width at a time: "
            + ", or ".join(f"lasp(..., blocks={names!r}) for {d}" for d, names in of.items())
        )
    return torch.stack(layers, 1)


def _features_of(features: FeaturesOfBatches, batch: Any, number: int) -> Features | None:
    if features is None or isinstance(features, (Tensor, Mapping)):
        if features is not None and number:
            raise BadBatch(
                "features= are of one batch, but there are several: give a list, one for each, or a function of it"
            )
        return features
    if callable(features):
        return features(batch)
    if number >= len(features):
        raise BadBatch(f"features= are there for {len(features)} batches, but there are more")
    return features[number]
