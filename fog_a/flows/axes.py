"""Which axes of data, masks and streams are samples, frames and channels.

| | data x_1 | its mask |
|---|---|---|
| `channels="last"` | (B, T, D) | (B, T), (B, T, 1) or (B, T, D) |
| `channels="first"` | (B, D, T) | (B, T), (B, 1, T) or (B, D, T) |
| four axes and more | (B, D, H, W) | (B, H, W), (B, 1, H, W) or (B, D, H, W) |

A stream of three axes is `"BTD"`, `"BDT"` or `"TBD"`; one of four and more is (B, D, H, W).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.errors import BadBatch, ShapeMismatch
from fog_a.flows.frames import mask_along, token_mask

STREAMS = ("BTD", "BDT", "TBD")


def channel_axis(ndim: int, channels: str) -> int:
    """The axis of D in data of so many axes."""
    return 1 if channels == "first" or ndim > 3 else ndim - 1


def data_mask(mask: Tensor, x1: Float[Tensor, "B ..."], channels: str) -> Bool[Tensor, "B ..."]:
    """A batch's mask, broadcastable to x_1.

    Raises:
        ShapeMismatch: its axes are not those of x_1.
        BadBatch: it is True where the data is padding.
    """
    mask, axis = mask.bool(), channel_axis(x1.ndim, channels)
    if mask.ndim == x1.ndim - 1 and x1.ndim > 2:
        mask = mask.unsqueeze(axis)
    elif mask.ndim == 2 and x1.ndim > 3:
        mask = mask_along(mask, x1.ndim, 1 if channels == "last" else x1.ndim - 1)
    fits = mask.ndim == x1.ndim and all(m in (1, n) for m, n in zip(mask.shape, x1.shape, strict=True))
    if not fits:
        other = "first" if channels == "last" else "last"
        raise ShapeMismatch(
            f"expected a mask (B, T), or one that broadcasts to the data {tuple(x1.shape)} with its channels "
            f'{channels}, got {tuple(mask.shape)}. If T is the other axis, type channels="{other}"'
        )
    _check_polarity(mask, x1)
    return mask


def _check_polarity(mask: Bool[Tensor, "B ..."], x1: Tensor) -> None:
    """Raises BadBatch for a mask that must be inverted: a sample without True, or data only where it is False."""
    some = mask.flatten(1).any(1)
    kept = mask.expand_as(x1)
    inverted = bool(kept.any()) and not bool(x1[kept].any()) and bool(x1[~kept].any())
    if bool(some.all()) and not inverted:
        return
    what = (
        "the data is zero wherever the mask is True, and is not where it is False"
        if inverted
        else f"sample {int((~some).nonzero()[0])} has no True"
    )
    raise BadBatch(
        f"the mask looks inverted: {what}. fog_a's is True for real frames. Where True means padding, as in "
        "key_padding_mask, type batch['mask'] = ~mask"
    )


def pixel_mask(mask: Bool[Tensor, "B ..."] | None, channels: str) -> Bool[Tensor, "B ..."] | None:
    """The mask of data without its axis of channels: (B, T), or (B, H, W)."""
    if mask is None or mask.ndim < 3:
        return mask
    return mask.any(channel_axis(mask.ndim, channels))


def stream_tokens(h: Tensor, stream: str) -> Float[Tensor, "B T D"]:
    """A block's output as tokens with channels last: (B, D) is one token, (B, D, H, W) is H·W of them."""
    if h.ndim == 2:
        return h[:, None]
    if h.ndim == 3:
        return {"BTD": h, "BDT": h.transpose(1, 2), "TBD": h.transpose(0, 1)}[stream]
    return h.flatten(2).transpose(1, 2)


def stream_mask(
    frames: Bool[Tensor, "B ..."] | None, h: Tensor, tokens: Float[Tensor, "B T D"]
) -> Bool[Tensor, "B T"] | None:
    """Which tokens are real. A token of an image is real if a pixel of its patch is.

    Args:
        frames: the mask of the data, without channels.
        h, tokens: the block's output, and the same as tokens.
    """
    if frames is None or frames.ndim < 3:
        return token_mask(frames, tokens)
    size = frames.shape[1:]
    grid = h.shape[2:] if h.ndim == frames.ndim + 1 else _grid(size, tokens.shape[1])
    if grid is None or any(n % g for n, g in zip(size, grid, strict=True)):
        raise ShapeMismatch(
            f"a mask of {tuple(size)} cannot be laid over {tokens.shape[1]} tokens: they are no patches of one size. "
            "Leave the mask out, or write tokens() in an adapter"
        )
    split = [part for n, g in zip(size, grid, strict=True) for part in (g, n // g)]
    patches = frames.reshape(len(frames), *split)
    return patches.amax(tuple(range(2, patches.ndim, 2))).flatten(1)


def _grid(size: torch.Size, count: int) -> list[int] | None:
    """How many patches lie along each axis, if they are squares (cubes)."""
    side = round((math.prod(size) / count) ** (1 / len(size)))
    grid = [n // max(side, 1) for n in size]
    return grid if math.prod(grid) == count else None


def check_stream(h: Tensor, x1: Float[Tensor, "B ..."], channels: str, stream: str) -> None:
    """Raises ShapeMismatch where a block's three axes lie otherwise than `stream` says, as far as sizes can tell."""
    if h.ndim != 3 or x1.ndim < 3:
        return
    axis = channel_axis(x1.ndim, channels)
    frames = math.prod(n for i, n in enumerate(x1.shape) if i not in (0, axis))
    sizes = {name: (h.shape[name.index("B")], h.shape[name.index("T")]) for name in STREAMS}
    patches = x1.ndim > 3  # their number divides that of the pixels

    def fits(name: str) -> bool:
        samples, tokens = sizes[name]
        return samples == len(x1) and (frames % tokens == 0 if patches else frames == tokens)

    fitting = [name for name in STREAMS if fits(name)]
    if fitting and not fits(stream):
        raise ShapeMismatch(
            f"the blocks give {tuple(h.shape)} for data {tuple(x1.shape)}, which fits the axes {fitting[0]}, not "
            f'{stream}: type fog_a.wrap(..., stream="{fitting[0]}"), or stream="{stream}" if it is right'
        )
