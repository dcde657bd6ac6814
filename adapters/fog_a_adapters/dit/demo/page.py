"""The demo's result, and the page that shows it: what was learned, what each layer does, what the model makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from fog_a.flows.dicts import rows
from fog_a.scores.curves import Run, plot_stability, plot_training
from fog_a.scores.scores import Scores
from fog_a.shell.report import report
from fog_a_adapters.dit.audio.data import Corpus
from fog_a_adapters.dit.audio.mel import HOP, MEL_RATE
from fog_a_adapters.dit.demo.pictures import Shown, plot_learning, plot_samples
from fog_a_adapters.dit.model.flow import FlowMatching, MelBatch

TOP = 3
"""Layers marked per domain, where there are so many."""


@dataclass(frozen=True)
class Demo:
    """What a demo found and where it is.

    `scores` are FoG-A, `storage` LASP, centered. `history` is FoG-A of a few clips by training
    step, `runs` a short training with and without AG-REPA. `before` and `after` are held-out flow losses per clip and
    time; `floor` is that of the best constant guess.
    """

    scores: Scores
    storage: Scores
    history: dict[int, Scores]
    runs: dict[str, Run]
    losses: list[float]
    before: Float[Tensor, "S J"]
    after: Float[Tensor, "S J"]
    floor: float
    seconds: dict[str, float]
    files: dict[str, Path]

    @property
    def marked(self) -> int:
        """How many layers are marked per domain."""
        return min(TOP, len(self.scores.layers))

    @property
    def fall(self) -> float:
        """By which share the held-out loss fell, 0 to 1."""
        return 1 - float(self.after.mean() / self.before.mean())


def facts_of(
    corpus: Corpus, data: str | Path | None, seed: int, model: FlowMatching, teachers: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page tells of data, model and teachers."""
    config = model.config
    facts = {
        "data": "the packaged clips" if data is None else Path(data).resolve().name,
        "clips": f"{len(corpus.train)} to train on, {len(corpus.test)} held out",
        "model": f"DiT {config.layers} × {config.dim}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "teachers": ", ".join(f"{domain}: {teacher.name}" for domain, teacher in teachers.items()),
        "seed": seed,
    }
    return facts | ({"converted": "; ".join(corpus.notes)} if corpus.notes else {})


def page_of(demo: Demo, model: FlowMatching, corpus: Corpus, batches: Sequence[MelBatch], facts: dict[str, Any]) -> str:
    """The page: what was learned, what each layer contributes, what the model makes."""
    names = ", ".join(corpus.domains)
    lead = (
        f"A flow-matching transformer of {model.config.layers} layers was trained for {len(demo.losses)} steps on "
        f"{len(corpus.train)} clips ({names}). Then each layer was switched off in turn, on {len(demo.scores.ids)} "
        f"clips it had never seen, and the change of its velocity measured: that is the layer's contribution (FoG-A). "
        f"Training brought the held-out flow loss from {demo.before.mean():.3f} down to {demo.after.mean():.3f}, "
        f"by {demo.fall:.0%}; a guess that knows nothing but the mean frame has {demo.floor:.3f}. "
        "Beside contribution stands storage (LASP): how much a layer holds of what a teacher knows "
        f"({facts['teachers']}). Log-mel statistics need no weights and know timbre and loudness, neither words nor "
        "events."
    )
    domains = demo.scores.domains
    learned = plot_learning(demo.losses, demo.before, demo.after, demo.scores.times or (), domains, demo.floor)
    figures = [
        (
            "Left: flow loss of each training step, and its running mean. Right: flow loss of the held-out clips, on "
            "the same noise before and after. Dashed: the best guess that looks at nothing.",
            learned,
        ),
        (
            "Held-out clips (top), and what the model makes of their tokens and the beginning left of the line, "
            f"without guidance (bottom). {len(demo.losses)} steps teach it outlines, not detail.",
            plot_samples(_samples(model, batches, corpus.domains), HOP / MEL_RATE),
        ),
    ]
    figures += _training(demo)
    return report(
        [demo.scores, demo.storage],
        figures,
        title="Which layers drive the output?",
        lead=lead,
        facts=facts,
        k=demo.marked,
    )


def _training(demo: Demo) -> list[tuple[str, Any]]:
    """What training does to the ranking, and alignment to training; the first where there are two checkpoints."""
    figures: list[tuple[str, Any]] = []
    clips = len(next(iter(demo.history.values())).ids)
    if len(demo.history) > 1:
        caption = f"The ranking during training, on {clips} held-out clips: when it has settled, layers can be chosen."
        figures.append((caption, plot_stability(demo.history, k=demo.marked)))
    steps = len(next(iter(demo.runs.values()))[0])
    caption = (
        "The same short training without and with AG-REPA, from one checkpoint, on the same clips and noise, with the "
        f"same teachers; {steps} looks at {clips} held-out clips. One seed says nothing of which is better: "
        "fog-a compare does, with several."
    )
    return [*figures, (caption, plot_training(demo.runs))]


def _samples(model: FlowMatching, batches: Sequence[MelBatch], domains: Sequence[str], each: int = 2) -> list[Shown]:
    """The first clips of each domain: name, real mel, sampled mel, frames of the reference."""
    shown = []
    for d, domain in enumerate(domains):
        for batch in batches:
            index = [i for i, n in enumerate(batch["domain"].tolist()) if n == d][:each]
            if index:
                part = cast(MelBatch, rows(batch, index, len(batch["ids"])))
                made, (_, prefix) = model.sample(part, cfg=1.0), model.draws(part, 0)
                for i, n in enumerate(part["lengths"].tolist()):
                    name = f"{domain}: {Path(part['ids'][i]).stem}"
                    shown.append((name, part["mel"][i, :n], made[i, :n], int(prefix[i])))
                break
    return shown
