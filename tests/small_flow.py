"""A flow small enough to align within a second: residual blocks of which some matter more than others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fog_a
from fog_a.flows.samples import Samples

WIDTH, CHANNELS, TEACHER = 16, 6, 5


class Block(nn.Module):
    """h + scale · f(h + e(t))."""

    def __init__(self, scale: float, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.f = (
            nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)),
        )
        self.scale = scale

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return h + self.scale * self.f(self.norm(h) + e)


class Net(nn.Module):
    """net(x_t, t) on (B, T, CHANNELS). `reentrant`: how each block is checkpointed; None: not at all."""

    def __init__(self, scales: tuple[float, ...] = (0.1, 1.0, 0.2, 2.0), reentrant: bool | None = None) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.into = nn.Linear(CHANNELS, WIDTH)
        self.blocks = nn.ModuleList(Block(s) for s in scales)
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHANNELS))
        self.reentrant = reentrant

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        e = self.time(t[:, None, None])
        h = self.into(x_t)
        for block in self.blocks:
            if self.reentrant is None or not torch.is_grad_enabled():
                h = block(h, e)
            else:
                h = checkpoint(block, h, e, use_reentrant=self.reentrant)
        return self.out(h)


class Statistics:
    """A teacher that reads nothing but the data kept by sample id: no weights, no audio."""

    def __init__(self, dim: int = TEACHER) -> None:
        self.name, self.dim = f"statistics-{dim}", dim

    def __call__(self, samples: Samples) -> Tensor:
        return torch.stack([self._draw(i, self.dim) for i in samples.ids])

    def frames(self, samples: Samples) -> list[Tensor]:
        return [self._draw(i, self.dim * 4).view(4, self.dim) for i in samples.ids]

    @staticmethod
    def _draw(name: str, size: int) -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(sum(name.encode())))


def a_flow(seed: int = 0, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fog_a.wrap(Net(**options), x="x_t", t="t")


def a_batch(
    size: int = 6, domains: tuple[str, ...] = ("speech", "sound"), seed: int = 0, frames: int = 7
) -> dict[str, Any]:
    x = torch.randn(size, frames, CHANNELS, generator=torch.Generator().manual_seed(seed))
    names = [domains[i % len(domains)] for i in range(size)]
    return {"x1": x, "domains": names, "ids": [f"{seed}/{i}" for i in range(size)]}


def two_teachers() -> dict[str, Any]:
    return {"speech": Statistics(5), "sound": Statistics(3)}
