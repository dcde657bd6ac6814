"""What a teacher is, and which one reads which samples: speech to one, sound to the other, any number of domains.

>>> import torch
>>> from fog_a.flows.samples import Samples
>>> class Ones:
...     name, dim = "ones", 3
...     def __call__(self, samples):
...         return torch.ones(len(samples), 3)
>>> samples = Samples(ids=("a", "b", "c"), domains=("speech", "sound", "speech"), rows=lambda rows: rows)
>>> routed = route({"speech": Ones(), "sound": None}, samples)
>>> list(routed), routed["speech"].rows, tuple(routed["speech"].features.shape)
(['speech'], [0, 2], (2, 3))
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadBatch, BadFeatures, FogError, Unsupported, near
from fog_a.flows.samples import Samples


@runtime_checkable
class Teacher(Protocol):
    """A frozen feature extractor: one pooled vector per sample."""

    name: str
    dim: int

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """Features pooled over the real frames; no grad."""
        ...


class FrameTeacher(abc.ABC):
    """A teacher that reads a sample frame by frame; its feature is the mean of the frames.

    Attributes:
        pool: how it pools, one word of the key under which features are kept.
    """

    name: str
    dim: int
    pool: str = "mean"

    @abc.abstractmethod
    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The real frames of each sample before pooling: targets for heads that keep their tokens."""

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The mean of each sample's frames, float32, no grad."""
        return torch.stack([h.mean(0) for h in self.frames(samples)])


Teachers = Teacher | Mapping[str, Teacher | None]
"""One teacher for every domain, or one per domain; None leaves a domain out."""

Features = Tensor | Mapping[str, Tensor | None]
"""Features that are already at hand: (B, D) for the batch; or per domain (B, D), or (n, D) for its n samples alone."""


class Routed(NamedTuple):
    """The rows of one domain in a batch, and what their teacher says of them: float32, no grad."""

    rows: list[int]
    features: Float[Tensor, "n D"]


def by_domain(samples: Samples) -> dict[str, list[int]]:
    """The rows of each domain, domains in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for i, domain in enumerate(samples.domains):
        groups.setdefault(domain, []).append(i)
    return groups


def state_name(domain: str) -> str:
    """A domain as a part of a state dict's names, which take no dots."""
    return domain.replace(".", "_")


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
    sources = sources_of(teachers, samples.domains, features)
    routed = {}
    for domain, rows in rows_by_teacher(sources, samples).items():
        if features is not None:
            vectors = cast(Tensor, sources[domain])
            vectors = vectors[rows] if len(vectors) == len(samples) else vectors
            routed[domain] = Routed(rows, checked(vectors, len(rows), None, f"features of {domain!r}"))
        else:
            teacher = cast(Teacher, sources[domain])
            answer = teacher(samples if len(rows) == len(samples) else take(samples, rows))
            routed[domain] = Routed(rows, checked(answer, len(rows), teacher.dim, f"teacher {teacher.name!r}"))
    return routed


def sources_of(teachers: Teachers | None, domains: Sequence[str], features: Features | None) -> Mapping[str, Any]:
    """Domain → its teacher, or its features. Raises BadBatch where there is neither, or nothing for a domain."""
    if teachers is None and features is None:
        raise BadBatch("neither a teacher nor features= was passed: pass a teacher or features=")
    table, what = (teachers, "teachers") if features is None else (features, "features")
    if not isinstance(table, Mapping):
        return dict.fromkeys(domains, table)
    check_domains(domains, table, "the batch has samples", what=what)
    return table


def rows_by_teacher(teachers: Mapping[str, Any], samples: Samples) -> dict[str, list[int]]:
    """The rows of each domain that has a teacher. Raises BadBatch for a domain that nobody spoke of."""
    groups = by_domain(samples)
    check_domains(groups, teachers, "the batch has samples")
    return {domain: rows for domain, rows in groups.items() if teachers[domain] is not None}


def check_domains(
    domains: Iterable[str],
    table: Mapping[str, Any],
    subject: str,
    error: type[FogError] = BadBatch,
    what: str = "teachers",
) -> None:
    """Raises the error, with the names that are near, where a domain is not in a table of teachers or features."""
    for domain in domains:
        if domain not in table:
            raise error(
                f"{subject} of domain {domain!r}, but {what} are there for {', '.join(map(repr, table)) or 'none'}"
                f"{near(domain, table)}. Type {what}={{..., {domain!r}: ...}}, or {domain!r}: None to leave that "
                "domain out"
            )


def check_teachers(teachers: Mapping[str, Any]) -> None:
    """Raises Unsupported where there is no teacher, or something else in a teacher's place (an int is a width)."""
    if all(teacher is None for teacher in teachers.values()):
        raise Unsupported("at least one teacher is needed: teachers={'speech': teacher}")
    for domain, teacher in teachers.items():
        if teacher is not None and not isinstance(teacher, int) and not (callable(teacher) and hasattr(teacher, "dim")):
            raise Unsupported(
                f"the teacher of {domain!r} must be an object that is called with samples and has name and "
                f"dim, got {teacher!r}. Type e.g. WhisperTeacher('openai/whisper-small') from fog_a.teachers; the "
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


def checked_frames(features: Sequence[Any], names: Sequence[str], width: int, source: str) -> list[Tensor]:
    """One finite (T, E) for each of these samples, in float32. Raises BadFeatures naming source and sample."""
    if len(features) != len(names):
        raise BadFeatures(f"{source}: expected frames for {len(names)} samples, got {len(features)}")
    frames = [torch.as_tensor(x).detach().float() for x in features]
    for name, x in zip(names, frames, strict=True):
        if x.ndim != 2 or not len(x) or (width and x.shape[1] != width):
            raise BadFeatures(f"{source}: {name} has {tuple(x.shape)}, expected (T, {width or 'E'})")
        if not torch.isfinite(x).all():
            raise BadFeatures(f"{source} have NaN or inf in {name}: look at it (silent, or empty?)")
    return frames
