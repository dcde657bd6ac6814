"""What a comparison measures of any trained flow: its held-out loss, and the Fréchet distance between embeddings.

d² = ‖μ_r − μ_g‖² + tr(Σ_r + Σ_g − 2 (Σ_r Σ_g)^{1/2})          r: real, g: generated
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.blocks.untouched import preserved, rng
from fog_a.flows.flow import Flow


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
