"""How wide a network's residual streams are: measured on a batch, or read from its weights without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fog_a.blocks.block import Blocks
from fog_a.blocks.tap import tap
from fog_a.blocks.untouched import preserved
from fog_a.errors import UnknownBlock, Unsupported
from fog_a.flows.flow import Flow
from fog_a.teachers.self_teacher import SelfTeacher


def head_sizes(
    flow: Flow, teachers: Mapping[str, Any], k: int, layers: Mapping[str, list[str]] | None, batch: Any, blocks: Any
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Per domain, the width of the stream at each of its heads, and that of its teacher.

    Args:
        layers: domain → the layers that are chosen; None: k of them, not known yet.
        batch, blocks: what widths are measured on; None: the width is read from the weights.
    """
    present = {domain: teacher for domain, teacher in teachers.items() if teacher is not None}
    dims = {domain: teacher if isinstance(teacher, int) else teacher.dim for domain, teacher in present.items()}
    if batch is None:
        width = stream_width(flow.module)
        widths = {d: [width] * (k if layers is None else len(layers[d])) for d in present}
    else:
        table = measured_widths(flow, batch, blocks)
        dims |= {domain: table[name] for domain, name in self_blocks(teachers, blocks).items()}
        widths = {d: slot_widths(table, k, None if layers is None else layers[d]) for d in present}
    return widths, {domain: dim or widths[domain][0] for domain, dim in dims.items()}


def self_blocks(teachers: Mapping[str, Any], blocks: Blocks) -> dict[str, str]:
    """Domain → the block that its SelfTeacher reads."""
    readers = {domain: teacher for domain, teacher in teachers.items() if isinstance(teacher, SelfTeacher)}
    return {domain: teacher.block_of(blocks).name for domain, teacher in readers.items()}


def measured_widths(flow: Flow, batch: Any, blocks: Blocks) -> dict[str, int]:
    """D of each block's tokens, from one forward that leaves nothing behind."""
    batch = few(flow, batch)
    samples = flow.samples(batch)
    with preserved(*flow.modules), tap(blocks) as h:
        flow.velocity(batch, 0.5, 0)
        return {b.name: flow.tokens(h[b.name], b, samples)[0].shape[-1] for b in blocks}


def few(flow: Flow, batch: Any) -> Any:
    """Two samples of a batch: enough to find blocks and measure widths."""
    samples = flow.samples(batch)
    return samples.rows(list(range(min(2, len(samples)))))


def slot_widths(table: Mapping[str, int], k: int, chosen: Sequence[str] | None) -> list[int]:
    """The width of each of a domain's slots, from those of the blocks. Raises UnknownBlock, Unsupported."""
    if chosen is not None:
        unknown = [name for name in chosen if name not in table]
        if unknown:
            raise UnknownBlock(f"no block is named {unknown[0]!r}; there are {', '.join(table)}")
        return [table[name] for name in chosen]
    if len(set(table.values())) > 1:
        raise Unsupported(
            f"the blocks have different widths ({', '.join(map(str, sorted(set(table.values()))))}), and heads cannot "
            "be built before the layers are chosen. Select first, selection=select(attribute(flow, batch)), or keep to "
            "blocks of one width: blocks=[names]"
        )
    if k > len(table):
        raise Unsupported(f"k = {k} layers per domain, but the model has {len(table)} to choose from: type k=")
    return [next(iter(table.values()))] * k


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
    stack = max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)
    sizes: Counter[int] = Counter()
    matrices = [p for p in (stack.parameters() if stack is not None else ()) if p.ndim >= 2]
    for p in matrices:
        sizes.update({p.shape[0], p.shape[1]})
    (width, count), *_ = [*sizes.most_common(1), (0, 0)]
    if 2 * count <= len(matrices) or not count:
        raise Unsupported(
            f"the width of the streams of {type(module).__name__} cannot be read from its weights, and the heads need "
            "it before the optimizer is made. Type AGREPA(..., batch=one_training_batch)"
        )
    return width
