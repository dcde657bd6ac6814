"""Which axes of data, masks and blocks' outputs are samples, frames and channels.

| | data x_1 | its mask |
|---|---|---|
| `channels="last"` | (B, T, D) | (B, T), (B, T, 1) or (B, T, D) |
| `channels="first"` | (B, D, T) | (B, T), (B, 1, T) or (B, D, T) |
| four axes and more | (B, D, H, W) | (B, H, W), (B, 1, H, W) or (B, D, H, W) |

A block's output of three axes is `"BTD"`, `"BDT"` or `"TBD"`; one of four and more is (B, D, H, W). Tokens of the time,
the class or the text may stand in one sequence with the data's: `tokens=` says which are the data's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from fog_a.errors import BadBatch, ShapeMismatch

STREAMS = ("BTD", "BDT", "TBD")

Which = Literal["first", "last"] | slice | None
"""Which tokens of a stream are the data's: all (None), the first or last ones, as many as it has frames, or a slice."""


def frame_mask(lengths: Int[Tensor, "B"], size: int) -> Bool[Tensor, "B T"]:
    """True for the real frames, which are the first ones."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mask_along(mask: Bool[Tensor, "B T"], ndim: int, axis: int) -> Bool[Tensor, "B ..."]:
    """A mask of frames, broadcastable to a tensor of `ndim` axes whose frames lie along `axis`."""
    shape = [1] * ndim
    shape[0], shape[axis] = mask.shape
    return mask.reshape(shape)


def as_tokens(h: Tensor, stream: str = "BTD") -> Float[Tensor, "B T D"]:
    """A block's output as tokens with channels last: (B, D) is one token, (B, D, H, W) is H·W of them."""
    if h.ndim == 2:
        return h[:, None]
    if h.ndim == 3:
        return h.permute([stream.index(axis) for axis in "BTD"])
    return h.flatten(2).transpose(1, 2)


def token_mask(mask: Bool[Tensor, "B ..."] | None, h: Float[Tensor, "B T D"]) -> Bool[Tensor, "B T"] | None:
    """The mask of v at the length of h: of every second or n-th frame where the network works at a lower rate, of
    patches of an image.

    Raises:
        ShapeMismatch: h has more tokens than there are frames, or as many as no rate and no patches give.
    """
    if mask is None:
        return None
    channels, size = _laid(mask)
    if not _covers(size, h.shape[1]):
        raise ShapeMismatch(
            f"a mask of {' × '.join(map(str, size))} says nothing of {h.shape[1]} tokens, which are no patches of it "
            "and no lower rate. Where tokens of the time, the class or the text stand among a block's, leave them out "
            "by fog_a.wrap(..., tokens=), or in the adapter's tokens()"
        )
    return patch_mask(mask, h, h, channels)


def interface_mask(mask: Bool[Tensor, "B ..."] | None, c: Float[Tensor, "B T D"]) -> Bool[Tensor, "B T"] | None:
    """The same of an interface; None, all tokens count, of one at a length of its own: text has no frames."""
    known = mask is not None and _covers(_laid(mask)[1], c.shape[1])
    return token_mask(mask, c) if known else None


def _laid(mask: Bool[Tensor, "B ..."]) -> tuple[str, list[int]]:
    """Where a mask's channels are, and how many frames, or pixels along each axis, it has."""
    channels = "first" if mask.ndim == 3 and mask.shape[1] == 1 else "last"
    return channels, list(mask.shape[1:]) if mask.ndim == 2 else _frames(mask, channels)


def _covers(size: Sequence[int], count: int) -> bool:
    """Whether a mask of this size says which of so many tokens are real: frames at its rate or a lower one, patches."""
    return size == [1] or (_at_a_rate(count, size) if len(size) == 1 else _grid(size, count) is not None)


