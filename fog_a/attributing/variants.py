"""The one place that decides how ablations are run: v, and v^{\\k} for every block k.

* `loop`: one forward per block, its gate closed: L² block evaluations. The definition; the others must agree with it.
* `prefix`: one forward per block that starts at it: L(L+1)/2, bit-equal to the loop, little memory.
* `fanout`: all blocks as rows of one forward: L(L+1)/2, and the fewest launches. It must know where the samples are
  (`layout`), and they must not talk to each other: some ablations of every case are compared with the definition.

Where a way cannot be gone, the next one is, and a note says why.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fog_a.attributing.axes import alike
from fog_a.attributing.fanout import fanout
from fog_a.attributing.layout import Layout, layout_of, weigh
from fog_a.attributing.prefix import Prefix
from fog_a.attributing.steady import FAILURES, check_samples_first, check_steady
from fog_a.attributing.ways import How, Shared
from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.calls import gate_points, is_sharded
from fog_a.blocks.gate import check_acted, gate
from fog_a.blocks.untouched import keep_memory
from fog_a.errors import BadArgument, Unsupported
from fog_a.finding.blocks import Discovery
from fog_a.flows.case import Case, fingerprint, per_sample

LAUNCH_BOUND = 32768
"""On a CPU, blocks whose outputs have fewer elements than this spend their time in launches."""
DEEP = 40, 65536
"""With so many blocks below this size, a fan-out saves more than the few forwards that check it cost."""


class Unshared(Exception):
    """This case's ablations cannot be run in this way; the message says why, "" where it was not asked for."""


@dataclass
class Variants:
    """The base velocity, and the ablated one of each block, in order."""

    base: Tensor
    strategy: str
    ablated: Iterator[Tensor]
    notes: list[str] = field(default_factory=list)
    noise: float = 0.0
    """How far v moves when nothing is ablated, under the same arithmetic, relative to its norm."""
    prefix: Prefix | None = None
    """What further ablations of this case may start from."""


def variants(
    case: Case,
    blocks: Blocks,
    value: float = 0.0,
    how: How | Literal["prefix"] = "auto",
    discovery: Discovery | None = None,
    prefix: Prefix | None = None,
    others: Sequence[ResidualBlock] = (),
    first: bool = False,
) -> Variants:
    """Run the base and every ablation of one case, with the gates of what the case has closed at 0 throughout.

    Args:
        first: of a call: what is shared is compared more closely.
        others: blocks that are not ablated; their calls are shared too where they can be.
        discovery: the forward of this case in which blocks were found.
        prefix: the clean run of this case, made already.

    Raises:
        Unsupported: sharing was asked for, and this model, batch and budget allow none.
        BadOutput: the first axis of v is time.
    """
    budget = how if isinstance(how, Shared) else Shared()
    notes: list[str] = []
    wider = _joined(blocks, others, case.closed or ())
    sharing = [wider, blocks] if len(wider) > len(blocks) else [blocks]
    for strategy, shared in itertools.product(_order(case, blocks, how), sharing):
        try:
            if strategy == "fanout":
                run = _fanned(case, blocks, value, budget, discovery, shared, first)
            elif strategy == "prefix":
                run = _prefixed(prefix or _begun(case, shared, discovery), blocks, value, budget)
            else:
                run = _looped(case, blocks, value)
        except Unshared as problem:
            notes += [f"{strategy} cannot be used: {problem}"] if str(problem) and shared is blocks else []
            continue
        run.notes = notes
        if strategy != "fanout":  # which has shown that rows do not depend on each other
            check_samples_first(case, blocks, run.base)
        return run
    raise Unsupported(f"{'; '.join(notes)}. Use how='auto' or 'loop', or give smaller batches")


def _joined(blocks: Blocks, others: Sequence[ResidualBlock], closed: Sequence[ResidualBlock]) -> Blocks:
    """The blocks, and those others that have their gates at calls of their own."""
    calls = gate_points([*blocks, *closed]).keys()
    apart = [b for b in others if not b.alone and calls.isdisjoint(gate_points([b]))]
    return Blocks([*blocks, *apart], blocks.model)


def _looped(case: Case, blocks: Blocks, value: float) -> Variants:
    v = case.run().clone()

    def ablated() -> Iterator[Tensor]:
        for i in range(len(blocks)):
            yield once(case, blocks, i, value)
        check_steady(case, v)

    return Variants(v, "loop", ablated())


def _order(case: Case, blocks: Blocks, how: How | Literal["prefix"]) -> list[str]:
    """The ways, the first choice first: by size, not by the clock, so that every process comes to the same choice."""
    if (alone := [b.name for b in (*blocks, *(case.closed or ())) if b.alone]) and isinstance(how, Shared):
        raise Unsupported(f"{', '.join(alone)} can be closed in a run of its own only. Use how='auto' or 'loop'")
    if alone or how == "loop" or is_sharded(case.module):
        return ["loop"]
    if how == "prefix":
        return ["prefix", "loop"]
    sizes = [p.elements for b in blocks for p in b.gate_points]
    small = max(sizes, default=0) < LAUNCH_BOUND or (len(blocks) >= DEEP[0] and max(sizes) < DEEP[1])
    weight = next(case.module.parameters(), None)
    gpu, width = weight is not None and weight.is_cuda, 4 if weight is None else weight.element_size()
    rows, memory = (how.rows, how.bytes) if isinstance(how, Shared) else (None, None)
    fits = memory is None or sum(sizes) * width <= memory  # what a prefix keeps
    if rows is not None or gpu or small or not fits:
        shared = ["fanout", "prefix"]
    else:
        shared = ["prefix"] if memory is None else ["prefix", "fanout"]
    return shared if isinstance(how, Shared) else [*shared, "loop"]


