"""The whole system small: tokenizers, stage 1, Phase I → branch → Phase II with every arm, evaluation, one page.

    python -m unified_audio.paper --out out/paper                                   # the packaged clips, a CPU
    python -m unified_audio.paper --data ../shared/audio --hours 2 --seeds 3        # as long as one wants

`--hours` sets the steps of stages and arms from the measured speed of a step. Everything finished is on disk; the same
command goes on after a kill. Tables are in compare.md and compare.json, what is to be heard and seen in index.html.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fog_a
from fog_a.showing.report import report
from fog_a_adapters.dit.compare import compare
from fog_a_adapters.dit.flow import FlowMatching
from fog_a_adapters.dit.model import DiTConfig
from fog_a_adapters.dit.task import Plan, Task
from unified_audio.ast_tokenizer import ASTConfig, ASTTokenizer
from unified_audio.audio_frames import MelFrames
from unified_audio.batches import FrameBatches, LanguageBatches
from unified_audio.cache import Cache, write, write_json
from unified_audio.clips import Clip, Corpus
from unified_audio.corpora import from_manifest
from unified_audio.evaluation import MelWindows, held_out_errors
from unified_audio.items import Reader
from unified_audio.language_model import LanguageStage
from unified_audio.protocol import Judges, Size, judged, protocol
from unified_audio.recognizer import WordRecognizer
from unified_audio.synthesis import Studio
from unified_audio.tokens import ASTCodes, KMeansCodes
from unified_audio.training import Recipe, fit
from unified_audio.vocoder import vocoder

ARMS = ("base", "random", "lasp", "gradnorm", "foga", "foga-equal")
HEARD_WORDS = 200
"""A recognizer is trained where transcripts have at most so many different words, and there are as many clips."""


@dataclass(frozen=True)
class Scale:
    """Sizes and lengths of a run; `gpu` is written down for a card with 80 GB, `small` for two cores."""

    model: DiTConfig
    vocab: int
    clips: int
    frames: int
    tokenizer_steps: int
    language_steps: int
    warmup: int
    steps: int
    held_out: int
    heard: int
    precision: Any = "no"

    @classmethod
    def small(cls) -> Scale:
        """For `make paper`."""
        return cls(DiTConfig.tiny(layers=6), 64, 8, 64, 60, 40, 60, 40, 24, 8)

    @classmethod
    def tiny(cls) -> Scale:
        """For tests."""
        return cls(DiTConfig.tiny(layers=5, dim=16, heads=2), 16, 4, 32, 2, 2, 6, 4, 4, 2)

    @classmethod
    def gpu(cls) -> Scale:
        """24 × 1024 in bf16, the paper's warm-up; steps to be chosen by the hours one has."""
        return cls(DiTConfig.paper(), 4096, 16, 938, 20_000, 20_000, 5_000, 45_000, 200, 200, "bf16")


SCALES: dict[str, Callable[[], Scale]] = {"small": Scale.small, "tiny": Scale.tiny, "gpu": Scale.gpu}


