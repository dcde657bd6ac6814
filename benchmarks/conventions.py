"""Ten conventions on three nets: does `fog_a.check` name the convention that a network was trained in?

    python benchmarks/conventions.py            # about three minutes on one core; --steps 200 for a look

Each network is trained by a loss written by hand here, without fog_a. Then it is wrapped rightly, and wrongly as flow
matching's default, and checked both times.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fog_a

KEPT = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)  # ᾱ of DDPM


class Batch(NamedTuple):
    """One training batch: what the network is given, and what it must predict."""

    x: Tensor
    time: Tensor
    target: Tensor


def interpolated(data: Tensor, noise: Tensor, u: Tensor) -> Tensor:
    return u * data + (1 - u) * noise


def steps(data: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = (1000 * (1 - u)).floor().clamp(0, 999).long()
    kept = KEPT[n]
    return kept.sqrt(), (1 - kept).sqrt(), n.flatten().float()


def turned(u: Tensor) -> tuple[Tensor, Tensor]:
    return (0.5 * math.pi * u).sin(), (0.5 * math.pi * u).cos()


def v_forward(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    return Batch(interpolated(x, e, u), u.flatten(), x - e)


def v_backward(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    return Batch(interpolated(x, e, u), 1 - u.flatten(), e - x)


def v_thousand(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    return Batch(interpolated(x, e, u), 1000 * (1 - u.flatten()), e - x)


def v_against(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    return Batch(interpolated(x, e, u), 1 - u.flatten(), x - e)


def x_linear(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    return Batch(interpolated(x, e, u), u.flatten(), x)


def eps_linear(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    return Batch(interpolated(x, e, u), 1000 * (1 - u.flatten()), e)


def v_cosine(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    a, s = turned(u)
    return Batch(a * x + s * e, u.flatten(), 0.5 * math.pi * (s * x - a * e))


def angular(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    a, s = turned(u)
    return Batch(a * x + s * e, 1 - u.flatten(), a * e - s * x)


def eps_ddpm(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    a, s, n = steps(x, u)
    return Batch(a * x + s * e, n, e)


def v_ddpm(x: Tensor, e: Tensor, u: Tensor) -> Batch:
    a, s, n = steps(x, u)
    return Batch(a * x + s * e, n, a * e - s * x)


Convention = tuple[Callable[[Tensor, Tensor, Tensor], Batch], dict[str, Any]]
CONVENTIONS: dict[str, Convention] = {
    "flow matching: v, t": (v_forward, {}),
    "minRF: v, 1 - t": (v_backward, {"time": lambda t: 1 - t}),
    "SD3: v, 1000 (1 - t)": (v_thousand, {"time": lambda t: 1000 * (1 - t)}),
    "v against its time": (v_against, {"time": lambda t: 1 - t, "target": "-v"}),
    "clean sample, linear": (x_linear, {"target": "x0"}),
    "noise, linear, 1000 (1 - t)": (eps_linear, {"target": "eps", "time": lambda t: 1000 * (1 - t)}),
    "SiT's GVP: v, cosine": (v_cosine, {"path": "cosine"}),
    "Stable Audio: v_prediction, cosine, 1 - t": (
        angular,
        {"path": "cosine", "target": "v_prediction", "time": lambda t: 1 - t},
    ),
    "DDPM: noise, steps": (eps_ddpm, {"path": "ddpm", "target": "eps"}),
    "DDPM: v_prediction, steps": (v_ddpm, {"path": "ddpm", "target": "v_prediction"}),
}


class Block(nn.Module):
    """A residual block that is modulated by time; `mix` mixes the frames."""

    def __init__(self, width: int, mix: nn.Module) -> None:
        super().__init__()
        self.norm, self.mix, self.time = nn.LayerNorm(width), mix, nn.Linear(width, 2 * width)
        self.f = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.time(c)[:, None].chunk(2, -1)
        y = self.norm(h) * (1 + scale) + shift
        return h + self.f(y + self.mix(y))


class Convolution(nn.Module):
    """A convolution over frames, (B, T, D) in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, y: Tensor) -> Tensor:
        return self.f(y.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over frames."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, y: Tensor) -> Tensor:
        return self.f(y, y, y, need_weights=False)[0]


class Net(nn.Module):
    """A small network of blocks over frames: attention, convolutions, or each frame by itself."""

    def __init__(self, mix: Callable[[int], nn.Module], data: int = 6, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(data, width), nn.Linear(width, data)
        self.time = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, mix(width)) for _ in range(depth))
        self.waves = nn.Buffer(torch.logspace(-3, 2, width))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * self.waves
        h, c = self.inp(x_t), self.time(torch.cat([angle.sin(), angle.cos()], -1))
        for block in self.blocks:
            h = block(h, c)
        return self.out(h)


NETS: dict[str, Callable[[int], nn.Module]] = {
    "attention": Attention,
    "convolution": Convolution,
    "frame by frame": lambda width: nn.Linear(width, width),
}


def waves(count: int) -> Tensor:
    """Data: sines of a few frequencies in six channels over twelve frames, plus a little noise."""
    t = torch.arange(12.0)[None, :, None]
    speed = torch.randint(1, 4, (count, 1, 1)) * 0.4
    phase = 2 * math.pi * torch.rand(count, 1, 1) + torch.arange(6.0)
    return 1.2 * (speed * t + phase).sin() + 0.05 * torch.randn(count, 12, 6)


def trained(mix: Callable[[int], nn.Module], rule: Callable[[Tensor, Tensor, Tensor], Batch], count: int) -> Net:
    """A network after so many steps of a hand-written loss."""
    torch.manual_seed(0)
    net = Net(mix)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, count)
    for _ in range(count):
        x = waves(64)
        batch = rule(x, torch.randn_like(x), torch.rand(64, 1, 1))
        loss = (net(batch.x, batch.time) - batch.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    count = parser.parse_args().steps
    torch.manual_seed(1)
    batch = {"x1": waves(16)}
    print(f"{'convention':<44}{'net':<16}{'right':>7}{'next':>7}   wrapped as flow matching's default, check says")
    for name, (rule, options) in CONVENTIONS.items():
        for kind, mix in NETS.items():
            net = trained(mix, rule, count)
            right = fog_a.check(fog_a.wrap(net, x="x_t", t="t", **options), batch)
            wrong = fog_a.check(fog_a.wrap(net, x="x_t", t="t"), batch)
            following = min(fit.mean for fit in right.fits[1:])
            said = "fits" if wrong.ok else wrong.verdict.partition(": type ")[2]
            mark = "" if right.ok else "  NOT CONFIRMED"
            print(f"{name:<44}{kind:<16}{right.fits[0].mean:7.3f}{following:7.3f}   {said}{mark}", flush=True)


if __name__ == "__main__":
    main()
