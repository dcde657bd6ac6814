"""Audio as teachers read it: mono, at their sample rate, each sample at its real length.

A padded sample must give the same features as the bare one. So whatever lies behind a sample's length is cut off
before anything is computed, and samples are put together again only with others of their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadBatch, MissingDependency, ShapeMismatch
from fog_a.flows.samples import Samples


def waveforms(samples: Samples, rate: int, teacher: str) -> list[Float[Tensor, "_"]]:
    """Each sample's real audio at `rate` Hz, float32, without its padding.

    Raises BadBatch where the batch holds no audio or no sample rate, ShapeMismatch where audio is not (B, N).
    """
    audio = samples.audio
    if audio is None:
        raise BadBatch(
            f"teacher {teacher!r} reads audio, but this batch's Samples have none. Return audio=(B, N) and rate= "
            "from the adapter's samples(batch); or compute the features once where audio is at hand, with "
            "CachedTeacher(teacher, folder).fill(batches), and train on CachedTeacher(None, folder); or pass features="
        )
    if samples.rate is None:
        raise BadBatch(f"teacher {teacher!r} needs the sample rate: Samples(audio=..., rate=16_000)")
    if audio.ndim != 2 or audio.shape[0] != len(samples):
        raise ShapeMismatch(
            f"Samples.audio must be ({len(samples)}, N): mono, one row per id; got {tuple(audio.shape)}. "
            "For several channels: audio.mean(1)"
        )
    lengths = [audio.shape[1]] * len(samples) if samples.lengths is None else [int(n) for n in samples.lengths]
    if len(lengths) != len(samples) or min(lengths) < 1 or max(lengths) > audio.shape[1]:
        raise ShapeMismatch(
            f"Samples.lengths must be {len(samples)} numbers of audio samples in 1..{audio.shape[1]}, got {lengths}"
        )
    return [resample(row[:n].float(), samples.rate, rate) for row, n in zip(audio.detach(), lengths, strict=True)]


def resample(audio: Float[Tensor, "N"], source: int, target: int) -> Float[Tensor, "M"]:
    """`audio` from `source` to `target` Hz by torchaudio's windowed sinc; M = ceil(N · target / source)."""
    if source == target:
        return audio
    try:
        import torchaudio.functional
    except ImportError as e:
        raise MissingDependency(
            f"audio at {source} Hz must be resampled to {target} Hz, and torchaudio does not import ({e}). "
            f"pip install torchaudio, or give the audio at {target} Hz"
        ) from e
    return torchaudio.functional.resample(audio, source, target)


def by_length(waves: Sequence[Float[Tensor, "_"]]) -> Iterator[tuple[list[int], Float[Tensor, "_ _"]]]:
    """The samples in groups of equal length: (their indices, their audio stacked). No group holds padding."""
    groups: dict[int, list[int]] = {}
    for i, wave in enumerate(waves):
        groups.setdefault(len(wave), []).append(i)
    for rows in groups.values():
        yield rows, torch.stack([waves[i] for i in rows])
