"""What a comparison measures of a trained model: the held-out flow loss, and how far its samples are from real clips.

    d² = ‖μ_r − μ_g‖² + tr(Σ_r + Σ_g − 2 (Σ_r Σ_g)^{1/2})                                  (Fréchet)

between embeddings of real and generated audio. The embedding here needs no weights from elsewhere: means and standard
deviations of the mel bins over windows of a third of a second, on their first principal components over real training
clips. It is no FAD as published (VGGish); it orders models that were measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.blocks.untouched import preserved, rng
from fog_a.flows.flow import Flow
from fog_a_adapters.dit.data import Corpus
from fog_a_adapters.dit.flow import FlowMatching, MelBatch

WINDOW, HOP = 32, 16


def flow_losses(flow: Flow, batches: Sequence[Any], draws: int = 8, seed: int = 0) -> dict[str, float]:
    """Held-out loss per domain: the model's own, in eval mode, on the same noise and times whoever asks.

    `draws` times per batch, each domain's samples apart. Leaves model and random states as they were.
    """
    module = flow.model if isinstance(flow.model, nn.Module) else flow.module
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    with preserved(module), torch.no_grad():
        for number, batch in enumerate(batches):
            samples = flow.samples(batch)
            for domain in dict.fromkeys(samples.domains):
                index = [i for i, d in enumerate(samples.domains) if d == domain]
                part = samples.rows(index)
                for draw in range(draws):
                    with rng(seed + 1009 * number + draw):
                        loss = float(flow.loss(part))
                    sums[domain] = sums.get(domain, 0.0) + loss * len(index)
                    counts[domain] = counts.get(domain, 0) + len(index)
    return {domain: sums[domain] / counts[domain] for domain in sums}


def frechet(real: Float[Tensor, "n D"], made: Float[Tensor, "m D"]) -> float:
    """The Fréchet distance d² between two sets of embeddings.

    >>> x = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> round(frechet(x, x + torch.tensor([3.0, 0.0, 0.0])), 6)
    9.0
    """
    a, b = real.double().numpy(), made.double().numpy()
    shift = a.mean(0) - b.mean(0)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(ca)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T  # Σ_r^{1/2}; tr (Σ_r Σ_g)^{1/2} = tr (root Σ_g root)^{1/2}
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(min=0)).sum()
    return max(0.0, float(shift @ shift + np.trace(ca) + np.trace(cb) - 2 * cross))  # rounding may take it below


def windows(mel: Float[Tensor, "T M"]) -> Float[Tensor, "n E"]:
    """Mean and standard deviation of each bin over windows; none for a clip shorter than one."""
    if len(mel) < WINDOW:
        return mel.new_zeros(0, 2 * mel.shape[1])
    parts = mel.unfold(0, WINDOW, HOP)  # n M W
    return torch.cat([parts.mean(-1), parts.std(-1)], dim=-1)


@dataclass(frozen=True)
class MelEmbedding:
    """Principal components of real windows."""

    mean: Float[Tensor, "E"]
    components: Float[Tensor, "E D"]

    @classmethod
    def fit(cls, mels: Sequence[Float[Tensor, "T M"]], dim: int = 16) -> MelEmbedding:
        """From training clips; the same for every model that is compared."""
        x = torch.cat([windows(m) for m in mels])
        mean = x.mean(0)
        _, _, basis = torch.linalg.svd(x - mean, full_matrices=False)
        return cls(mean, basis[:dim].T)

    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> Float[Tensor, "n D"]:
        """All windows of some clips."""
        return (torch.cat([windows(m) for m in mels]) - self.mean) @ self.components


@dataclass(frozen=True)
class SampleDistance:
    """The Fréchet distance of samples from held-out clips, per domain: the `distance` of a task on the bundled model.

    The model is given each clip's tokens and reference mel; the reference's frames do not count on either side.
    """

    corpus: Corpus
    batches: Sequence[MelBatch]
    steps: int = 16
    cfg: float = 1.0
    seed: int = 0

    def __call__(self, flow: Flow) -> dict[str, float]:
        model = flow.model
        assert isinstance(model, FlowMatching)
        embed = MelEmbedding.fit([i.mel for i in self.corpus.train])
        real: dict[str, list[Tensor]] = {}
        made: dict[str, list[Tensor]] = {}
        with preserved(model):
            for batch in self.batches:
                x = model.sample(batch, steps=self.steps, cfg=self.cfg, seed=self.seed).cpu()
                _, prefix = model.draws(batch, self.seed)
                for i, (p, n) in enumerate(zip(prefix.tolist(), batch["lengths"].tolist(), strict=True)):
                    domain = model.config.domains[int(batch["domain"][i])]
                    real.setdefault(domain, []).append(batch["mel"][i, p:n].cpu())
                    made.setdefault(domain, []).append(x[i, p:n])
        return {domain: frechet(embed(real[domain]), embed(made[domain])) for domain in real}
