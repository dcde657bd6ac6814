"""U-Nets: their levels and skips are no layers, the residual blocks in them are."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, numbered


class Block(nn.Module):
    """x + f(x) on channels; with `narrower` given, by a shortcut that halves the length."""

    def __init__(self, width: int, narrower: int | None = None) -> None:
        super().__init__()
        stride, width_in = (1, width) if narrower is None else (2, narrower)
        self.norm, self.conv = nn.GroupNorm(2, width_in), nn.Conv1d(width_in, width, 3, stride, 1)
        self.last = nn.Conv1d(width, width, 3, 1, 1)
        self.shortcut = nn.Identity() if narrower is None else nn.Conv1d(width_in, width, 1, stride)

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        h = self.shortcut(x)
        return h if off else h + self.last(F.silu(self.conv(F.silu(self.norm(x)))))


class Up(nn.Module):
    def __init__(self, width: int, narrower: int) -> None:
        super().__init__()
        self.wide = nn.ConvTranspose1d(width, narrower, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.wide(x))


WIDTHS = (8, 12, 16)


class Added(nn.Module):
    """Two blocks a level on the way down, one on the way up, where the level's earlier output is added."""

    def __init__(self) -> None:
        super().__init__()
        down = (nn.Sequential(Block(b, a), Block(b)) for a, b in itertools.pairwise(WIDTHS))
        self.first, self.down = Block(WIDTHS[0]), nn.ModuleList(down)
        self.up = nn.ModuleList(Up(b, a) for a, b in zip(WIDTHS[1::-1], WIDTHS[:0:-1], strict=True))
        self.after = nn.ModuleList(Block(a) for a in WIDTHS[1::-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.without(None, x)

    def without(self, k: int | None, x: Tensor) -> Tensor:
        x, kept = self.first(x, k == 0), []
        for i, (shrink, block) in enumerate(level.children() for level in self.down):
            kept.append(x)
            x = shrink(x, k == 2 * i + 1) if k == 2 * i + 1 else shrink(x)
            x = block(x, k == 2 * i + 2) if k == 2 * i + 2 else block(x)
        for i, (up, block) in enumerate(zip(self.up, self.after, strict=True)):
            x = up(x) + kept.pop()
            x = block(x, k == 5 + i)
        return x


class Level(nn.Module):
    """One level holds the next: down, what lies below, up; the skip by concatenation."""

    def __init__(self, width: int, wide: int, *wider: int) -> None:
        super().__init__()
        self.down = Block(wide, width)
        self.below: nn.Module = Level(wide, *wider) if wider else Block(wide)
        self.up, self.merge = Up(wide, width), nn.Conv1d(2 * width, width, 1)

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        h = self.down(x, off == 0)
        h = self.below(h) if off is None else self.below(h, off - 1 if isinstance(self.below, Level) else off == 1)
        return self.merge(torch.cat((x, self.up(h)), 1))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Level(*WIDTHS)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def without(self, k: int, x: Tensor) -> Tensor:
        return self.net(x, k)


class Unequal(nn.Module):
    """x + f(g(x)), where g and f are sequences of unequal length; the shortcut may be a linear map."""

    def __init__(self, wide: int, width: int = WIDTH) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.LayerNorm(wide), nn.SiLU(), nn.Linear(wide, width))
        self.f = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Dropout(0.0), nn.Linear(width, width))
        self.shortcut = nn.Identity() if wide == width else nn.Linear(wide, width)

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        branch = self.f(self.g(x))
        return self.shortcut(x) if off else self.shortcut(x) + branch


class Attended(Attention):
    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        return x if off else x + super().forward(x)


class Latent(nn.Module):
    """Latent diffusion's U-Net: lists of sequences, two of one kind in the middle; up, the skip is joined first."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Sequential(Unequal(WIDTH), Attended())])
        self.mid = nn.Sequential(Unequal(WIDTH), Attended(), Unequal(WIDTH))
        up = [[Unequal(2 * WIDTH), Attended()] for _ in range(2)]
        self.up = nn.ModuleList([nn.Sequential(*up[0], nn.Linear(WIDTH, WIDTH)), nn.Sequential(*up[1])])

    def forward(self, x: Tensor) -> Tensor:
        kept = [x, x := self.down[0](x)]
        x = self.mid(x)
        for level in self.up:
            x = level(torch.cat((x, kept.pop()), -1))
        return x

    def without(self, k: int, x: Tensor) -> Tensor:
        layers = (*self.down[0].children(), *self.mid.children(), *(layer for up in self.up for layer in up[:2]))

        def left_out(m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return m.forward(*args, True)

        with layers[k].register_forward_hook(left_out):
            return self(x)


def channels() -> Tensor:
    return torch.randn(2, WIDTHS[0], 16, generator=torch.Generator().manual_seed(1))


UNETS = (
    Case(
        "added_skips", Added, ("first", "down.0.0", "down.0.1", "down.1.0", "down.1.1", "after.0", "after.1"), channels
    ),
    Case("latent", Latent, ("down.0.0", "down.0.1", *numbered("mid", 3), *numbered("up.0", 2), *numbered("up.1", 2))),
    Case("nested", Nested, ("net.down", "net.below.down", "net.below.below"), channels),
)
