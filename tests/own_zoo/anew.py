"""Streams that begin anew inside layers: attention over the sums of groups of layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Ends, Mlp, numbered


class Earlier(nn.Module):
    """A weighted mean of this sum and the earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, sums: list[Tensor], h: Tensor) -> Tensor:
        every = torch.stack([*sums, h], -2)
        return (self.query(self.norm(every)).softmax(-2) * every).sum(-2)


class Short(nn.Module):
    """A short convolution and a bypass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return (self.conv(h.mT).mT + h) / 2


class Grouped(nn.Module):
    """The first layer of each group leaves the old stream to the list, and begins a new one with its attention."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.one, self.other = first, Short(), Short()
        self.read_from, self.feed_from, self.read, self.feed = Earlier(), Earlier(), Attention(), Mlp()

    def forward(self, x: Tensor, sums: list[Tensor]) -> Tensor:
        h = self.one(self.read(self.read_from(sums, x)))
        sums, h = ([*sums, x], h) if self.first else (sums, x + h)
        return h + self.other(self.feed(self.feed_from(sums, h)))


class GroupedLayers(Ends):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList(Grouped(i % 2 == 0) for i in range(4)), Earlier()

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        sums: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            kept = torch.zeros_like(x) if i % 2 == 0 else x
            h = kept if i == off else block(x, sums)
            sums, x = ([*sums, x] if i % 2 == 0 else sums), h
        return self.last(sums, x)


ANEW = (Case("grouped_layers", GroupedLayers, numbered("blocks", 4)),)
