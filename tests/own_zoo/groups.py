"""What counts as one layer where layers, or parts like theirs, stand at several depths."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Ends, Layer, Mlp, numbered
from own_zoo.parents import Sub


class Inner(Layer):
    """A layer of a group, of a class of its own: such layers stand nowhere else, whatever a group is combined with."""


class Group(nn.Module):
    """A residual around a list of layers: the unit, where there are several such groups, and its layers are in none
    else."""

    def __init__(self, n: int, layer: Callable[[], nn.Module] = Inner) -> None:
        super().__init__()
        self.norm, self.layers = nn.LayerNorm(WIDTH), nn.ModuleList(layer() for _ in range(n))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        h = self.norm(x)
        for i, layer in enumerate(self.layers):
            h = h if i == off else layer(h)
        return x + self.out(h)


class Groups(Ends):
    """U-shaped: one group on the way down, one in the middle, two on the way up, of two layers or one."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.ModuleList([Group(2)]), Group(2)
        self.up = nn.ModuleList(Group(1) for _ in range(2))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, group in enumerate((*self.down, self.middle, *self.up)):
            x = x if i == off else group(x)
        return x


class GroupsAndLayers(Ends):
    """Layers that stand alone, too, are the layers in all groups, be it the only one of its group."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.groups = nn.ModuleList([Layer()]), nn.ModuleList(Group(n, Layer) for n in (2, 1))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        x = x if off == 0 else self.alone[0](x)
        x = self.groups[0](x, None if off is None else off - 1)
        return self.groups[1](x, None if off is None else off - 3)


class Read(nn.Module):
    """A residual attention, and a feed-forward that is added here."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.feed = Sub(Attention()), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return x + self.feed(x)


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.feed = Sub(Attention()), Sub(Attention()), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.one(x))
        return x + self.feed(x)


class ReadOnceThenTwice(Ends):
    """The parts of the later layers stand in the earlier ones, too: as parts, they make no layers of them."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = (nn.ModuleList(kind() for _ in range(2)) for kind in (Read, ReadTwice))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate((*self.once, *self.twice)):
            x = x if i == off else block(x)
        return x


GROUPS = (
    Case("groups", Groups, ("down.0", "middle", "up.0", "up.1")),
    Case(
        "groups_and_layers",
        GroupsAndLayers,
        ("alone.0", *numbered("groups.0.layers", 2), "groups.1.layers.0"),
    ),
    Case("read_once_then_twice", ReadOnceThenTwice, (*numbered("once", 2), *numbered("twice", 2))),
)
