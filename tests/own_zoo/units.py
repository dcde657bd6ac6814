"""What counts as one layer: stages of one layer, layers made of wrapped parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Chain, Ends, Layer, Mlp, chain, numbered
from own_zoo.parents import Sub


class Stage(nn.Module):
    """Adds the branches of its layers itself, and norms at the end."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList((Attention(), Mlp())) for _ in range(n))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            attend, feed = layer.children()
            if i != off:
                x = x + attend(x)
                x = x + feed(x)
        return self.norm(x)


class StagesOfOne(Ends):
    """Stages of one, two and one layer: that of one is as little a layer as that of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(n) for n in (1, 2, 1))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        first = (0, 1, 3)
        for start, stage in zip(first, self.stages, strict=True):
            x = stage(x, None if off is None else off - start)
        return x


class Wrapped(nn.Module):
    """A conformer's layer: feed-forward, attention, convolution's stand-in and feed-forward, each in one residual
    wrapper, in a Sequential with the norm that ends it."""

    def __init__(self) -> None:
        super().__init__()
        between = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GLU(-1), nn.SiLU())
        self.sequential = nn.Sequential(Sub(Mlp()), Sub(Attention()), Sub(between), Sub(Mlp()), nn.LayerNorm(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.sequential(x)


class Dilated(nn.Module):
    """A vocoder's block: residual convolutions from two lists whose names end in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs1, self.convs2 = (nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3, 1, 1) for _ in range(3)) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        for a, b in zip(self.convs1, self.convs2, strict=True):
            x = x + b(F.leaky_relu(a(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Dilations(Chain):
    """On channels, without ends."""

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)

    def without(self, k: int, x: Tensor) -> Tensor:
        return self.run(x, k)


class ReadAndThink(nn.Module):
    """A Perceiver's layer: reads, then runs a short list of attention and feed-forward of its own."""

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.read, self.feed = Attention(), Mlp()
        self.think = nn.ModuleList(nn.ModuleList((Attention(), Mlp())) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.read(x)
        x = x + self.feed(x)
        for attend, feed in map(nn.Module.children, self.think):
            x = x + attend(x)
            x = x + feed(x)
        return x


class Pair(nn.Module):
    """Windowed and global attention, each with its feed-forward: four wrappers, one list item."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList((Sub(Attention()), Sub(Mlp()), Sub(nn.Sequential(Attention(), nn.Tanh())))) for _ in range(n)
        )

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            for module in layer.children() if i != off else ():
                x = module(x)
        return x


class Pairs(Ends):
    """Stages of one such item, and of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Pair(n) for n in (1, 2))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for start, stage in zip((0, 1), self.stages, strict=True):
            x = stage(x, None if off is None else off - start)
        return x


class SpaceTime(nn.Module):
    """One layer of two residual modules, mixed at the end; one of them is elsewhere a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.time = Sub(Mlp()), Layered()

    def forward(self, x: Tensor) -> Tensor:
        x = self.space(x)
        return 0.4 * x + 0.6 * self.time(x)


class Layered(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class SpaceThenBoth(Ends):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Sub(Mlp()) for _ in range(2))
        self.decoder = nn.ModuleList(SpaceTime() for _ in range(2))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate((*self.encoder, *self.decoder)):
            x = x if i == off else block(x)
        return x


class Scales(nn.Module):
    """Attention of several scales with its own residual: what makes the others stands in a list (EfficientViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.scales = nn.Linear(WIDTH, WIDTH), nn.ModuleList([Mlp()])
        self.out = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        near = self.near(x)
        each = torch.cat([near, *(scale(near) for scale in self.scales)], -1)
        return x + self.out((each @ each.mT).softmax(-1) @ each)


class ScalesThenMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.feed = Scales(), Sub(Mlp())

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(self.attend(x))


class Link(Layer):
    """A linked list: each layer holds the rest of the stack, and runs it on what it gives out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.rest = Link(n - 1) if n > 1 else None

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        x = x if off == 0 else super().forward(x)
        return x if self.rest is None else self.rest(x, None if off is None else off - 1)


class LinkedList(Ends):
    def __init__(self) -> None:
        super().__init__()
        self.first = Link(3)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        return self.first(x, off)


def of_stage(stage: int, layer: int, *parts: str) -> tuple[str, ...]:
    return tuple(f"stages.{stage}.layers.{layer}.{part}" for part in parts)


UNITS = (
    Case("stages_of_one", StagesOfOne, tuple(of_stage(*at, "0", "1") for at in ((0, 0), (1, 0), (1, 1), (2, 0)))),
    Case("pairs", Pairs, tuple(of_stage(*at, "0.f", "1.f", "2.f") for at in ((0, 0), (1, 0), (1, 1)))),
    chain("wrapped", Wrapped),
    chain("read_and_think", ReadAndThink),
    chain("read_and_think_once", lambda: ReadAndThink(1)),
    Case("space_then_both", SpaceThenBoth, (*numbered("encoder", 2), *numbered("decoder", 2))),
    Case(
        "linked_list",
        LinkedList,
        tuple((f"first{rest}.attend", f"first{rest}.feed") for rest in ("", ".rest", ".rest.rest")),
    ),
    chain("attention_that_holds_a_list", ScalesThenMlp),
    Case("dilated", lambda: Dilations(Dilated), numbered("blocks", 3), lambda: torch.randn(2, WIDTH, 9)),
)
