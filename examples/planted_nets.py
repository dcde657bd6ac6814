"""The toy of `planted.py`: small velocity networks side by side, each layer's update times a planted scale, and clips.

Everything random is a function of the seed alone, whichever seeds run beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Setting:
    """Sizes of the toy.

    Attributes:
        layers, width, tokens, channels, hidden: of the net and its clips; `hidden` is the width of z.
        least: the smallest planted scale; the largest is 1.
        warmup, steps: before and after the branch.
        batch, scarce: clips of a step, and how many there are where data are scarce.
        weight: λ of the aligned layer.
        held_out: clips for the endpoint, at stratified flow times.
    """

    layers: int = 8
    width: int = 16
    tokens: int = 6
    channels: int = 6
    hidden: int = 4
    least: float = 0.1
    warmup: int = 150
    steps: int = 300
    batch: int = 16
    scarce: int = 8
    weight: float = 0.5
    lr: float = 5e-3
    held_out: int = 512


def drawn(seeds: Sequence[int], key: tuple[int, ...], *shape: int) -> Float[Tensor, "N *S"]:
    """Standard normal numbers, a function of each seed and the key alone."""
    rows = [np.random.default_rng((seed, *key)).standard_normal(shape, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


class Linear(nn.Module):
    """N linear maps side by side: row n of the input goes through map n."""

    def __init__(self, seeds: Sequence[int], key: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(seeds, (0, key), inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(len(seeds), 1, outputs))

    def forward(self, x: Float[Tensor, "N *B I"]) -> Float[Tensor, "N *B O"]:
        return torch.baddbmm(self.bias, x.flatten(1, -2), self.weight).unflatten(1, x.shape[1:-1])


class Update(nn.Module):
    """f_k: reads each token and the mean of all; the planted scale of its layer multiplies it."""

    def __init__(self, seeds: Sequence[int], layer: int, width: int, scale: Float[Tensor, "N"]) -> None:
        super().__init__()
        self.inlet = Linear(seeds, 10 + 2 * layer, 2 * width, 2 * width)
        self.outlet = Linear(seeds, 11 + 2 * layer, 2 * width, width)
        self.scale = nn.Parameter(scale[:, None, None, None], requires_grad=False)

    def forward(self, h: Float[Tensor, "N B T D"]) -> Float[Tensor, "N B T D"]:
        x = F.layer_norm(h, h.shape[-1:])
        x = torch.cat([x, x.mean(2, keepdim=True).expand_as(x)], dim=-1)
        return self.scale * self.outlet(F.gelu(self.inlet(x)))


class Block(nn.Module):
    """h_k = h_{k−1} + f_k(h_{k−1})."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.update = Update(*arguments)

    def forward(self, h: Float[Tensor, "N B T D"]) -> Float[Tensor, "N B T D"]:
        return h + self.update(h)


class Nets(nn.Module):
    """N velocity networks side by side, one for each seed."""

    def __init__(self, s: Setting, seeds: Sequence[int]) -> None:
        super().__init__()
        steps = np.geomspace(s.least, 1, s.layers, dtype=np.float32)
        orders = np.stack([np.random.default_rng((seed, 1)).permutation(s.layers) for seed in seeds])
        scales = torch.from_numpy(steps[orders])  # seed → scale of each layer
        self.inlet = Linear(seeds, 0, s.channels + 1 + s.tokens, s.width)
        self.blocks = nn.ModuleList(Block(seeds, k, s.width, scales[:, k]) for k in range(s.layers))
        self.outlet = Linear(seeds, 1, s.width, s.channels)
        self.register_buffer("place", torch.eye(s.tokens))
        self.place: Tensor

    def enter(self, x: Float[Tensor, "N B T C"], t: Float[Tensor, "N B"]) -> Float[Tensor, "N B T D"]:
        """h_0, of the noisy clip, its flow time and the tokens' places."""
        place = self.place.expand(*x.shape[:-1], -1)
        return self.inlet(torch.cat([x, t[..., None, None].expand(*x.shape[:-1], 1), place], dim=-1))

    def leave(self, h: Float[Tensor, "N B T D"]) -> Float[Tensor, "N B T C"]:
        """The velocity."""
        return self.outlet(F.layer_norm(h, h.shape[-1:]))

    def forward(self, x: Float[Tensor, "N B T C"], t: Float[Tensor, "N B"]) -> Float[Tensor, "N B T C"]:
        h = self.enter(x, t)
        for block in self.blocks:
            h = block(h)
        return self.leave(h)

    def branch(self, arms: int) -> None:
        """Each seed's net so many times over: row seed · arms + arm."""
        for module in self.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                rows = p.detach().repeat_interleave(arms, 0)
                setattr(module, name, nn.Parameter(rows, requires_grad=p.requires_grad))


class World:
    """The seeds' clips: a random smooth map from z and the place of a token to its channels."""

    def __init__(self, s: Setting, seeds: Sequence[int]) -> None:
        self.s, self.seeds = s, seeds
        self.first = drawn(seeds, (2,), s.hidden + s.tokens, 32)
        self.last = drawn(seeds, (3,), 32, s.channels) / 32**0.5
        self.few = drawn(seeds, (4,), s.scarce, s.hidden)

    def latents(self, step: int, scarce: bool) -> Float[Tensor, "N B H"]:
        """z of a training batch."""
        if not scarce:
            return drawn(self.seeds, (5, step), self.s.batch, self.s.hidden)
        rows = [np.random.default_rng((seed, 6, step)).choice(self.s.scarce, self.s.batch) for seed in self.seeds]
        return torch.stack([few[row] for few, row in zip(self.few, rows, strict=True)])

    def clips(self, z: Float[Tensor, "N B H"]) -> Float[Tensor, "N B T C"]:
        """x₁ of z."""
        z = z[:, :, None].expand(-1, -1, self.s.tokens, -1)
        place = 2 * torch.eye(self.s.tokens).expand(*z.shape[:2], -1, -1)
        return (torch.cat([z, place], -1) @ self.first[:, None]).tanh() @ self.last[:, None]

    def path(self, z: Float[Tensor, "N B H"], key: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and the velocity to learn; flow times are stratified over the batch."""
        x1, count = self.clips(z), z.shape[1]
        x0 = drawn(self.seeds, (*key, 0), *x1.shape[1:])
        order = np.stack([np.random.default_rng((seed, *key, 1)).permutation(count) for seed in self.seeds])
        t = (torch.from_numpy(order).float() + 0.5) / count
        return torch.lerp(x0, x1, t[..., None, None]), t, x1 - x0
