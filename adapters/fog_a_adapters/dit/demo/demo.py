"""The demo: from a folder of audio to a picture of which layers drive a model's output.

Clips → log-mel → frame tokens → a small DiT, trained for some hundred steps → FoG-A on held-out clips over a grid of
flow times, per domain; beside it LASP, with a teacher that needs no weights, the clip's log-mel statistics, or for
speech the Whisper in the folder that FOG_A_WHISPER names; and, in small, the ranking at each quarter of the training,
and a training with and without AG-REPA. Writes foga.json, foga.csv,
foga.png, lasp.json, scd.png and index.html, and the model as model.safetensors. Everything is a function of the data
and the seed.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tqdm import tqdm

from fog_a.attributing.attribute import attribute
from fog_a.errors import Unsupported
from fog_a.flows.wrapping import wrap
from fog_a.probing.lasp import lasp
from fog_a.scores.plots import plot_scd
from fog_a.scores.scores import Scores
from fog_a_adapters.dit.audio.data import Corpus, collate, load_corpus
from fog_a_adapters.dit.demo.bundled_task import teachers_for
from fog_a_adapters.dit.demo.page import Demo, facts_of, page_of
from fog_a_adapters.dit.demo.runs import Checkpoints, with_and_without
from fog_a_adapters.dit.demo.train import Recipe, held_out_losses, mean_frame_loss, new_model, train
from fog_a_adapters.dit.model.dit import DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching, MelBatch

TIMES = tuple((j + 0.5) / 8 for j in range(8))
HELD_OUT = 16
"""Held-out clips per domain."""
FIT, FIT_SIZE, FIT_FRAMES = 32, 16, 256
"""LASP's head is fitted on at most so many training clips per domain, so many at a time, cut to so many frames."""


class _Clock:
    """Seconds spent on each part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.spent[name] = now - self._last
        self._last = now


def run(
    data: str | Path | None = None,
    out: str | Path = "out/demo",
    steps: int = 350,
    seed: int = 0,
    layers: int = 12,
    dim: int = 64,
) -> Demo:
    """Train a small DiT on a folder of audio and attribute its layers; about three minutes on two cores.

    Args:
        data: a folder with manifest.csv; None: the packaged clips.
        out: the folder for everything that is written.
        steps: training steps.
        layers, dim: depth and width of the model (4 heads).

    Raises:
        BadManifest: data that cannot be used, with what to mend. NoWeights: FOG_A_WHISPER names no Whisper.
        Unsupported: sizes that make no model.
        MissingDependency: torchaudio, soundfile, scikit-learn or matplotlib is absent or does not load.
    """
    if steps < 1:
        raise Unsupported(f"the demo trains for at least one step, got steps={steps}")
    sizes = DiTConfig.tiny(layers=layers, dim=dim)
    out, clock = Path(out), _Clock()
    corpus = load_corpus(data, seed=seed, held_out=HELD_OUT, audio=True)
    batches = corpus.held_out()
    hears = "speech" in corpus.domains and os.environ.get("FOG_A_WHISPER")
    teachers = teachers_for("whisper" if hears else None, corpus)
    _say_data(corpus, data)
    clock.lap("data")
    model = new_model(lambda: FlowMatching(replace(sizes, domains=corpus.domains)), seed)
    model.start_at(corpus.mean_frame())
    before = held_out_losses(model, batches, TIMES, seed)
    checkpoints = Checkpoints(model, corpus, steps, seed)
    with tqdm(total=steps, desc="training", unit="step") as bar:

        def after_each(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            checkpoints.look(step + 1)

        losses = train(model, corpus, Recipe(steps=steps, seed=seed), report=after_each)
    after = held_out_losses(model, batches, TIMES, seed)
    floor = mean_frame_loss(corpus, batches, model.sigma)
    clock.lap("training")
    scores = attribute(wrap(model), batches, times=TIMES, seed=seed)
    clock.lap("FoG-A")
    storage = _storage(model, corpus, batches, seed, teachers)
    clock.lap("LASP")
    runs = with_and_without(corpus, replace(sizes, domains=corpus.domains), steps, seed, teachers)
    clock.lap("AG-REPA")
    out.mkdir(parents=True, exist_ok=True)
    demo = Demo(scores, storage, checkpoints.history, runs, losses, before, after, floor, clock.spent, {})
    _write(demo, model, corpus, batches, out, facts_of(corpus, data, seed, model, teachers))
    clock.lap("pictures")
    _say(demo)
    return demo


def _storage(
    model: FlowMatching, corpus: Corpus, batches: Sequence[MelBatch], seed: int, teachers: Mapping[str, Any]
) -> Scores:
    """LASP of the held-out clips; its head is fitted on training clips. What one should doubt is on the page."""
    fit: list[MelBatch] = []
    for d in range(len(corpus.domains)):
        items = [i.crop(0, FIT_FRAMES) for i in corpus.train if i.domain == d][:FIT]
        fit += [collate(items[i : i + FIT_SIZE]) for i in range(0, len(items), FIT_SIZE)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return lasp(wrap(model), list(batches), teachers, fit=fit, times=TIMES, seed=seed, center=True)


def load_model(folder: str | Path = "out/demo") -> FlowMatching:
    """The model that a demo trained: `--model fog_a_adapters.dit.demo:load_model`."""
    folder = Path(folder)
    model = FlowMatching(DiTConfig.from_dict(json.loads((folder / "model.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def load_batch(data: str | Path | None = None) -> MelBatch:
    """Held-out clips for that model, of the packaged data: `--batch fog_a_adapters.dit.demo:load_batch`."""
    return load_corpus(data, held_out=HELD_OUT).held_out(size=2 * HELD_OUT)[0]


def _say_data(corpus: Corpus, data: str | Path | None) -> None:
    where = "the packaged clips" if data is None else str(data)
    print(f"{where}: {len(corpus.train)} clips to train on, {len(corpus.test)} held out ({', '.join(corpus.domains)})")
    for note in corpus.notes:
        print(f"  {note}")


def _say(demo: Demo) -> None:
    print(f"\n{demo.scores.table(demo.marked)}\n")
    print(
        f"held-out flow loss {demo.before.mean():.3f} → {demo.after.mean():.3f}: down by {demo.fall:.0%} "
        f"(a guess that knows only the mean frame: {demo.floor:.3f})"
    )
    print(", ".join(f"{name} {spent:.0f} s" for name, spent in demo.seconds.items()))
    for path in demo.files.values():
        print(f"  {path}")


def _write(
    demo: Demo, model: FlowMatching, corpus: Corpus, batches: Sequence[MelBatch], out: Path, facts: dict[str, Any]
) -> None:
    """All files of the demo."""
    demo.scores.save(out / "foga.json")
    demo.scores.to_csv(out / "foga.csv")
    demo.scores.plot(k=demo.marked).savefig(out / "foga.png")
    demo.storage.save(out / "lasp.json")
    plot_scd(demo.storage, demo.scores).savefig(out / "scd.png")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "model.safetensors")
    (out / "model.json").write_text(json.dumps(model.config.to_dict(), indent=1), encoding="utf-8")
    (out / "index.html").write_text(page_of(demo, model, corpus, batches, facts), encoding="utf-8")
    names = ("index.html", "foga.png", "foga.json", "foga.csv", "scd.png", "lasp.json", "model.safetensors")
    demo.files.update({name: out / name for name in names})
