"""A batch of arguments, and what is known of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor


class Inputs:
    """A batch of positional and keyword arguments: `model(*args, **kwargs)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"Inputs(*{self.args!r}, **{self.kwargs!r})"


@dataclass(frozen=True)
class Samples:
    """What an adapter knows of a batch's samples.

    Attributes:
        ids: a stable name for each sample (the key of cached features).
        domains: one name per sample, e.g. "speech", "sound".
        audio: waveforms (B, N), or None where the batch holds none.
        rate: their sample rate in Hz, or None.
        lengths: valid audio samples of each, or None: all.
        mask: True where v counts, broadcastable to v, or None: everywhere.
        rows: gives a smaller batch of the same kind, of the samples at these indices.
        groups: the clip, or whatever else is drawn at once, that each sample belongs to; its id where nothing is said.
            Several crops of one clip are one group: scores average them first and resample whole groups.
        crops: start and end (B, 2) of each sample in its clip, in seconds; None: the samples are whole clips.
    """

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    rows: Callable[[Sequence[int]], Any]
    audio: Float[Tensor, "B N"] | None = None
    rate: int | None = None
    lengths: Tensor | None = None
    mask: Bool[Tensor, "B ..."] | None = None
    groups: tuple[str, ...] = ()
    crops: Float[Tensor, "B 2"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", self.groups or self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def names_of(several: Sequence[Samples]) -> dict[str, tuple[str, ...]]:
    """The ids, domains and groups of all samples, as `Scores` take them."""
    return {
        key: tuple(name for samples in several for name in getattr(samples, key))
        for key in ("ids", "domains", "groups")
    }
