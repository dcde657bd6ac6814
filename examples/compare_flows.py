"""Base, shallow and AG-REPA on F5-TTS, Voicebox or CosyVoice: Tables 4 and 5 of the paper in their shape, tiny models.

Any wrapped flow with its data and teachers is a `Task`, which `fog-a compare` takes. Trained from scratch on the clips
that come with fog_a, with a teacher that needs no weights, the numbers say that it runs, not which is better.

    cd examples
    fog-a compare --task compare_flows:f5_tts --arm base --arm shallow --arm foga --k 2 --out out/f5_tts
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

import fog_a
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.compare import Task
from fog_a_adapters.dit.audio.data import load_corpus


def f5_tts() -> Task:
    return task("f5_tts")


def voicebox() -> Task:
    return task("voicebox")


def cosyvoice() -> Task:
    return task("cosyvoice")


def task(name: str, build: Any = None) -> Task:
    """The model, batches and domains of the example `<name>_ag_repa.py`, or another model."""
    sys.path.insert(0, str(Path(__file__).parent))
    example: Any = importlib.import_module(f"{name}_ag_repa")
    corpus = load_corpus(audio=True)

    def model(seed: int) -> fog_a.Flow:
        torch.manual_seed(seed)
        return fog_a.wrap((build or example.new_model)())

    return Task(
        name=f"{name}, tiny",
        build=model,
        batch=lambda seed, step: example.as_batch(corpus.batch(step, size=8, frames=64, seed=seed)),
        held_out=[example.as_batch(clips) for clips in corpus.held_out(per_domain=4)],
        probe=[example.as_batch(corpus.batch(0, size=8, frames=64, seed=-2))],
        teachers={domain: SpectralTeacher() for domain in example.packaged_clips.DOMAINS},
    )
