"""Vector quantization with a codebook that follows its data by moving averages, the same on every rank.

    n_k ← γ n_k + (1 − γ) Σ_r |{z = nearest to e_k}|        m_k ← γ m_k + (1 − γ) Σ_r Σ z        e_k = m_k / ñ_k

with ñ the counts smoothed by ε (Laplace), γ = 0.8, sums over all ranks r. The first training batch starts the codes by
k-means (Lloyd's steps on the vectors of all ranks). A code whose n_k falls under `dead` times the mean is put on a
random vector of the batch: it lives again. The codebook is buffers, no parameter: it has no gradient, and a checkpoint
holds all of its state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a.ranks import total, world


class Quantized(NamedTuple):
    """z_q with the straight-through gradient, its codes, ‖sg[z_q] − z_e‖² (mean over real vectors), and perplexity.

    The perplexity exp(−Σ p_k ln p_k) of the batch on all ranks is between 1 (one code) and the number of codes.
    """

    z: Float[Tensor, "B T D"]
    codes: Int[Tensor, "B T"]
    loss: Float[Tensor, ""]
    perplexity: Float[Tensor, ""]


class CodeBook(nn.Module):
    """K codes of width D.

    Args:
        size, dim: K and D.
        decay: γ.
        eps: ε of the Laplace smoothing.
        dead: a code lives again when its average count is below this share of the mean count; 0: never.
        lloyd: k-means steps of the start.

    Raises:
        BadArgument: fewer than two codes, or a decay outside [0, 1).
        ShapeMismatch: vectors of another width.
    """

    started: Tensor
    counts: Tensor
    sums: Tensor
    codes: Tensor

    def __init__(
        self, size: int, dim: int, *, decay: float = 0.8, eps: float = 1e-5, dead: float = 0.01, lloyd: int = 10
    ) -> None:
        super().__init__()
        if size < 2 or not 0 <= decay < 1:
            raise BadArgument(f"a codebook needs at least 2 codes and a decay in [0, 1), got {size} and {decay}")
        self.size, self.dim, self.decay, self.eps, self.dead, self.lloyd = size, dim, decay, eps, dead, lloyd
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", torch.randn(size, dim))
        self.register_buffer("codes", self.sums.clone())

    def forward(self, z: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Quantized:
        """Nearest codes of the vectors; in training mode the codebook then follows those that the mask calls real."""
        if z.shape[-1] != self.dim:
            raise ShapeMismatch(f"this codebook holds vectors of width {self.dim}, got {tuple(z.shape)}")
        real = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device) if mask is None else mask
        vectors = z.detach()[real].float()
        if self.training and not bool(self.started):
            self._start(vectors)
        codes = self.nearest(z)
        e = self.codes[codes].to(z.dtype)
        loss = (e - z)[real].float().square().mean() if bool(real.any()) else z.sum() * 0
        used = total(F.one_hot(codes[real], self.size).sum(0).float())
        p = used / used.sum().clamp(min=1)
        if self.training:
            self._follow(vectors, codes[real], used)
        straight = z + (e - z).detach()
        return Quantized(straight, codes, loss, torch.exp(-(p * p.clamp(min=1e-12).log()).sum()))

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "*B D"]) -> Int[Tensor, "*B"]:
        """The nearest code of each vector, the lower one at a tie."""
        flat = z.detach().reshape(-1, self.dim).float()
        found = [torch.cdist(part, self.codes).argmin(1) for part in flat.split(16_384)]
        return torch.cat([*found, flat.new_zeros(0, dtype=torch.long)]).view(z.shape[:-1])

    @torch.no_grad()
    def _start(self, vectors: Float[Tensor, "n D"]) -> None:
        """k-means: every rank takes part with its own vectors, and all come to the same centres."""
        self.codes.copy_(self._draw(vectors, self.size))
        for _ in range(self.lloyd):
            n, m = self._gathered(vectors, self.nearest(vectors))
            self.codes.copy_(torch.where(n[:, None] > 0, m / n.clamp(min=1)[:, None], self.codes))
        n, _ = self._gathered(vectors, self.nearest(vectors))
        self.counts.copy_(n.clamp(min=1))
        self.sums.copy_(self.codes * self.counts[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, vectors: Float[Tensor, "n D"], codes: Int[Tensor, "n"], used: Float[Tensor, "K"]) -> None:
        """One step of the moving averages, and the revival of dead codes."""
        _, m = self._gathered(vectors, codes)
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(m, 1 - self.decay)
        everything = self.counts.sum()
        smooth = (self.counts + self.eps) / (everything + self.size * self.eps) * everything
        self.codes.copy_(self.sums / smooth[:, None])
        gone = self.counts < self.dead * everything / self.size
        if bool(gone.any()):  # the same on every rank, since the counts are
            self.codes[gone] = self._draw(vectors, int(gone.sum()))
            self.counts[gone] = everything / self.size
            self.sums[gone] = self.codes[gone] * self.counts[gone, None]

    def _gathered(self, vectors: Float[Tensor, "n D"], codes: Int[Tensor, "n"]) -> tuple[Tensor, Tensor]:
        """How many vectors each code has on all ranks, and their sums."""
        joint = vectors.new_zeros(self.size, self.dim + 1)
        joint.index_add_(0, codes, torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1))
        joint = total(joint)
        return joint[:, -1], joint[:, :-1]

    def _draw(self, vectors: Float[Tensor, "n D"], n: int) -> Float[Tensor, "k D"]:
        """n random vectors of the ranks' batches, the same everywhere; more than there are: again, a little moved."""
        if world() > 1:
            vectors = _from_all(vectors)
        at = torch.randperm(len(vectors), device=vectors.device)
        at = at.repeat(-(-n // len(at)))[:n]
        drawn = vectors[at]
        again = torch.arange(n, device=at.device) >= len(vectors)
        drawn = drawn + again[:, None] * 0.01 * vectors.std() * torch.randn_like(drawn)
        if world() > 1:
            drawn = drawn.contiguous()
            dist.broadcast(drawn, src=0)
        return drawn


def _from_all(vectors: Float[Tensor, "n D"]) -> Float[Tensor, "m D"]:
    """The vectors of all ranks, in the order of the ranks; ranks may have different numbers of them."""
    n = torch.zeros(world(), dtype=torch.long, device=vectors.device)
    n[dist.get_rank()] = len(vectors)
    counts = total(n).tolist()
    padded = vectors.new_zeros(max(counts), vectors.shape[1])
    padded[: len(vectors)] = vectors
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:k] for part, k in zip(parts, counts, strict=True)])
