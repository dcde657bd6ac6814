"""What the aligned layers are compared with: per domain, which samples of the batch, and their teacher's features.

Pooled targets are one vector per sample, T(x) of Eq. 12. Token-wise targets are a teacher's frames, resampled to the
layer's own tokens: a teacher gives them by a method `frames(samples) -> Sequence[Float[Tensor, "T E"]]`, one tensor of
real frames per sample; or they are given by the caller, as such a sequence or as one tensor (B, T, E).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.aligning.heads import resample
from fog_a.blocks.untouched import rng
from fog_a.errors import BadBatch, BadFeatures, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.routing import by_domain, route, take
from fog_a.teachers.weightless import SelfTeacher

Tokens = tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]
"""A layer's output as tokens, and which of them are real."""


class Target(NamedTuple):
    """The samples of one domain: their rows in the batch, and pooled features (n, E) or one (T, E) per sample."""

    rows: list[int]
    features: Tensor | list[Tensor]


def merged(samples: Samples) -> Samples:
    """The same samples as one domain, "all": one teacher for everything."""
    return replace(samples, domains=("all",) * len(samples))


def targets(
    teachers: Mapping[str, Any],
    samples: Samples,
    own: Mapping[str, Tokens],
    *,
    features: Any = None,
    tokens: bool = False,
) -> dict[str, Target]:
    """The targets of every domain that the batch has samples of, on the CPU or wherever the teacher leaves them.

    Args:
        teachers: domain → Teacher; an int is a width whose features are given at each call; None: leave it out.
        own: domain → the tokens of a `SelfTeacher`'s block in this forward.
        features: instead of asking the teachers; a tensor, or a mapping domain → tensor.
        tokens: whether token-wise.

    Raises BadBatch for a sample whose domain has no teacher, BadFeatures for features that do not fit or hold NaN.
    """
    given = dict(features) if isinstance(features, Mapping) else None
    groups = by_domain(samples)
    unknown = [d for d in groups if d not in teachers]
    if unknown:
        raise BadBatch(
            f"the batch has samples of domain {unknown[0]!r}, but teachers are there for "
            f"{', '.join(map(repr, teachers))}. Type teachers={{..., {unknown[0]!r}: ...}}, or {unknown[0]!r}: None to "
            "leave that domain out"
        )
    found: dict[str, Target] = {}
    for domain, rows in groups.items():
        teacher = teachers[domain]
        if teacher is None:
            continue
        part = samples if len(rows) == len(samples) else take(samples, rows)
        some = given.get(domain) if given is not None else features
        if some is None and isinstance(teacher, int):
            raise BadFeatures(f"domain {domain!r} has no teacher, only a width ({teacher}): pass reg(batch, features=)")
        if isinstance(teacher, SelfTeacher) and some is None:
            found[domain] = _own(teacher, own[domain], rows, tokens)
        elif tokens:
            found[domain] = Target(rows, _frames(teacher, part, some, rows, len(samples), domain))
        else:
            found[domain] = Target(rows, _pooled(teacher, part, some, rows, len(samples), domain))
    return found


def _own(teacher: SelfTeacher, own: Tokens, rows: list[int], tokens: bool) -> Target:
    """The stop-gradient of a deeper block of the same forward."""
    h, mask = own
    mask = None if mask is None else mask[rows]
    if not tokens:
        return Target(rows, teacher.features(h[rows], mask))
    h = h[rows].detach().float()
    return Target(rows, list(h) if mask is None else [x[m] for x, m in zip(h, mask, strict=True)])


def _pooled(teacher: Any, samples: Samples, given: Any, rows: list[int], count: int, domain: str) -> Tensor:
    if given is not None:
        given = torch.as_tensor(given)
        if len(given) == count:
            given = given[rows]  # of the whole batch
        width = _width(teacher)
        if given.ndim == 2 and width and given.shape[1] != width:
            raise BadFeatures(
                f"features of {domain!r} are {given.shape[1]} wide, but the heads were built for its teacher's {width}"
            )
        return route(None, samples, features=given)[domain].features
    with rng():  # a teacher that draws random numbers leaves the training's alone
        return route(teacher, samples)[domain].features


def _frames(teacher: Any, samples: Samples, given: Any, rows: list[int], count: int, domain: str) -> list[Tensor]:
    if given is None:
        if not hasattr(teacher, "frames"):
            raise Unsupported(
                f"targets='tokens' needs a teacher with frames(samples) -> one (T, E) tensor per sample; "
                f"{getattr(teacher, 'name', teacher)!r} only pools. Type reg(batch, features=...), or targets='pooled'"
            )
        with rng(), torch.no_grad():
            given = teacher.frames(samples)
    elif len(given) == count:
        given = [given[i] for i in rows]
    if len(given) != len(rows):
        raise BadFeatures(f"features of {domain!r}: expected frames for {len(rows)} samples, got {len(given)}")
    frames = [torch.as_tensor(x).detach().float() for x in given]
    width = _width(teacher)
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
