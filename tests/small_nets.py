"""A few plain residual nets that tests can read at a glance: token nets (B, T, D) → (B, T, D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Pre-norm MLP, x + W₂ gelu(W₁ norm(x))."""

    def __init__(self, width: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm(x)))))


class Net(nn.Module):
    """Stem, `depth` layers, head. `layer` makes one."""

    def __init__(
        self, depth: int = 3, width: int = 6, dropout: float = 0.0, layer: type[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 4)
        made = [layer() if layer else Layer(width, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(made)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def tokens(samples: int = 3, length: int = 5, width: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(samples, length, width, generator=torch.Generator().manual_seed(seed))
