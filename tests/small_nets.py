"""A few plain residual nets that tests can read at a glance: token nets (B, T, D) → (B, T, D)."""

from __future__ import annotations

from collections.abc import Collection

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


class Joint(nn.Module):
    """One call gives the updates of two streams."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.a, self.b = (nn.Linear(6, 6) for _ in "qab")

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cat([x, y], 1)
        h = (self.q(h) @ h.mT).softmax(-1) @ h
        return self.a(h[:, : x.shape[1]]), self.b(h[:, x.shape[1] :])


class TwoStreams(nn.Module):
    """Two branches a layer with their gates at one call; `off`: those that are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.attends, self.out = nn.ModuleList(Joint() for _ in range(3)), nn.Linear(6, 6)

    def forward(self, x: Tensor, off: Collection[tuple[int, int]] = ()) -> Tensor:
        y = 0.7 * x[:, :2].flip(1)
        for i, attend in enumerate(self.attends):
            a, b = attend(x, y)
            x, y = (x if (i, 0) in off else x + a), (y if (i, 1) in off else y + b)
        return self.out(x) + y.mean(1, keepdim=True)