class Paper:
    """One run, in a folder."""

    def __init__(
        self, out: str | Path, data: str | Path | None = None, *, scale: Scale | None = None,
        arms: Sequence[str] = ARMS, seeds: int = 3, weights: str | Path | None = None, cpu: bool = False,
    ) -> None:  # fmt: skip
        self.out, self.scale, self.arms, self.seeds, self.cpu = Path(out), scale or Scale.small(), arms, seeds, cpu
        self.data = "the packaged clips" if data is None else str(data)
        self.corpus: Corpus = from_manifest(data).held_out()
        self.cache, self.frames, self.vocoder = Cache(self.out / "cache"), MelFrames(), vocoder(weights)
        self.plain = Reader(self.cache)
        self.spent: dict[str, float] = {}

    def run(self) -> Path:
        """Everything that is not yet done; the page's path."""
        reader = self._timed("tokenizers", self._tokenizers)
        language = self._timed("stage 1", lambda: self._language(reader))
        judges = self._timed("recognizer", self._judges)
        task = self._task(reader, judges)
        plan = Plan(
            arms=tuple(self.arms), seeds=tuple(range(self.seeds)), warmup=self.scale.warmup, steps=self.scale.steps,
            looks=2, draws=4, timing=0,
        )  # fmt: skip
        result = self._timed("phases I and II", lambda: compare(task, plan, self.out / "compare"))
        self._timed("synthesis", lambda: self._sounds(reader, language))
        self._ceiling(task, judges)
        write_json(self.out / "seconds.json", self.spent)
        page = self._page(task, result)
        write(self.out / "index.html", page.encode())
        return self.out / "index.html"

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        made = work()
        self.spent[name] = round(time.perf_counter() - start, 1)
        return made

    def _tokenizers(self) -> Reader:
        """K-means codes for speech (no S3 weights here), a trained VQ-VAE for sound."""
        s = self.scale
        speech = [self.plain.frames(c, self.frames) for c in self.corpus.of("train", "speech")]
        torch.manual_seed(0)
        tokenizer = ASTTokenizer(ASTConfig.tiny(self.frames.dim, s.vocab))
        batches = FrameBatches(self.plain, self.corpus.of("train", "sound"), s.clips, self.frames)
        recipe = Recipe(s.tokenizer_steps, 1e-3, 0.01)
        fit(tokenizer, lambda m, b: m(*b).loss, batches, recipe, self.out / "tokenizer", name="tokenizer", cpu=self.cpu)
        codes: Any = {
            "speech": KMeansCodes.fit(speech, self.frames, s.vocab),
            "sound": ASTCodes(tokenizer.cpu(), self.frames),
        }
        return Reader(self.cache, codes)

    def _language(self, reader: Reader) -> LanguageStage:
        s = self.scale
        torch.manual_seed(0)
        stage = LanguageStage.build(tiny=True, families={"S3": s.vocab, "AS": s.vocab}, style_dim=self.frames.dim)
        batches = LanguageBatches(reader, self.corpus.of("train"), s.clips, stage, self.frames)
        recipe = Recipe(s.language_steps, 1e-3)
        fit(stage, lambda m, b: m(b).loss, batches, recipe, self.out / "language", name="stage 1", cpu=self.cpu)
        return stage.cpu()

    def _judges(self) -> Judges:
        """A recognizer of the corpus's words where these are few and repeat, and the embedder without weights."""
        embedder = MelWindows([self.plain.mel(c) for c in self.corpus.of("train")])
        speech = self.corpus.of("train", "speech")
        clips = [(self.plain.mel(c), c.text) for c in speech]
        few = len({w for c in speech for w in c.text.split()}) <= HEARD_WORDS and len(clips) >= HEARD_WORDS
        if not few:
            return Judges(None, embedder, self.vocoder, 8, 1.0)
        path = self.out / "recognizer.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            WordRecognizer.fit(clips).save(path)
        return Judges(WordRecognizer.load(path), embedder, self.vocoder, 8, 1.0)

    def _task(self, reader: Reader, judges: Judges) -> Task:
        s = self.scale
        size = Size(s.model, s.clips, s.frames, s.held_out, s.heard)
        return protocol(self.corpus, reader, judges, self.out / "sounds", size=size)

    def _sounds(self, reader: Reader, language: LanguageStage) -> None:
        """TTS and TTA through all stages, with seed 0's foga, or the last arm's, weights."""
        arm = "foga" if "foga" in self.arms else self.arms[-1]
        config = DiTConfig.from_dict({**self.scale.model.to_dict(), "vocab": self.scale.vocab,
                                      "token_dim": self.scale.model.dim})  # fmt: skip
        flow = FlowMatching(config)
        flow.load_state_dict(load_file(self.out / "sounds" / f"{arm}.safetensors"))
        sampler = {"steps": 16, "cfg": 2.0}
        studio = Studio(language, flow.eval(), reader, self.frames, self.vocoder, self.corpus, sampler=sampler)
        for domain in ("speech", "sound"):
            clip = self.corpus.of("test", domain)[0]
            made = self._asked(studio, clip)
            made.save(str(self.out / "sounds" / f"all-stages-{domain}.wav"))

    def _asked(self, studio: Studio, clip: Clip) -> Any:
        if clip.domain == "speech":
            return studio.speech(clip.text, clip, longest=200)
        return studio.sound(clip.event, clip.text, clip, longest=200)

    def _ceiling(self, task: Task, judges: Judges) -> None:
        """What the judges say of the real clips: below this nothing can be measured."""
        outcome: Any = task.done
        real = [b["mel"][i, :n] for b in outcome.batches for i, n in enumerate(b["lengths"].tolist())]
        found: dict[str, Any] = judged(judges, outcome.clips, outcome.batches, real)
        if judges.recognizer is not None:
            test = [(self.plain.mel(c), c.text) for c in self.corpus.of("test", "speech")]
            found["recognizer on all test clips"] = held_out_errors(judges.recognizer, test).__dict__
        write_json(self.out / "real.json", found)

    def _page(self, task: Task, result: dict[str, Any]) -> str:
        """Scores of seed 0 (the SCD figure), tables and sounds on one page."""
        folder = self.out / "compare" / "seed0"
        names = [n for n in ("foga", "lasp") if (folder / f"scores-{n}.json").exists()]
        scores = [fog_a.Scores.load(folder / f"scores-{n}.json") for n in names]
        facts = {**task.facts, "seeds": len(result["plan"]["seeds"])}
        facts |= {f"{k}, seconds": v for k, v in self.spent.items()}
        page = report(
            scores,
            tables=[_table(m, result) for m in _shown(result)],
            facts=facts,
            title="Which layers should be aligned?",
            lead=f"One model for speech and sound, on {self.data}.",
        )
        sounds = "".join(_player(p) for p in sorted((self.out / "sounds").glob("*.wav")))
        return page.replace("</main>", f"<h2>To listen to</h2>{sounds}</main>", 1)


