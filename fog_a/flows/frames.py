"""Frames of a velocity and tokens of a block: masks at the shape of the one, and at the length of the other."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def frame_mask(lengths: Int[Tensor, "B"], size: int) -> Bool[Tensor, "B T"]:
    """True for the real frames, which are the first ones."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mask_along(mask: Bool[Tensor, "B T"], ndim: int, axis: int) -> Bool[Tensor, "B ..."]:
    """A mask of frames, broadcastable to a tensor of `ndim` axes whose frames lie along `axis`."""
    shape = [1] * ndim
    shape[0], shape[axis] = mask.shape[0], mask.shape[1]
    return mask.reshape(shape)


def as_tokens(h: Tensor, first: bool = False) -> Float[Tensor, "B T D"]:
    """A block's output with channels last: (B, D) → (B, 1, D), (B, D, H, W) → (B, H·W, D)."""
    if h.ndim == 2:
        return h[:, None]
    if h.ndim == 3:
        return h.transpose(1, 2) if first else h
    return h.flatten(2).transpose(1, 2)


def token_mask(mask: Bool[Tensor, "B ..."] | None, h: Float[Tensor, "B T D"]) -> Bool[Tensor, "B T"] | None:
    """The mask of v at the length of h: of every second or n-th frame where the network works at a lower rate."""
    if mask is None:
        return None
    frames = mask.reshape(mask.shape[0], -1).to(h.device)
    size = frames.shape[1]
    if size in (1, h.shape[1]):
        return frames.expand(-1, h.shape[1])
    step = -(-size // h.shape[1])
    if -(-size // step) == h.shape[1]:
        return frames[:, ::step]
    return frames[:, torch.arange(h.shape[1], device=h.device) * size // h.shape[1]]
