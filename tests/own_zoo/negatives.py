"""Models that have no residual block, though most of them add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case


class Plain(nn.Module):
    """Three of one kind, one after the other."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(make() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class First(nn.Module):
    """The first output of what returns several."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Dense(nn.Module):
    """Concatenation only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH + 4 * i, 4) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, F.relu(layer(x))), -1)
        return x


class Recurrent(nn.Module):
    """(1 − z) n + z h, unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), WIDTH), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outputs.append(h)
        return self.out(torch.stack(outputs, 1))


class Steps(nn.Module):
    """A recurrence by hand: the inputs are projected at once, w[:, t] + U h; the same Linear at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        w, h, outputs = self.w(x), torch.zeros(len(x), WIDTH), []
        for t in range(x.shape[1]):
            gate, new = (w[:, t] + self.u(h)).chunk(2, -1)
            z = torch.sigmoid(gate)
            h = z * h + (1 - z) * torch.tanh(new)
            outputs.append(h)
        return torch.stack(outputs, 1)


class Accumulates(nn.Module):
    """A decoder's steps: attention depends on where it has been, which is summed; the sum is never given out."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 6), nn.Softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        been, outputs = torch.zeros(len(x), 6), []
        for t in range(4):
            now = self.where(been + 0.1 * t)
            been = been + now
            outputs.append(torch.einsum("bt,btd->bd", now, x))
        return torch.stack(outputs, 1)


class LowRank(nn.Module):
    """A Linear with a low-rank Linear beside it: the sum of two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.full(x) + self.up(self.down(x)))


class Spectral(nn.Module):
    """W x + K x, K linear in Fourier space."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.modes = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.view_as_real(torch.fft.rfft(x, dim=1))
        mixed = torch.einsum("bkdc,de->bkec", spectrum, self.modes).contiguous()
        return F.gelu(self.full(x) + torch.fft.irfft(torch.view_as_complex(mixed), n=x.shape[1], dim=1))


class Conditioned(nn.Module):
    """f(x) + c(condition): no path on which x stays."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.c = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.f(x)) + self.c(x.mean(1, keepdim=True))


class Voting(nn.Module):
    """A weighted sum of experts, none of which is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH)) for _ in "abc"
        )
        self.weight = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        weights = self.weight(x).softmax(-1).unbind(-1)
        return sum(w[..., None] * expert(x) for w, expert in zip(weights, self.experts, strict=True))


class Positions(nn.Module):
    """Sums of embeddings, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(WIDTH, 24), nn.Embedding(8, 24)
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x) + self.position(torch.arange(x.shape[1])))


class Coder(nn.Module):
    """Down and up again, no skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(6, 12, 4, 2, 1), nn.ConvTranspose1d(12, 6, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(x)))


class GatedUnits(nn.Module):
    """GTrXL: a GRU of stream and update in place of their sum. Its gates are sums of two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.update = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.of_update, self.of_stream = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.candidate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        r, z, h = self.of_update(self.update(x)).chunk(3, -1)
        a, b = self.of_stream(x).chunk(2, -1)
        z = torch.sigmoid(z + b)
        return (1 - z) * x + z * torch.tanh(h + self.candidate(torch.sigmoid(r + a) * x))


class Gate(nn.Module):
    """The same, in a module of its own that is given stream and update."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = torch.sigmoid(self.w(y) + self.u(x))
        return (1 - z) * x + z * torch.tanh(self.w(y) + self.v(z * x))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.update, self.gate = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)), Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x, F.relu(self.update(x)))


def negative(name: str, make: Callable[[], nn.Module]) -> Case:
    return Case(name, make, ())


NEGATIVES = (
    negative("mlp", lambda: Plain(lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()))),
    negative("dense", Dense),
    negative("lstm", lambda: Plain(lambda: First(nn.LSTM(WIDTH, WIDTH, 2, batch_first=True)))),
    negative("recurrent", Recurrent),
    negative("steps", lambda: Plain(Steps)),
    negative("accumulates", Accumulates),
    negative("low_rank", lambda: Plain(LowRank)),
    negative("spectral", lambda: Plain(Spectral)),
    negative("conditioned", lambda: Plain(Conditioned)),
    negative("voting", lambda: Plain(Voting)),
    negative("positions", Positions),
    negative("coder", Coder),
    negative("gru_gated", lambda: Plain(GatedUnits)),
    negative("gru_gates", lambda: Plain(Gated)),
)
