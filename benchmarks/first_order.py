"""How closely `how=FirstOrder()` follows exact FoG-A, and what it costs, on trained tiny DiTs.

It is in the package because its ranking agrees with the exact one (Spearman ≥ 0.9) on every trained model seen.

    python benchmarks/first_order.py --seeds 4 --steps 350
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import fog_a
from fog_a_adapters.dit.audio.data import Corpus, load_corpus
from fog_a_adapters.dit.demo.train import Recipe, new_model, train
from fog_a_adapters.dit.model.dit import DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching

TIMES = tuple((j + 0.5) / 8 for j in range(8))
PROJECTIONS = (4, 8, 16)
GOOD = 0.9


def trained(corpus: Corpus, seed: int, steps: int, layers: int) -> FlowMatching:
    """The demo's model after the demo's training."""
    config = replace(DiTConfig.tiny(layers=layers, dim=64), domains=corpus.domains)
    model = new_model(lambda: FlowMatching(config), seed)
    model.start_at(corpus.mean_frame())
    train(model, corpus, Recipe(steps=steps, seed=seed))
    return model


def compared(corpus: Corpus, seed: int, a: argparse.Namespace) -> dict[str, Any]:
    """Both rankings of one trained model, on held-out clips."""
    flow = fog_a.wrap(trained(corpus, seed, a.steps, a.layers))
    batch = corpus.held_out(size=a.samples)[0]
    blocks = fog_a.find_blocks(flow, batch).main
    exact, seconds = timed(flow, batch, blocks, seed)
    report: dict[str, Any] = {"exact, s": seconds, "exact": exact.tolist()}
    for r in PROJECTIONS:
        estimate, seconds = timed(flow, batch, blocks, seed, how=fog_a.FirstOrder(r))
        report |= {f"r = {r}, s": seconds, f"estimate, r = {r}": estimate.tolist()}
        report[f"Spearman, r = {r}"] = float(spearmanr(exact, estimate)[0])
        report[f"the same top 3, r = {r}"] = len(set(np.argsort(exact)[-3:]) & set(np.argsort(estimate)[-3:])) / 3
        report[f"estimate / exact, r = {r}"] = float((estimate / exact).mean())
    return report


def timed(flow: fog_a.Flow, batch: Any, blocks: fog_a.Blocks, seed: int, **options: Any) -> tuple[np.ndarray, float]:
    """Mean scores, and the CPU seconds they took."""
    start = time.process_time()
    scores = fog_a.attribute(flow, batch, blocks=blocks, times=TIMES, seed=seed, progress=False, **options)
    return scores.mean(), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="First-order estimates against exact scores on trained models.")
    for name, default in (("seeds", 4), ("steps", 350), ("layers", 12), ("samples", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    a = parser.parse_args()
    torch.set_num_threads(1)
    reports = []
    for seed in range(a.seeds):
        reports.append(compared(load_corpus(seed=seed, held_out=16), seed, a))
        told = {k: f"{v:.3f}" for k, v in reports[-1].items() if isinstance(v, float)}
        print(f"seed {seed}:", ", ".join(f"{k} {v}" for k, v in told.items()), flush=True)
        for name in ("exact", f"estimate, r = {max(PROJECTIONS)}"):
            print(f"  {name:20s}", " ".join(f"{x:6.3f}" for x in reports[-1][name]))
    for r in PROJECTIONS:
        worst = min(report[f"Spearman, r = {r}"] for report in reports)
        print(f"r = {r}: worst Spearman {worst:.3f}, {'good enough' if worst >= GOOD else f'below {GOOD}'}")
    if a.json:
        a.json.write_text(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
