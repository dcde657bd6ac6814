"""What the *_ag_repa.py examples share: the clips that come with fog_a, their teachers, and what is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import fog_a
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.dit.audio.data import load_corpus
from fog_a_adapters.dit.model.flow import MelBatch

DOMAINS = ("speech", "sound")
Losses = list[tuple[float, float]]
"""(flow-matching loss, alignment loss) of each step."""


def clips(steps: int) -> Iterator[MelBatch]:
    """So many batches of 8 clips, 64 frames each."""
    corpus = load_corpus(audio=True)
    for step in range(steps):
        yield corpus.batch(step, size=8, frames=64)


def teachers() -> dict[str, fog_a.Teacher]:
    """Log-mel statistics for each domain; in earnest: WhisperTeacher, BEATsTeacher."""
    return {domain: SpectralTeacher() for domain in DOMAINS}


def names(batch: MelBatch) -> list[str]:
    """The domain of each clip."""
    return [DOMAINS[i] for i in batch["domain"].tolist()]


def audio(batch: MelBatch) -> dict[str, Any]:
    """What teachers need of the clips, for a batch that knows mels alone."""
    return {key: batch.get(key) for key in ("audio", "audio_lengths", "rate")}


def main(train: Callable[..., Losses]) -> None:
    """`train(steps, warmup)` of the command line, and its losses."""
    for step, (flow, align) in enumerate(train(*map(int, sys.argv[1:3]))):
        print(f"step {step:3d}  flow {flow:.3f}  alignment {align:+.4f}")
