"""Frame tokens: k-means codes of log-mel frames, a code book per domain, fitted on training clips only.

They stand in for the paper's speech tokens (50 Hz) and audio tokens (49.6 Hz): two mel frames, averaged, make one
token (46.9 Hz), the nearest of the domain's K centres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fog_a_adapters.dit.audio.mel import optional

STRIDE = 2
"""Mel frames per token."""


def pairs(mel: Float[Tensor, "T M"]) -> Float[Tensor, "N M"]:
    """Means of consecutive pairs of frames; an odd last frame stands alone. N = ⌈T/2⌉."""
    even = mel[: len(mel) // STRIDE * STRIDE].unflatten(0, (-1, STRIDE)).mean(1)
    return torch.cat([even, mel[len(even) * STRIDE :]])


class FrameTokens:
    """Code books: `centres[d]` (K, M) of domain number d."""

    def __init__(self, centres: Sequence[Float[Tensor, "K M"]]) -> None:
        self.centres = list(centres)

    @classmethod
    def fit(cls, mels: Mapping[str, Sequence[Float[Tensor, "T M"]]], vocab: int, seed: int = 0) -> FrameTokens:
        """scikit-learn's MiniBatchKMeans on each domain's frames; a domain of fewer frames gets fewer codes."""
        cluster = optional("sklearn.cluster")
        centres = []
        for clips in mels.values():
            x = torch.cat([pairs(m) for m in clips]).numpy()
            kmeans = cluster.MiniBatchKMeans(min(vocab, len(x)), random_state=seed, n_init=1, batch_size=1024)
            centres.append(torch.from_numpy(kmeans.fit(x).cluster_centers_).float())
        return cls(centres)

    def __call__(self, mel: Float[Tensor, "T M"], domain: int) -> Int[Tensor, "N"]:
        """The codes of a clip."""
        return torch.cdist(pairs(mel), self.centres[domain]).argmin(1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` reads them back."""
        return {f"centres.{i}": c for i, c in enumerate(self.centres)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FrameTokens:
        """The inverse of `state`."""
        return cls([state[f"centres.{i}"] for i in range(len(state))])
