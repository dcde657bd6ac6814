"""Would a first-order estimate do? Random projections against exact FoG-A on trained tiny DiTs.

    v^{\\k} − v ≈ −J_k f_k,   J_k = ∂v/∂h_k,   f_k = h_k − h_{k−1}
    ‖J_k f_k‖² = E_u ⟨u, J_k f_k⟩² = E_u ⟨∂⟨u, v⟩/∂h_k, f_k⟩²,   u ~ N(0, I)

One backward per u gives all blocks at once. It is kept out of the package unless its ranking agrees with the exact one
(Spearman ≥ 0.9) on every trained model.

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
from torch import Tensor

import fog_a
from fog_a.hooks import hooked, preserved, tap
from fog_a_adapters.dit.data import Corpus, load_corpus
from fog_a_adapters.dit.flow import FlowMatching
from fog_a_adapters.dit.model import DiTConfig
from fog_a_adapters.dit.train import Recipe, new_model, train

TIMES = tuple((j + 0.5) / 8 for j in range(8))
PROJECTIONS = (4, 16, 64)
GOOD = 0.9


def trained(corpus: Corpus, seed: int, steps: int, layers: int) -> FlowMatching:
    """The demo's model after the demo's training."""
    config = replace(DiTConfig.tiny(layers=layers, dim=64), domains=corpus.domains)
    model = new_model(lambda: FlowMatching(config), seed)
    model.start_at(corpus.mean_frame())
    train(model, corpus, Recipe(steps=steps, seed=seed))
    return model


def projected(flow: fog_a.Flow, blocks: fog_a.concepts.Blocks, batch: Any, t: float, seed: int, r: int) -> np.ndarray:
    """⟨u, J_k f_k⟩² / ‖v‖², projections × samples × blocks."""
    first: list[Tensor] = []
    start = flow.module.get_submodule(blocks[0].name)
    with preserved(flow.module, grad=True), tap(blocks) as h, hooked(start, before=lambda a, k: first.append(a[0])):
        v = flow.velocity(batch, t, seed)
        outs = [h[b.name] for b in blocks]
        inputs = [first[0], *outs[:-1]]
        updates = [(y - x).detach() for x, y in zip(inputs, outs, strict=True)]
        mask = flow.samples(batch).mask
        keep = (
            torch.ones_like(v) if mask is None else mask.reshape(*mask.shape, *[1] * (v.ndim - mask.ndim)).expand_as(v)
        )
        norm = (v * keep).flatten(1).norm(dim=1).square().detach()
        generator, found = torch.Generator().manual_seed(seed), []
        for _ in range(r):
            u = torch.randn(v.shape, generator=generator) * keep
            grads = torch.autograd.grad((u * v).sum(), outs, retain_graph=True)
            dots = [(g * f).flatten(1).sum(1).square() / norm for g, f in zip(grads, updates, strict=True)]
            found.append(torch.stack(dots, dim=1).detach().numpy())
    return np.stack(found)


def compared(corpus: Corpus, seed: int, a: argparse.Namespace) -> dict[str, Any]:
    """Both rankings of one trained model, on held-out clips."""
    flow = fog_a.wrap(trained(corpus, seed, a.steps, a.layers))
    batch = corpus.held_out(size=a.samples)[0]
    blocks = fog_a.find_blocks(flow, batch).main
    begin = time.process_time()
    exact = fog_a.attribute(flow, batch, blocks=blocks, times=TIMES, seed=seed, progress=False).values
    middle = time.process_time()
    squares = np.stack([projected(flow, blocks, batch, t, seed + j, max(PROJECTIONS)) for j, t in enumerate(TIMES)])
    end = time.process_time()
    report: dict[str, Any] = {"exact, s": middle - begin, f"{max(PROJECTIONS)} projections, s": end - middle}
    report["exact"] = exact.mean((0, 1)).tolist()
    for r in PROJECTIONS:
        estimate = np.sqrt(squares[:, :r].mean(1)).mean((0, 1))  # T r S L → L
        report[f"Spearman, r = {r}"] = float(spearmanr(report["exact"], estimate)[0])
        report[f"estimate, r = {r}"] = estimate.tolist()
    # the two halves of the projections are two estimates of the same: what is left is not their noise
    halves = [np.sqrt(part.mean(1)).mean((0, 1)) for part in np.split(squares, 2, axis=1)]
    report["Spearman, half against half"] = float(spearmanr(*halves)[0])
    report["the same top 3"] = len(set(np.argsort(report["exact"])[-3:]) & set(np.argsort(estimate)[-3:])) / 3
    return report


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
    worst = min(report[f"Spearman, r = {max(PROJECTIONS)}"] for report in reports)
    print(f"worst Spearman {worst:.3f}: {'good enough' if worst >= GOOD else f'below {GOOD}, left out'}")
    if a.json:
        a.json.write_text(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
