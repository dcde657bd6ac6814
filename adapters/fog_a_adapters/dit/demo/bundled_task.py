"""The comparison's default task: the bundled DiT on a folder of audio, with a teacher that needs no weights.

`run` is what `fog-a compare` calls. The default teacher is the clip's log-mel statistics (SpectralTeacher): it knows
timbre and loudness, neither words nor events, so a comparison with it is about the machinery. "whisper:FOLDER" is a
Whisper for speech (`fog_a_adapters.dit.audio.whisper_folder` makes a folder of tiny.en); others are given as
`teachers=`; any other flow as a `Task` of its own: `fog-a compare --task my_module:my_task`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fog_a.errors import Unsupported
from fog_a.flows.flow import Flow
from fog_a.flows.wrapping import wrap
from fog_a.teachers.crops import CropTeacher
from fog_a.teachers.weightless import SpectralTeacher
from fog_a_adapters.compare import Task, command
from fog_a_adapters.dit.audio.data import Corpus, Item, collate, load_corpus
from fog_a_adapters.dit.audio.whisper_folder import teacher_from
from fog_a_adapters.dit.demo.distance import SampleDistance
from fog_a_adapters.dit.demo.train import Recipe, new_model
from fog_a_adapters.dit.model.dit import DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching

PROBE = 8
"""Training clips per domain on which layers are chosen."""


def bundled_task(
    data: str | Path | None = None,
    *,
    config: DiTConfig | None = None,
    teachers: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    held_out: int | None = 32,
    data_seed: int = 0,
    teacher: str | None = None,
    domains: Sequence[str] | None = None,
    clips: int | None = None,
    frames: str | Path | None = None,
) -> Task:
    """The bundled DiT on the packaged clips, or on a folder with manifest.csv.

    Args:
        config: sizes; the interface is made as wide as the layers, so that BiT-C's heads serve LASP, as in the paper.
        teachers: domain → teacher; default: log-mel statistics for each.
        recipe: batch size and crop (its steps and learning rate are the plan's).
        held_out: at most so many held-out clips per domain.
        teacher: "whisper:FOLDER" (or "whisper": the folder that FOG_A_WHISPER names) for speech.
        domains, clips: only these domains, and at most so many training clips of each.
        frames: folder that keeps Whisper's frames of whole clips between runs; default: in the folder of Whisper.

    Raises:
        Unsupported: another teacher. NoWeights: see `whisper_folder.teacher_from`. BadManifest: see `load_corpus`.
    """
    given = config or DiTConfig.tiny(layers=8)
    some: dict[str, Any] = {"held_out": held_out, "per_domain": clips, "domains": domains}
    corpus = load_corpus(data, vocab=given.vocab, seed=data_seed, audio=True, **some)
    sizes = DiTConfig.from_dict({**given.to_dict(), "domains": corpus.domains, "token_dim": given.dim})
    r = recipe or Recipe()
    batches = corpus.held_out()

    def build(seed: int) -> Flow:
        model = new_model(lambda: FlowMatching(sizes), seed)
        model.start_at(corpus.mean_frame())
        return wrap(model)

    taught = teachers or teachers_for(teacher, corpus, frames)
    where = "the packaged clips" if data is None else str(data)
    return Task(
        name=f"bundled DiT, {sizes.layers} × {sizes.dim}",
        build=build,
        batch=lambda seed, step: corpus.batch(step, r.size, r.frames, seed),
        held_out=batches,
        probe=_probe(corpus, r.frames),
        teachers=taught,
        distance=SampleDistance(corpus, batches),
        facts={
            "data": f"{where}: {len(corpus.train)} clips to train on, {len(corpus.test)} held out",
            "batch": f"{r.size} crops of {r.frames} frames",
            "teachers": ", ".join(f"{d}: {t if isinstance(t, int) else t.name}" for d, t in taught.items()),
        },
    )


def teachers_for(name: str | None, corpus: Corpus, frames: str | Path | None = None) -> dict[str, Any]:
    """Domain → teacher: Whisper for speech where it is named, log-mel statistics else."""
    taught: dict[str, Any] = {d: SpectralTeacher() for d in corpus.domains}
    if name is None:
        return taught
    kind, _, folder = name.partition(":")
    if kind != "whisper":
        raise Unsupported(f"a teacher is 'whisper:FOLDER', or 'whisper' with FOG_A_WHISPER=folder; got {name!r}")
    if "speech" not in corpus.domains:
        raise Unsupported(
            f"Whisper hears speech, and the clips are of {', '.join(corpus.domains)}: leave --teacher out"
        )
    whisper, d = teacher_from(folder or None), corpus.domains.index("speech")
    crops = CropTeacher(whisper, frames or Path(folder or os.environ["FOG_A_WHISPER"]) / "frames")
    flow = wrap(FlowMatching(DiTConfig.tiny(layers=1, domains=corpus.domains)))
    crops.fill(flow.samples(collate([i])) for i in [*corpus.train, *corpus.test] if i.domain == d)
    return taught | {"speech": crops}


def _probe(corpus: Corpus, frames: int) -> list[Any]:
    """The first training clips of each domain, cut to twice a training crop."""
    items: list[Item] = []
    for d in range(len(corpus.domains)):
        items += [i.crop(0, 2 * frames) for i in corpus.train if i.domain == d][:PROBE]
    return [collate(items)]


def run(
    data: str | Path | None = None,
    out: str | Path = "out/compare",
    *,
    layers: int | None = None,
    dim: int | None = None,
    teacher: str | None = None,
    arms: Sequence[str] | None = None,
    seeds: int = 3,
    warmup: int = 200,
    steps: int = 300,
    k: int = 3,
) -> dict[str, Any]:
    """`fog-a compare` on the bundled model; arms, seeds, steps and k are of `fog_a_adapters.compare.command.run`."""
    task = bundled_task(data, config=DiTConfig.tiny(layers=layers or 8, dim=dim or 64), teacher=teacher)
    center = teacher is not None
    return command.run(task, out, arms=arms, seeds=seeds, warmup=warmup, steps=steps, k=k, center=center)
