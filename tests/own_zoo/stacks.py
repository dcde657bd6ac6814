"""Stacks: two with an embedding added before every layer, WaveNets of two layers, one that is the whole network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Ends, Layer, Mlp, numbered


class Embedded(Ends):
    """An embedding, `make(net, x)`, is added before every layer of both stacks."""

    def __init__(self, make: Callable[[Embedded, Tensor], Tensor]) -> None:
        super().__init__()
        self.make, self.embed, self.offset = make, nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH))
        self.first, self.second = (nn.ModuleList(Layer() for _ in range(2)) for _ in range(2))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        embedding = self.make(self, x)

        def stack(x: Tensor, layers: nn.ModuleList, start: int) -> Tensor:
            for i, layer in enumerate(layers, start):
                x = x + embedding
                x = x if i == off else layer(x)
            return x

        return stack(x, self.first, 0) * stack(x, self.second, 2)


def embedded(name: str, make: Callable[[Embedded, Tensor], Tensor]) -> Case:
    return Case(name, lambda: Embedded(make), (*numbered("first", 2), *numbered("second", 2)))


class WaveNet(nn.Module):
    """Two layers: the first adds to the stream and to the output, the last to the output only."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.skips = nn.ModuleList([nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        out = torch.zeros_like(x)
        for i, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            if i == off:
                continue
            a, b = gate(x).chunk(2, -1)
            step = skip(a.tanh() * b.sigmoid())
            if i == 0:
                x, out = x + step[..., :WIDTH], out + step[..., WIDTH:]
            else:
                out = out + step
        return out


class WaveNets(Ends):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(WaveNet() for _ in range(n))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, net in enumerate(self.nets):
            x = net(x, None if off is None else off - 2 * i).tanh()
        return x


def steps(n: int) -> tuple[tuple[str, ...], ...]:
    return tuple((f"nets.{i}.gates.{k}|nets.{i}.skips.{k}",) for i in range(n) for k in range(2))


class Bare(nn.Module):
    """A network that is its layers' updates, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = x if i == off else x + layer(x)
        return x


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Bare()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def without(self, k: int, x: Tensor) -> Tensor:
        return self.net(x, k)


STACKS = (
    Case("bare_in_a_wrapper", Wrapped, numbered("net.layers", 3)),
    embedded("embedded", lambda net, x: net.offset.expand_as(x)),
    embedded("embedded_by_the_first_token", lambda net, x: torch.tanh(net.embed(x[:, :1])).expand_as(x)),
    embedded("embedded_by_each_token", lambda net, x: torch.tanh(net.embed(x))),
    Case("one_wavenet_of_two_layers", lambda: WaveNets(1), steps(1)),
    Case("two_wavenets_of_two_layers", lambda: WaveNets(2), steps(2)),
)
