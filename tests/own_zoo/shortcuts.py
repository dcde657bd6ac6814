"""Where a layer's stream is no pure sum: the shortcut, or what lies between two updates, is a linear map."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Ends, Mlp, numbered


class Bottleneck(nn.Module):
    """A convolution block whose shortcut changes the width (1×1), as in the first block of a stage."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(width_in, width_out, 3, 1, 1), nn.GroupNorm(2, width_out)
        self.last = nn.Conv1d(width_out, width_out, 3, 1, 1)
        self.shortcut = nn.Conv1d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.last(F.silu(self.norm(self.conv(x))))


class Separable(Bottleneck):
    """The shortcut that changes the width is two convolutions, depth-wise and point-wise."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out)
        if width_in != width_out:
            depthwise = nn.Conv1d(width_in, width_in, 3, 1, 1, groups=width_in)
            self.shortcut = nn.Sequential(depthwise, nn.BatchNorm1d(width_in), nn.Conv1d(width_in, width_out, 1))


class PaddedChannels(Bottleneck):
    """The shortcut gets its further channels as zeros: what the branch alone fills there goes with it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out)
        self.more = width_out - width_in

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(x) + self.last(F.silu(self.norm(self.conv(x))))

    def padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, self.more))


class Residuals(nn.Module):
    """Stages of two blocks, the first with a projection: there gate 0 closes the branch and keeps the shortcut."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        widths = ((WIDTH, 24), (24, 32))
        self.stages = nn.Sequential(*(nn.Sequential(make(a, b), make(b, b)) for a, b in widths))

    @property
    def blocks(self) -> list[Bottleneck]:
        return [m for m in self.stages.modules() if isinstance(m, Bottleneck)]

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)

    def without(self, k: int, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            shortcut = block.padded if isinstance(block, PaddedChannels) else block.shortcut
            x = shortcut(x) if i == k else block(x)
        return x


class LinearBetween(nn.Module):
    """x + attention, then a linear map of the whole stream, then + feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.between, self.feed = Attention(), nn.Linear(WIDTH, WIDTH), Mlp()

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        x = self.between(x if off else x + self.attend(x))
        return x if off else x + self.feed(x)


class LinearBetweens(Ends):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make() for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, i == off)
        return x


class TwoProjections(nn.Module):
    """Two updates in a row, each beside a linear map, behind each an activation (PDEArena's Fourier block)."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Mlp(), Mlp()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        x = F.gelu(self.a(x) if off else self.f(x) + self.a(x))
        return F.gelu(self.b(x) if off else self.g(x) + self.b(x))


def residuals(name: str, make: Callable[[int, int], nn.Module]) -> Case:
    layers = ("stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1")
    return Case(name, lambda: Residuals(make), layers, lambda: torch.randn(2, WIDTH, 12))


SHORTCUTS = (
    residuals("residuals", Bottleneck),
    residuals("separable", Separable),
    residuals("padded_channels", PaddedChannels),
    Case("linear_between", lambda: LinearBetweens(LinearBetween), numbered("blocks", 3)),
    Case("two_projections", lambda: LinearBetweens(TwoProjections), numbered("blocks", 3)),
)
