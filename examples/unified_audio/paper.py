"""The whole system small: tokenizers, stage 1, Phase I → branch → Phase II with every arm, evaluation, one page.

    python -m unified_audio.paper --out out/paper                                   # the packaged clips, a CPU
    python -m unified_audio.paper --data ../shared/audio --hours 2 --seeds 3        # as long as one wants

`--hours` sets the steps of stages and arms from the measured speed of a step. Everything finished is on disk; the same
command goes on after a kill. The paper's tables are in tables.md and tables.json, every contrast of the arms in
compare/compare.md, what is to be heard and seen in index.html.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fog_a
from fog_a.errors import FogError
from fog_a.files import write, write_json
from fog_a_adapters.compare.arms import KNOWN, check_arms, repa_arms
from fog_a_adapters.compare.comparison import compare
from fog_a_adapters.compare.files import read_json
from fog_a_adapters.compare.task import Plan, Task
from fog_a_adapters.dit.audio.mel import RATE
from fog_a_adapters.dit.model.flow import FlowMatching
from unified_audio.ast_tokenizer import ASTTokenizer
from unified_audio.batches import FrameBatches, LanguageBatches
from unified_audio.cache import Cache
from unified_audio.clips import DOMAINS, Clip, Corpus, Domain
from unified_audio.corpora import from_manifest
from unified_audio.evaluation import MelWindows, held_out_errors
from unified_audio.fusion import Configuration, Dual
from unified_audio.items import Reader
from unified_audio.language_model import LanguageConfig, LanguageStage
from unified_audio.other_systems import losses_of, other_systems, other_tables
from unified_audio.paper_page import paper_page, sounds
from unified_audio.paper_tables import as_json, markdown, paper_tables
from unified_audio.protocol import STATISTICS, Judges, Size, judged, protocol
from unified_audio.recognizer import WordRecognizer
from unified_audio.scales import SCALES, Scale
from unified_audio.synthesis import Made, Studio
from unified_audio.tokens import ASTCodes, KMeansCodes
from unified_audio.training import Recipe, fit
from unified_audio.vocoder import Sound
from unified_audio.weights import Weights

HEARD_WORDS = 200
"""A recognizer is trained where transcripts have at most so many different words, and there are as many clips."""
MORE = ("base-again", "foga-again", "each", "each-local")
"""Arms that are run by default besides `arms.KNOWN` and REPA's depths."""
LOOKS = 5
"""How often the held-out loss is measured on the way, and FoG-A of base again."""


