"""What runs more than once, or not plainly: tied weights, two passes, caches, checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from own_zoo.case import WIDTH, Case, Chain, Ends, Layer, Mlp, numbered
from own_zoo.wirings import Predictions


class Tied(Ends):
    """Two blocks, executed A B A B."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Layer(), Layer()

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i in range(4):
            x = x if i == off else (self.a, self.b)[i % 2](x)
        return x


class Refined(Chain):
    """The stack twice, its input added again before each pass."""

    def __init__(self) -> None:
        super().__init__(n=2)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        first = x
        for i in range(4):
            x = x + first if i % 2 == 0 else x
            x = x if i == off else self.blocks[i % 2](x)
        return x


class Guided(Chain):
    """The stack on two inputs in one forward: guidance inside the model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.run(self.inp(x)) - 0.5 * self.run(self.inp(torch.cos(x))))

    def without(self, k: int, x: Tensor) -> Tensor:
        n = len(self.blocks)
        return self.out(self.run(self.inp(x), k) - 0.5 * self.run(self.inp(torch.cos(x)), k - n))


class Cached(nn.Module):
    """Reads earlier keys and values from a dict, and writes its own into it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.feed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), Mlp()

    def forward(self, x: Tensor, cache: dict[int, tuple[Tensor, Tensor]], layer: int) -> tuple[Tensor, dict]:
        q, k, v = self.qkv(x).chunk(3, -1)
        cache[layer] = tuple(torch.cat((old, new), 1) for old, new in zip(cache[layer], (k, v), strict=True))
        x = x + self.out(F.scaled_dot_product_attention(q, *cache[layer]))
        return x + self.feed(x), cache


class Decoder(Chain):
    def __init__(self) -> None:
        super().__init__(Cached)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        past = torch.linspace(-1, 1, 4 * WIDTH).view(1, 4, WIDTH).expand(len(x), -1, -1)
        cache = {i: (past, past.flip(1)) for i in range(3)}
        for i, block in enumerate(self.blocks):
            y, cache = block(x, cache=cache, layer=i)
            x = x if i == off else y
        return x


class Steps(Ends):
    """An ODE's Euler steps: one field, added four times by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.field = Mlp()

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i in range(4):
            x = x if i == off else x + 0.25 * self.field(x)
        return x


class Checkpointed(Chain):
    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = x if i == off else checkpoint(block, x, use_reentrant=False)
        return x


class SteppedPredictions(nn.Module):
    """Euler steps around a network that is the sum of what its blocks predict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Predictions()

    def forward(self, x: Tensor, off: int = -1) -> Tensor:
        for step in range(2):
            here = off // 3 == step
            x = x + 0.5 * (self.net.without(off % 3, x) if here else self.net(x))
        return x

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class SteppedStages(nn.Module):
    """Two such solvers: what steps several times is no residual unit, though its kind runs again."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(SteppedPredictions() for _ in range(2))

    def forward(self, x: Tensor, off: int = -1) -> Tensor:
        for i, stage in enumerate(self.stages):
            x = stage(x, off - 6 * i if off // 6 == i else -1)
        return x

    def without(self, k: int, x: Tensor) -> Tensor:
        return self(x, k)


class DualPath(Ends):
    """Recurrent branches, normed from a list of their own before they are added."""

    def __init__(self) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i, (rnn, norm) in enumerate(zip(self.rnns, self.norms, strict=True)):
            x = x if i == off else x + norm(rnn(x)[0])
        return x


EXECUTIONS = (
    Case("tied", Tied, ("a@0", "b@0", "a@1", "b@1")),
    Case("refined", Refined, ("blocks.0@0", "blocks.1@0", "blocks.0@1", "blocks.1@1")),
    Case("guided", Guided, tuple(f"blocks.{i}@{call}" for call in (0, 1) for i in range(3))),
    Case("cached", Decoder, numbered("blocks", 3)),
    Case("steps", Steps, tuple(f"field@{i}" for i in range(4))),
    Case(
        "stepped_predictions", SteppedPredictions, tuple(f"net.blocks.{i}@{step}" for step in (0, 1) for i in range(3))
    ),
    Case(
        "stepped_stages",
        SteppedStages,
        tuple(f"stages.{n}.net.blocks.{i}@{step}" for n in (0, 1) for step in (0, 1) for i in range(3)),
    ),
    Case("dual_path", DualPath, tuple((f"rnns.{i}",) for i in range(3))),
    Case("checkpointed", Checkpointed, numbered("blocks", 3)),
)
