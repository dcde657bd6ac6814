"""Second streams that a mask of their size, a linear map or a last layer stands beside."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Ends, numbered, tokens
from own_zoo.seconds import FusedSums, Masking

Carry = Callable[[], Callable[[Tensor], Tensor]]


class Pair(nn.Module):
    """Gives (residual, second), whose sums the parent makes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, 2 * WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.down(F.relu(self.up(x))).chunk(2, -1)


class Backcasts(nn.Module):
    """N-BEATS with a mask of the stream's size that is made of the batch: r ← (r − back)·mask, y ← y + forecast."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Pair() for _ in range(4))

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        mask = (x > -1.5).to(x)
        r, y = x.flip(-1), x[:, -1:]
        for i, block in enumerate(self.blocks):
            back, forecast = block(r)
            r, y = (r - back * (i != off)) * mask, y + forecast * (i != off)
        return y

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class Skips(Ends):
    """Conv-TasNet: x ← x + residual, total ← total + skip. The last residual leads nowhere, its skip does (`joined`:
    the total is added to the stream)."""

    def __init__(self, masked: bool, joined: bool = False) -> None:
        super().__init__()
        self.layers, self.masked, self.joined = nn.ModuleList(Pair() for _ in range(4)), masked, joined

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        mask, total = torch.ones_like(x[..., :1]), torch.zeros(())
        for i, layer in enumerate(self.layers):
            residual, skip = layer(x)
            total, x = total + skip * (i != off), x + residual * (i != off)
            x = x * mask if self.masked else x
        return torch.tanh(x + total if self.joined else total)


class Stages(nn.Module):
    """Two stages in a row, each of which adds its own total to its own stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Skips(False, joined=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages[1](self.stages[0](x))

    def without(self, k: int, x: Tensor) -> Tensor:
        first, second = self.stages
        if k < 4:
            return second(first.without(k, x))  # type: ignore[operator]
        return second.without(k - 4, first(x))  # type: ignore[operator]


class LongSkip(nn.Module):
    """A long skip around a whole network, in which layers give skips of their own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)

    def without(self, k: int, x: Tensor) -> Tensor:
        return x + self.net.without(k, x)  # type: ignore[operator]


class Guided(LongSkip):
    """A network's output, changed by that for another input: the second run's last sum is what updates the first's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - 0.5 * self.net(torch.cos(x))

    def without(self, k: int, x: Tensor) -> Tensor:
        if k < 3:
            return self.net.without(k, x) - 0.5 * self.net(torch.cos(x))  # type: ignore[operator]
        return self.net(x) - 0.5 * self.net.without(k - 3, torch.cos(x))  # type: ignore[operator]


class Leak(nn.Module):
    """(h, s) → (h + f(h), carry(s) + g(f(h))): closed, h comes back, and of s the carried part stays."""

    def __init__(self, carry: Carry) -> None:
        super().__init__()
        self.f, self.g = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), nn.Linear(WIDTH, WIDTH)
        self.carry = carry()

    def forward(self, h: Tensor, s: Tensor, off: bool = False) -> tuple[Tensor, Tensor]:
        u = self.f(h)
        return (h, self.carry(s)) if off else (h + u, self.carry(s) + self.g(u))


class Leaks(Ends):
    """The output reads the second stream."""

    def __init__(self, carry: Carry) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Leak(carry) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        h = s = x
        for i, layer in enumerate(self.layers):
            h, s = layer(h, s, i == off)
        return s


class Res(nn.Module):
    """A residual block; where it halves the rate or the channels, with a projection."""

    def __init__(self, channels: int, rate: int = 1) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.GroupNorm(2, channels), nn.GroupNorm(2, 8)
        self.a, self.b = nn.Conv1d(channels, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.short = nn.Conv1d(channels, 8, 1) if rate * channels > 8 else nn.Identity()
        self.rate = rate

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        short = self.short(F.avg_pool1d(x, self.rate))
        h = self.a(F.avg_pool1d(F.silu(self.norm(x)), self.rate))
        return (short if off else short + self.b(F.silu(self.norm2(h)))) / 2**0.5


class Combine(nn.Module):
    """Adds a linear map of x_t's pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv1d(2, 8, 1)

    def forward(self, p: Tensor, h: Tensor) -> Tensor:
        return self.into(p) + h


class Pyramid(nn.Module):
    """A U-Net in one flat list. A linear map of the pooled x_t is added behind a block (NCSN++ with `input_skip`)."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 2, 3, padding=1)
        down = [m for _ in range(2) for m in (Res(8), Res(8, 2), Combine())]
        self.all = nn.ModuleList([*down, Res(8), Res(16), Res(16)])

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        p, h, skips = x, self.inp(x), list[Tensor]()
        for i, m in enumerate(self.all):
            if isinstance(m, Combine):
                p = F.avg_pool1d(p, 2)
                h = m(p, h)
            elif i > 6:
                skip = skips[5 if i == 7 else 3]
                h = m(torch.cat([F.interpolate(h, size=skip.shape[-1]), skip], 1), i == off)
            else:
                h = m(h, i == off)
            skips.append(h)
        return F.interpolate(self.out(F.silu(h)), scale_factor=2)

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, (0, 1, 3, 4, 6, 7, 8)[k])


def batch() -> Tensor:
    """Tokens for a case that random wirings leave out: two networks in long skips in one list are its layers."""
    return tokens()


CARRIED = (
    Case("backcasts_masked_by_the_batch", Backcasts, numbered("blocks", 4)),
    Case("last_layer_gives_a_skip", lambda: Skips(False), numbered("layers", 4)),
    Case("last_layer_gives_a_skip_masked", lambda: Skips(True), numbered("layers", 4)),
    Case("totals_of_two_stages", Stages, tuple(f"stages.{i}.layers.{j}" for i in range(2) for j in range(4))),
    Case("total_added_to_the_stream", lambda: Skips(False, joined=True), numbered("layers", 4)),
    Case("last_layer_gives_a_skip_inside_a_long_one", lambda: LongSkip(Skips(False)), numbered("net.layers", 4), batch),
    Case("mask_of_skips_inside_a_long_one", lambda: LongSkip(Masking()), numbered("net.layers", 3), batch),
    Case(
        "guided_fused_sums", lambda: Guided(FusedSums()), tuple(f"net.blocks.{i}@{r}" for r in (0, 1) for i in range(3))
    ),
    Case("second_stream_projected", lambda: Leaks(lambda: nn.Linear(WIDTH, WIDTH)), numbered("layers", 3)),
    Case("second_stream_smoothed", lambda: Leaks(lambda: lambda s: s.cumsum(1) / 3), numbered("layers", 3)),
    Case(
        "pyramid_of_the_input", Pyramid, tuple(f"all.{i}" for i in (0, 1, 3, 4, 6, 7, 8)), lambda: torch.randn(2, 2, 16)
    ),
)
