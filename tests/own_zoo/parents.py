"""Where the sum is made: in the parent, around a whole stack, beside skips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Chain, Ends, Layer, Mlp, chain, numbered


class Functional(Ends):
    """The parent calls norms and linears from three lists, and adds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 32) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(32, WIDTH) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i in range(3):
            if i != off:
                x = x + self.down[i](F.silu(self.up[i](self.norm[i](x))))
        return x


class Named(Ends):
    """A ModuleDict of ModuleDicts."""

    def __init__(self) -> None:
        super().__init__()
        layers = {f"layer_{i}": nn.ModuleDict({"attend": Attention(), "feed": Mlp()}) for i in range(3)}
        self.layers = nn.ModuleDict(layers)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, layer in enumerate(self.layers.values()):
            if i != off:
                x = x + layer["attend"](x)
                x = x + layer["feed"](x)
        return x


class Parallel(Ends):
    """What three lists make of one value is added in one sum, one by one or `first` to each other."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.ModuleList(Mlp() for _ in range(3)) for _ in range(3))
        self.first = first

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, (a, b, c) in enumerate(zip(self.a, self.b, self.c, strict=True)):
            if i != off:
                x = x + (a(x) + b(x) + c(x)) if self.first else x + a(x) + b(x) + c(x)
        return x


class Gated(Ends):
    """x + σ(gate(x)) · value(x), both of full size: closing the gate's Linear would leave σ(0) = ½."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.ModuleList(Mlp() for _ in range(3))
        self.gate = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i in range(3):
            if i != off:
                x = x + torch.sigmoid(self.gate[i](x)) * self.value[i](x)
        return x


class Around(Chain):
    """A long skip by addition around the whole stack."""

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        return x + super().run(x, off)


class Skips(Chain):
    """U-shaped: later blocks are given an earlier one's output, added."""

    def __init__(self) -> None:
        super().__init__(n=5)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        kept: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = x + kept.pop() if i > 2 else x
            x = x if i == off else block(x)
            kept += [x] if i < 2 else []
        return x


class Stages(Ends):
    """Two stages of two blocks, each followed by a transition that is no residual."""

    def __init__(self) -> None:
        super().__init__()
        stages = (nn.ModuleList([nn.ModuleList([Layer(), Layer()]), nn.Linear(WIDTH, WIDTH)]) for _ in range(2))
        self.stages = nn.ModuleList(stages)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for s, stage in enumerate(self.stages):
            blocks, transition = stage.children()
            for j, block in enumerate(blocks.children()):
                x = x if 2 * s + j == off else block(x)
            x = transition(F.gelu(x))
        return x


class Sub(nn.Module):
    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class OfSubLayers(nn.Module):
    """One layer, made of two residual modules of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.feed = Sub(Attention()), Sub(Mlp())

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(self.attend(x))


class Seasonal(nn.Module):
    """Hands on its stream, and beside it what it takes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.out = Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.f(x)
        slow = x.cumsum(1) / torch.arange(1, 1 + x.shape[1])[:, None]
        return x - slow, self.out(slow)


class Trend(Ends):
    """What each layer takes out of its stream the parent adds to a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Seasonal() for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        trend = 0.1 * x
        for i, block in enumerate(self.blocks):
            if i != off:
                x, slow = block(x)
                trend = trend + slow
        return x + trend


class Hint(nn.Module):
    """Hands on its own stream, and a projection of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = Mlp(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.layer(x)
        return self.out(x), x


class Hints(Ends):
    """A side stack runs first; what its layers give beside their stream the parent adds between the main layers."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.main = nn.ModuleList(Hint() for _ in range(2)), nn.ModuleList(Layer() for _ in range(2))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        y, hints = 0.5 * x, []
        for i, block in enumerate(self.side):
            hint, y = (torch.zeros_like(x), y) if i == off else block(y)
            hints.append(hint)
        for i, block in enumerate(self.main):
            x = x if i + 2 == off else block(x)
            x = x + hints[i]
        return x


PARENTS = (
    Case("hints", Hints, (*numbered("side", 2), *numbered("main", 2))),
    Case("trend", Trend, numbered("blocks", 3)),
    Case("functional", Functional, tuple((f"up.{i}|down.{i}",) for i in range(3))),
    Case("named", Named, tuple((f"layers.layer_{i}.attend", f"layers.layer_{i}.feed") for i in range(3))),
    Case("three_lists_in_one_sum", lambda: Parallel(False), tuple((f"a.{i}", f"b.{i}", f"c.{i}") for i in range(3))),
    Case("three_lists_summed_first", lambda: Parallel(True), tuple((f"a.{i}", f"b.{i}", f"c.{i}") for i in range(3))),
    Case("gated", Gated, tuple((f"value.{i}",) for i in range(3))),
    Case("around", Around, numbered("blocks", 3)),
    Case("skips", Skips, numbered("blocks", 5)),
    Case("stages", Stages, ("stages.0.0.0", "stages.0.0.1", "stages.1.0.0", "stages.1.0.1")),
    chain("of_sub_layers", OfSubLayers),
)
