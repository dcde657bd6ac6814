"""Random combinations of the models of our own zoo, with the layers of all of them and the same forward by hand.

    python random_wirings.py FIRST LAST      judges these seeds, a line for each that is not right, then the totals

A combination runs one or two models of the zoo one after the other, and puts arithmetic around them: nothing, Euler
steps, a denoiser's `a x - b net(x)`, a long skip, guidance `net(x) - b net(cos x)`, one module more, a second name.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from own_zoo import CASES, Case, stacks
from own_zoo.case import WIDTH, tokens
from torch import Tensor, nn

import fog_a

AROUND = ("", "steps", "denoiser", "skip", "guided", "wrapped", "twice named")


class Combined(nn.Module):
    """`stages` one after the other, `rounds` times. Layers are numbered by round, then by stage."""

    def __init__(self, cases: tuple[Case, ...], around: str) -> None:
        super().__init__()
        self.cases, self.around = cases, around
        self.rounds = 2 if around in ("steps", "denoiser", "guided") else 1
        self.stages = nn.ModuleList(case.make() for case in cases)
        if around == "twice named":
            self.again = self.stages

    def net(self, x: Tensor, off: int | None = None) -> Tensor:
        for case, stage in zip(self.cases, self.stages, strict=True):
            here = off is not None and 0 <= off < len(case.layers)
            x = stage.without(off, x) if here else stage(x)  # type: ignore[operator]
            off = None if off is None else off - len(case.layers)
        return x

    def forward(self, x: Tensor, off: int | None = None) -> Tensor:
        n = sum(len(case.layers) for case in self.cases)
        if self.around == "guided":
            return self.net(x, off) - 0.5 * self.net(torch.cos(x), None if off is None else off - n)
        for k in range(self.rounds):
            y = self.net(x, None if off is None or off - n * k < 0 else off - n * k)
            if self.around == "steps":
                x = x + 0.5 * y
            elif self.around == "denoiser":
                x = 0.9 * x - 0.5 * y
            else:
                x = x + y if self.around == "skip" else y
        return x


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@dataclass
class Wiring:
    """`labels`: of each layer its name, or the modules of its branches; `without(k)`: v without that layer."""

    name: str
    model: nn.Module
    labels: list[str | tuple[str, ...]]
    combined: Combined

    def without(self, k: int | None) -> Tensor:
        with torch.no_grad():
            return self.combined(tokens(), k)


def fits(case: Case) -> bool:
    """Can its model follow another: tokens in, tokens out, nothing kept between runs?"""
    with torch.no_grad():
        return case.batch is tokens and getattr(case.model()(tokens()), "shape", None) == (2, 6, WIDTH)


class OfParts(stacks.Wrapped):
    """A layer of three parts."""

    def without(self, k: int, x: Tensor) -> Tensor:
        return x


OF_PARTS = Case("layer_of_parts", OfParts, ("net",))
"""Two bare networks in one list are its layers, each made of parts, as HiFi-GAN's are."""
FITTING = [case for case in CASES if fits(case)]


def wiring(seed: int) -> Wiring:
    """The combination of this seed."""
    r = random.Random(seed)
    cases, around = tuple(r.choices(FITTING, k=r.choice((1, 1, 2)))), r.choice(AROUND)
    if [case.name for case in cases] == ["bare_in_a_wrapper"] * 2:
        cases = (OF_PARTS, OF_PARTS)
    torch.manual_seed(seed)
    combined = Combined(cases, around).eval()
    model: nn.Module = Wrapped(combined) if around == "wrapped" else combined
    start = "inner.stages" if around == "wrapped" else "stages"

    def label(i: int, layer: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(layer, str):
            return f"{start}.{i}.{layer.split('@')[0]}"
        return tuple("|".join(f"{start}.{i}.{name}" for name in part.split("|")) for part in layer)

    once = [label(i, layer) for i, case in enumerate(cases) for layer in case.layers]
    return Wiring(f"{around or 'plain'}({', '.join(c.name for c in cases)})", model, once * combined.rounds, combined)


def answers(block: fog_a.ResidualBlock, label: str | tuple[str, ...]) -> bool:
    def close(part: str, names: str) -> bool:
        return any(part == n or part.startswith(n + ".") or n.startswith(part + ".") for n in names.split("|"))

    if isinstance(label, str):
        return block.name.split("@")[0] == label
    return len(block.parts) == len(label) and all(map(close, block.parts, label))


def verdict(w: Wiring) -> str:
    """`right`, `refused …`, `open …` (what is left open is named), or `WRONG …`."""
    try:
        blocks = fog_a.find_blocks(w.model, tokens())
        named = bool(blocks.coverage.note or blocks.coverage.of("beside"))
        if len(blocks) != len(w.labels) or not all(map(answers, blocks, w.labels)):
            return f"{'open' if named else 'WRONG'} found {blocks.names}"
        scores = fog_a.attribute(w.model, tokens(), blocks=blocks, progress=False).values[:, 0]
    except fog_a.FogError as error:
        return f"refused {type(error).__name__}: {str(error)[:100]}"
    v = w.without(None)
    norms = [
        ((w.without(k) - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)).tolist() for k in range(len(blocks))
    ]
    want: Any = torch.tensor(norms).T
    off = (torch.tensor(scores) - want).abs() > 1e-4 * want.clamp(min=0.5)
    wrong = [name for k, name in enumerate(blocks.names) if bool(off[:, k].any())]
    return "right" if not wrong else f"{'open' if named else 'WRONG'} scores of {wrong}"


def main(first: int, last: int) -> int:
    total: Counter[str] = Counter()
    for seed in range(first, last):
        w = wiring(seed)
        said = verdict(w)
        total[said.split()[0]] += 1
        if said != "right":
            print(seed, w.name, said[:300], flush=True)
    print(dict(total))
    return total["WRONG"]


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:3]))))