def _shown(result: dict[str, Any]) -> list[str]:
    return [m for m in ("loss", "frechet", "wer") if m in result["summary"]["metrics"]]


def _table(metric: str, result: dict[str, Any]) -> Any:
    """An arm a row."""
    from fog_a.showing.page import Table

    rows = []
    found = result["summary"]["metrics"][metric]
    for arm, e in found["arms"].items():
        d = found["against base"].get(arm)
        span = "" if e["low"] is None else f"{e['low']:.4f} … {e['high']:.4f}"
        rows.append([arm, f"{e['mean']:.4f}", span, "" if d is None else f"{d['difference']['mean']:+.4f}"])
    return Table(f"{metric}: mean over seeds", ("arm", "mean", "95% interval", "arm − base"), rows, frozenset())


def _player(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p>{path.stem} <audio controls src="data:audio/wav;base64,{data}"></audio></p>'


def _stretched(paper: Paper, hours: float) -> Scale:
    """The scale whose arms take about so many hours: steps by the speed of a step, measured on a few."""
    s = paper.scale
    timed = Paper(paper.out / "speed", None, scale=s, arms=("base", "foga"), seeds=1, cpu=paper.cpu)
    timed.run()
    per_step = timed.spent["phases I and II"] / (s.warmup + 2 * s.steps)
    steps = int(hours * 3600 / per_step / paper.seeds / (0.2 + len(paper.arms)))
    changes = {"warmup": max(s.warmup, steps // 5), "steps": max(s.steps, steps)}
    write_json(paper.out / "hours.json", {"seconds a step": per_step, **changes})
    return Scale(**{**s.__dict__, **changes})


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="unified_audio.paper", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/paper"))
    parser.add_argument("--data", type=Path, help="a folder with manifest.csv; default: the packaged clips")
    parser.add_argument("--hours", type=float, help="about how long the arms may take together")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    parser.add_argument("--arms", default=",".join(ARMS), help="of fog_a_adapters.dit.arms.KNOWN, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vocos", type=Path, help="pytorch_model.bin of charactr/vocos-mel-24khz")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args(argv)
    options = {"arms": tuple(args.arms.split(",")), "seeds": args.seeds, "weights": args.vocos, "cpu": args.cpu}
    paper = Paper(args.out, args.data, scale=SCALES[args.scale](), **options)
    if args.hours:
        known = args.out / "hours.json"
        if known.exists():
            found = json.loads(known.read_text(encoding="utf-8"))
            paper.scale = Scale(**{**paper.scale.__dict__, "warmup": found["warmup"], "steps": found["steps"]})
        else:
            paper.scale = _stretched(paper, args.hours)
    print(paper.run())


if __name__ == "__main__":
    main()
