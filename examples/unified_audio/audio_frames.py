"""Frame features of audio, from which codes are made and style vectors are averaged: (T, D) at a steady rate.

`MelFrames` needs no weights: means of `stride` log-mel frames (46.9 a second for 2). `BEATsFrames` is the paper's: the
patch tokens of BEATs, 496 of 768 in ten seconds, time-major, so that the eight frequency patches of one moment follow
each other. `TeacherFrames` is any of fog_a's teachers with a `frames` method (Whisper, HuBERT, …).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers import BEATsTeacher
from fog_a.teachers.store import key
from fog_a.teachers.weights import frozen
from fog_a_adapters.dit.audio.mel import HOP, MEL_RATE, MELS, RATE, log_mel


class AudioFrames(Protocol):
    """What turns 16 kHz audio into frames. `name` tells implementations and weights apart: caches key on it."""

    name: str
    dim: int
    rate: float

    def __call__(self, audio: Float[Tensor, "n"]) -> Float[Tensor, "T D"]: ...


class MelFrames:
    """Means of `stride` frames of normalised log-mel; the last mean may be of fewer.

    >>> MelFrames()(torch.zeros(16_000)).shape
    torch.Size([47, 100])
    """

    def __init__(self, stride: int = 2) -> None:
        self.stride, self.dim, self.rate = stride, MELS, MEL_RATE / HOP / stride
        self.name = f"mel-mean{stride}"

    def __call__(self, audio: Float[Tensor, "n"]) -> Float[Tensor, "T D"]:
        return torch.stack([part.mean(0) for part in log_mel(audio.cpu()).split(self.stride)])


class BEATsFrames:
    """Patch tokens of BEATs (10 s: 62 · 8 = 496), from a checkpoint path or a teacher that holds one.

    Raises:
        NoWeights: no BEATs checkpoint at that path; the message says which file to get.
        MissingDependency: speechbrain is absent.
    """

    rate = 49.6

    def __init__(self, checkpoint: Any) -> None:
        teacher = checkpoint if isinstance(checkpoint, BEATsTeacher) else BEATsTeacher(checkpoint)
        self.teacher, self.dim = teacher, teacher.dim
        self.name = key(teacher) + "-patches"

    def __call__(self, audio: Float[Tensor, "n"]) -> Float[Tensor, "T D"]:
        audio = torch.nn.functional.pad(audio, (0, max(0, self.teacher.shortest - len(audio))))
        with frozen(self.teacher.net, audio.device) as net:
            beats: Any = net
            return beats.extract_features(audio[None], torch.ones(1, device=audio.device))[0][0].float()


class TeacherFrames:
    """Any teacher's frames before pooling."""

    def __init__(self, teacher: Any, rate: float = 50.0) -> None:
        if not hasattr(teacher, "frames"):
            raise Unsupported(
                f"{type(teacher).__name__} has no frames(samples) -> list of (T, D); take WhisperTeacher, BEATsTeacher "
                "or HFAudioTeacher, or MelFrames(), which needs no weights"
            )
        self.teacher, self.dim, self.rate, self.name = teacher, teacher.dim, rate, key(teacher)

    def __call__(self, audio: Float[Tensor, "n"]) -> Float[Tensor, "T D"]:
        alone = Samples(("clip",), ("",), lambda rows: None, audio[None], RATE)
        return self.teacher.frames(alone)[0]


def frames_from(source: str | Path | None) -> AudioFrames:
    """BEATs where its checkpoint is given, log-mel where it is not (None)."""
    return MelFrames() if source is None else BEATsFrames(source)
