"""A first-order estimate of all scores from a few backward passes, instead of L(L + 1)/2 block evaluations.

Moving block k's gate away from 1 moves the velocity by ∂v/∂g_k = J_k f_k with J_k = ∂v/∂h_k, so to first order

    ‖v^{\\k} − v‖ ≈ ‖J_k f_k‖,        ∂⟨u, v⟩/∂g_k = ⟨u, J_k f_k⟩ ~ N(0, ‖J_k f_k‖²)    for u ~ N(0, I).

One backward pass gives that number for every block and sample. The root mean square of r of them, divided by
c_r = √(2/r) Γ((r+1)/2) / Γ(r/2), is an unbiased estimate of the norm, off by √(1/c_r² − 1) of it (one standard
deviation; 0.25 at r = 8), independently in each sample and at each time. What remains is what a first order leaves out:
how closely it follows the exact scores on trained models stands in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.attributing.axes import Axis
from fog_a.attributing.layout import Layout
from fog_a.attributing.yardstick import norm
from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import Key, at_calls, gate_points, named_modules
from fog_a.blocks.gate import carried, kept_inputs
from fog_a.blocks.tree import LeafPath, leaf, replaced
from fog_a.errors import Unsupported
from fog_a.flows.case import Case


def shrinkage(projections: int) -> float:
    """c_r: what the root mean square of r standard normal numbers is on average.

    >>> round(shrinkage(1), 4), round(shrinkage(8), 4)
    (0.7979, 0.9693)
    """
    r = projections
    return math.sqrt(2 / r) * math.exp(math.lgamma((r + 1) / 2) - math.lgamma(r / 2))


def note(projections: int) -> str:
    """What a reader of estimated scores must know."""
    off = math.sqrt(shrinkage(projections) ** -2 - 1)
    return (
        f"a first-order estimate from {projections} projections, no ablation: each value is off by {off:.0%} of itself "
        "(one standard deviation), beside what a first order leaves out. Compare it with its like only"
    )


def slopes(
    case: Case,
    blocks: Blocks,
    layout: Layout,
    projections: int,
) -> tuple[Float[Tensor, "L B"], Float[np.ndarray, " B"]]:
    """The estimated ‖J_k f_k‖ of each block and sample, and ‖v‖.

    Raises Unsupported where samples cannot be told apart at a gate, or v has no graph.
    """
    for block in blocks:
        if any(source is not None and source.inside for point in block.gate_points for source in point.give.values()):
            raise Unsupported(
                f"FirstOrder needs the shortcut of {block.name!r} among its inputs, and a module inside it makes it. "
                "Use how='auto', or leave this block out with blocks="
            )
    if layout.problem is not None:
        raise Unsupported(f"FirstOrder needs samples that can be told apart: {layout.problem}. Use how='auto'")
    device = next((p.device for p in case.module.parameters()), torch.device("cpu"))
    with torch.inference_mode(False), torch.enable_grad():
        gates = torch.ones(len(blocks), layout.samples, device=device, requires_grad=True)
        with _hung_on(gates, case, blocks, layout):  # also while a checkpoint computes its inside again
            v = case.run()
            if not v.requires_grad:
                raise Unsupported("the velocity has no graph: it is made under no_grad, or detached. Use how='auto'")
            keep = case.keep(v.detach())
            flat = v.float().reshape(len(v), -1)
            flat = flat if keep is None else torch.where(keep, flat, torch.zeros_like(flat))
            squares = torch.zeros_like(gates)
            generator = torch.Generator("cpu").manual_seed(case.seed)
            for left in reversed(range(projections)):
                u = torch.randn(flat.shape, generator=generator, dtype=torch.float32, device="cpu").to(flat.device)
                squares += _gradient((u * flat).sum(), gates, left > 0).square()
    return (squares / projections).sqrt().detach() / shrinkage(projections), norm(flat.detach())


def _gradient(y: Tensor, gates: Float[Tensor, "L B"], again: bool) -> Float[Tensor, "L B"]:
    try:
        return torch.autograd.grad(y, gates, retain_graph=again)[0]
    except RuntimeError as error:
        raise Unsupported(
            f"FirstOrder needs a backward pass, and the model's own fails: {str(error)[:200]}. Use how='auto'"
        ) from error


@contextlib.contextmanager
def _hung_on(gates: Float[Tensor, "L B"], case: Case, blocks: Blocks, layout: Layout) -> Iterator[None]:
    """Inside, block k's update is multiplied by gates[k], which are 1."""
    calls = gate_points(blocks)
    places = {(p.module, p.call, path): i for i, b in enumerate(blocks) for p in b.gate_points for path in p.give}
    kept: dict[Key, dict[LeafPath, Tensor]] = {}

    def before(key: Key, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            kept[key] = kept_inputs(calls[key], args, kwargs)

    def after(key: Key, args: Any, kwargs: Any, out: Any) -> Any:
        given, new = kept.pop(key), {}
        for path, passage in calls[key].give.items():
            i, y, axis = places[*key, path], leaf(out, path), layout.returned[key].get(path)
            if axis is None:
                raise Unsupported(f"samples share what {key[0]} gives out: no gate of their own. Use how='auto'")
            with torch.no_grad():
                f = y - carried(given, passage, y, blocks[i])
            new[path] = y + (_along(gates[i], axis, y) - 1) * f  # f_k as a constant: the slope at g_k = 1
        return replaced(out, new)

    with at_calls(named_modules(case.module), calls, before, after):
        yield


def _along(g: Float[Tensor, " B"], axis: Axis, y: Tensor) -> Tensor:
    """One number per sample, along the axis of `y` where the samples are."""
    rows = g.repeat(axis.fold) if axis.outer else g.repeat_interleave(axis.fold)
    return rows.to(y.dtype).reshape([-1 if d == axis.dim else 1 for d in range(y.ndim)])
