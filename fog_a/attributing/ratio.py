"""Eq. 9 for one ablation: how far the velocity moves, relative to itself, for each sample."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import ShapeMismatch
from fog_a.flows.case import per_sample

EPS = 1e-8
"""ε of Eq. 9."""


def ratio(v_k: Tensor, v: Tensor, keep: Tensor | None) -> Float[np.ndarray, " B"]:
    """‖v_k − v‖ / (‖v‖ + ε) over the entries that count; NaN where it is not finite, or v is zero there.

    Raises:
        ShapeMismatch: the ablation changed the velocity's shape.
    """
    check_shape(v_k, v)
    change, base = per_sample(v_k) - per_sample(v), per_sample(v)
    if keep is not None:
        change, base = (torch.where(keep, x, torch.zeros_like(x)) for x in (change, base))
    return relative(norm(change), norm(base))


def check_shape(v_k: Tensor, v: Tensor) -> None:
    """Raises ShapeMismatch where an ablation changed the velocity's shape."""
    if v_k.shape != v.shape:
        raise ShapeMismatch(
            f"an ablation changed the output's shape from {tuple(v.shape)} to {tuple(v_k.shape)}: its length depends "
            "on inner layers (durations, say). Fix the lengths in forward=, or score other blocks with blocks="
        )


def norm(x: Float[Tensor, "B n"]) -> Float[np.ndarray, " B"]:
    """‖x‖ of each row, in double precision: squares of float32 numbers overflow at 2e19 and vanish at 1e-23.

    >>> (norm(torch.tensor([[3e25, 4e25], [3e-25, 4e-25]])) * [1e-25, 1e25]).round(3)
    array([5., 5.])
    """
    largest = x.abs().amax(dim=1, keepdim=True)
    scaled = x / torch.where((largest > 0) & torch.isfinite(largest), largest, torch.ones_like(largest))
    return scaled.norm(dim=1).double().cpu().numpy() * largest[:, 0].double().cpu().numpy()


def relative(change: Float[np.ndarray, "..."], base: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """‖Δv‖ / (‖v‖ + ε); NaN where there is nothing to change, or the change is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        score = np.where(base > 0, change / (base + EPS), np.nan)
    return np.where(np.isfinite(score), score, np.nan)
