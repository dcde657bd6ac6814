"""Conditions made of the stream, weights used twice, units around layers, updates that no module gives out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Chain, Ends, Layer, Mlp, chain, numbered


class Modulated(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, gate = self.modulation(c)[:, None].chunk(2, -1)
        return x + gate * super().forward(x + shift)


class PooledCondition(Chain):
    """All blocks are modulated by an MLP of the stream's own first value, pooled."""

    def __init__(self) -> None:
        super().__init__(Modulated)
        self.pool = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        c = self.pool(x.mean(1))
        for i, block in enumerate(self.blocks):
            x = x if i == off else block(x, c)
        return x


class Weights(nn.Module):
    """Attention weights are made once and used twice: the second update is linear in the newest value of the stream.
    Then a bypass to the layer's input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.w, self.feed = nn.Linear(WIDTH, WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in "vw"), Mlp()
        self.bypass = nn.Parameter(torch.full((WIDTH,), 0.6))

    def forward(self, first: Tensor) -> Tensor:
        weights = (self.q(first) @ first.mT).softmax(-1)
        x = first + self.v(weights @ first)
        x = x + self.feed(x)
        x = x + self.w(weights @ x)
        return first + (x - first) * self.bypass


class Values(nn.Module):
    """Gives (stream, values): a projection shortcut, and values mixed with those of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.v, self.o, self.mix = (
            nn.LayerNorm(WIDTH),
            *(nn.Linear(WIDTH, WIDTH) for _ in "qvo"),
            (nn.Linear(WIDTH, 1)),
        )
        self.shortcut = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, first: Tensor | None, off: bool = False) -> tuple[Tensor, Tensor]:
        n = self.norm(x)
        v = self.v(n)
        v = v if first is None else v.lerp(first, self.mix(n).sigmoid())
        h = self.shortcut(x)
        return h if off else h + self.o((self.q(n) @ n.mT).softmax(-1) @ v), v


class MixedValues(Chain):
    def __init__(self) -> None:
        super().__init__(Values)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        first = None
        for i, block in enumerate(self.blocks):
            x, v = block(x, first, i == off) if i == off else block(x, first)
            first = v if first is None else first
        return x


class Level(nn.Module):
    """A level of a U-net by recursion, residual as a whole."""

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        self.down, self.up, self.inner = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), inner
        self.first, self.last = nn.ModuleList(Layer() for _ in range(2)), nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Tensor, off: nn.Module | None = None) -> Tensor:
        h = self.down(x)
        for layer in [*self.first, *([] if self.inner is None else [self.inner]), *self.last]:
            if layer is not off:
                h = layer(h, off) if isinstance(layer, Level) and off is not None else layer(h)
        return x + 0.7 * self.up(h)


class Recursive(Ends):
    NAMES = tuple(
        f"body.{path}" for path in ("first.0", "first.1", "inner.first.0", "inner.first.1", "inner.last.0",
                                    "inner.last.1", "last.0", "last.1")
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.body = Level(Level(None))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        return self.body(x) if off is None else self.body(x, self.get_submodule(self.NAMES[off]))


class Sampler(Chain):
    """Euler steps around a whole network: its blocks are meant, at each step."""

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        n = len(self.blocks)
        for step in range(2):
            x = x + 0.5 * self.net(x, None if off is None else off - step * n)
        return x

    def __init__(self) -> None:
        super().__init__()
        self.net = Inner(self.blocks)


class Inner(nn.Module):
    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks, self.head = blocks, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = x if i == off else block(x)
        return self.head(x)


class Unit(nn.Module):
    """tanh(y) σ(y) + conv(x): no module gives the update, and zeroing one would not close it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.shift = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH))
        self.shortcut = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        h = self.shortcut(x)
        if off:
            return h
        y = self.inner(x) + self.shift
        return torch.tanh(y) * torch.sigmoid(y) + h


class Units(Chain):
    def __init__(self) -> None:
        super().__init__(Unit)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, True) if i == off else block(x)
        return x


class WaveNet(Ends):
    """x = x + residual, total = total + skip; the last layer has the skip half only."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(4))
        self.both = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH if i < 3 else WIDTH) for i in range(4))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        total: Any = 0
        for i, (into, both) in enumerate(zip(self.into, self.both, strict=True)):
            a, b = into(x).chunk(2, -1)
            y = both(a.tanh() * b.sigmoid())
            y = 0 * y if i == off else y
            x, total = (x + y[..., :WIDTH], total + y[..., WIDTH:]) if i < 3 else (x, total + y)
        return total


class Across(nn.Module):
    """x and what of f is orthogonal to it."""

    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        u = F.normalize(x, dim=-1)
        return x + (f - (f * u).sum(-1, keepdim=True) * u)


class Acrosses(Ends):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList((Mlp(), Across())) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, (f, add) in enumerate(layer.children() for layer in self.layers):
            x = x if i == off else add(f(x), x)
        return x


class Differences(nn.Module):
    """x + Σ (x_i − x_j) φ, gathered by index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        i, j = torch.arange(6).repeat_interleave(6), torch.arange(6).repeat(6)
        away = x[:, i] - x[:, j]
        return x + torch.zeros_like(x).index_add(1, i, away * self.phi(away.square()))


class Predicting(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + super().forward(x)
        return x, self.head(x)


class Predictions(Chain):
    """(stream, prediction): the parent sums the predictions from zero."""

    def __init__(self) -> None:
        super().__init__(Predicting)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        total: Any = 0
        for i, block in enumerate(self.blocks):
            h, y = block(x)
            x, total = (x, total + 0 * y) if i == off else (h, total + y)
        return total


class Coupled(nn.Module):
    """(h, s) → (h + f(h), s + g(h′)): s is updated from h only."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Mlp(), Mlp()

    def forward(self, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        h = h + self.f(h)
        return h, s + self.g(h)


class Accumulated(Chain):
    def __init__(self) -> None:
        super().__init__(Coupled)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        h, s = x, torch.sin(x)
        for i, block in enumerate(self.blocks):
            h, s = (h, s) if i == off else block(h, s)
        return s


class Resummed(Chain):
    """Each layer reads the weighted sum of all outputs so far, made anew (DenseFormer); no sum is carried on."""

    def __init__(self) -> None:
        super().__init__(Mlp, 4)
        self.weights = nn.Parameter(torch.rand(5, 5) + 0.5)

    def run(self, x: Tensor, off: int | None = None) -> Any:
        outputs = [x]
        for i, block in enumerate([*self.blocks, nn.Identity()]):
            h = sum(w * y for w, y in zip(self.weights[i], outputs, strict=False))
            outputs.append(block(h) * (i != off))
        return outputs[-1]


WIRINGS = (
    Case("resummed", Resummed, tuple((f"blocks.{i}",) for i in range(4))),
    Case("pooled_condition", PooledCondition, numbered("blocks", 3)),
    chain("weights_made_once", Weights),
    Case("mixed_values", MixedValues, numbered("blocks", 3)),
    Case("recursive", Recursive, Recursive.NAMES),
    Case("sampler", Sampler, tuple(f"blocks.{i}@{step}" for step in range(2) for i in range(3))),
    Case("gated_units", Units, numbered("blocks", 3)),
    Case("wavenet", WaveNet, tuple((f"into.{i}|both.{i}",) for i in range(4))),
    Case("acrosses", Acrosses, tuple((f"layers.{i}.0",) for i in range(3))),
    chain("differences", Differences),
    Case("predictions", Predictions, numbered("blocks", 3)),
    Case("accumulated", Accumulated, numbered("blocks", 3)),
)
