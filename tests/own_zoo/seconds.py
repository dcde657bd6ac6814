"""Blocks that update a second stream beside the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Chain, Mlp, numbered


class Totalled(nn.Module):
    """Updates its stream, and a total from that update."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Mlp(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, h: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        y = self.f(h)
        return h + y, total + self.g(y)


class TotalFromParameter(Chain):
    """The total begins as a parameter without samples or tokens, which the first sum broadcasts."""

    def __init__(self) -> None:
        super().__init__(Totalled)
        self.total = nn.Parameter(torch.randn(WIDTH))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        total: Tensor = self.total
        for i, block in enumerate(self.blocks):
            x, total = (x, total) if i == off else block(x, total)
        return torch.tanh(total).expand_as(x)


SECONDS = (Case("total_from_a_parameter", TotalFromParameter, numbered("blocks", 3)),)