class Paper:
    """One run, in a folder.

    Args:
        data: a corpus; a folder with manifest.csv; None: the packaged clips.
        configuration: "A", one stream of tokens, or "B", two, joined as `dual` says.
        others: run the tiny F5-TTS, Voicebox and CosyVoice of Tables 4 and 5 too.
    """

    def __init__(
        self, out: str | Path, data: Corpus | str | Path | None = None, *, scale: Scale | None = None,
        arms: Sequence[str] | None = None, seeds: int = 3, weights: Weights | None = None, cpu: bool = False,
        configuration: Configuration = "A", dual: Dual = "interleave", others: bool = False,
    ) -> None:  # fmt: skip
        self.out, self.scale, self.seeds, self.cpu = Path(out), scale or Scale.small(), seeds, cpu
        self.arms = arms or (*KNOWN, *repa_arms(self.scale.model.layers), *MORE)
        check_arms(self.arms)
        self.configuration, self.weights = configuration, weights or Weights()
        self.dual: Dual = dual
        self.others = others
        self.data = "the packaged clips" if data is None else "a corpus" if isinstance(data, Corpus) else str(data)
        self.corpus = (data if isinstance(data, Corpus) else from_manifest(data)).held_out()
        self.device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
        self.frames, self.vocoder = self.weights.frames(), self.weights.vocoder()
        self.plain = Reader(Cache(self.out / "cache"), device=self.device)
        self.spent: dict[str, float] = read_json(self.out / "seconds.json") or {}

    def run(self) -> Path:
        """Everything that is not yet done; the page's path."""
        reader = self._timed("tokenizers", self._tokenizers)
        language = self._timed("stage 1", lambda: self._language(reader))
        judges = self._timed("recognizer", self._judges)
        task = self._task(reader, judges)
        s = self.scale
        plan = Plan(
            arms=tuple(self.arms), seeds=tuple(range(self.seeds)), warmup=s.warmup, steps=s.steps, lr=s.rates[2],
            looks=LOOKS, draws=4, timing=0, precision=s.precision, reprobe=True,
        )  # fmt: skip
        result = self._timed("phases I and II", lambda: compare(task, plan, self.out / "compare"))
        self._timed("synthesis", lambda: self._sounds(reader, language, task))
        self._ceiling(task, judges)
        others = self._timed("other systems", self._others)
        self._written(task, result, others)
        return self.out / "index.html"

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Its result; what it took is added to what it took before a kill, and kept."""
        start = time.perf_counter()
        made = work()
        self.spent[name] = round(self.spent.get(name, 0.0) + time.perf_counter() - start, 1)
        write_json(self.out / "seconds.json", self.spent)
        return made

    def _tokenizers(self) -> Reader:
        """S3 or k-means codes for speech, a trained VQ-VAE for sound; in configuration B k-means codes beside both."""
        s, frames = self.scale, self.frames
        torch.manual_seed(0)
        tokenizer = ASTTokenizer(s.tokenizer(frames.dim))
        batches = FrameBatches(self.plain, self.corpus.of("train", "sound"), s.clips, frames)
        recipe = Recipe(s.tokenizer_steps, s.rates[0], 0.01, precision=s.precision)
        fit(tokenizer, lambda m, b: m(*b).loss, batches, recipe, self.out / "tokenizer", name="tokenizer", cpu=self.cpu)
        codes: Any = {
            "speech": self.weights.speech_codes() or self._centres("speech"),
            "sound": ASTCodes(tokenizer.cpu(), frames),
        }
        second: Any = self._centres(seed=1) if self.configuration == "B" else None
        return Reader(self.plain.cache, codes, second, self.device)

    def _centres(self, domain: Domain | None = None, seed: int = 0) -> KMeansCodes:
        clips = self.corpus.some(STATISTICS).of("train", domain)
        return KMeansCodes.fit([self.plain.frames(c, self.frames) for c in clips], self.frames, self.scale.vocab, seed)

    def _language(self, reader: Reader) -> LanguageStage:
        s, codes = self.scale, reader.codes
        torch.manual_seed(0)
        if reader.second is None:
            config = LanguageConfig({"S3": codes["speech"].vocab, "AS": codes["sound"].vocab})
        else:
            config = LanguageConfig.dual(max(c.vocab for c in codes.values()), reader.second.vocab)
        config = replace(config, style_dim=self.frames.dim)
        name = self.weights.language
        stage = LanguageStage.build(name, tiny=name is None, config=config, checkpointing=name is not None)
        batches = LanguageBatches(reader, self.corpus.of("train"), s.clips, stage, self.frames)
        recipe = Recipe(s.language_steps, s.rates[1], precision=s.precision)
        fit(stage, lambda m, b: m(b).loss, batches, recipe, self.out / "language", name="stage 1", cpu=self.cpu)
        return stage.cpu()

    def _judges(self) -> Judges:
        """Those whose weights are given; else a recognizer of the corpus's words, where these are few and repeat."""
        s, some, speech = self.scale, self.corpus.some(STATISTICS).of("train"), self.corpus.of("train", "speech")
        embedder = self.weights.embedder(self.vocoder) or MelWindows([self.plain.mel(c) for c in some])
        recognizer = self.weights.listener(self.vocoder, [c.text for c in speech])
        few = len({w for c in speech for w in c.text.split()}) <= HEARD_WORDS <= len(speech)
        if recognizer is None and few:
            path = self.out / "recognizer.safetensors"
            if not path.exists():
                WordRecognizer.fit([(self.plain.mel(c), c.text) for c in speech]).save(path)
            recognizer = WordRecognizer.load(path)
        second = self.weights.second_embedder(self.vocoder)
        return Judges(recognizer, embedder, self.vocoder, s.points, s.cfg, second)

    def _task(self, reader: Reader, judges: Judges) -> Task:
        s = self.scale
        size = Size(s.model, s.clips, s.frames, s.held_out, s.heard)
        return protocol(
            self.corpus, reader, judges, self.out / "sounds", size=size, teachers=self.weights.teachers(),
            dual=self.dual, device=self.device,
        )  # fmt: skip

    def _heard(self) -> dict[str, Clip]:
        """The clip of each domain that every arm is heard on: the first that is held out, as `protocol` has it."""
        return {d: self.corpus.some(self.scale.held_out, "test").of("test", d)[0] for d in DOMAINS}

    def _sounds(self, reader: Reader, language: LanguageStage, task: Task) -> None:
        """Recording, its mel through the vocoder, TTS and TTA through all stages, by seed 0's foga or last arm."""
        arm = "foga" if "foga" in self.arms else self.arms[-1]
        flow: Any = task.build(0).model
        assert isinstance(flow, FlowMatching)
        flow.load_state_dict(load_file(self.out / "sounds" / f"{arm}.safetensors"))
        sampler = {"steps": 2 * self.scale.points, "cfg": 2.0}
        studio = Studio(language, flow.eval(), reader, self.frames, self.vocoder, self.corpus, sampler=sampler)
        for domain, clip in self._heard().items():
            Sound(self.plain.audio(clip), RATE, "recording").save(self.out / "sounds" / f"real-{domain}.wav")
            self.vocoder(self.plain.mel(clip)).save(self.out / "sounds" / f"ceiling-{domain}.wav")
            self._asked(studio, clip).save(str(self.out / "sounds" / f"all-stages-{domain}.wav"))

    def _asked(self, studio: Studio, clip: Clip) -> Made:
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
            found["recognizer on all test clips"] = asdict(held_out_errors(judges.recognizer, test))
        write_json(self.out / "real.json", found)

    def _others(self) -> tuple[dict[str, Any], dict[str, str]] | None:
        """The losses of Tables 4 and 5, and why a system was not run."""
        if not self.others:
            return None
        return other_systems(self.out / "others", self.seeds)

    def _written(
        self, task: Task, result: dict[str, Any], others: tuple[dict[str, Any], dict[str, str]] | None
    ) -> None:
        """The paper's tables, and the page: tables, sounds, and seed 0's scores with the SCD figure."""
        folder = self.out / "compare"
        tables = paper_tables(result, folder)
        if others is not None:
            losses = {"this DiT": losses_of(result), **others[0]}
            tables = sorted([*tables, *other_tables(losses, others[1])], key=lambda t: t.number)
        write(self.out / "tables.md", markdown(tables).encode())
        write_json(self.out / "tables.json", as_json(tables))
        paths = [folder / "seed0" / f"scores-{n}.json" for n in ("foga", "lasp")]
        facts = {**task.facts, "seeds": self.seeds, "steps": f"{self.scale.warmup} + {self.scale.steps}"}
        facts |= {f"{k}, seconds": v for k, v in self.spent.items()}
        players = sounds(self.out / "sounds", self.arms, self._heard(), self.vocoder.name)
        scores = [fog_a.Scores.load(p) for p in paths if p.exists()]
        write(self.out / "index.html", paper_page(self.data, result, tables, scores, players, facts).encode())


