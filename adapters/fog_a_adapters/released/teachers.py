"""The release's pooling of its two teachers, which counts silence and padding."""

from __future__ import annotations

from torch import Tensor, nn

import fog_a.teachers
from fog_a.flows.samples import Samples
from fog_a.teachers.waveforms import waveforms


class WhisperTeacher(fog_a.teachers.WhisperTeacher):
    """The mean over all 1500 frames of the first 30 s: of a clip of 10 s two thirds are silence."""

    pool = "release"

    def frames(self, samples: Samples) -> list[Tensor]:
        """All frames of the first window."""
        waves = waveforms(samples, self.rate, self.name)
        return [self.encode([wave[: self.window]])[0] for wave in waves]


class BEATsTeacher(fog_a.teachers.BEATsTeacher):
    """The mean over the patches of the padded batch."""

    pool = "release"

    def frames(self, samples: Samples) -> list[Tensor]:
        """The frames of each sample, as long as the longest of the batch."""
        waves = waveforms(samples, self.rate, self.name)
        return self.encode(list(nn.utils.rnn.pad_sequence(waves, batch_first=True)))
