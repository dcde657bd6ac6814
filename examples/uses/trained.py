"""What the uses on the bundled model share: a small DiT trained on the packaged clips, and options of the command."""

from __future__ import annotations

import argparse
from pathlib import Path

from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import Corpus, load_corpus
from fog_a_adapters.dit.demo.train import Recipe, new_model, train


def trained(seed: int, layers: int, steps: int, held_out: int) -> tuple[FlowMatching, Corpus]:
    """A model of this seed, and its clips."""
    corpus = load_corpus(held_out=held_out, seed=seed)
    model = new_model(lambda: FlowMatching(DiTConfig.tiny(layers=layers)), seed)
    model.start_at(corpus.mean_frame())
    train(model, corpus, Recipe(steps=steps, seed=seed))
    return model, corpus


def options(doc: str | None) -> argparse.ArgumentParser:
    """Seeds, the model's size and training, and where results go."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--held-out", type=int, default=16, help="clips a domain")
    parser.add_argument("--numbers", type=Path, help="draw these, written by an earlier run")
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser
