"""Which teacher reads which samples: speech to one, sound to the other, any number of domains.

>>> import torch
>>> from fog_a.flows.samples import Samples
>>> class Ones:
...     name, dim, domain = "ones", 3, None
...     def __call__(self, samples):
...         return torch.ones(len(samples), 3)
>>> samples = Samples(ids=("a", "b", "c"), domains=("speech", "sound", "speech"), rows=lambda rows: rows)
>>> routed = route({"speech": Ones(), "sound": None}, samples)
>>> list(routed), routed["speech"].rows, tuple(routed["speech"].features.shape)
(['speech'], [0, 2], (2, 3))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadBatch, BadFeatures, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.teacher import Teacher

T = TypeVar("T")

Teachers = Teacher | Mapping[str, Teacher | None]
"""One teacher for every domain, or one per domain; None leaves a domain out."""

Features = Tensor | Mapping[str, Tensor | None]
"""Features that are already at hand: (B, D) for the batch; or per domain (B, D), or (n, D) for its n samples alone."""


@dataclass(frozen=True)
class Routed:
    """The samples of one domain in a batch, and what their teacher says of them.

    Attributes:
        rows: their indices in the batch, ascending.
        features: float32, one row each, no grad.
    """

    rows: list[int]
    features: Float[Tensor, "n D"]


def by_domain(samples: Samples) -> dict[str, list[int]]:
    """The rows of each domain, domains in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for i, domain in enumerate(samples.domains):
        groups.setdefault(domain, []).append(i)
    return groups


def take(samples: Samples, rows: Sequence[int]) -> Samples:
    """The samples at these rows, with their audio, lengths and mask."""
    rows = list(rows)
    count = len(samples)
    mask = samples.mask[rows] if samples.mask is not None and samples.mask.shape[:1] == (count,) else samples.mask
    return replace(
        samples,
        ids=tuple(samples.ids[i] for i in rows),
        domains=tuple(samples.domains[i] for i in rows),
        groups=tuple(samples.groups[i] for i in rows),
        crops=None if samples.crops is None else samples.crops[rows],
        rows=lambda index: samples.rows([rows[i] for i in index]),
        audio=None if samples.audio is None else samples.audio[rows],
        lengths=None if samples.lengths is None else samples.lengths[rows],
        mask=mask,
    )


def route(teachers: Teachers | None, samples: Samples, *, features: Features | None = None) -> dict[str, Routed]:
    """Asks each domain's teacher about that domain's samples.

    Args:
        teachers: one for all domains, or a mapping domain → teacher (None: that domain is left out).
        samples: of one batch.
        features: features that replace the teachers' (then `teachers` may be None).

    Returns:
        Domain → its rows and features, for the domains that this batch has samples of.

    Raises:
        BadBatch: a sample's domain has no teacher.
        BadFeatures: features of the wrong count or width, or with NaN or inf.
    """
    routed = {}
    for domain, rows in by_domain(samples).items():
        if features is not None:
            vectors = features if isinstance(features, Tensor) else _entry(features, domain, "features")
            if vectors is not None:
                index = rows if len(vectors) == len(samples) else range(len(vectors))
                routed[domain] = Routed(rows, checked(vectors[list(index)], len(rows), None, f"features of {domain!r}"))
            continue
        if teachers is None:
            raise BadBatch("neither a teacher nor features= was passed: pass a teacher or features=")
        teacher = cast(Teacher | None, teachers if callable(teachers) else _entry(teachers, domain, "teachers"))
        if teacher is not None:
            answer = teacher(samples if len(rows) == len(samples) else take(samples, rows))
            routed[domain] = Routed(rows, checked(answer, len(rows), teacher.dim, f"teacher {teacher.name!r}"))
    return routed


def check_teachers(teachers: Mapping[str, Any]) -> None:
    """Raises Unsupported where there is no teacher, or something else in a teacher's place (an int is a width)."""
    if all(teacher is None for teacher in teachers.values()):
        raise Unsupported("at least one teacher is needed: teachers={'speech': teacher}")
    for domain, teacher in teachers.items():
        if teacher is not None and not isinstance(teacher, int) and not (callable(teacher) and hasattr(teacher, "dim")):
            raise Unsupported(
                f"the teacher of {domain!r} must be an object that is called with samples and has name, dim and "
                f"domain, got {teacher!r}. Type e.g. WhisperTeacher('openai/whisper-small') from fog_a.teachers; the "
                "width alone (an int) for features that each call passes; or None to leave the domain out"
            )


def checked(features: Tensor, count: int, dim: int | None, source: str) -> Float[Tensor, "n D"]:
    """`features` detached in float32, if they are finite and (count, dim). Raises BadFeatures naming their source."""
    if features.ndim != 2 or len(features) != count or (dim is not None and features.shape[1] != dim):
        raise BadFeatures(
            f"{source} gave {tuple(features.shape)}, expected ({count}, {dim or 'D'}): one pooled vector per sample. "
            "Token-wise features: pool them, features.mean(1)"
        )
    if features.is_meta:
        raise BadFeatures(
            f"{source} gave features on the device meta, without data. Type torch.set_default_device(None) first, "
            "or device= where they are made"
        )
    features = features.detach().float()
    bad = (~torch.isfinite(features)).any(1).nonzero().flatten().tolist()
    if bad:
        raise BadFeatures(
            f"{source} has NaN or inf in rows {bad} of {count}: look at those samples (silent, or empty?)"
        )
    return features


def _entry(table: Mapping[str, T], domain: str, what: str) -> T:
    if domain not in table:
        raise BadBatch(
            f"the batch has samples of domain {domain!r}, but {what} are there for "
            f"{', '.join(map(repr, table)) or 'none'}. Type {what}={{..., {domain!r}: ...}}, or "
            f"{domain!r}: None to leave that domain out"
        )
    return table[domain]
