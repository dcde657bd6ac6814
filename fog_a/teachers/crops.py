"""A clip's frames computed once and kept on disk, and pooled over whichever crop of the clip a batch holds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fog_a.errors import BadBatch, BadFeatures, Unsupported
from fog_a.files import write
from fog_a.flows.samples import Samples
from fog_a.teachers.cached import checksum, key
from fog_a.teachers.routing import take

SLACK = 0.05
"""Seconds by which a crop may end after its clip: the last frame of a spectrogram hangs over."""


class CropTeacher:
    """A teacher that reads whole clips once, and answers for random crops of them.

        T(crop) = mean of the clip's frames that overlap the crop

    A batch names each sample's clip under `groups`, and the seconds of the clip that it holds under `crops`, (B, 2):
    start and end. Without `crops` a sample is its whole clip. The crop's audio is not read.

    Args:
        teacher: it has `frames(samples) -> [(T, E)]`, at equal distances over a clip, as `WhisperTeacher` does.
        folder: where frames are kept, made if absent; one file a clip, 4 · E bytes a frame.

    Raises:
        Unsupported: a teacher that only pools.
        BadBatch: a crop that is empty or longer than its clip.
        BadFeatures: a clip whose frames are not there, or whose file is damaged.

        teacher = CropTeacher(WhisperTeacher("openai/whisper-small"), "features")
        teacher.fill(flow.samples(batch) for batch in whole_clips)    # once, resumable
        reg = fog_a.AGREPA(flow, {"speech": teacher})                 # batches with `groups` and `crops`
    """

    def __init__(self, teacher: Any, folder: str | Path) -> None:
        if not callable(getattr(teacher, "frames", None)):
            raise Unsupported(
                f"CropTeacher needs a teacher with frames(samples), and {getattr(teacher, 'name', teacher)!r} only "
                "pools. Take WhisperTeacher, BEATsTeacher or HFAudioTeacher"
            )
        self.teacher = teacher
        self.folder = Path(folder) / f"{key(teacher)}-frames"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name, self.dim, self.domain = teacher.name, int(teacher.dim), teacher.domain
        self.pool = "mean-of-crop"
        self._whole: set[str] = set()  # clips whose files were read without a fault

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
            missing = [i for i, clip in enumerate(samples.groups) if not self._path(clip).is_file()]
            if missing:
                self._keep(take(samples, missing))
        return sum(1 for _ in self.folder.glob("*.safetensors"))

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The mean of each crop's frames, float32."""
        return torch.stack([frames.mean(0) for frames in self.frames(samples)])

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The frames of each crop, for heads that do not pool."""
        crops = [None] * len(samples) if samples.crops is None else samples.crops.tolist()
        device = torch.device("cpu") if samples.audio is None else samples.audio.device
        return [self._crop(clip, crop).to(device) for clip, crop in zip(samples.groups, crops, strict=True)]

    def _path(self, clip: str) -> Path:
        return self.folder / f"{hashlib.blake2b(clip.encode(), digest_size=12).hexdigest()}.safetensors"

    def _keep(self, samples: Samples) -> None:
        assert samples.audio is not None and samples.rate is not None
        lengths = samples.lengths if samples.lengths is not None else [samples.audio.shape[1]] * len(samples)
        for clip, frames, length in zip(samples.groups, self.teacher.frames(samples), lengths, strict=True):
            if frames.ndim != 2 or not len(frames) or frames.shape[1] != self.dim or not frames.isfinite().all():
                raise BadFeatures(
                    f"teacher {self.name!r} gave frames {tuple(frames.shape)} of clip {clip!r}, expected finite "
                    f"(T, {self.dim}). Listen to it: silent, or empty?"
                )
            frames, seconds = frames.float().cpu().contiguous(), repr(int(length) / samples.rate)
            notes = {"clip": clip, "seconds": seconds, "checksum": checksum(clip, seconds, frames)}
            write(self._path(clip), save({"frames": frames}, notes))

    def _crop(self, clip: str, crop: tuple[float, float] | None) -> Float[Tensor, "T D"]:
        path = self._path(clip)
        if not path.is_file():
            raise BadFeatures(
                f"{self.folder} has no frames of clip {clip!r}. Type teacher.fill(batches of whole clips) first; a "
                "batch names the clip of each sample under 'groups'"
            )
        try:
            with safe_open(path, "pt") as file:
                if clip not in self._whole:
                    self._check(clip, file)
                seconds, kept = float(file.metadata()["seconds"]), file.get_slice("frames")
                first, last = _span(clip, crop, seconds, kept.get_shape()[0])
                return kept[first:last]
        except BadBatch:
            raise
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise BadFeatures(
                f"the frames of clip {clip!r} in {path} are corrupt ({error}). Delete this one file, and call "
                "teacher.fill(batches of whole clips) again"
            ) from error

    def _check(self, clip: str, file: Any) -> None:
        notes = file.metadata()
        if checksum(notes["clip"], notes["seconds"], file.get_tensor("frames")) != notes["checksum"]:
            raise ValueError("its checksum does not match")
        self._whole.add(clip)


def _span(clip: str, crop: tuple[float, float] | None, seconds: float, count: int) -> tuple[int, int]:
    """The frames, of `count` in a clip of so many seconds, that overlap the crop. Raises BadBatch."""
    start, stop = (0.0, seconds) if crop is None else crop
    if not 0 <= start < stop <= seconds + SLACK:
        raise BadBatch(
            f"the crop from {start:g} to {stop:g} s is not within its clip {clip!r} of {seconds:g} s. Give start and "
            "end in seconds of the clip under 'crops'"
        )
    first = min(math.floor(start / seconds * count + 1e-6), count - 1)
    return first, max(first + 1, min(math.ceil(stop / seconds * count - 1e-6), count))
