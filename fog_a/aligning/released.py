"""The probe of the authors' release, with each of its deviations an option: to compare with, not to use.

    a_k = sqrt(mean(v_k − v)² + 1e-8) / (sqrt(mean v² + 1e-8) + 1e-8)

at the clean data in the place of x_t, t = 0.8, in train mode, one ablation at a time. The 1e-8 inside the root puts a
floor under every score; dropout, drawn anew for every pass, a second one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fog_a.aligning.recipe import Recipe
from fog_a.blocks.block import Blocks
from fog_a.blocks.gate import gate
from fog_a.blocks.untouched import preserved
from fog_a.errors import Unsupported
from fog_a.flows.flow import Flow


def as_released(flow: Flow, batch: Any, blocks: Blocks, t: float, seed: int, recipe: Recipe) -> Tensor:
    """The release's probe: its mode, input and norm, one ablation at a time. (rows, layers)"""
    extra = {"clean": True} if recipe.probe_input == "clean" else {}
    mask = flow.samples(batch).mask

    def velocity() -> Tensor:
        v = flow.adapter.velocity(batch, t, seed, **extra).float()
        return v if mask is None else v * mask

    with preserved(*flow.modules, seed=seed):
        if recipe.probe_mode == "train":  # the network alone: the release drops no condition while it probes
            flow.module.train()
        try:
            v = velocity()
        except TypeError as error:
            if not extra or "clean" not in str(error):
                raise
            raise Unsupported(
                f"probe_input='clean' needs an adapter whose velocity takes clean=True; "
                f"{type(flow.adapter).__name__}'s does not. Type AGREPA(..., preset='release', probe_input='noisy')"
            ) from None
        columns = []
        for i in range(len(blocks)):
            with gate(blocks[i : i + 1], 0):
                columns.append(_size(velocity() - v, mask, recipe) / (_size(v, mask, recipe) + 1e-8))
    return torch.stack(columns, dim=1).cpu()


def _size(v: Tensor, mask: Tensor | None, recipe: Recipe) -> Tensor:
    """‖v‖₂ of each sample, or sqrt(mean(v²) + 1e-8) over its valid entries."""
    square = v.flatten(1).square().sum(1)
    if recipe.probe_norm == "l2":
        return square.sqrt()
    entries = v[0].numel() if mask is None else mask.expand_as(v).flatten(1).sum(1)
    return (square / entries + 1e-8).sqrt()
