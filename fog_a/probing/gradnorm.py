"""How strongly the flow loss pulls at each layer: the control selector of the paper's Table 3.

    GradNorm_l = E_x[ ‖∂L_FM(x) / ∂θ_l‖₂ ],     θ_l the parameters of block l

per sample, so that it comes with an error bar. `wrt="activations"` takes ‖∂L_FM / ∂h_l‖₂ at the block's output (the
paper does not say which; SPEC A9). A large gradient says that a layer is being changed, not that v depends on it: FoG-A
measures that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import named_modules
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.local import own_parameters
from fog_a.blocks.tap import tap
from fog_a.blocks.untouched import preserved, rng
from fog_a.errors import BadOutput, NoActivations, Unsupported
from fog_a.flows.batches import each
from fog_a.flows.flow import Flow
from fog_a.flows.provenance import provenance
from fog_a.flows.wrapping import wrap
from fog_a.probing.depth import blocks_of
from fog_a.scores.scores import Scores


@unbroken()
def gradnorm(
    flow: Any,
    batch: Any,
    *,
    blocks: Blocks | Sequence[str] | None = None,
    wrt: Literal["parameters", "activations"] = "parameters",
    draws: int = 1,
    seed: int = 0,
) -> Scores:
    """The norm of the flow loss's gradient at each layer, sample by sample; kind "gradnorm".

    Args:
        flow: a wrapped flow, or a model that `wrap` knows.
        batch: one batch, or several (a list, an iterator, a DataLoader).
        blocks: which layers, as `Blocks` or names; default the main ones.
        wrt: the block's parameters, or its output.
        draws: losses (with their own noise and time) per sample, whose norms are averaged.
        seed: of the noise and times; the same for every sample.

    Returns:
        Scores without a time axis, ≥ 0, in units of the loss per unit of weight (or activation); NaN where a gradient
        is not finite.

    Raises:
        NoActivations: the loss has no gradient at any block: frozen, or detached.
        Unsupported: re-entrant checkpointing, which torch.autograd.grad refuses.
        BadOutput: the loss is no single number.

    Runs in eval mode (no dropout), leaves no trace: `.grad` is not touched.
    """
    flow = wrap(flow)
    if wrt not in ("parameters", "activations"):
        raise Unsupported(f"wrt must be 'parameters' or 'activations', got {wrt!r}")
    rows: list[list[float]] = []
    ids, domains, clips = (), (), ()
    for item in each(batch):
        blocks = blocks_of(flow, item, blocks)
        samples = flow.samples(item)
        for i in range(len(samples)):
            sample = samples.rows([i])
            norms = [_norms(flow, sample, blocks, wrt, seed + draw) for draw in range(draws)]
            rows.append(np.mean(norms, axis=0).tolist())
        ids, domains, clips = ids + samples.ids, domains + samples.domains, clips + samples.groups
    assert isinstance(blocks, Blocks)  # each() raises where there is no batch
    info = provenance(flow, blocks, seed, options={"wrt": wrt, "draws": draws})
    values = np.array(rows, dtype=np.float32)[:, None]
    return Scores(values, blocks.names, None, domains, ids, "gradnorm", info, clips)


def _norms(flow: Flow, batch: Any, blocks: Blocks, wrt: str, seed: int) -> list[float]:
    """‖∂L/∂θ_l‖₂ of one sample, for every block."""
    with preserved(*flow.modules, grad=True), rng(seed), tap(blocks) as h:
        loss = flow.loss(batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise BadOutput(f"the adapter's loss(batch) must be one number, got {getattr(loss, 'shape', loss)}")
        modules = named_modules(blocks.model)
        summed = [b.name for b in blocks if any(point.plus is not None for point in b.outputs)]
        if wrt == "parameters":
            groups = [own_parameters(b, modules) for b in blocks]
        else:
            if summed:
                raise Unsupported(
                    f"no module takes or gives the output of {', '.join(summed[:4])}: it is a sum in the parent's "
                    "forward, where no gradient can be read. Use wrt='parameters', or other blocks="
                )
            groups = [[x for x in h.all.get(b.name, ()) if x.requires_grad] for b in blocks]
        at = [x for group in groups for x in group]
        if not at or not loss.requires_grad:
            raise NoActivations(
                f"the loss has no gradient at the {'parameters' if wrt == 'parameters' else 'outputs'} of any block. "
                "All frozen, or detached? Type model.requires_grad_(True)"
            )
        gradients = iter(_gradients(loss.reshape(()), at))
        return [_norm([next(gradients) for _ in group]) for group in groups]


def _gradients(loss: Tensor, at: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """∂L at these tensors; None where the loss does not reach.

    Raises Unsupported under re-entrant checkpointing, which hides the tensors inside it from torch.autograd.grad.
    """
    failure: RuntimeError | None = None
    try:
        gradients = torch.autograd.grad(loss, at, allow_unused=True)
        if all(g is not None for g in gradients) or not _reentrant(loss):
            return gradients
    except RuntimeError as error:
        if not _reentrant(loss):
            raise
        failure = error
    raise Unsupported(
        "re-entrant gradient checkpointing cannot give gradients at chosen tensors: switch it off for the probe, or "
        "use checkpoint(..., use_reentrant=False)"
    ) from failure


def _reentrant(loss: Tensor) -> bool:
    """Whether a part of the loss was computed under re-entrant checkpointing."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def _norm(gradients: Sequence[Tensor | None]) -> float:
    """In float32 whatever the weights are; 0 where the loss does not reach."""
    squares = [g.detach().float().square().sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
