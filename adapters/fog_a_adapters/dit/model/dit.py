"""The bundled velocity network: a DiT on log-mel frames with adaLN-Zero.

    h_0   = W_in [x_t ; c ; m_ref] + pos                                                 (Eq. 21)
    h'    = h  + α₁(t) ⊙ Attn((1 + γ₁(t)) ⊙ LN(h)  + β₁(t))                              (Eq. 22)
    h''   = h' + α₂(t) ⊙ FFN ((1 + γ₂(t)) ⊙ LN(h') + β₂(t))
    v     = W_out LN(h_L)

Two ways to start, both with every block the identity (so FoG-A is 0 for all layers until the model is trained):
`init="adaln_zero"`, the paper's: the modulation is zero, so the gates α are; `init="release"`, as the authors coded
it: modulation weights N(0, 0.02), and zero output projections of attention and FFN.

What differs from the authors' release: attention takes a padding mask, so padded frames change nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fog_a.errors import Unsupported


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the model. `DiTConfig.tiny()`, `.small()`, `.paper()` are the presets.

    Attributes:
        layers, dim, heads, ff_mult, dropout: the transformer's L, D, heads, FFN widening, dropout.
        mels: mel bins M of x_t.
        token_dim: width of the conditioning interface.
        vocab: codes per domain.
        domains: names of the domains; each has its own code book and projection.
        init: `"adaln_zero"` (the paper) or `"release"`.

    Raises Unsupported for sizes that make no model.
    """

    layers: int = 4
    dim: int = 64
    heads: int = 4
    ff_mult: int = 4
    dropout: float = 0.0
    mels: int = 100
    token_dim: int = 64
    vocab: int = 64
    domains: tuple[str, ...] = ("speech", "sound")
    init: Literal["adaln_zero", "release"] = "adaln_zero"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise Unsupported(f"a DiT has at least one layer, got layers={self.layers}")
        if self.dim < 2 or self.dim % self.heads or self.dim % 2:
            near = 2 * self.heads * max(1, round(self.dim / (2 * self.heads)))
            raise Unsupported(
                f"dim must be even and a multiple of the {self.heads} heads, got {self.dim}; take dim={near}"
            )
        if self.init not in ("adaln_zero", "release"):
            raise Unsupported(f"init is 'adaln_zero' or 'release', got {self.init!r}")

    @classmethod
    def tiny(cls, **changes: Any) -> DiTConfig:
        """4 × 64, for a CPU."""
        return replace(cls(), **changes)

    @classmethod
    def small(cls, **changes: Any) -> DiTConfig:
        """12 × 384, about 33 M parameters."""
        return replace(cls(layers=12, dim=384, heads=6, dropout=0.1, token_dim=384, vocab=1024), **changes)

    @classmethod
    def paper(cls, **changes: Any) -> DiTConfig:
        """24 × 1024, 16 heads, about 470 M parameters, 4096 codes per domain."""
        return replace(cls(layers=24, dim=1024, heads=16, dropout=0.2, token_dim=1024, vocab=4096), **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"domains": list(self.domains)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiTConfig:
        """The inverse of `to_dict`."""
        return cls(**{**values, "domains": tuple(values["domains"])})


def time_features(t: Float[Tensor, "B"], dim: int, max_period: float = 10_000.0) -> Float[Tensor, "B D"]:
    """[cos(t ω) | sin(t ω)] of raw t in [0, 1], with dim/2 frequencies ω from 1 down to about 1/max_period."""
    half = dim // 2
    omega = torch.exp(-math.log(max_period) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * omega
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def positions(frames: int, dim: int, device: torch.device | None = None) -> Float[Tensor, "T D"]:
    """Fixed sinusoids, sin and cos interleaved, base 10000."""
    omega = torch.exp(-math.log(10_000.0) / dim * torch.arange(0, dim, 2, device=device, dtype=torch.float32))
    angle = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * omega
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class Attention(nn.Module):
    """Multi-head self-attention; padded frames are no keys."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B T D"]:
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # each B H T D/H
        keys = None if mask is None else mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """One residual layer (Eq. 22), called `block(h, t_emb)`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        D, wide = config.dim, config.ff_mult * config.dim
        self.norm1 = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(D, config.heads, config.dropout)
        self.norm2 = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(D, wide), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(wide, D), nn.Dropout(config.dropout)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))
        self._start(config.init)

    def _start(self, init: str) -> None:
        """Make the block the identity, in one of the two ways."""
        modulation, last = self.modulation[1], self.ffn[3]
        assert isinstance(modulation, nn.Linear) and isinstance(last, nn.Linear)
        nn.init.zeros_(modulation.bias)
        if init == "adaln_zero":
            nn.init.zeros_(modulation.weight)
            return
        nn.init.normal_(modulation.weight, std=0.02)
        for linear in (self.attn.out, last):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, h: Float[Tensor, "B T D"], t_emb: Float[Tensor, "B D"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        γ1, β1, γ2, β2, α1, α2 = self.modulation(t_emb)[:, None].chunk(6, dim=-1)
        h = h + α1 * self.attn((1 + γ1) * self.norm1(h) + β1, mask)
        return h + α2 * self.ffn((1 + γ2) * self.norm2(h) + β2)


class DiT(nn.Module):
    """v_θ(x_t, t, c): the velocity network, its residual layers in `self.blocks`.

    >>> net = DiT(DiTConfig.tiny(layers=2))
    >>> x_t, c = torch.randn(3, 50, 100), torch.randn(3, 50, 64)
    >>> net(x_t, torch.rand(3), c, torch.zeros_like(x_t)).shape
    torch.Size([3, 50, 100])
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        D = config.dim
        self.config = config
        self.inlet = nn.Linear(2 * config.mels + config.token_dim, D)
        self.time = nn.Sequential(nn.Linear(D, 4 * D), nn.SiLU(), nn.Linear(4 * D, D))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.outlet = nn.Linear(D, config.mels)

    def forward(
        self,
        x_t: Float[Tensor, "B T M"],
        t: Float[Tensor, "B"],
        condition: Float[Tensor, "B T C"],
        reference: Float[Tensor, "B T M"],
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T M"]:
        """The velocity.

        Args:
            x_t: the noisy mel.
            t: flow time in [0, 1]; 0 is noise, 1 is data.
            condition: token features at mel length (`TokenInterface`), zero where dropped.
            reference: a clean prefix of the mel, zero elsewhere.
            mask: True where a frame is real; None: all are.
        """
        h = self.inlet(torch.cat([x_t, condition, reference], dim=-1))
        h = h + positions(h.shape[1], h.shape[2], h.device).to(h.dtype)
        t_emb = self.time(time_features(t, self.config.dim).to(h.dtype))
        for block in self.blocks:
            h = block(h, t_emb, mask)
        return self.outlet(self.norm(h))
