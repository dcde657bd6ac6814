"""Probe, branch, intervene, and judge what is synthesized: the paper's protocol on this application's data.

Phase I trains with L_FM + L_BiT and probes; from that checkpoint Phase II trains every arm on the same batches, noise
and learning rates (`fog_a_adapters.compare`, which also goes on after a kill). Each trained arm then synthesizes
the held-out clips from their tokens, with one frame of reference, so that every word of a transcript is to be heard:

    wer              what the recognizer hears of them, against the transcripts
    frechet/domain   their distance from the real clips, under a named embedder

    compare(protocol(corpus, reader, judges, out), Plan(arms=("base", "random", "foga"), seeds=(0, 1, 2)), out)
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from fog_a.blocks.untouched import preserved
from fog_a.errors import BadArgument
from fog_a.flows.flow import Flow
from fog_a.flows.wrapping import wrap
from fog_a.teachers.weightless import SpectralTeacher
from fog_a_adapters.compare import Task
from fog_a_adapters.dit.demo.train import new_model
from fog_a_adapters.dit.model.dit import DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching, MelBatch
from unified_audio.batches import MelBatches
from unified_audio.clips import DOMAINS, Clip, Corpus
from unified_audio.evaluation import Embedder, distance, word_errors
from unified_audio.fusion import Dual, condition
from unified_audio.items import Item, Reader, collate
from unified_audio.recognizer import Recognizer
from unified_audio.training import moved
from unified_audio.vocoder import Vocoder

PROBED = 8
"""Training clips per domain on which layers are chosen."""
STATISTICS = 2000
"""Training clips per domain of which means, centres and components are taken, at most: all in memory at once."""
HELD = 16
"""Clips per held-out batch."""


@dataclass(frozen=True)
class Judges:
    """Who judges what is synthesized. A recognizer or an embedder that is None judges nothing.

    `second` is another embedder, whose distances stand beside the first one's.
    """

    recognizer: Recognizer | None
    embedder: Embedder | None
    vocoder: Vocoder | None = None
    steps: int = 16
    cfg: float = 2.0
    second: Embedder | None = None


@dataclass(frozen=True)
class Size:
    """Of model and batches.

    Attributes:
        model: sizes of the DiT; vocab, domains and token width are set by the task.
        clips: per batch. frames: of a crop. The held-out loss is of crops twice as long.
        held_out: test clips per domain for the loss. heard: how many of them are synthesized, whole, and judged.
    """

    model: DiTConfig
    clips: int = 16
    frames: int = 128
    held_out: int = 24
    heard: int = 24


def protocol(
    corpus: Corpus,
    reader: Reader,
    judges: Judges,
    out: str | Path,
    *,
    size: Size | None = None,
    teachers: Mapping[str, Any] | None = None,
    keep_seed: int | None = 0,
    dual: Dual = "interleave",
    device: str | torch.device = "cpu",
) -> Task:
    """The comparison's task on a corpus.

    Args:
        reader: with the tokenizers, fitted on training clips; with a second stream it is configuration B.
        out: trained weights and the first held-out clip of each domain as sound are written here for `keep_seed`.
        teachers: domain → teacher; default: log-mel statistics, which know timbre but neither words nor events.
        dual: how configuration B joins its two streams.
        device: where the flow is trained and judged.

    Raises BadArgument: a corpus without test clips, or without one of the two domains.
    """
    size = size or Size(DiTConfig.tiny(layers=8))
    if corpus.domains != DOMAINS or any(not corpus.of("test", d) for d in DOMAINS):
        raise BadArgument(
            f"the protocol needs training and test clips of {' and '.join(DOMAINS)}; the corpus has "
            + ", ".join(f"{d}: {len(corpus.of('train', d))} and {len(corpus.of('test', d))}" for d in DOMAINS)
            + ". Try corpus.held_out()"
        )
    vocab = max(c.vocab for c in reader.codes.values())
    config = DiTConfig.from_dict(
        {**size.model.to_dict(), "vocab": vocab, "domains": DOMAINS, "token_dim": size.model.dim}
    )
    test = [c for d in DOMAINS for c in corpus.some(size.held_out, "test").of("test", d)]
    heard = [c for d in DOMAINS for c in [t for t in test if t.domain == d][: size.heard]]
    frame = torch.cat([reader.mel(c) for c in corpus.some(STATISTICS).of("train")]).mean(0)
    taught = teachers or {d: SpectralTeacher() for d in DOMAINS}
    return Task(
        name=f"unified audio, {config.layers} × {config.dim}",
        build=lambda seed: _new(config, frame, seed, reader, dual, device),
        batch=_batches(reader, corpus.of("train"), size, device),
        held_out=_in_batches([reader.item(c).crop(0, 2 * size.frames) for c in test], device),
        probe=[moved(_probe(reader, corpus, size.frames), device)],
        teachers=taught,
        done=_Outcome(judges, heard, _in_batches([reader.item(c) for c in heard], device), Path(out), keep_seed),
        facts=_facts(corpus, reader, judges, size, len(test), taught)
        | {"configuration": "A" if reader.second is None else f"B, {dual}"},
    )


def _in_batches(items: Sequence[Item], device: str | torch.device) -> list[MelBatch]:
    return [moved(collate(items[i : i + HELD]), device) for i in range(0, len(items), HELD)]


def _new(
    config: DiTConfig, frame: Float[Tensor, "M"], seed: int, reader: Reader, dual: Dual, device: str | torch.device
) -> Flow:
    def build() -> FlowMatching:
        second = reader.second
        flow = FlowMatching(config)
        return flow if second is None else condition(flow, "B", acoustic=second.vocab, dual=dual)

    model = new_model(build, seed)
    model.start_at(frame)
    return wrap(model.to(device))


def _batches(
    reader: Reader, clips: Sequence[Clip], size: Size, device: str | torch.device
) -> Callable[[int, int], MelBatch]:
    """(seed, step) → batch."""

    @functools.lru_cache(maxsize=1)  # one seed after the other
    def of(seed: int) -> MelBatches:
        return MelBatches(reader, clips, size.clips, size.frames, seed=seed)

    return lambda seed, step: moved(of(seed)(step), device)


def _probe(reader: Reader, corpus: Corpus, frames: int) -> MelBatch:
    """The first training clips of each domain, cut to twice a training crop."""
    clips = [c for d in DOMAINS for c in corpus.of("train", d)[:PROBED]]
    return collate([reader.item(c).crop(0, 2 * frames) for c in clips])


def _facts(
    corpus: Corpus, reader: Reader, judges: Judges, size: Size, test: int, taught: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "data": f"{len(corpus.of('train'))} clips to train on, {test} held out",
        "judged": f"at most {size.heard} of each domain's held-out clips, synthesized whole from their tokens",
        "batch": f"{size.clips} crops of {size.frames} frames",
        "tokens": ", ".join(f"{d}: {c.name}" for d, c in [*reader.codes.items(), ("both", reader.second)] if c),
        "teachers": ", ".join(f"{d}: {t.name}" for d, t in taught.items()),
        "recognizer": judges.recognizer.name if judges.recognizer else "none",
        "embedder": judges.embedder.name if judges.embedder else "none",
        **({"second embedder": judges.second.name} if judges.second else {}),
        "sampler": f"Euler, {judges.steps} points, sway −1, guidance {judges.cfg:g}, one frame of reference",
    }


@dataclass(frozen=True)
class _Outcome:
    """What a trained arm sounds like."""

    judges: Judges
    clips: Sequence[Clip]
    batches: Sequence[MelBatch]
    out: Path
    keep_seed: int | None

    def __call__(self, arm: str, seed: int, flow: Flow) -> dict[str, float]:
        model = flow.model
        assert isinstance(model, FlowMatching)
        made = synthesized(model, self.batches, self.judges.steps, self.judges.cfg)
        if seed == self.keep_seed:
            self._keep(arm, model, made)
        return judged(self.judges, self.clips, self.batches, made)

    def _keep(self, arm: str, model: FlowMatching, made: Sequence[Tensor]) -> None:
        """Weights, and the first clip of each domain to listen to."""
        self.out.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(self.out / f"{arm}.safetensors"))
        if self.judges.vocoder is None:
            return
        for domain in DOMAINS:
            first = next(i for i, c in enumerate(self.clips) if c.domain == domain)
            self.judges.vocoder(made[first]).save(self.out / f"{arm}-{domain}.wav")


def synthesized(model: FlowMatching, batches: Sequence[MelBatch], steps: int, cfg: float) -> list[Float[Tensor, "T M"]]:
    """Each clip of the batches from its tokens, behind one frame of reference."""
    made: list[Tensor] = []
    with preserved(model):
        for batch in batches:
            one = torch.ones_like(batch["lengths"])
            x = model.sample(batch, steps=steps, cfg=cfg, prefix=one).cpu()
            made += [x[i, :n] for i, n in enumerate(batch["lengths"].tolist())]
    return made


def judged(
    judges: Judges, clips: Sequence[Clip], batches: Sequence[MelBatch], made: Sequence[Float[Tensor, "T M"]]
) -> dict[str, float]:
    """The judges' numbers, lower is better: "wer", "frechet" with its domains, "frechet2" by the second embedder."""
    real = [b["mel"][i, :n].cpu() for b in batches for i, n in enumerate(b["lengths"].tolist())]
    found: dict[str, float] = {}
    if judges.recognizer is not None:
        speech = [i for i, c in enumerate(clips) if c.domain == "speech"]
        heard = judges.recognizer([made[i] for i in speech])
        found["wer"] = word_errors([clips[i].text for i in speech], heard).rate
    for metric, embedder in (("frechet", judges.embedder), ("frechet2", judges.second)):
        if embedder is None:
            continue
        for domain in DOMAINS:
            rows = [i for i, c in enumerate(clips) if c.domain == domain]
            far = distance([real[i] for i in rows], [made[i].cpu() for i in rows], embedder)
            found[f"{metric}/{domain}"] = far
        found[metric] = statistics.fmean(found[f"{metric}/{d}"] for d in DOMAINS)
    return found
