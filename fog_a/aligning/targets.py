"""What the aligned layers are compared with: a teacher's features of one domain's samples.

Pooled features are one vector per sample, T(x) of Eq. 12. Frames are compared token by token: a teacher gives them by a
method `frames(samples) -> Sequence[Float[Tensor, "T E"]]`, one tensor of real frames per sample, and they are resampled
to the layer's own tokens. The caller may give either in the teacher's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.blocks.block import Blocks
from fog_a.blocks.untouched import rng
from fog_a.errors import BadFeatures, Unsupported
from fog_a.flows.bare import twin
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a.scores.selection import Selection
from fog_a.teachers.self_teacher import SelfTeacher
from fog_a.teachers.teacher import check_domains, check_teachers, checked, checked_frames, rows_by_teacher, take

TokensOfLayer = tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]
"""A layer's output as tokens, and which of them are real."""

Target = Tensor | list[Tensor]
"""Pooled features (n, E), or one (T, E) for each of n samples."""


@dataclass(frozen=True)
class Step:
    """One call of the term: its batch, what the caller gives beside it, and what the last forward left.

    Attributes:
        rows: domain → its rows in the batch, for the domains that have a teacher.
        features: in the teachers' place, or None.
        t: the samples' flow times, or None.
        seed: of a SelfTeacher's noise.
        averaged: id of a SelfTeacher → the tokens of its block in the model's average, once they are known.
    """

    samples: Samples
    rows: Mapping[str, Sequence[int]]
    features: Any = None
    blocks: Blocks | None = None
    layers: Mapping[str, TokensOfLayer] = field(default_factory=dict)
    t: Tensor | None = None
    seed: int = 0
    averaged: dict[int, TokensOfLayer] = field(default_factory=dict)


class Targets:
    """The teachers of a training, and what takes their place.

    Args:
        flow: what is trained.
        teachers: domain → Teacher, or one for all; an int is the width of features that each call passes.
        features: features(batch), asked instead of the teachers.
    """

    def __init__(self, flow: Flow, teachers: Any, features: Callable[[Any], Any] | None = None) -> None:
        self.flow, self.features = flow, features
        self.merged = not isinstance(teachers, Mapping)
        self.teachers: dict[str, Any] = {"all": teachers} if self.merged else dict(teachers)
        check_teachers(self.teachers)
        self.domains = tuple(domain for domain, teacher in self.teachers.items() if teacher is not None)
        self.block_of: dict[str, str] = {}
        """Domain → the block that its SelfTeacher reads."""
        self._of_itself = {d: teacher for d, teacher in self.teachers.items() if isinstance(teacher, SelfTeacher)}
        self._twins = {d: twin(flow, teacher.ema) for d, teacher in self._of_itself.items() if teacher.ema is not None}
        self._tried: set[str] = set()

    @property
    def dims(self) -> dict[str, int]:
        """Domain → the width of its teacher; 0 for a SelfTeacher that has not seen its block."""
        return {domain: width_of(self.teachers[domain]) for domain in self.domains}

    @property
    def needs_times(self) -> bool:
        """Whether a teacher asks at which flow times the samples are."""
        return bool(self._twins)

    def blocks_read(self, blocks: Blocks) -> dict[str, str]:
        """Domain → the block that its SelfTeacher reads."""
        return {domain: teacher.block_of(blocks).name for domain, teacher in self._of_itself.items()}

    def samples(self, batch: Any) -> Samples:
        """The samples of a batch; where one teacher serves all, they are of one domain."""
        samples = self.flow.samples(batch)
        return replace(samples, domains=("all",) * len(samples)) if self.merged else samples

    def layers(self, selection: Selection | None) -> dict[str, list[str]] | None:
        """Domain → its chosen layers; None before the choice. Raises UnknownBlock, Unsupported for other domains."""
        if selection is None:
            return None
        layers = {domain: list(selection.weights(domain)) for domain in self.domains}
        if set(selection.domains) != {"all"}:
            check_domains(selection.domains, self.teachers, "the selection has layers", Unsupported)
        return layers

    def step(self, batch: Any, samples: Samples, features: Any = None, *more: Any) -> Step:
        """One call of the term; `more`: blocks, layers, t and seed of a `Step`.

        Raises BadBatch, BadFeatures for a domain that no teacher was named for.
        """
        rows = rows_by_teacher(self.teachers, samples)
        if features is None and self.features is not None:
            with rng():
                features = self.features(batch)
        if isinstance(features, Mapping):
            check_domains(features, self.teachers, "features= has an entry", BadFeatures)
        return Step(samples, rows, features, *more)

    def of(self, step: Step, domain: str, *, frames: bool) -> Target:
        """The features of a domain's samples, on the CPU or wherever the teacher leaves them.

        Raises BadFeatures for features that do not fit or hold NaN, Unsupported for frames of a teacher that pools.
        """
        teacher, rows, samples = self.teachers[domain], step.rows[domain], step.samples
        passed = step.features.get(domain) if isinstance(step.features, Mapping) else step.features
        if passed is not None:
            return (_passed_frames if frames else _passed_vectors)(
                passed, len(samples), rows, width_of(teacher), domain
            )
        if isinstance(teacher, int):
            raise BadFeatures(f"domain {domain!r} has no teacher, only a width ({teacher}): pass reg(batch, features=)")
        if isinstance(teacher, SelfTeacher):
            return self._of_block(step, domain, frames)
        part = samples if len(rows) == len(samples) else take(samples, rows)
        with rng():  # a teacher that draws random numbers leaves the training's alone
            return _asked(teacher, part, rows, domain, frames)

    def try_out(self, step: Step, gives_tokens: Callable[[str], bool]) -> None:
        """Ask for all targets that alignment will need, once for each domain, thousands of steps before it.

        A teacher is asked about a single sample; of features that were passed all are checked.
        """
        for domain, rows in step.rows.items():
            if domain in self._tried or (step.features is None and domain in self._of_itself):
                continue
            first = {domain: rows if step.features is not None else rows[:1]}
            self.of(Step(step.samples, first, step.features), domain, frames=gives_tokens(domain))
            self._tried.add(domain)

    def _of_block(self, step: Step, domain: str, frames: bool) -> Target:
        """The stop-gradient of a deeper block: of the same forward, or of the model's average."""
        teacher, rows, name = self._of_itself[domain], step.rows[domain], self.block_of[domain]
        h, mask = step.layers[name]
        if domain in self._twins:
            if id(teacher) not in step.averaged:
                assert step.blocks is not None and step.t is not None
                read = (self._twins[domain], step.blocks[name], step.samples, step.t, step.seed)
                step.averaged[id(teacher)] = teacher.tokens(*read)
            h, mask = step.averaged[id(teacher)]
        h, mask = h[rows], None if mask is None else mask[rows]
        if not frames:
            return teacher.features(h, mask)
        h = h.detach().float()
        return list(h) if mask is None else [x[real] for x, real in zip(h, mask, strict=True)]


