"""What the aligned layers are compared with: a teacher's features of one domain's samples.

Pooled features are one vector per sample, T(x) of Eq. 12. Frames are compared token by token: a teacher gives them by a
method `frames(samples) -> Sequence[Float[Tensor, "T E"]]`, one tensor of real frames per sample, and they are resampled
to the layer's own tokens. The caller may give either in the teacher's place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.blocks.untouched import rng
from fog_a.errors import BadBatch, BadFeatures, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.descriptors import temporal_mean
from fog_a.teachers.routing import by_domain, route, take
from fog_a.teachers.self_teacher import SelfTeacher

TokensOfLayer = tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]
"""A layer's output as tokens, and which of them are real."""

Target = Tensor | list[Tensor]
"""Pooled features (n, E), or one (T, E) for each of n samples."""


def merged(samples: Samples) -> Samples:
    """The same samples as one domain, "all": one teacher for everything."""
    return replace(samples, domains=("all",) * len(samples))


def taught(teachers: Mapping[str, Any], samples: Samples) -> dict[str, list[int]]:
    """The rows of each domain that has a teacher. Raises BadBatch for a domain that nobody spoke of."""
    groups = by_domain(samples)
    unknown = [d for d in groups if d not in teachers]
    if unknown:
        raise BadBatch(
            f"the batch has samples of domain {unknown[0]!r}, but teachers are there for "
            f"{', '.join(map(repr, teachers))}. Type teachers={{..., {unknown[0]!r}: ...}}, or {unknown[0]!r}: None to "
            "leave that domain out"
        )
    return {domain: rows for domain, rows in groups.items() if teachers[domain] is not None}


class Targets:
    """The targets of one batch.

    Args:
        teachers: domain → Teacher; an int is the width of features that each call passes; None: left out.
        samples: of the batch.
        features: instead of asking the teachers; a tensor, or a mapping domain → tensor.
        blocks: domain → the tokens of a `SelfTeacher`'s block in this forward.
    """

    def __init__(
        self,
        teachers: Mapping[str, Any],
        samples: Samples,
        features: Any = None,
        blocks: Mapping[str, TokensOfLayer] | None = None,
    ) -> None:
        self.teachers, self.samples, self.features, self.blocks = teachers, samples, features, blocks or {}

    def of(self, domain: str, rows: Sequence[int], *, frames: bool) -> Target:
        """The teacher's features of these rows, on the CPU or wherever the teacher leaves them.

        Raises BadFeatures for features that do not fit or hold NaN, Unsupported for frames of a teacher that pools.
        """
        teacher = self.teachers[domain]
        part = self.samples if len(rows) == len(self.samples) else take(self.samples, rows)
        features = self.features.get(domain) if isinstance(self.features, Mapping) else self.features
        if features is not None:
            check = _passed_frames if frames else _passed_vectors
            return check(features, part, rows, len(self.samples), _width(teacher))
        if isinstance(teacher, int):
            raise BadFeatures(f"domain {domain!r} has no teacher, only a width ({teacher}): pass reg(batch, features=)")
        if isinstance(teacher, SelfTeacher):
            return _of_block(teacher, self.blocks[domain], rows, frames)
        with rng():  # a teacher that draws random numbers leaves the training's alone
            return _frames_of(teacher, part, rows) if frames else route(teacher, part)[domain].features

    def try_out(self, domains: Collection[str], frames: Collection[str]) -> None:
        """Ask for these domains' targets: of all samples that features= has, else of a single sample per domain."""
        for domain, rows in taught(self.teachers, self.samples).items():
            if domain in domains and (self.features is not None or not isinstance(self.teachers[domain], SelfTeacher)):
                self.of(domain, rows if self.features is not None else rows[:1], frames=domain in frames)


def cosines(y: Float[Tensor, "n *T E"], target: Target, mask: Bool[Tensor, "n T"] | None) -> Float[Tensor, "n"]:
    """cos(φ_k(h_k), T(x)) of each sample; of tokens, its mean over the real ones."""
    if isinstance(target, Tensor):
        return F.cosine_similarity(y, target.to(y.device, y.dtype), dim=-1)
    frames = aligned_frames([x.to(y.device, y.dtype) for x in target], y.shape[1], mask)
    return temporal_mean(F.cosine_similarity(y, frames, dim=-1).unsqueeze(-1), mask).squeeze(-1)