def _stretched(paper: Paper, hours: float) -> Scale:
    """The scale whose arms take about so many hours: steps by the speed of a step, measured on a few."""
    s = paper.scale
    timed = Paper(paper.out / "speed", None, scale=s, arms=("base", "foga"), seeds=1, cpu=paper.cpu)
    timed.run()
    per_step = timed.spent["phases I and II"] / (s.warmup + 2 * s.steps)
    steps = int(hours * 3600 / per_step / paper.seeds / (0.2 + len(paper.arms)))
    changes = {"warmup": max(s.warmup, steps // 5), "steps": max(s.steps, steps)}
    write_json(paper.out / "hours.json", {"seconds a step": per_step, **changes})
    return replace(s, **changes)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="unified_audio.paper", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/paper"))
    parser.add_argument("--data", type=Path, help="a folder with manifest.csv; default: the packaged clips")
    parser.add_argument("--hours", type=float, help="about how long the arms may take together")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    parser.add_argument("--warmup", type=int, help="steps of phase I; default: the scale's")
    parser.add_argument("--steps", type=int, help="steps of each arm in phase II; default: the scale's")
    parser.add_argument("--arms", help=f"some of these, with commas: {', '.join(KNOWN)}, repa-2, … (default: all)")
    parser.add_argument("--alone", action="store_true", help="leave Tables 4 and 5 out: F5-TTS, Voicebox, CosyVoice")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--configuration", choices=("A", "B"), default="A", help="one stream of tokens, or two")
    parser.add_argument("--dual", choices=("interleave", "fuse"), default="interleave", help="how B joins its streams")
    parser.add_argument("--cpu", action="store_true")
    for name, what in _parts().items():
        default = os.environ.get("FOG_A_WHISPER") or None if name == "whisper" else None
        parser.add_argument(f"--{name}", type=Path, default=default, help=what)
    args = parser.parse_args(argv)
    numbers = {n: v for n in ("seeds", "hours", "warmup", "steps") if (v := getattr(args, n)) is not None}
    if min(numbers.values()) <= 0:
        parser.error(f"expected numbers above 0, got {', '.join(f'--{n} {v}' for n, v in numbers.items())}")
    try:
        print(_asked(args).run())
    except FogError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def _asked(args: argparse.Namespace) -> Paper:
    """The run that the command line asks for."""
    changes = {n: v for n in ("warmup", "steps") if (v := getattr(args, n)) is not None}
    scale = replace(SCALES[args.scale](), **changes)
    paper = Paper(
        args.out, args.data, scale=scale, arms=tuple(args.arms.split(",")) if args.arms else None, seeds=args.seeds,
        weights=Weights(**{name: getattr(args, name) for name in _parts()}), cpu=args.cpu,
        configuration=args.configuration, dual=args.dual, others=not args.alone,
    )  # fmt: skip
    if args.hours:
        known = args.out / "hours.json"
        if known.exists():
            found = json.loads(known.read_text(encoding="utf-8"))
            paper.scale = replace(paper.scale, warmup=found["warmup"], steps=found["steps"])
        else:
            paper.scale = _stretched(paper, args.hours)
    return paper


def _parts() -> dict[str, str]:
    """Pretrained part → what its docstring says to give."""
    lines = str(Weights.__doc__).split("Attributes:")[1].strip().splitlines()
    return {name.strip(): what.strip().replace("%", "%%") for name, what in (line.split(":", 1) for line in lines)}


if __name__ == "__main__":
    main()
