"""How streams go into a block and come out: several of them, in containers, in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Chain, Ends, Mlp, numbered


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


class Reversible(nn.Module):
    """Takes both halves, that the parent cut."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Mlp(WIDTH // 2), Mlp(WIDTH // 2)

    def forward(self, halves: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = halves
        a = a + self.f(b)
        return a, b + self.g(a)


class Reversibles(Chain):
    def __init__(self) -> None:
        super().__init__(Reversible)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        a, b = x.chunk(2, -1)
        for i, block in enumerate(self.blocks):
            a, b = (a, b) if i == off else block((a, b))
        return torch.cat((a, b), -1)


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


class Mixed(Mlp):
    """Three parallel streams (B, T, S, D): mixed and joined by weights computed from them, and all of them updated."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(width)
        self.weights = nn.Linear(width, 15)

    def split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mixed streams, what the layer reads, and how much of what it makes each stream is given."""
        mix, join, give = torch.tanh(self.weights(h.mean(2))).split((9, 3, 3), -1)
        return torch.matmul(mix.unflatten(-1, (3, 3)), h), (join.unsqueeze(-1) * h).sum(2), give.unsqueeze(-1)

    def forward(self, h: Tensor, off: bool = False) -> Tensor:
        mixed, x, give = self.split(h)
        return mixed if off else mixed + give * super().forward(x).unsqueeze(2)


class HyperConnected(Chain):
    def __init__(self, make: Callable[[], nn.Module] = Mixed) -> None:
        super().__init__(make)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        h = torch.stack([x, 0.5 * x, torch.sin(x)], 2)
        for i, block in enumerate(self.blocks):
            h = self.step(block, h, i == off)
        return h.sum(2)

    def step(self, block: nn.Module, h: Tensor, off: bool) -> Tensor:
        return block(h, off)


class Corrected(Mlp):
    """Parallel streams (B, T, S, D), all predicted from all; one is updated, the others corrected by what that changed,
    and then written into. No module gives out what predicts or corrects."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.share = nn.Linear(WIDTH, 9), nn.Linear(WIDTH, 3)

    def forward(self, h: Tensor) -> Tensor:
        predict = torch.tanh(self.weights(h[:, :, 0])).unflatten(-1, (3, 3))
        h = h + torch.matmul(predict, h)
        x = h[:, :, 0] + super().forward(h[:, :, 0])
        change = (x - h[:, :, 0]).unsqueeze(2).repeat(1, 1, 3, 1)
        h = torch.tanh(self.share(x)).unsqueeze(-1) * change + h
        h[:, :, 1:] += super().forward(h[:, :, 0]).unsqueeze(2)
        return h


class AlternatingUpdates(HyperConnected):
    def __init__(self) -> None:
        super().__init__(Corrected)

    def step(self, block: nn.Module, h: Tensor, off: bool) -> Tensor:
        return h if off else block(h)


class TwoWidths(Ends):
    """The parent adds, to a wide and a narrow stream in turn, each of which is three parallel ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList((nn.ModuleList(Mixed(w) for _ in range(2))) for w in (WIDTH, 8)) for _ in range(2)
        )
        self.f = nn.ModuleList(
            nn.ModuleList((nn.ModuleList(Mlp(w) for _ in range(2))) for w in (WIDTH, 8)) for _ in range(2)
        )

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        wide, narrow = (torch.stack([t, 0.5 * t, torch.sin(t)], 2) for t in (x, x[..., :8]))
        for i in range(2):
            wide = wide + 0.1 * torch.cat([narrow, narrow], -1)
            wide = self.step(wide, i, 0, off)
            narrow = narrow + 0.1 * wide[..., :8]
            narrow = self.step(narrow, i, 1, off)
        return wide.sum(2) + torch.cat([narrow, narrow], -1).sum(2)

    def step(self, h: Tensor, i: int, stream: int, off: int | None) -> Tensor:
        for mixed, f in zip(self.layers[i][stream], self.f[i][stream], strict=True):
            h, x, give = mixed.split(h)
            h = h if off == 2 * i + stream else h + give * f(x).unsqueeze(2)
        return h


STREAMS = (
    Case("alternating_updates", AlternatingUpdates, numbered("blocks", 3)),
    Case("hyper_connected", HyperConnected, numbered("blocks", 3)),
    Case("two_widths", TwoWidths, tuple((f"f.{i}.{s}.0", f"f.{i}.{s}.1") for i in range(2) for s in range(2))),
    Case("swapped", Swapped, numbered("blocks", 3)),
    Case("reversibles", Reversibles, numbered("blocks", 3)),
    Case("resolutions", Resolutions, numbered("blocks", 3)),
    Case("states", States, numbered("blocks", 3)),
    Case("dicts", Dicts, numbered("blocks", 3)),
)
