"""Blocks that update a second stream beside the first, or leave the sum of their stream to the next one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Chain, Ends, Mlp, numbered


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


class Forecaster(nn.Module):
    """What it explains of its input, and what it says of the future (N-BEATS)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.back, self.fore = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.body(x))
        return self.back(y), self.fore(y)


class Forecasts(nn.Module):
    """A stage: the stream loses what its blocks explain, their forecasts are summed from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Forecaster() for _ in range(2))

    def forward(self, x: Tensor, off: int | None = None) -> tuple[Tensor, Tensor]:
        total: Any = 0
        for i, block in enumerate(self.blocks):
            back, fore = (u * (i != off) for u in block(x))
            x, total = x - back, total + fore
        return x, total


class TwoLevels(nn.Module):
    """The stages' forecasts are summed once more."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(Forecasts() for _ in range(2))

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        total = torch.zeros(*x.shape[:-1], 4)
        for i, stack in enumerate(self.stacks):
            x, forecast = stack(x, None if off is None else off - 2 * i)
            total = total + forecast
        return total

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class Skipping(nn.Module):
    """A residual, of the last one None, and a skip (Conv-TasNet)."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.body, self.residual, self.skip = Mlp(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = last

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        y = torch.tanh(self.body(x))
        return None if self.last else self.residual(y), self.skip(y)


class Masking(Ends):
    """The parent adds both. The total begins with the first skip, and v is a mask on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Skipping(i == 2) for i in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        h, total = x, torch.zeros(())
        for i, layer in enumerate(self.layers):
            residual, skip = layer(h)
            h = h if residual is None else h + residual * (i != off)
            total = total + skip * (i != off)
        return torch.sigmoid(total) * x


class Delayed(nn.Module):
    """(update, stream) → (update, stream): it makes the sum of the one before (Mamba)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Attention()

    def forward(self, update: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        stream = update if stream is None else update + stream
        return self.mixer(stream), stream


class DelayedSums(Chain):
    """Closed, a block still makes the sum of the one before."""

    def __init__(self) -> None:
        super().__init__(Delayed)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        stream: Tensor | None = None
        for i, block in enumerate(self.blocks):
            x, stream = block(x, stream)
            x = x * (i != off)
        assert stream is not None
        return x + stream


class AddNorm(nn.Module):
    """A fused addition and norm: (normed sum, sum)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, update: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        stream = update + stream
        return self.norm(stream), stream


class Fused(nn.Module):
    """Two updates: its own sum is the first one's, the second one's is made by the next layer (vLLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.attend, self.feed = AddNorm(), AddNorm(), Attention(), Mlp()

    def forward(self, update: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        y, stream = self.first(update, stream)
        y, stream = self.second(self.attend(y), stream)
        return self.feed(y), stream


class FusedSums(Chain):
    """Closed, a block gives (0, update + stream)."""

    def __init__(self) -> None:
        super().__init__(Fused)
        self.last = AddNorm()

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        stream = torch.zeros_like(x)
        for i, block in enumerate(self.blocks):
            x, stream = (torch.zeros_like(x), x + stream) if i == off else block(x, stream)
        return self.last(x, stream)[0]


class Exchange(nn.Module):
    """The parent adds to two streams what a layer's parts give: to the second what is made of the first, which goes on
    after it."""

    def __init__(self) -> None:
        super().__init__()
        kinds = {"read": 2 * WIDTH, "feed": WIDTH, "write": 2 * WIDTH}
        self.layers = nn.ModuleList(nn.ModuleDict({k: Narrowed(n) for k, n in kinds.items()}) for _ in range(3))
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        y = self.second(x).tanh()
        for i, layer in enumerate(self.layers):
            if i != off:
                x = x + layer["read"](torch.cat([x, y], -1))
                x = x + layer["feed"](x)
                y = y + layer["write"](torch.cat([y, x], -1))
        return torch.cat([x, y], -1)

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class Narrowed(Mlp):
    """An update of the stream's width."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.down = nn.Linear(2 * width, WIDTH)


SECONDS = (
    Case("exchange", Exchange, tuple(tuple(f"layers.{i}.{k}" for k in ("read", "feed", "write")) for i in range(3))),
    Case("total_from_a_parameter", TotalFromParameter, numbered("blocks", 3)),
    Case("forecasts_in_two_levels", TwoLevels, tuple(f"stacks.{i}.blocks.{j}" for i in range(2) for j in range(2))),
    Case("masking", Masking, numbered("layers", 3)),
    Case("delayed_sums", DelayedSums, numbered("blocks", 3)),
    Case("fused_sums", FusedSums, numbered("blocks", 3)),
)
