"""Training of the bundled model, and its held-out flow loss.

AdamW, one cycle of learning rate (10 % warm-up, ÷10 at the start, ÷1000 at the end), gradients clipped to norm 1.
Everything random in a step is drawn from (seed, step): two runs see the same clips, crops, noise and times, whatever
else they compute, and a run that goes on from a checkpoint equals one that never stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a_adapters.dit.audio.data import Corpus
from fog_a_adapters.dit.model.flow import FlowMatching, MelBatch


@dataclass(frozen=True)
class Recipe:
    """How to train: number of steps, clips a batch, frames a crop, peak learning rate, weight decay, seed."""

    steps: int = 400
    size: int = 16
    frames: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 0


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """The torch RNG set by the key inside, as it was outside."""
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32("/".join(map(str, key)).encode()))
        yield


def new_model(build: Callable[[], FlowMatching], seed: int) -> FlowMatching:
    """A model whose initial weights are a function of the seed."""
    with seeded(seed, "init"):
        return build()


def optimizer(
    parameters: Sequence[nn.Parameter], recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its schedule."""
    opt = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        opt, recipe.lr, total_steps=recipe.steps + 1, pct_start=0.1, div_factor=10, final_div_factor=100
    )
    return opt, cycle


def train(
    model: FlowMatching, corpus: Corpus, recipe: Recipe, *, report: Callable[[int, float], None] | None = None
) -> list[float]:
    """Train in place; returns the training loss of each step. `report(step, loss)` is called after each."""
    opt, cycle = optimizer(list(model.parameters()), recipe)
    model.train()
    losses = []
    for step in range(recipe.steps):
        batch = corpus.batch(step, recipe.size, recipe.frames, recipe.seed)
        with seeded(recipe.seed, step):
            loss = model(batch)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        cycle.step()
        losses.append(loss.item())
        if report is not None:
            report(step, losses[-1])
    model.eval()
    return losses


@torch.no_grad()
def held_out_losses(
    model: FlowMatching, batches: Sequence[MelBatch], times: Sequence[float], seed: int = 0
) -> Float[Tensor, "S J"]:
    """L_FM of each held-out clip at each time, on the same (x₀, t) whoever asks: eval mode, nothing dropped."""
    training = model.training
    model.eval()
    try:
        columns = []
        for j, t in enumerate(times):
            losses = []
            for batch in batches:
                x0, prefix = model.draws(batch, seed + j)
                at = torch.full((len(prefix),), t, device=x0.device)
                losses.append(model.losses(batch, x0=x0, t=at, prefix=prefix))
            columns.append(torch.cat(losses))
    finally:
        model.train(training)
    return torch.stack(columns, dim=1).cpu()


def mean_frame_loss(corpus: Corpus, batches: Sequence[MelBatch], sigma: float) -> float:
    """Held-out loss of the best guess that looks at nothing: v = the mean frame of the training clips.

    E‖v − (x₁ − x₀)‖² = E‖x₁ − v‖² + σ², since x₀ is independent noise.
    """
    guess = corpus.mean_frame()
    errors = []
    for batch in batches:
        for x1, n in zip(batch["mel"], batch["lengths"].tolist(), strict=True):
            errors.append((x1[:n] - guess).square().mean())
    return float(torch.stack(errors).mean()) + sigma**2