def patch_mask(
    mask: Bool[Tensor, "B ..."] | None, h: Tensor, tokens: Float[Tensor, "B T D"], channels: str
) -> Bool[Tensor, "B T"] | None:
    """Which tokens are real, of a block's output h and of the same as tokens: every n-th frame's mask, however many
    there are; a token of an image is real if a pixel of its patch is."""
    if mask is not None and mask.ndim > 2:
        mask = mask.any(_channel_axis(mask.ndim, channels))
    if mask is None or mask.ndim < 3:
        return None if mask is None else _every_nth(mask, tokens)
    size = mask.shape[1:]
    grid = h.shape[2:] if h.ndim == mask.ndim + 1 else _grid(size, tokens.shape[1])
    if grid is None or any(n % g for n, g in zip(size, grid, strict=True)):
        raise ShapeMismatch(
            f"a mask of {tuple(size)} cannot be laid over {tokens.shape[1]} tokens: they are no patches of one size. "
            "Leave the mask out, or write tokens() in an adapter"
        )
    split = [part for n, g in zip(size, grid, strict=True) for part in (g, n // g)]
    patches = mask.reshape(len(mask), *split)
    return patches.amax(tuple(range(2, patches.ndim, 2))).flatten(1)


def _every_nth(mask: Bool[Tensor, "B T"], h: Float[Tensor, "B N D"]) -> Bool[Tensor, "B N"]:
    frames, size = mask.reshape(mask.shape[0], -1).to(h.device), mask[0].numel()
    if size in (1, h.shape[1]):
        return frames.expand(-1, h.shape[1])
    step = -(-size // h.shape[1])
    if -(-size // step) == h.shape[1]:
        return frames[:, ::step]
    return frames[:, torch.arange(h.shape[1], device=h.device) * size // h.shape[1]]


def _grid(size: Sequence[int], count: int) -> list[int] | None:
    """How many patches lie along each axis, if they are squares (cubes) that cover the image."""
    side = max(round((math.prod(size) / count) ** (1 / len(size))), 1)
    grid = [n // side for n in size]
    return grid if math.prod(grid) == count and not any(n % side for n in size) else None


def data_tokens(
    tokens: Float[Tensor, "B N D"], x1: Float[Tensor, "S ..."], channels: str, which: Which
) -> Float[Tensor, "B T D"]:
    """The tokens that are the data's, of all in a stream.

    Raises:
        ShapeMismatch: no rate and no patches make the data's frames as many tokens, and `which` does not say more.
    """
    size = _frames(x1, channels)
    if isinstance(which, str):
        count = min(math.prod(size), tokens.shape[1])
        tokens = tokens[:, :count] if which == "first" else tokens[:, -count:]
    elif which is not None:
        return tokens[:, which]
    n = tokens.shape[1]
    if x1.ndim > 2 and not _at_a_rate(n, size):
        more = next((k for k in range(1, n) if _at_a_rate(n - k, size)), 1)
        count = " × ".join(map(str, size)) + (" frames" if len(size) == 1 else " pixels")
        words = '"last" or "first", as many as frames; ' if n > math.prod(size) else ""
        frames = '. Of data (B, D, T): channels="first"' if x1.ndim == 3 and channels == "last" else ""
        raise ShapeMismatch(
            f"the blocks give {n} tokens for data of {count}, which are no patches of it and no lower rate: do tokens "
            "of the time, the class or the text stand among them? Say which are the data's, by fog_a.wrap(..., tokens="
            f"): {words}a slice, such as tokens=slice({more}, None) without the first {more}; tokens=slice(None) "
            f"where all are{frames}"
        )
    return tokens


def counts_more(h: Tensor, v: Float[Tensor, "B ..."]) -> bool:
    """Whether a block's three axes (B, T, D) hold more tokens than v has frames or patches, and no multiple of them."""
    if h.ndim != 3 or v.ndim < 3:
        return False
    n, sizes = h.shape[1], [_frames(v, channels) for channels in ("last", "first")]
    return n > min(map(math.prod, sizes)) and n % math.prod(sizes[0]) > 0 and not any(_at_a_rate(n, s) for s in sizes)


def _frames(x1: Shaped[Tensor, "B ..."], channels: str) -> list[int]:
    """How many frames, or pixels along each axis, the data or its mask has."""
    axis = _channel_axis(x1.ndim, channels)
    return [n for i, n in enumerate(x1.shape) if i not in (0, axis)]


def _at_a_rate(count: int, size: Sequence[int]) -> bool:
    """Whether every n-th frame, or patches of n pixels each way, or of whole columns, are so many tokens."""
    step = (math.prod(size) / count) ** (1 / max(len(size), 1))
    for n in {max(math.floor(step), 1), math.ceil(step)}:
        if count in (math.prod(m // n for m in size), math.prod(-(-m // n) for m in size)):
            return True
    return len(size) > 1 and (count in size or (len(size) > 2 and math.prod(size) % count == 0))


def _channel_axis(ndim: int, channels: str) -> int:
    return 1 if channels == "first" or ndim > 3 else ndim - 1


def data_mask(mask: Tensor, x1: Float[Tensor, "B ..."], channels: str) -> Bool[Tensor, "B ..."]:
    """A batch's mask, broadcastable to x_1.

    Raises:
        ShapeMismatch: its axes are not those of x_1.
        BadBatch: it is True where the data is padding: a sample has no True, or there is data only where it is False.
    """
    mask = mask.bool()
    if mask.ndim == x1.ndim - 1 and x1.ndim > 2:
        mask = mask.unsqueeze(_channel_axis(x1.ndim, channels))
    elif mask.ndim == 2 and x1.ndim > 3:
        mask = mask_along(mask, x1.ndim, 1 if channels == "last" else x1.ndim - 1)
    if mask.ndim != x1.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x1.shape, strict=True)):
        other = "first" if channels == "last" else "last"
        raise ShapeMismatch(
            f"expected a mask (B, T), or one that broadcasts to the data {tuple(x1.shape)} with its channels "
            f'{channels}, got {tuple(mask.shape)}. If T is the other axis, type channels="{other}"'
        )
    real, kept = mask.flatten(1).any(1), mask.expand_as(x1)
    inverted = bool(kept.any()) and not bool(x1[kept].any()) and bool(x1[~kept].any())
    if inverted or not bool(real.all()):
        what = (
            "the data is zero wherever the mask is True, and is not where it is False"
            if inverted
            else f"sample {int((~real).nonzero()[0])} has no True"
        )
        raise BadBatch(
            f"the mask looks inverted: {what}. fog_a's is True for real frames. Where True means padding, as in "
            "key_padding_mask, type batch['mask'] = ~mask"
        )
    return mask


def check_stream(h: Tensor, x1: Float[Tensor, "B ..."], channels: str, stream: str) -> None:
    """Raises ShapeMismatch where a block's three axes lie otherwise than `stream` says, as far as sizes can tell."""
    if h.ndim != 3 or x1.ndim < 3:
        return
    size = _frames(x1, channels)
    batched = [name for name in STREAMS if h.shape[name.index("B")] == len(x1)]

    def fits(name: str) -> bool:
        tokens = h.shape[name.index("T")]
        return name in batched and (_at_a_rate(tokens, size) if x1.ndim > 3 else [tokens] == size)

    fitting = [name for name in STREAMS if fits(name)] or [name for name in batched if stream not in batched]
    if fitting and not fits(stream):
        raise ShapeMismatch(
            f"the blocks give {tuple(h.shape)} for data {tuple(x1.shape)}, which fits the axes {fitting[0]}, not "
            f'{stream}: type fog_a.wrap(..., stream="{fitting[0]}"). If {stream} is right, type stream="{stream}"; '
            "where tokens of time, class or text stand beside the data's, tokens= says which are the data's"
        )
