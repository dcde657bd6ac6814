"""How the stream is laid out: transposed, folded into windows, cut, prolonged, cropped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Ends, Layer, Mlp, chain, numbered


class Turn(nn.Module):
    """(B, T, D) → (B, D, T), or back."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.back, self.f = back, Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.back else x
        x = x + self.f(x)
        return x if self.back else x.transpose(1, 2)


class Turning(Ends):
    """Each block hands on its stream transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Turn(bool(i % 2)) for i in range(4))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = x.transpose(1, 2) if i == off else block(x)
        return x


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.out = nn.GroupNorm(2, WIDTH), nn.Conv1d(WIDTH, 24, 3, 1, 1), nn.Conv1d(24, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.silu(self.wide(self.norm(x))))


class Alternating(nn.Module):
    """Layers on tokens and layers on channels, in one Sequential with the transpositions between them."""

    def __init__(self) -> None:
        super().__init__()
        pairs = ((Layer(), Transposed(), Conv(), Transposed()) for _ in range(2))
        self.body = nn.Sequential(*(module for four in pairs for module in four))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def without(self, k: int, x: Tensor) -> Tensor:
        for i, module in enumerate(self.body):
            x = x if i == 2 * k else module(x)
        return x


class Halves(nn.Module):
    """Reversible: each half of the channels is updated from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Mlp(WIDTH // 2), Mlp(WIDTH // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        a = a + self.f(b)
        return torch.cat((a, b + self.g(a)), -1)


class Window(nn.Module):
    """The stream itself is rolled and cut into windows; the sum is made there."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = Attention()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.roll(x, -1, 1).reshape(-1, 3, WIDTH)
        h = h + self.attend(h)
        return torch.roll(h.reshape(x.shape), 1, 1)


class Registers(nn.Module):
    """Prepends tokens of its own, adds, and cuts them off again."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.attend = nn.Parameter(torch.randn(1, 2, WIDTH)), Attention()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat((self.own.expand(len(x), -1, -1), x), 1)
        return (h + self.attend(h))[:, 2:]


class Crop(nn.Module):
    """A convolution without padding: the shortcut is cropped to it. Snake is x + sin²(ax)/a, no update."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.conv, self.out = (
            nn.Parameter(torch.ones(1, WIDTH, 1)),
            *(nn.Conv1d(WIDTH, WIDTH, k) for k in (3, 1)),
        )

    def snake(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.a * x).square() / (self.a + 1e-9)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 1:-1] + self.out(self.snake(self.conv(self.snake(x))))


class Cropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 3), Crop(), nn.Tanh(), Crop(), nn.Conv1d(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def without(self, k: int, x: Tensor) -> Tensor:
        for i, module in enumerate(self.net):
            x = x[..., 1:-1] if i == (1, 3)[k] else module(x)
        return x


class AcrossBatch(nn.Module):
    """Post-norm over channels first, then layers across time and across samples, each on a view of the last one's."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.norm, self.g = Mlp(), nn.GroupNorm(2, WIDTH), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        x = self.norm((x + self.f(x)).transpose(1, 2)).transpose(1, 2)
        y = x.reshape(b, t, d).transpose(0, 1).contiguous().view(t * b, d)
        return (y + self.g(y)).view(t, b, d).transpose(0, 1).contiguous().view(b, t, d)


LAYOUTS = (
    chain("across_batch", AcrossBatch),
    Case("turning", Turning, numbered("blocks", 4)),
    Case("alternating", Alternating, ("body.0", "body.2", "body.4", "body.6")),
    chain("halves", Halves),
    chain("window", Window),
    chain("registers", Registers),
    Case("cropped", Cropped, ("net.1", "net.3"), lambda: torch.randn(2, WIDTH, 20)),
)
