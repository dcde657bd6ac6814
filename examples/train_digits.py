"""Images, in another convention than fog_a's: handwritten digits, ε-prediction, times in [0, 1000], AG-REPA.

    python examples/train_digits.py            # about a minute on one core; needs scikit-learn

A small DiT learns to predict the noise in x_t = √ᾱ x_1 + √(1 − ᾱ) ε. It is wrapped by what it is, without a shim;
`fog_a.check` says whether that is right. Then its layers are attributed over t, and training goes on with the layers
that contribute aligned to a small classifier of digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm.auto import tqdm

import fog_a
from fog_a.teachers import ModuleTeacher

WIDTH, PATCH, SIDE = 64, 2, 8
KEPT = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)  # ᾱ


class Block(nn.Module):
    """A DiT block: attention and feed-forward, each scaled, shifted and gated by time and class."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        a, b, g, d, e, k = self.modulation(F.silu(c))[:, None].chunk(6, -1)
        x = self.norm1(h) * (1 + a) + b
        h = h + g * self.attention(x, x, x, need_weights=False)[0]
        return h + k * self.mlp(self.norm2(h) * (1 + d) + e)


class DiT(nn.Module):
    """Predicts the noise in an image (B, 1, 8, 8) at a step in [0, 1000], for a digit."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.digit = nn.Embedding(10, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PATCH**2))

    def forward(self, image: Tensor, timestep: Tensor, digit: Tensor) -> Tensor:
        angles = timestep[:, None] * torch.logspace(0, -4, WIDTH // 2)
        c = self.time(torch.cat([angles.sin(), angles.cos()], -1)) + self.digit(digit)
        h = self.patches(image).flatten(2).transpose(1, 2) + self.places  # (B, 16, D)
        for block in self.blocks:
            h = block(h, c)
        side = SIDE // PATCH
        return F.pixel_shuffle(self.out(h).transpose(1, 2).unflatten(2, (side, side)), PATCH)


def data() -> tuple[Tensor, Tensor]:
    """1,797 digits of 8 × 8 pixels in [−1, 1], and which digits they are."""
    pixels, digits = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).view(-1, 1, SIDE, SIDE) / 8 - 1, torch.tensor(digits)


def classifier(images: Tensor, digits: Tensor, steps: int) -> nn.Sequential:
    """The teacher: a small convolutional network that tells digits apart."""
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,))
        loss = F.cross_entropy(net(images[rows]), digits[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def noise_loss(net: DiT, images: Tensor, digits: Tensor) -> Tensor:
    """The training's own loss: the mean square error of the predicted noise at a random step."""
    steps = torch.randint(1000, (len(images),))
    kept, noise = KEPT[steps][:, None, None, None], torch.randn_like(images)
    return F.mse_loss(net(kept.sqrt() * images + (1 - kept).sqrt() * noise, steps.float(), digits), noise)


def train(
    net: DiT, optimizer: torch.optim.Optimizer, images: Tensor, digits: Tensor, steps: int, reg: Any = None
) -> None:
    """The training loop, without alignment and with it."""
    for _ in tqdm(range(steps), desc="training" if reg is None else "training, aligned"):
        rows = torch.randint(len(images), (64,))
        loss = noise_loss(net, images[rows], digits[rows])
        if reg is not None:
            loss = loss + reg({"image": images[rows], "digit": digits[rows]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(arguments: list[str] | None = None) -> fog_a.Scores:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="before, and again with alignment")
    parser.add_argument("--out", type=Path, default=Path("out/digits.png"), help="picture of the scores")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    images, digits = data()
    teacher = classifier(images[300:], digits[300:], options.steps)
    net = DiT()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    flow = fog_a.wrap(net, x="image", t="timestep", data="image", path="ddpm", target="eps")

    train(net, optimizer, images[300:], digits[300:], options.steps)
    held_out = {"image": images[:64], "digit": digits[:64]}
    print(fog_a.check(flow, held_out))
    scores = fog_a.attribute(flow, held_out)
    print(scores.table(3))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    scores.plot().savefig(options.out)

    guide = ModuleTeacher(teacher, "image", layer="5", dim=256)
    reg = fog_a.AGREPA(flow, guide, fog_a.select(scores, k=2), center=True)
    optimizer.add_param_group({"params": list(reg.parameters())})
    train(net, optimizer, images[300:], digits[300:], options.steps, reg)
    print({name: round(value, 3) for name, value in reg.metrics().items()})
    return scores


if __name__ == "__main__":
    main()
