"""Base, shallow and AG-REPA on F5-TTS, Voicebox or CosyVoice: Tables 4 and 5 of the paper in their shape, tiny models.

`fog-a compare` does this for the bundled DiT; any other wrapped flow is a `Task`. Trained from scratch on the clips
that come with fog_a, with a teacher that needs no weights, the numbers say that it runs, not which is better.

    python examples/compare_flows.py f5_tts out/f5_tts
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

import fog_a
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.dit.compare import Plan, Task, compare
from fog_a_adapters.dit.data import Corpus, load_corpus

ARMS = ("base", "shallow", "foga")


def task(name: str, corpus: Corpus, build: Any = None) -> Task:
    """The comparison's task for `f5_tts`, `voicebox` or `cosyvoice`, from the example that trains it."""
    sys.path.insert(0, str(Path(__file__).parent))
    example: Any = importlib.import_module(f"{name}_ag_repa")

    def model(seed: int) -> fog_a.Flow:
        torch.manual_seed(seed)
        return fog_a.wrap((build or example.new_model)())

    return Task(
        name=f"{name}, tiny",
        build=model,
        batch=lambda seed, step: example.as_batch(corpus.batch(step, size=8, frames=64, seed=seed)),
        held_out=[example.as_batch(corpus.batch(step, size=8, frames=64, seed=-1)) for step in range(2)],
        probe=[example.as_batch(corpus.batch(0, size=8, frames=64, seed=-2))],
        teachers={domain: SpectralTeacher(domain=domain) for domain in example.DOMAINS},
    )


def main(name: str, out: str, warmup: int = 100, steps: int = 100, seeds: int = 2) -> dict[str, Any]:
    plan = Plan(arms=ARMS, seeds=tuple(range(seeds)), warmup=warmup, steps=steps, k=2)
    report = compare(task(name, load_corpus(audio=True)), plan, out)
    print(Path(out, "compare.md").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
