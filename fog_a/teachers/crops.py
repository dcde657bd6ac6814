"""A clip's frames computed once and kept on disk, and pooled over whichever crop of the clip a batch holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadBatch, BadFeatures, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.store import Store, key
from fog_a.teachers.teacher import FrameTeacher, checked_frames, take

SLACK = 0.05
"""Seconds by which a crop may end after its clip: the last frame of a spectrogram hangs over."""


class CropTeacher(FrameTeacher):
    """A teacher that reads whole clips once, and answers for random crops of them.

        T(crop) = mean of the clip's frames that overlap the crop

    A batch names each sample's clip under `groups`, and the seconds of the clip that it holds under `crops`, (B, 2):
    start and end. Without `crops` a sample is its whole clip. The crop's audio is not read.

    Args:
        teacher: it has `frames(samples) -> [(T, E)]`, at equal distances over a clip, as `WhisperTeacher` does.
        folder: where frames are kept, made if absent; 4 · E bytes a frame.

    Raises:
        Unsupported: a teacher that only pools.
        BadBatch: a crop that is empty or longer than its clip.
        BadFeatures: a clip whose frames are not there, or whose file is damaged.

        teacher = CropTeacher(WhisperTeacher("openai/whisper-small"), "features")
        teacher.fill(flow.samples(batch) for batch in whole_clips)    # once, resumable
        reg = fog_a.AGREPA(flow, {"speech": teacher})                 # batches with `groups` and `crops`
    """

    pool = "mean-of-crop"

    def __init__(self, teacher: Any, folder: str | Path) -> None:
        if not callable(getattr(teacher, "frames", None)):
            raise Unsupported(
                f"CropTeacher needs a teacher with frames(samples), and {getattr(teacher, 'name', teacher)!r} only "
                "pools. Take WhisperTeacher, BEATsTeacher or HFAudioTeacher"
            )
        self.teacher = teacher
        self.folder = Path(folder) / f"{key(teacher)}-frames"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name, self.dim = teacher.name, int(teacher.dim)
        self.store = Store(self.folder, self.name, self.pool, self.dim)

    def fill(self, batches: Iterable[Samples]) -> int:
        """Computes the frames of whole clips that are missing; returns how many clips are kept then.

        Raises BadBatch for samples that are crops, or without audio.
        """
        for samples in batches:
            if samples.crops is not None or samples.audio is None or samples.rate is None:
                raise BadBatch(
                    "fill() reads whole clips: expected batches with audio and rate, without crops. Leave out the key "
                    "'crops', and do not cut the audio"
                )
            missing = self.store.missing(samples.groups)
            if missing:
                self._keep(take(samples, missing))
        return len(self.store)

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The frames of each crop."""
        missing = self.store.missing(samples.groups)
        if missing:
            raise BadFeatures(
                f"{self.folder} has no frames of clip {samples.groups[missing[0]]!r}. Type teacher.fill(batches of "
                "whole clips) first; a batch names the clip of each sample under 'groups'"
            )
        crops = [None] * len(samples) if samples.crops is None else samples.crops.tolist()
        device = torch.device("cpu") if samples.audio is None else samples.audio.device
        return [self._crop(clip, crop).to(device) for clip, crop in zip(samples.groups, crops, strict=True)]

    def _keep(self, samples: Samples) -> None:
        assert samples.audio is not None and samples.rate is not None
        lengths = samples.lengths if samples.lengths is not None else [samples.audio.shape[1]] * len(samples)
        names = [f"clip {clip!r}" for clip in samples.groups]
        frames = checked_frames(self.teacher.frames(samples), names, self.dim, f"frames of teacher {self.name!r}")
        self.store.put(samples.groups, frames, [repr(int(length) / samples.rate) for length in lengths])

    def _crop(self, clip: str, crop: tuple[float, float] | None) -> Float[Tensor, "T D"]:
        """The frames of a clip that overlap the crop. Raises BadBatch."""
        frames, seconds = self.store[clip], float(self.store.notes[clip])
        start, stop = (0.0, seconds) if crop is None else crop
        if not 0 <= start < stop <= seconds + SLACK:
            raise BadBatch(
                f"the crop from {start:g} to {stop:g} s is not within its clip {clip!r} of {seconds:g} s. Give start "
                "and end in seconds of the clip under 'crops'"
            )
        count = len(frames)
        first = min(math.floor(start / seconds * count + 1e-6), count - 1)
        return frames[first : max(first + 1, min(math.ceil(stop / seconds * count - 1e-6), count))]
