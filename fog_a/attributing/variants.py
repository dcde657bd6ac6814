"""The one place that decides how ablations are run: v, and v^{\\k} for every block k and gate value.

* `loop`: one forward per block, its gate closed: L² block evaluations. The definition; the others must agree with it.
* `prefix`: one forward per block that starts at it: L(L+1)/2, bit-equal to the loop, little memory.
* `fanout`: all blocks as rows of one forward: L(L+1)/2, and the fewest launches. It must know where the samples are
  (`layout`, measured once per model and shape of batch), and they must not talk to each other.

Where a way cannot be gone, the next one is, and a note says why.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor, nn

from fog_a.attributing.fanout import fanout
from fog_a.attributing.layout import Layout, alike, measure
from fog_a.attributing.prefix import Prefix
from fog_a.blocks.block import Blocks
from fog_a.blocks.gate import gate
from fog_a.errors import BadArgument, NotResidual, Unsupported
from fog_a.flows.case import Case

Strategy = Literal["auto", "loop", "prefix", "fanout"]
LAUNCH_BOUND = 32768
"""On a CPU, blocks whose outputs have fewer elements than this spend their time in launches."""
TILE = 65536
"""On a CPU, a block's call on many more elements than this waits for memory."""
_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Layout]] = weakref.WeakKeyDictionary()


@dataclass
class Variants:
    """The base velocity, and an iterator over the ablated ones: for each block, for each gate value."""

    base: Tensor
    strategy: str
    ablated: Iterator[Tensor]
    notes: list[str] = field(default_factory=list)
    noise: float = 0.0
    """How far v moves when nothing is ablated, under the same arithmetic, relative to its norm."""

    def __iter__(self) -> Iterator[Tensor]:
        return self.ablated


def variants(
    case: Case,
    blocks: Blocks,
    *,
    values: tuple[float, ...] = (0.0,),
    strategy: Strategy = "auto",
    max_rows: int | None = None,
    memory: int | None = None,
) -> Variants:
    """Run the base and every ablation of one case."""
    if strategy not in get_args(Strategy):
        raise BadArgument(
            f"expected strategy= one of {', '.join(get_args(Strategy))}, got {strategy!r}. 'auto' or 'loop' do"
        )
    notes: list[str] = []
    order: list[Strategy] = ["fanout", "prefix", "loop"] if _launch_bound(case, blocks) else ["prefix", "loop"]
    if any(block.alone for block in blocks):
        order = ["loop"]
    for chosen in order if strategy == "auto" else [strategy]:
        if chosen == "fanout":
            run, problem = _fanned(case, blocks, values, max_rows, memory)
        elif chosen == "prefix":
            run, problem = _prefixed(case, blocks, values, memory)
        else:
            run, problem = _loop(case, blocks, values), None
        if run is not None:
            noise = layout_of(case, blocks)[0].noise if chosen == "fanout" else 0.0
            return Variants(next(run), chosen, run, notes, noise)
        notes.append(f"{chosen} cannot be used: {problem}")
    raise Unsupported(f"{notes[0]}. Use strategy='auto' or 'loop'")


def _launch_bound(case: Case, blocks: Blocks) -> bool:
    """Do launches, rather than arithmetic, take the time? By size, not by the clock: every process must come to the
    same choice, or their last bits would differ."""
    return _on_gpu(case) or max((s.elements for b in blocks for s in b.gate_points), default=0) < LAUNCH_BOUND


def _on_gpu(case: Case) -> bool:
    return any(p.is_cuda for p in itertools.islice(case.module.parameters(), 1))


def _prefixed(
    case: Case, blocks: Blocks, values: tuple[float, ...], memory: int | None
) -> tuple[Iterator[Tensor] | None, str | None]:
    run = Prefix(case, blocks)
    v = run.base()
    if run.random is not None:
        return None, f"the model draws random numbers in eval mode (in {run.random})"
    if run.problem is not None:
        return None, run.problem
    if memory is not None and run.bytes > memory:
        return None, f"what the clean run's blocks give out takes {run.bytes} bytes, more than memory={memory}"
    if not run.faithful(v):
        return None, "a block leaves something behind, beside its output, that later ones use"

    def ablated() -> Iterator[Tensor]:
        yield v
        for block in blocks:
            for value in values:
                yield run.variant(block, value)

    return ablated(), None


