"""A teacher's frames, computed once for each whole clip, and pooled over the crop that a batch holds of it.

    T(x) = mean of the frames of the whole clip that lie in the crop  −  mean frame of all clips

So an encoder that takes longer than a training step is asked once a clip. What it gives of a crop knows the rest of the
clip, as a frame of an encoder with attention always does. Without the mean frame, what is left tells crops apart: one
constant vector already reaches 1 − cos of about .08 of Whisper's features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from fog_a.errors import BadBatch
from fog_a.files import write
from fog_a.flows.samples import Samples
from fog_a_adapters.dit.audio.data import Item
from fog_a_adapters.dit.audio.mel import RATE


class ClipFrames:
    """Another teacher's frames of whole clips, which it was asked for once.

    Args:
        teacher: has `frames(samples)`, one (F, D) tensor per sample, and `dim`.
        clips: all clips that batches will be made of, with their audio; the mean frame is of the first `fitted`.
        fitted: how many of them are training clips; None: all.
        file: keeps the frames between runs (safetensors); None: memory alone.

    Raises BadBatch: at a call, a clip that is not among these, no `starts`, or a crop longer than its clip.
    """

    pool = "crop-mean"

    def __init__(
        self, teacher: Any, clips: Sequence[Item], file: Path | None = None, *, fitted: int | None = None,
        domain: str | None = None,
    ) -> None:  # fmt: skip
        self.name, self.dim, self.domain = f"{teacher.name}, frames of whole clips, centred", teacher.dim, domain
        self.fingerprint = getattr(teacher, "fingerprint", "")
        known = load_file(file) if file is not None and file.exists() else {}
        new = {c.id: self._asked(teacher, c) for c in tqdm(clips, desc=teacher.name, leave=False) if c.id not in known}
        self._frames: dict[str, Float[Tensor, "F D"]] = known | new
        self._mean = torch.stack([self._frames[c.id].mean(0) for c in clips[:fitted]]).mean(0)
        self._length = {c.id: len(c.mel) for c in clips}
        if new and file is not None:
            write(file, save(self._frames))

    @staticmethod
    def _asked(teacher: Any, clip: Item) -> Float[Tensor, "F D"]:
        if clip.audio is None:
            raise BadBatch(f"clip {clip.id!r} has no audio for {teacher.name!r} to hear: load_corpus(audio=True)")
        samples = Samples((clip.id,), ("all",), lambda rows: None, clip.audio[None], RATE)
        return teacher.frames(samples)[0].half().float().contiguous()

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The frames of each sample's crop."""
        batch = samples.rows(list(range(len(samples))))
        if "starts" not in batch:
            raise BadBatch("the batch does not say where its crops begin: fog_a_adapters.dit.audio.data.collate does")
        spans = zip(samples.ids, batch["starts"].tolist(), batch["lengths"].tolist(), strict=True)
        return [self._crop(name, start, length) for name, start, length in spans]

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The mean frame of each sample's crop."""
        return torch.stack([x.mean(0) for x in self.frames(samples)])

    def _crop(self, name: str, start: int, length: int) -> Float[Tensor, "_ D"]:
        if name not in self._frames:
            raise BadBatch(f"no frames of clip {name!r}: give it among the clips of ClipFrames")
        whole, frames = self._length[name], self._frames[name]
        if start + length > whole:
            raise BadBatch(
                f"a crop of {length} frames from frame {start} is longer than its clip {name!r}, which has {whole}; "
                "crop it with Item.crop, which stops at the end"
            )
        rate = len(frames) / whole
        first = min(math.floor(start * rate), len(frames) - 1)
        return frames[first : max(first + 1, math.ceil((start + length) * rate))] - self._mean
