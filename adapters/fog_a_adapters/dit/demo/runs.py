"""What the demo shows of training: how the layers' ranking settles, and the same training with and without AG-REPA.

Both are small: one seed, few clips, few steps. They show how such pictures are read, not which training is better;
`fog-a compare` is for that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from fog_a.attributing.attribute import attribute
from fog_a.flows.flow import Flow
from fog_a.flows.wrapping import wrap
from fog_a.scores.curves import Run
from fog_a.scores.scores import Scores
from fog_a_adapters.compare import Plan, Task, compare
from fog_a_adapters.dit.audio.data import Corpus
from fog_a_adapters.dit.demo.page import TOP
from fog_a_adapters.dit.demo.train import new_model
from fog_a_adapters.dit.model.dit import DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching

FEW = 4
"""Clips per domain."""
SIZE, FRAMES = 8, 96
"""Batches of the training with and without."""


class Checkpoints:
    """FoG-A of a few held-out clips at each quarter of a training; `look(step)` is called after each step."""

    def __init__(self, model: FlowMatching, corpus: Corpus, steps: int, seed: int) -> None:
        self.flow, self.seed = wrap(model), seed
        self.batches = corpus.held_out(FEW)
        self.at = {max(1, round(steps * quarter / 4)) for quarter in range(1, 5)}
        self.history: dict[int, Scores] = {}

    def look(self, step: int) -> None:
        if step in self.at:
            self.history[step] = attribute(self.flow, self.batches, times=2, seed=self.seed, progress=False)


def with_and_without(
    corpus: Corpus, config: DiTConfig, steps: int, seed: int, teachers: Mapping[str, Any]
) -> dict[str, Run]:
    """Held-out losses after a common warm-up, on the same batches and noise: name → (steps, losses)."""

    def build(seed: int) -> Flow:
        model = new_model(lambda: FlowMatching(config), seed)
        model.start_at(corpus.mean_frame())
        return wrap(model)

    k = min(TOP, config.layers)
    plan = Plan(("base", "foga"), (seed,), max(1, steps // 4), max(1, steps // 3), k, bitc=0.0, looks=6, timing=0)
    task = Task(
        name="demo",
        build=build,
        batch=lambda seed, step: corpus.batch(step, SIZE, FRAMES, seed),
        held_out=corpus.held_out(FEW),
        probe=[corpus.batch(0, 2 * FEW, FRAMES, seed=-1)],
        teachers=dict(teachers),
    )
    with tempfile.TemporaryDirectory() as folder:
        results = compare(task, plan, folder, progress=False)["results"]
    names = {"base": "without", "foga": "with AG-REPA"}
    return {names[r["arm"]]: ([step for step, _ in r["curve"]], [loss for _, loss in r["curve"]]) for r in results}
