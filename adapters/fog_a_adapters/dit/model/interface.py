"""The conditioning interface: domain codes → features at mel length, where BiT-C anchors a teacher.

    c = L2( Interp_T( P_d( E_d(s) ) ) )          a code book E_d and a projection P_d for each domain d

Each clip is interpolated over its own real tokens to its own real frames, so padding never leaks in.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fog_a_adapters.dit.model.dit import DiTConfig


class TokenInterface(nn.Module):
    """Codes → conditioning features at mel length: c = L2(Interp_T(P(E(s)))), a code book E and a P per domain.

    P starts as the identity. Gradients reach E and P (in the authors' release they do not).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        n = len(config.domains)
        self.books = nn.ModuleList(nn.Embedding(config.vocab, config.token_dim) for _ in range(n))
        self.projections = nn.ModuleList(nn.Linear(config.token_dim, config.token_dim, bias=False) for _ in range(n))
        for weight in self.projections.parameters():
            nn.init.eye_(weight)

    def forward(
        self,
        tokens: Int[Tensor, "B N"],
        token_lengths: Int[Tensor, "B"],
        domain: Int[Tensor, "B"],
        lengths: Int[Tensor, "B"],
        frames: int,
    ) -> Float[Tensor, "B T D"]:
        """Padded frames are zero; each sample is interpolated over its own real tokens."""
        c = torch.stack([p(e(tokens)) for e, p in zip(self.books, self.projections, strict=True)])
        c = c[domain, torch.arange(len(tokens), device=tokens.device)]  # B N D, of the sample's own domain
        c = stretch(c, token_lengths, lengths, frames)
        c = F.normalize(c, dim=-1)
        return c * frame_mask(lengths, frames)[..., None]


def frame_mask(lengths: Int[Tensor, "B"], frames: int) -> Bool[Tensor, "B T"]:
    """True where a frame is real.

    >>> frame_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def stretch(
    x: Float[Tensor, "B N D"], old: Int[Tensor, "B"], new: Int[Tensor, "B"], frames: int
) -> Float[Tensor, "B T D"]:
    """Linear interpolation (align_corners=False) of the first `old` rows of each sample to its `new` rows.

    The same as `F.interpolate(x_i[:old_i], size=new_i, mode="linear")` sample by sample, so padding never leaks in.
    """
    at = (torch.arange(frames, device=x.device) + 0.5) * (old / new)[:, None] - 0.5
    at = at.clamp(min=0).minimum((old - 1)[:, None].to(at.dtype))
    left = at.floor().long()
    right = (left + 1).minimum((old - 1)[:, None])
    a, b = (x.gather(1, i[..., None].expand(-1, -1, x.shape[-1])) for i in (left, right))
    return torch.lerp(a, b, (at - left)[..., None].to(x.dtype))
