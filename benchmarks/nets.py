"""The network that everything is measured on: a DiT-like velocity network with adaLN, and the authors' way to skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = 20


class Block(nn.Module):
    """h + a₁·attn(…), then + a₂·ff(…), scaled and shifted by the condition."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.ff = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        g1, b1, g2, b2, a1, a2 = self.modulation(c)[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + g1) + b1
        x = x + a1 * self.attn(h, h, h, need_weights=False)[0]
        return x + a2 * self.ff(self.norm2(x) * (1 + g2) + b2)


class Net(nn.Module):
    """v(x_t, t). With `skip = k` block k is left out by `continue`, as the paper's release does."""

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.into, self.time = nn.Linear(CHANNELS, dim), nn.Linear(1, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(layers))
        self.out = nn.Linear(dim, CHANNELS)
        self.skip: int | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, c = self.into(x), self.time(t[:, None])
        for i, block in enumerate(self.blocks):
            if i == self.skip:
                continue
            h = block(h, c)
        return self.out(h)


def case(layers: int, dim: int, frames: int, batch: int, device: str = "cpu") -> tuple[Net, tuple[Tensor, Tensor]]:
    """A net with random weights, and a batch (x_t, t)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(layers, dim).eval().to(device)
        x, t = torch.randn(batch, frames, CHANNELS), torch.rand(batch)
    return net, (x.to(device), t.to(device))