def _fanned(
    case: Case, blocks: Blocks, values: tuple[float, ...], max_rows: int | None, memory: int | None
) -> tuple[Iterator[Tensor] | None, str | None]:
    layout, fresh = layout_of(case, blocks)
    if layout.problem is None and layout.velocity is None:
        layout.problem = "the velocity is not what the network itself gives out"
    if layout.problem is not None:
        return None, layout.problem + (_drawing(case, blocks) if "random" in layout.problem else "")
    tile = None if _on_gpu(case) else TILE
    per_run = _per_run(layout, tile, len(blocks) * len(values), max_rows, memory)
    run = fanout(case, blocks, layout, values, per_run, tile)
    first: list[Tensor] = []
    middle = len(blocks) // 2
    try:
        first.append(next(run))
        if fresh is not None:  # seen for the first time: one ablation is also made by the definition
            first += itertools.islice(run, middle * len(values) + 1)
    except (
        RuntimeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # plain forwards do run
        layout.problem = f"the model does not take a larger batch ({type(error).__name__}: {str(error)[:120]})"
        return None, layout.problem
    if fresh is not None:
        one, other = first[-1].nan_to_num(), once(case, blocks[middle : middle + 1], values[0]).nan_to_num()
        if not alike(first[0], fresh) or not alike(one, other):
            layout.problem = "rows come out otherwise in a larger batch"
            return None, layout.problem
        layout.noise = float((first[0] - fresh).float().norm() / fresh.float().norm().clamp(min=1e-30))
    return itertools.chain(first, run), None


def _drawing(case: Case, blocks: Blocks) -> str:
    drawn = case.draws(blocks)
    return f" (in {drawn[0] or 'its own forward'})" if drawn else ""


def layout_of(case: Case, blocks: Blocks) -> tuple[Layout, Tensor | None]:
    """The layout for this model, these blocks and batches like this one, measured when first seen."""
    table = _LAYOUTS.setdefault(case.module, {})
    key = (blocks.names, case.key)
    if key in table:
        return table[key], None
    layout, base = measure(case, blocks)
    table[key] = layout
    return layout, base


def _per_run(layout: Layout, tile: int | None, variants: int, max_rows: int | None, memory: int | None) -> int:
    """How many variants one forward may hold besides the clean rows, which a plain forward holds too."""

    def needed(most: int) -> int:
        at_once = most if tile is None else min(most, max(tile // max(layout.elements, 1), 1) - 1)
        return most * layout.between + at_once * layout.inside

    most = variants if max_rows is None else min(variants, max_rows // layout.samples - 1)
    while memory is not None and most > 0 and needed(most) > memory:
        most -= 1
    if most < 1:
        raise BadArgument(
            f"expected room for the clean batch and one variant, {2 * layout.samples} rows "
            f"({needed(1)} bytes beyond a plain forward), got max_rows={max_rows}, memory={memory}. "
            "Allow more, or give smaller batches"
        )
    return most


def parse_bytes(memory: int | str | None) -> int | None:
    """`"2GiB"`, `"64MiB"`, `"500MB"` or a number, in bytes.

    >>> parse_bytes("64MiB")
    67108864
    """
    if memory is None or isinstance(memory, int):
        return memory
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", memory, re.IGNORECASE)
    if match is None:
        raise BadArgument(f'expected memory= like "2GiB", "64MiB" or a number of bytes, got {memory!r}')
    power = "KMGT".index(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _loop(case: Case, blocks: Blocks, values: tuple[float, ...]) -> Iterator[Tensor]:
    yield case.run().clone()
    for i in range(len(blocks)):
        for value in values:
            yield once(case, blocks[i : i + 1], value)


def once(case: Case, blocks: Blocks, value: float) -> Tensor:
    """One forward at a gate value; every gate must have acted at each of its points."""
    with gate(blocks, value) as closed:
        v = case.run()
    for b in blocks:
        if closed.fired[b.name] != len(b.gate_points):
            raise NotResidual(
                f"block {b.name!r}: its gate acted {closed.fired[b.name]} times in a forward, expected "
                f"{len(b.gate_points)}. The model runs other modules on this batch than when its blocks were found: "
                "call find_blocks on it"
            )
    return v
