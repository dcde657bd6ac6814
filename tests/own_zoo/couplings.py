"""Where a stream is turned or ends in an output of its own: couplings with reversed tokens, heads at each rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Mlp, numbered


class Sums(Mlp):
    """A layer that reads the tokens before."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x).cumsum(1) / 3


class Step(nn.Module):
    """x ← (x − shift) · exp(−scale), both made of the tokens before by one module (TarFlow). Closed, both are 0."""

    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Sums() for _ in range(2))
        self.inp, self.out, self.reverse = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), reverse

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        if off:
            return x
        x = x.flip(1) if self.reverse else x
        h = self.inp(x)
        for layer in self.layers:
            h = layer(h)
        scale, shift = F.pad(self.out(h)[:, :-1], (0, 0, 1, 0)).chunk(2, -1)
        y = (x - shift) * torch.exp(-0.3 * scale)
        return y.flip(1) if self.reverse else y


class Couplings(nn.Module):
    """Every second step reads the tokens in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Step(i % 2 == 1) for i in range(3))

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, i == off)
        return x

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class Heads(nn.Module):
    """A head reads each layer, and their outputs are added up (StyleGAN2, NCSN++ with `output_skip`)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mlp() for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, h: Tensor, off: int | None = None) -> Tensor:
        total = torch.zeros(())
        for i, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            h = h if i == off else h + layer(h)
            total = total + head(F.silu(h))
        return total

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


COUPLINGS = (
    Case("coupling_with_reversed_tokens", Couplings, numbered("blocks", 3)),
    Case("a_head_for_each_layer", Heads, numbered("layers", 4)),
)
