"""Sums made by a module of their own, and branches that all lie in one generic wrapper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Ends, Mlp


class Adder(nn.Module):
    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        return x + f


class Merged(Ends):
    """A module of its own adds; in the second half a Linear merges an earlier layer's output in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList((Mlp(), Adder())) for _ in range(4))
        self.merge = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        kept: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            f, add = layer.children()
            kept += [x] if i < 2 else []
            x = self.merge[i - 2](torch.cat((kept.pop(), x), -1)) if i > 1 else x
            x = x if i == off else add(f(x), x)
        return x


class Hyper(Ends):
    """Hyper-connections: before each update two streams are mixed by weights that depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList((nn.Linear(WIDTH, 3), Mlp(), Adder())) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        x = torch.stack((x, x), 2)
        for i, layer in enumerate(self.layers):
            weigh, f, add = layer.children()
            mixed = torch.einsum("btsj,btsd->btjd", weigh(x).sigmoid(), x)
            h, x = mixed[:, :, 0], mixed[:, :, 1:]
            x = x if i == off else add(f(h)[:, :, None] * torch.tensor([[0.5], [1.0]]), x)
        return x.sum(2)


class Scaled(nn.Module):
    """A generic wrapper: nothing but its parts' content tells attention from feed-forward."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f, self.scale = f, nn.Parameter(torch.full((WIDTH,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) * self.scale


class Flat(Ends):
    """Attention and feed-forward in turn, wrapped, in one flat list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scaled(f()) for _ in range(3) for f in (Attention, Mlp))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, f in enumerate(self.layers):
            x = x if i // 2 == off else x + f(x)
        return x


ADDERS = (
    Case("merged", Merged, tuple((f"layers.{i}.0",) for i in range(4))),
    Case("hyper", Hyper, tuple((f"layers.{i}.1",) for i in range(3))),
    Case("flat", Flat, tuple((f"layers.{2 * i}", f"layers.{2 * i + 1}") for i in range(3))),
)