def shuffled(target: Target) -> Target:
    """Each sample with the target of the sample before it."""
    return target.roll(1, 0) if isinstance(target, Tensor) else [*target[-1:], *target[:-1]]


def _of_block(teacher: SelfTeacher, block: TokensOfLayer, rows: Sequence[int], frames: bool) -> Target:
    """The stop-gradient of a deeper block of the same forward."""
    h, mask = block[0][rows], None if block[1] is None else block[1][rows]
    if not frames:
        return teacher.features(h, mask)
    h = h.detach().float()
    return list(h) if mask is None else [x[real] for x, real in zip(h, mask, strict=True)]


def _passed_vectors(features: Any, samples: Samples, rows: Sequence[int], batch: int, width: int) -> Tensor:
    """Pooled features of these samples, which are rows of a batch of so many."""
    vectors, domain = torch.as_tensor(features), samples.domains[0]
    vectors = vectors[list(rows)] if len(vectors) == batch else vectors
    if vectors.ndim == 2 and width and vectors.shape[1] != width:
        raise BadFeatures(
            f"features of {domain!r} are {vectors.shape[1]} wide, but the heads were built for its teacher's {width}"
        )
    return route(None, samples, features=vectors)[domain].features


def _passed_frames(features: Any, samples: Samples, rows: Sequence[int], batch: int, width: int) -> list[Tensor]:
    frames = [features[i] for i in rows] if len(features) == batch else features
    return checked_frames(frames, rows, width, samples.domains[0])


def _frames_of(teacher: Any, samples: Samples, rows: Sequence[int]) -> list[Tensor]:
    if not hasattr(teacher, "frames"):
        raise Unsupported(
            "a head that gives tokens (pool=False) needs a teacher with frames(samples) -> one (T, E) tensor per "
            f"sample; {getattr(teacher, 'name', teacher)!r} only pools. Type reg(batch, features=...), or a head that "
            "pools"
        )
    with torch.no_grad():
        return checked_frames(teacher.frames(samples), rows, _width(teacher), samples.domains[0])


def checked_frames(features: Sequence[Any], rows: Sequence[int], width: int, domain: str) -> list[Tensor]:
    """One finite (T, E) for each of these rows of the batch, in float32. Raises BadFeatures."""
    if len(features) != len(rows):
        raise BadFeatures(f"features of {domain!r}: expected frames for {len(rows)} samples, got {len(features)}")
    frames = [torch.as_tensor(x).detach().float() for x in features]
    for row, x in zip(rows, frames, strict=True):
        if x.ndim != 2 or not len(x) or (width and x.shape[1] != width):
            raise BadFeatures(
                f"features of {domain!r}: sample {row} has {tuple(x.shape)}, expected (T, {width or 'E'})"
            )
        if not torch.isfinite(x).all():
            raise BadFeatures(f"features of {domain!r} have NaN or inf in sample {row}: look at it (silent, or empty?)")
    return frames


def _width(teacher: Any) -> int:
    return teacher if isinstance(teacher, int) else int(getattr(teacher, "dim", 0))


def aligned_frames(
    frames: Sequence[Float[Tensor, "S E"]], length: int, mask: Bool[Tensor, "n T"] | None
) -> Float[Tensor, "n T E"]:
    """Each sample's frames resampled to its real tokens; zeros where the layer has padding."""
    out = frames[0].new_zeros(len(frames), length, frames[0].shape[1])
    for i, x in enumerate(frames):
        real = slice(None) if mask is None else mask[i].nonzero().flatten()
        n = length if mask is None else int(mask[i].sum())
        if n:
            out[i, real] = resample(x.unsqueeze(0), n)[0]
    return out


def resample(features: Float[Tensor, "B S E"], length: int) -> Float[Tensor, "B length E"]:
    """A teacher's frames at another number of frames, linearly (edges aligned to the ends of the clip)."""
    if features.shape[1] == length:
        return features
    return F.interpolate(features.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(1, 2)
