"""List items whose parts are called twice, residual by themselves, or hand on more than their update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Ends, Mlp, numbered
from own_zoo.parents import Sub


class CalledTwice(Ends):
    """The attention reads a summary of the tokens, then the tokens with their summary (RegionViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList((Attention(), Mlp())) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        one = x.mean(1, keepdim=True)
        for i, (attend, feed) in enumerate(self.layers):  # type: ignore[misc]
            on = float(i != off)
            one = one + on * attend(one)
            both = torch.cat((one, x), 1)
            both = both + on * attend(both)
            both = both + on * feed(both)
            one, x = both[:, :1], both[:, 1:]
        return x + one


class SomeResidual(Ends):
    """Every other layer begins with a residual module, the others with a plain one; then pairs that are added here."""

    def __init__(self) -> None:
        super().__init__()

        def pair() -> nn.Module:
            return nn.ModuleList((Attention(), Mlp()))

        first = (nn.Linear(WIDTH, WIDTH), Sub(Mlp()))
        self.layers = nn.ModuleList(
            nn.ModuleList((first[i] if i < 2 else Sub(Mlp()), pair(), pair())) for i in range(3)
        )

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, (first, *pairs) in enumerate(self.layers):  # type: ignore[misc]
            x = x if i == off and isinstance(first, Sub) else first(x)
            for part in (part for both in pairs for part in both):
                x = x if i == off else x + part(x)
        return x


class Values(Attention):
    """Gives its values beside its update, and mixes those of the first layer into them."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, 1) if learned else None

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.norm(x)
        q, k, v = self.qkv(x).chunk(3, -1)
        if first is not None:
            m = 0.5 if self.mix is None else self.mix(x).sigmoid()
            v = v * m + first * (1 - m)
        return self.out((q @ k.mT).softmax(-1) @ v), v


class FirstValues(Ends):
    """`running`: each layer mixes in the values of the layer before, not those of the first one."""

    def __init__(self, learned: bool, running: bool) -> None:
        super().__init__()
        self.running = running
        self.layers = nn.ModuleList(nn.ModuleList((Values(learned), Mlp())) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        first = None
        for i, (attend, feed) in enumerate(self.layers):  # type: ignore[misc]
            update, values = attend(x, first)
            first = values if first is None or self.running else first
            x = x if i == off else x + update
            x = x if i == off else x + feed(x)
        return x


class Running(Attention):
    """Adds its values to those of the layer before, and hands the sum on."""

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        v = v if before is None else v + before
        return self.out((q @ k.mT).softmax(-1) @ v), v


class Both(nn.Module):
    """Adds the first of what a module gives, and hands the second on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        update, values = self.inner(x, before)
        return x + update, values


class RunningLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.attend, self.other = Sub(Mlp()), Both(Running()), Sub(Mlp())

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        x, values = self.attend(self.one(x), before)
        return self.other(x), values


class RunningValues(Ends):
    """The first layer adds nothing to the values, the others do: layers all the same, of two streams."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RunningLayer() for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        values = None
        for i, block in enumerate(self.blocks):
            new, more = block(x, values)
            x, values = (x, more if values is None else values) if i == off else (new, more)
        return x


class Memory(nn.Module):
    """Its residual network writes, then reads. Its `forward` is called directly: no call of it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.net = nn.Linear(WIDTH, WIDTH), Sub(Mlp())

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x)
        return self.net(q + self.net(q).mean(1, keepdim=True).sin())


class Remembering(Ends):
    """Each layer reads a memory, whose update goes through a norm (Titans)."""

    def __init__(self) -> None:
        super().__init__()
        parts = (nn.LayerNorm, lambda _: Memory(), lambda _: Attention(), lambda _: Mlp())
        self.layers = nn.ModuleList(nn.ModuleList(make(WIDTH) for make in parts) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, (norm, memory, attend, feed) in enumerate(self.layers):  # type: ignore[misc]
            x = x if i == off else x + norm(memory.forward(x))
            x = x if i == off else x + attend(x)
            x = x if i == off else x + feed(x)
        return x


def mixing(name: str, learned: bool, running: bool) -> Case:
    layers = tuple((f"layers.{i}.0", f"layers.{i}.1") for i in range(3))
    return Case(name, lambda: FirstValues(learned, running), layers)


LISTS = (
    Case("running_values", RunningValues, numbered("blocks", 3)),
    Case("called_twice", CalledTwice, tuple((f"layers.{i}.0", f"layers.{i}.1") for i in range(3))),
    Case(
        "some_residual",
        SomeResidual,
        tuple(
            (*((f"layers.{i}.0",) if i else ()), *(f"layers.{i}.{j}.{k}" for j in (1, 2) for k in (0, 1)))
            for i in range(3)
        ),
    ),
    mixing("first_values", False, False),
    mixing("first_values_learned", True, False),
    mixing("values_of_the_layer_before", False, True),
    mixing("values_of_the_layer_before_learned", True, True),
    Case(
        "remembering",
        Remembering,
        tuple((f"layers.{i}.0|layers.{i}.1", f"layers.{i}.2", f"layers.{i}.3") for i in range(3)),
    ),
)