def width_of(teacher: Any) -> int:
    """How wide a teacher's features are; 0 where that is not known yet."""
    return teacher if isinstance(teacher, int) else int(getattr(teacher, "dim", 0))


def _asked(teacher: Any, samples: Samples, rows: Sequence[int], domain: str, frames: bool) -> Target:
    """What a teacher says of these samples, which are those rows of the batch."""
    if not frames:
        return checked(teacher(samples), len(rows), teacher.dim, f"teacher {teacher.name!r}")
    if not hasattr(teacher, "frames"):
        raise Unsupported(
            "a head that gives tokens (pool=False) needs a teacher with frames(samples) -> one (T, E) tensor per "
            f"sample; {getattr(teacher, 'name', teacher)!r} only pools. Type reg(batch, features=...), or a head that "
            "pools"
        )
    with torch.no_grad():
        return checked_frames(teacher.frames(samples), _names(rows), width_of(teacher), f"features of {domain!r}")


def _passed_vectors(features: Any, count: int, rows: Sequence[int], width: int, domain: str) -> Tensor:
    """Of features of these rows alone, or of the whole batch of `count` samples: those of the rows."""
    vectors = torch.as_tensor(features)
    vectors = vectors[list(rows)] if len(vectors) == count else vectors
    if vectors.ndim == 2 and width and vectors.shape[1] != width:
        raise BadFeatures(
            f"features of {domain!r} are {vectors.shape[1]} wide, but the heads were built for its teacher's {width}"
        )
    return checked(vectors, len(rows), None, f"features of {domain!r}")


def _passed_frames(features: Any, count: int, rows: Sequence[int], width: int, domain: str) -> list[Tensor]:
    frames = [features[i] for i in rows] if len(features) == count else features
    return checked_frames(frames, _names(rows), width, f"features of {domain!r}")


def _names(rows: Sequence[int]) -> list[str]:
    return [f"sample {row}" for row in rows]
