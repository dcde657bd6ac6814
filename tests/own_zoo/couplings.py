"""Where a stream is turned or ends in an output of its own: couplings with reversed tokens, heads at each rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Ends, Layer, Mlp, numbered


class Sums(Mlp):
    """A layer that reads the tokens before."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x).cumsum(1) / 3


class Step(nn.Module):
    """x ← (x − shift) · exp(−scale), both made of the tokens before by one module (TarFlow). Closed, both are 0."""

    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Sums() for _ in range(2))
        self.inp, self.out, self.reverse = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), reverse

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        if off:
            return x
        x = x.flip(1) if self.reverse else x
        h = self.inp(x)
        for layer in self.layers:
            h = layer(h)
        scale, shift = F.pad(self.out(h)[:, :-1], (0, 0, 1, 0)).chunk(2, -1)
        y = (x - shift) * torch.exp(-0.3 * scale)
        return y.flip(1) if self.reverse else y


class Couplings(nn.Module):
    """Every second step reads the tokens in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Step(i % 2 == 1) for i in range(3))

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, i == off)
        return x

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class Heads(nn.Module):
    """A head reads each layer, and their outputs are added up (StyleGAN2, NCSN++ with `output_skip`)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mlp() for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, h: Tensor, off: int | None = None) -> Tensor:
        total = torch.zeros(())
        for i, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            h = h if i == off else h + layer(h)
            total = total + head(F.silu(h))
        return total

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class Projected(nn.Module):
    """mlp(x) + conv(x), from the wider two streams to one."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.shortcut = Mlp(2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        return self.shortcut(x) if off else self.narrow(self.mlp(x)) + self.shortcut(x)


class Controlled(nn.Module):
    """A level of a network and its control (ControlNet-XS): each layer of the control reads the base beside its own
    stream, goes on to the control's next, and is added to the base by a linear map. Layer `off` is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.control = nn.ModuleList(Layer() for _ in "ab"), nn.ModuleList(Projected() for _ in "ab")
        self.to_control, self.to_base = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in "ab") for _ in "cb")

    def forward(self, x: Tensor, control: Tensor, off: int | None = None) -> tuple[Tensor, Tensor]:
        for i in range(2):
            seen = torch.cat([control, self.to_control[i](x)], -1)
            x = x if off == 2 * i else self.base[i](x)
            control = self.control[i](seen, off == 2 * i + 1)
            x = x + self.to_base[i](control)
        return x, control


class ControlledNet(Ends):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Controlled()])

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        return self.down[0](x, x, off)[0]


COUPLINGS = (
    Case(
        "control_beside_the_base",
        ControlledNet,
        tuple(f"down.0.{kind}.{i}" for i in range(2) for kind in ("base", "control")),
    ),
    Case("coupling_with_reversed_tokens", Couplings, numbered("blocks", 3)),
    Case("a_head_for_each_layer", Heads, numbered("layers", 4)),
)