def _prefixed(run: Prefix, blocks: Blocks, value: float, budget: Shared) -> Variants:
    v = run.v
    if run.clean.random is not None:
        raise Unshared(f"the model draws random numbers in eval mode (in {run.clean.random})")
    if run.clean.problem is not None:
        raise Unshared(run.clean.problem)
    if budget.rows is not None and budget.rows < len(v):
        raise BadArgument(
            f"expected room for the batch's {len(v)} samples, got rows={budget.rows}. "
            "Allow more, or give smaller batches"
        )
    if budget.bytes is not None and run.clean.bytes > budget.bytes:
        raise Unshared(f"the kept outputs of its blocks take {run.clean.bytes} bytes, more than memory={budget.bytes}")
    if not run.faithful():
        raise Unshared("a block leaves something behind, beside its output, that later ones use")

    def ablated() -> Iterator[Tensor]:
        for block in blocks:
            yield run.variant(block, value)
        if not run.steady():
            check_steady(run.case, v)

    return Variants(v, "prefix", ablated(), prefix=run)


def _begun(case: Case, blocks: Blocks, discovery: Discovery | None) -> Prefix:
    """The clean run, which is the discovery's forward where that kept what is needed and its v is a plain run's."""
    keep_memory()
    clean = None if discovery is None else discovery.clean
    if discovery is None or clean is None or not set(gate_points(blocks)) <= set(clean.kept):
        return Prefix(case, blocks)
    run = Prefix(case, blocks, clean, discovery.v)
    return run if run.faithful() else Prefix(case, blocks)


def _fanned(
    case: Case,
    blocks: Blocks,
    value: float,
    budget: Shared,
    discovery: Discovery | None,
    shared: Blocks,
    first: bool,
) -> Variants:
    if budget.rows is not None and budget.rows < 2 * case.rows:
        raise Unshared("")  # room for the batch alone: no need to know where its samples are
    gated = Blocks([*shared, *(case.closed or ())], blocks.model)
    if len(gate_points(gated)) < sum(len(b.gate_points) for b in gated):
        raise Unshared("two blocks have their gates at one call, on two of its outputs")
    keep_memory()
    layout, plain = layout_of(case, gated, discovery)
    if layout.problem is not None:
        raise Unshared(layout.problem)
    if budget.bytes is not None and layout.bytes is None:
        weigh(layout, case, blocks)
    try:
        v, *ablated = fanout(case, blocks, shared, layout, value, _size(layout, len(blocks), budget))
    except FAILURES as error:  # plain forwards run
        reason = f"the model does not take a larger batch ({type(error).__name__}: {str(error)[:120]})"
        raise Unshared(reason) from error
    mark = (case.fingerprint, case.t, case.seed, value, fingerprint(v))
    if mark not in layout.verified:  # else the same case gave the same clean rows, and was compared
        if plain is not None and not alike(v, plain):
            layout.problem = "rows come out otherwise in a larger batch"
        else:
            layout.problem = _difference(case, blocks, value, v, ablated, first or plain is not None)
        if layout.problem is not None:
            raise Unshared(layout.problem)
        layout.verified.add(mark)
    if plain is not None:
        layout.noise = float((v - plain).float().norm() / plain.float().norm().clamp(min=1e-30))
    return Variants(v, "fanout", iter(ablated), noise=layout.noise)


def _difference(
    case: Case, blocks: Blocks, value: float, v: Tensor, ablated: Sequence[Tensor], closely: bool
) -> str | None:
    """What is not the definition's, of an ablation drawn at random; closely, of the largest and the smallest too."""
    chosen = {random.Random(case.seed).randrange(len(ablated))}
    if closely:
        sizes = torch.stack([(per_sample(v_k) - per_sample(v)).nan_to_num().norm() for v_k in ablated])
        chosen |= {int(sizes.argmax()), int(sizes.argmin())}
    for i in sorted(chosen):
        if not alike(ablated[i].nan_to_num(), once(case, blocks, i, value).nan_to_num()):
            return f"rows come out otherwise in a larger batch (without {blocks[i].name})"
    return None


def _size(layout: Layout, count: int, budget: Shared) -> int:
    """How many ablations one forward may hold besides the clean rows, which a plain forward holds too."""
    size = count if budget.rows is None else min(count, budget.rows // layout.samples - 1)
    if size < 1:  # one ablation at a time, then
        raise Unshared("")
    if budget.bytes is None:
        return size
    each = layout.bytes or 0
    if budget.bytes < each:
        raise Unshared(f"one ablation beside the clean rows takes {each} bytes, more than memory={budget.bytes}")
    return min(size, budget.bytes // each)


def once(case: Case, blocks: Blocks, i: int, value: float) -> Tensor:
    """One forward with one block's gate at a value, by the definition. Raises NotResidual if it did not act."""
    with gate(blocks[i : i + 1], value) as closed:
        v = case.run()
    check_acted(blocks[i], closed.fired[blocks[i].name])
    return v
