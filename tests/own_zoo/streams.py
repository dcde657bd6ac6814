"""How streams go into a block and come out: several of them, in containers, in another order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Chain, Mlp, numbered


class Two(nn.Module):
    """Two streams of one shape, given back in the other order."""

    def __init__(self) -> None:
        super().__init__()
        self.fa, self.fb = Mlp(), Mlp()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return b + self.fb(a + b), a + self.fa(a - b)


class Swapped(Chain):
    def __init__(self) -> None:
        super().__init__(Two)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        a, b = x, torch.sin(x)
        for i, block in enumerate(self.blocks):
            b, a = (b, a) if i == off else block(a, b)
        return a + 2 * b


class Coupled(nn.Module):
    """A reversible block: each half is updated by the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Mlp(WIDTH // 2), Mlp(WIDTH // 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = a + self.f(b)
        return a, b + self.g(a)


class Reversible(Chain):
    """The halves of one tensor, from a single split."""

    def __init__(self) -> None:
        super().__init__(Coupled)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        a, b = x.chunk(2, -1)
        for i, block in enumerate(self.blocks):
            a, b = (a, b) if i == off else block(a, b)
        return torch.cat([a, b], -1)


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fs = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        mean = torch.stack([x.mean(1, keepdim=True) for x in xs]).mean(0)
        return [x + f(x + mean) for x, f in zip(xs, self.fs, strict=True)]


class Resolutions(Chain):
    """A list of three streams, each of its own length."""

    def __init__(self) -> None:
        super().__init__(Many)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        xs = [x, x[:, :4], x[:, :2]]
        for i, block in enumerate(self.blocks):
            xs = xs if i == off else block(xs)
        return xs[0] + xs[1].mean(1, keepdim=True) + xs[2].mean(1, keepdim=True)


@dataclass
class State:
    step: Tensor
    x: Tensor


class StateBlock(Mlp):
    def forward(self, *, state: State, scale: float) -> State:
        return State(state.step + 1, state.x + scale * super().forward(state.x))


class States(Chain):
    """A dataclass, by keyword; its first tensor is not the stream."""

    def __init__(self) -> None:
        super().__init__(StateBlock)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        state = State(torch.zeros(()), x)
        for i, block in enumerate(self.blocks):
            state = state if i == off else block(state=state, scale=0.7)
        return state.x


class DictBlock(Mlp):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch["x"] = batch["x"] + super().forward(batch["x"])
        return batch


class Dicts(Chain):
    """Writes into the caller's dict, and gives back the same dict."""

    def __init__(self) -> None:
        super().__init__(DictBlock)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        batch = {"seen": torch.zeros(()), "x": x}
        for i, block in enumerate(self.blocks):
            batch = batch if i == off else block(batch)
        return batch["x"]


STREAMS = (
    Case("swapped", Swapped, numbered("blocks", 3)),
    Case("reversible", Reversible, numbered("blocks", 3)),
    Case("resolutions", Resolutions, numbered("blocks", 3)),
    Case("states", States, numbered("blocks", 3)),
    Case("dicts", Dicts, numbered("blocks", 3)),
)
