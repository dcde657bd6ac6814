"""A layer's tokens as one vector per sample.

    z = LayerNorm( (1/T) Σ_τ h_τ )                                                            Eq. 3

over the valid tokens τ; no affine parameters.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import layer_norm

from fog_a.errors import ShapeMismatch


def temporal_mean(h: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B D"]:
    """The mean over the tokens where `mask` is True (None: all). What stands in the others, NaN too, does not count.

    >>> import torch
    >>> h = torch.tensor([[[1.0], [3.0], [float("nan")]]])
    >>> temporal_mean(h, torch.tensor([[True, True, False]])).item()
    2.0
    """
    if h.ndim != 3:
        raise ShapeMismatch(
            f"expected tokens (B, T, D), got {tuple(h.shape)}: the adapter's tokens() must give channels last"
        )
    if mask is None:
        return h.mean(1)
    if mask.shape != h.shape[:2]:
        raise ShapeMismatch(
            f"the mask of {tuple(h.shape)} tokens must be {tuple(h.shape[:2])}, got {tuple(mask.shape)}"
        )
    count = mask.sum(1, keepdim=True).clamp(min=1)
    return h.masked_fill(~mask[..., None], 0).sum(1) / count.to(h.dtype)


def descriptor(h: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B D"]:
    """Eq. 3 in float32: the temporal mean over valid tokens, then LayerNorm without affine."""
    return standardized(temporal_mean(h.float(), mask))


def standardized(z: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """LayerNorm without affine: the second half of Eq. 3."""
    return layer_norm(z, z.shape[-1:])
