"""What is said of synthesized sound: word error rate, Fréchet distance, steps to a threshold; with intervals.

    WER = (substitutions + deletions + insertions) / words of the transcripts                        over all clips
    d²  = ‖μ_r − μ_g‖² + tr(Σ_r + Σ_g − 2 (Σ_r Σ_g)^{1/2})            between embeddings of real and made sound

A distance is only comparable under the same embedder, so every number carries its embedder's name: this is the
published FAD only when that name is VGGish.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadArgument
from fog_a.flows.samples import Samples
from fog_a_adapters.compare.measures import frechet
from fog_a_adapters.dit.audio.mel import RATE, optional
from fog_a_adapters.dit.demo.distance import MelEmbedding

BOOTSTRAPS = 2000
DIGITS = "zero one two three four five six seven eight nine".split()


@dataclass(frozen=True)
class WordErrors:
    """A corpus's word error rate; `low`, `high`: a bootstrap interval over clips."""

    rate: float
    low: float
    high: float
    words: int
    clips: int


def words(text: str) -> str:
    """A transcript as it is compared: lower case, no punctuation, digits spelled, single spaces.

    >>> words("Eight,  ZERO-five!"), words("8, 0, 57.")
    ('eight zero five', 'eight zero five seven')
    """
    spelled = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text.lower())
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", spelled))


def word_errors(said: Sequence[str], heard: Sequence[str], *, level: float = 0.95, seed: int = 0) -> WordErrors:
    """The word error rate of what was heard, by jiwer. It may exceed 1.

    Raises:
        BadArgument: not as many transcripts as results, none at all, or an empty transcript.
        MissingDependency: jiwer is absent.
    """
    jiwer = optional("jiwer")
    said, heard = [words(s) for s in said], [words(h) for h in heard]
    if len(said) != len(heard) or not said or not all(said):
        raise BadArgument(
            f"a word error rate needs a transcript with words for each clip: got {len(said)} transcripts, "
            f"{sum(not s for s in said)} of them empty, and {len(heard)} results"
        )
    found = jiwer.process_words(list(said), list(heard))
    wrong = np.array([sum(c.type != "equal" and _size(c) for c in chunks) for chunks in found.alignments], float)
    total = np.array([len(s.split()) for s in said], float)
    draws = np.random.default_rng(seed).integers(len(said), size=(BOOTSTRAPS, len(said)))
    rates = wrong[draws].sum(1) / total[draws].sum(1)
    low, high = np.quantile(rates, [0.5 - level / 2, 0.5 + level / 2])
    return WordErrors(float(found.wer), float(low), float(high), int(total.sum()), len(said))


def _size(chunk: Any) -> int:
    """The errors of a stretch: its longer side."""
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)


class Embedder(Protocol):
    """Mels (T, M) → embeddings, several per clip or one. `name` stands beside every distance."""

    name: str

    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> Float[Tensor, "n D"]: ...


class MelWindows:
    """The embedder that needs no weights: principal components of mel statistics over a third of a second."""

    def __init__(self, train: Sequence[Float[Tensor, "T M"]], dim: int = 16) -> None:
        self.name, self._embed = f"mel windows, {dim} components", MelEmbedding.fit(train, dim)

    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> Float[Tensor, "n D"]:
        return self._embed(mels)


class TeacherEmbedder:
    """Any of fog_a's teachers (Whisper, BEATs, …), one embedding per clip, of what the vocoder makes of its mel."""

    def __init__(self, teacher: Any, vocoder: Any) -> None:
        self.teacher, self.vocoder = teacher, vocoder
        self.name = f"{teacher.name} on {vocoder.name}"

    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> Float[Tensor, "n D"]:
        made = [self.vocoder(m) for m in mels]
        rows = []
        for sound in made:
            audio = optional("torchaudio").functional.resample(sound.samples, sound.rate, RATE)
            rows.append(self.teacher(Samples(("clip",), ("all",), lambda rows: None, audio[None], RATE)))
        return torch.cat(rows).float().cpu()


def distance(real: Sequence[Float[Tensor, "T M"]], made: Sequence[Float[Tensor, "T M"]], embedder: Embedder) -> float:
    """The Fréchet distance d² under an embedder.

    Raises BadArgument: fewer than two embeddings on a side, which have no covariance.
    """
    a, b = embedder(real), embedder(made)
    if min(len(a), len(b)) < 2:
        raise BadArgument(
            f"a Fréchet distance needs at least 2 embeddings on each side, got {len(a)} real and {len(b)} made by "
            f"{embedder.name}; give more or longer clips"
        )
    return frechet(a, b)


def steps_to(curve: Sequence[tuple[int, float]], threshold: float) -> float | None:
    """Where a falling curve first reaches the threshold, linear between looks; None where it does not.

    >>> steps_to([(100, 2.0), (200, 1.0)], 1.5)
    150.0
    """
    before: tuple[int, float] | None = None
    for step, value in curve:
        if value <= threshold:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - threshold) / (before[1] - value)
        before = (step, value)
    return None


def held_out_errors(
    recognizer: Callable[[Sequence[Tensor]], list[str]], clips: Sequence[tuple[Float[Tensor, "T M"], str]]
) -> WordErrors:
    """The recognizer's own error rate on real clips: below this no synthesis can be measured."""
    return word_errors([text for _, text in clips], recognizer([mel for mel, _ in clips]))
