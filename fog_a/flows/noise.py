"""Random numbers of a probe, drawn sample by sample.

    x_0^{(i)} ~ N(0, I) from a generator that is seeded by (seed, what is drawn, id of sample i)

so that the noise of a sample is the same alone, in any batch, in any chunk, on any device, at any time t, and whatever
its padding: it is drawn on the CPU for the real frames only, and is zero in the padding. Without ids of its own, a
sample is called by a fingerprint of its data.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fog_a.errors import BadArgument


def content_ids(x: Tensor, lengths: Sequence[int] | None = None, axis: int = 1) -> tuple[str, ...]:
    """A name for each sample, made of its data without padding: the same data has the same name everywhere.

    Args:
        x: samples (B, …).
        lengths: valid entries of each sample along `axis`, or None: all.
        axis: the axis of x that is padded.

    >>> a, b = content_ids(torch.tensor([[1.0, 2.0], [1.0, 0.0]]), lengths=[2, 1])
    >>> a == content_ids(torch.tensor([[1.0, 2.0, 0.0]]), lengths=[2])[0], a == b
    (True, False)
    """
    names = []
    for row in valid(x.detach().cpu(), lengths, axis):
        digest = hashlib.blake2b(content(row), digest_size=8)
        digest.update(repr((tuple(row.shape), str(row.dtype))).encode())
        names.append(digest.hexdigest())
    return tuple(names)


def content(x: Tensor) -> bytes:
    """The bytes of a tensor's values, on any device; none of a meta tensor, which has a shape alone."""
    if x.is_meta:
        return b""
    plain = x.detach().cpu().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def row_marks(tensors: Sequence[Tensor], count: int) -> tuple[str, ...]:
    """A fingerprint of each of `count` samples, of all tensors that have as many rows; () where none has.

    >>> row_marks([torch.ones(2, 3), torch.arange(5)], 2) == row_marks([torch.ones(2, 3)], 2)
    True
    """
    plain = [t for t in tensors if t.layout is torch.strided and not t.is_nested and t.device.type != "meta"]
    return tuple(map("/".join, zip(*(content_ids(t) for t in plain if t.ndim and len(t) == count), strict=True)))


_DRAWN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""Where numbers are drawn, whatever torch's defaults are: the same numbers everywhere."""


def noise(
    like: Float[Tensor, "B ..."],
    ids: Sequence[str],
    seed: int,
    lengths: Sequence[int] | None = None,
    axis: int = 1,
) -> Float[Tensor, "B ..."]:
    """x_0: standard normal in the shape, dtype and device of `like`; zero beyond each sample's length.

    >>> x = torch.zeros(2, 3)
    >>> torch.equal(noise(x, ["a", "b"], seed=0)[1:], noise(x[1:], ["b"], seed=0))
    True
    """
    x0 = torch.zeros(like.shape, **_DRAWN)
    for i, row in enumerate(valid(x0, lengths, axis)):
        row.copy_(torch.randn(row.shape, generator=generator(seed, "noise", ids[i]), **_DRAWN))
    return x0.to(like)


def uniform(ids: Sequence[str], seed: int, what: str, count: int = 1) -> Float[Tensor, "B n"]:
    """`count` numbers in [0, 1) for each sample, on the CPU; `what` tells one use from another."""
    return torch.stack([torch.rand(count, generator=generator(seed, what, name), **_DRAWN) for name in ids])


def generator(seed: int, what: str, name: str) -> torch.Generator:
    """The generator of one sample for one use."""
    digest = hashlib.blake2b(f"{seed}|{what}|{name}".encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


def spans(lengths: Int[Tensor, "B"], fractions: Float[Tensor, "B"], starts: Float[Tensor, "B"], size: int) -> Tensor:
    """True in one span of each sample: `fractions` of its length, from `starts` (in [0, 1)) of the room that is left.

    The infilling mask that Voicebox trains with (arXiv 2306.15687, §3.2), shape (B, size).
    """
    width = (fractions * lengths).long()
    start = ((lengths - width) * starts).long().clamp(min=0)
    frame = torch.arange(size, device=lengths.device)
    return (frame >= start[:, None]) & (frame < (start + width)[:, None])


def valid(x: Tensor, lengths: Sequence[int] | None, axis: int) -> list[Tensor]:
    """Views of each sample without its padding."""
    rows = list(x)
    if lengths is None:
        return rows
    return [row.narrow(axis - 1, 0, int(n)) for row, n in zip(rows, lengths, strict=True)]


LAST_SEED = 2**63 - 1
"""The largest seed that torch takes."""


def checked_seed(seed: Any) -> int:
    """The seed as an int; numpy's integers are taken. Raises BadArgument for others, and out of range."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise BadArgument(f"expected seed= as a whole number, got {seed!r}. Type seed=0") from None
    if not -LAST_SEED <= number <= LAST_SEED:
        raise BadArgument(f"expected seed= between -2**63 + 1 and 2**63 - 1, got {number}. Type a smaller number")
    return number
