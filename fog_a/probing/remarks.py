"""What else may mislead in a wrapped flow: blocks, padding, random numbers, masks, dtypes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fog_a.blocks.calls import hooked, unwrapped
from fog_a.blocks.tree import leaf, leaves, replaced
from fog_a.blocks.untouched import rng
from fog_a.errors import FogError
from fog_a.finding.blocks import find_blocks
from fog_a.flows.flow import Flow

TIME = 0.5


def remarks(flow: Flow, batch: Any, seed: int) -> dict[str, str]:
    """Subject → remark. Run it where the model's state is preserved."""
    v, mask = flow.velocity(batch, TIME, seed), flow.samples(batch).mask
    texts = {
        **_blocks(flow, batch),
        "repeats": _repeats(flow, batch, TIME, seed),
        "padding": _padding(flow, batch, TIME, seed, mask),
        "mask": _polarity(mask),
        "dtype": _types(flow, v),
        "device": str(v.device),
    }
    return {subject: text for subject, text in texts.items() if text}


def _blocks(flow: Flow, batch: Any) -> dict[str, str]:
    """How many blocks there are, and what closing them all leaves open."""
    try:
        blocks = find_blocks(flow, batch)
    except FogError as error:
        return {"blocks": f"none: {error}"}
    stacks = Counter(block.stack for block in blocks.main)
    beside = len(blocks) - len(blocks.main)
    text = ", ".join(f"{stack} {count}" for stack, count in stacks.items())
    text = f"{len(blocks.main)} ({text})" + (f", and {beside} that x_t does not reach" if beside else "")
    coverage = getattr(blocks, "coverage", None)
    return {"blocks": text} if coverage is None else {"blocks": text, "open": str(coverage)}


def _repeats(flow: Flow, batch: Any, t: float, seed: int) -> str:
    """Whether the velocity depends on random numbers of the network's own."""
    velocities = []
    for other in (0, 0, 1):
        with rng(other):
            velocities.append(flow.velocity(batch, t, seed))
    if not torch.equal(velocities[0], velocities[1]):
        return "two runs differ though every generator starts alike: the network keeps a state, or is not deterministic"
    if not torch.equal(velocities[0], velocities[2]):
        return "the network draws random numbers in eval mode (dropped conditions, say); a probe holds them fixed"
    return "the same bits"


def _padding(flow: Flow, batch: Any, t: float, seed: int, mask: Bool[Tensor, "B ..."] | None) -> str:
    """Whether what x_t holds in the padding changes the velocity of real frames."""
    if mask is None or bool(mask.all()):
        return ""
    before = flow.velocity(batch, t, seed)
    real = mask.expand_as(before)
    changed: list[Any] = []

    def disturb(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tree = {"args": args, "kwargs": kwargs}
        like = [path for path, x in leaves(tree) if x.shape == before.shape and x.is_floating_point()]
        changed.extend(like)
        tree = replaced(tree, {path: torch.where(real, leaf(tree, path), 3.0) for path in like})
        return tree["args"], tree["kwargs"]

    with hooked(unwrapped(flow.module), before=disturb):
        after = flow.velocity(batch, t, seed)
    if not changed:
        return "not tried: no argument of the network has the shape of the velocity"
    moved = torch.where(real, after - before, 0).norm() / torch.where(real, before, 0).norm().clamp(min=1e-12)
    if float(moved) < 1e-5:
        return "does not reach the velocity of real frames"
    return f"leaks: other numbers in the padding move the velocity of real frames by {float(moved):.1%}"


def _polarity(mask: Bool[Tensor, "B ..."] | None) -> str:
    """A mask whose samples begin with False and end with True."""
    if mask is None:
        return ""
    flat = mask.reshape(len(mask), -1)
    late = ~flat[:, 0] & flat[:, -1]
    if bool(late.any()) and bool((late | flat.all(1)).all()):
        return "looks inverted: samples begin with False and end with True. True is for real frames; or left padding"
    return f"{float(flat.float().mean()):.0%} of the entries are real"


def _types(flow: Flow, v: Tensor) -> str:
    weights = sorted({str(p.dtype).removeprefix("torch.") for p in flow.module.parameters()})
    return f"weights {', '.join(weights) or 'none'}; velocity {str(v.dtype).removeprefix('torch.')}"
