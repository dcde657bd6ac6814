"""One labelled model, and what most of them are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16


def tokens() -> Tensor:
    """2 samples of 6 tokens."""
    return torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Case:
    """A model and the truth about it.

    `layers` in order of execution: a block's name, or for a layer without a module the tuple of its branches' modules
    (a part may be named by what lies around or inside it; "a|b": by either, both do that branch's work).
    """

    name: str
    make: Callable[[], nn.Module]
    layers: tuple[str | tuple[str, ...], ...]
    batch: Callable[[], Tensor] = tokens

    def model(self) -> nn.Module:
        """The model with random weights, in eval mode: the same one each time."""
        torch.manual_seed(0)
        return self.make().eval()


def numbered(path: str, n: int) -> tuple[str, ...]:
    return tuple(f"{path}.{i}" for i in range(n))


class Mlp(nn.Module):
    """A pre-norm feed-forward update, without its addition."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """A pre-norm self-attention update of two heads, without its addition."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A plain transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.feed = Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.feed(x)


class Ends(nn.Module):
    """Input and output layers around `run(x, off)`, which leaves out layer `off`."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.run(self.inp(x)))

    def without(self, k: int, x: Tensor) -> Tensor:
        return self.out(self.run(self.inp(x), k))


class Chain(Ends):
    """`blocks` one after the other, each from stream to stream."""

    def __init__(self, make: Callable[[], nn.Module] = Layer, n: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make() for _ in range(n))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = x if i == off else block(x)
        return x


def chain(name: str, make: Callable[[], nn.Module]) -> Case:
    return Case(name, lambda: Chain(make), numbered("blocks", 3))
