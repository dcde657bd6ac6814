"""How wide a network's residual streams are: measured on a batch, or read from its weights without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from fog_a.aligning.targets import Targets
from fog_a.attributing.steady import FAILURES
from fog_a.blocks.block import Blocks
from fog_a.blocks.tap import check_readable, tap
from fog_a.blocks.untouched import preserved
from fog_a.errors import UnknownBlock, Unsupported
from fog_a.flows.flow import Flow

Measured = TypeVar("Measured")


def head_sizes(
    targets: Targets, k: int, layers: Mapping[str, list[str]] | None, batch: Any, blocks: Blocks | None
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Per domain, the width of the stream at each of its heads, and that of its teacher.

    Args:
        layers: domain → the layers that are chosen; None: k of them, not known yet.
        batch, blocks: what widths are measured on; None: the width is read from the weights.
    """
    dims = targets.dims
    if blocks is None:
        width = stream_width(targets.flow.module)
        widths = {d: [width] * (k if layers is None else len(layers[d])) for d in dims}
    else:
        table = measured_widths(targets.flow, batch, blocks)
        dims |= {domain: table[name] for domain, name in targets.blocks_read(blocks).items()}
        widths = {d: slot_widths(table, k, None if layers is None else layers[d]) for d in dims}
    return widths, {domain: dim or widths[domain][0] for domain, dim in dims.items()}


def measured_widths(flow: Flow, batch: Any, blocks: Blocks) -> dict[str, int]:
    """D of each block's tokens, from one forward that leaves nothing behind."""
    check_readable(blocks)

    def measured(batch: Any) -> dict[str, int]:
        samples = flow.samples(batch)
        with preserved(*flow.modules), tap(blocks) as h:
            v = flow.velocity(batch, 0.5, 0)
            table = {b.name: flow.tokens(h[b.name], b, samples)[0].shape[-1] for b in blocks}
            flow.doubt_tokens(h.all, samples, v)
        return table

    return of_few(flow, batch, measured)


def of_few(flow: Flow, batch: Any, measured: Callable[[Any], Measured]) -> Measured:
    """What is measured on two samples of a batch, which are enough for blocks and widths; on all of them where the
    model does not take so few (its edges, or its noise, are made for the whole batch)."""
    samples = flow.samples(batch)
    try:
        return measured(samples.rows(list(range(min(2, len(samples))))))
    except FAILURES:
        return measured(batch)


def slot_widths(table: Mapping[str, int], k: int, chosen: Sequence[str] | None) -> list[int]:
    """The width of each of a domain's slots: its layers', or each width k times. Raises UnknownBlock, Unsupported."""
    if chosen is not None:
        unknown = [name for name in chosen if name not in table]
        if unknown:
            raise UnknownBlock(f"no block is named {unknown[0]!r}; there are {', '.join(table)}")
        return [table[name] for name in chosen]
    if k > len(table):
        raise Unsupported(f"k = {k} layers per domain, but the model has {len(table)}: type k={len(table)}")
    counts = Counter(table.values())
    return [width for width in sorted(counts) for _ in range(min(k, counts[width]))]


def stream_width(module: nn.Module) -> int:
    """The size that most matrices inside the network's longest repeated stack have as an input or output.

    A transformer layer maps D → 3D → D → 4D → D: D meets every one of its matrices, anything else some of them. It is
    checked at the first call; where it errs, the error says to give `batch=`.

    Raises Unsupported where there is no repeated stack, or no size meets most of its matrices.

    Example:
        >>> layer = nn.TransformerEncoderLayer(24, 2, 96)
        >>> stream_width(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
        24
    """
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    stack = max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()), default=nn.Module())
    matrices = [p for p in stack.parameters() if p.ndim >= 2]
    sizes = Counter(size for p in matrices for size in {p.shape[0], p.shape[1]})
    width, count = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
    if 2 * count <= len(matrices) or not count:
        raise Unsupported(
            f"the width of the streams of {type(module).__name__} cannot be read from its weights, and the heads need "
            "it before the optimizer is made. Type AGREPA(..., batch=one_training_batch)"
        )
    return width
