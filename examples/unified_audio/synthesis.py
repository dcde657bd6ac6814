"""Synthesis: a prompt and a reference → tokens (stage 1) → mel (stage 2) → sound (a vocoder).

studio = Studio(language, flow, reader, style, vocoder(), corpus)
studio.speech("eight zero five", reference=clip).save("eight.wav")                      # TTS: in the voice of a clip
studio.sound("rain", "rain on a tin roof", reference=clip).save("rain.wav")             # TTA: an event, described
studio.again(clip).save("again.wav")                                                    # stage 2 alone: its tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fog_a.errors import BadArgument
from fog_a_adapters.dit.model.flow import FlowMatching
from unified_audio.audio_frames import AudioFrames
from unified_audio.clips import Clip, Corpus
from unified_audio.fusion import interleave
from unified_audio.items import Item, Reader
from unified_audio.language_model import LanguageStage
from unified_audio.prompts import Prompt
from unified_audio.stage2 import FRAME_RATE, reference_frames, speak
from unified_audio.style import segment_means
from unified_audio.vocoder import Sound, Vocoder

SECONDS = 3.0
"""A reference of sound is at most so long."""


@dataclass(frozen=True)
class Made:
    """What was synthesized: sound, its mel, the tokens it was made of."""

    sound: Sound
    mel: Float[Tensor, "T M"]
    tokens: Int[Tensor, "N"]

    def save(self, path: str) -> None:
        """A WAV file."""
        self.sound.save(path)


@dataclass(frozen=True)
class Studio:
    """The trained stages together.

    Attributes:
        language: stage 1. flow: stage 2 (with averaged weights, where they are wanted).
        reader: decodes references and makes their tokens, with the tokenizers of training.
        style: the frames that style vectors are averaged of, those of stage 1's training.
        vocoder: mel → sound.
        corpus: where given, its events are the known ones.
        speed: frames per token are divided by it (the release: 0.9).
        sampler: steps, cfg, s of stage 2.
    """

    language: LanguageStage
    flow: FlowMatching
    reader: Reader
    style: AudioFrames
    vocoder: Vocoder
    corpus: Corpus | None = None
    speed: float = 1.0
    sampler: dict[str, Any] | None = None

    def speech(self, text: str, reference: Clip, *, seed: int = 0, longest: int = 512, guidance: float = 1.0) -> Made:
        """TTS in the voice of a reference.

        Raises BadArgument: an empty text, a reference of another domain. BadManifest: one that cannot be decoded.
        """
        return self._make(Prompt.speech(text), reference, seed, longest, guidance)

    def sound(
        self, event: str, description: str, reference: Clip, *, seed: int = 0, longest: int = 512, guidance: float = 1.0
    ) -> Made:
        """TTA: an event, described, in the manner of a reference.

        Raises what `speech` raises, and UnknownEvent.
        """
        event = event if self.corpus is None else self.corpus.event(event)
        return self._make(Prompt.sound(event, description), reference, seed, longest, guidance)

    def again(self, clip: Clip, *, seed: int = 0) -> Made:
        """A clip from its own tokens and its own beginning, which is not part of what is made."""
        item = self.reader.item(clip)
        cut = max(1, int(0.25 * len(item.mel)))
        head, tail = item.crop(0, cut), item.crop(cut, len(item.mel))
        return self._sung(tail.tokens, head, len(tail.mel), clip.id, seed)

    def _make(self, prompt: Prompt, reference: Clip, seed: int, longest: int, guidance: float) -> Made:
        if reference.domain != prompt.domain:
            raise BadArgument(
                f"a reference of {reference.domain} ({reference.id}) for a prompt of {prompt.domain}; give a clip of "
                f"{prompt.domain}"
            )
        item = self.reader.item(reference)
        style = segment_means(self.reader.frames(reference, self.style), self.language.vocabulary.slots)
        streams = self.language.generate([prompt], style=[style], longest=longest, seed=seed, guidance=guidance)[0]
        rate = len(item.mel) * item.width / len(item.tokens)  # mel frames per moment, as the reference has them
        new = max(16, round(rate * len(streams[0]) / self.speed))
        most = reference_frames(new)
        if prompt.domain == "sound":
            most = min(most, round(SECONDS * FRAME_RATE))
        return self._sung(together(streams), item.crop(0, max(1, most)), new, f"{prompt.domain}/{prompt.text}", seed)

    def _sung(self, tokens: Int[Tensor, "N"], head: Item, frames: int, name: str, seed: int) -> Made:
        mel = speak(
            self.flow, tokens, head.clip.number, frames=frames, reference=(head.mel, head.tokens), name=name, seed=seed,
            **(self.sampler or {}),
        )  # fmt: skip
        return Made(self.vocoder(mel), mel, tokens)


def together(streams: Sequence[Int[Tensor, "N"]]) -> Int[Tensor, "M"]:
    """One stream as it is, two interleaved (Eq. 15)."""
    first, *others = streams
    return interleave(first, others[0]) if others else torch.as_tensor(first)
