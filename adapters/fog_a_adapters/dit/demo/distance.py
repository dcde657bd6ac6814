"""How far the bundled model's samples are from real clips: the Fréchet distance between embeddings of their log-mel.

The embedding needs no weights from elsewhere: means and standard deviations of the mel bins over windows of a third of
a second, on their first principal components over real training clips. It is no FAD as published (VGGish); it orders
models that were measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.blocks.untouched import preserved
from fog_a.flows.flow import Flow
from fog_a_adapters.compare.measures import frechet
from fog_a_adapters.dit.audio.data import Corpus
from fog_a_adapters.dit.model.flow import FlowMatching, MelBatch

WINDOW, HOP = 32, 16
"""Frames of a window, and from one window to the next."""


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
