"""Layers of several residual wrappers: attention that hands values on, parallel streams; skips that are stacked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Chain, Mlp, numbered


class ValueAttention(nn.Module):
    """Mixes the first layer's values into its own, and gives (update, values)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, 1)
        self.q, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in "qvo")

    def forward(self, n: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = self.v(n)
        v = v if first is None else v.lerp(first, self.mix(n).sigmoid())
        return self.o((self.q(n) @ n.mT).softmax(-1) @ v), v


class PreNorm(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), inner

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        return self.inner(self.norm(x), *others)


class Residual(nn.Module):
    """x + branch(x), and what else the branch gives."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def carried(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the branch reads, and the stream without the branch."""
        return x, x

    def added(self, x: Tensor, update: Tensor) -> Tensor:
        return x + update

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        read, x = self.carried(x)
        out = self.branch(read, *others)
        return (self.added(x, out[0]), out[1]) if isinstance(out, tuple) else self.added(x, out)


class Lanes(Residual):
    """The same on two parallel streams (hyper-connections): mixed by weights made of them, then the update added."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__(branch)
        self.weights, self.back = nn.Linear(WIDTH, 3), nn.Parameter(torch.tensor([0.7, 1.2]))

    def carried(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (
            self.weights(x).tanh() + torch.eye(2, 3)[:, None, None]
        )  # (2, B, T, 3): from stream to (streams, read)
        mixed = torch.einsum("s b t d, s b t m -> m b t d", x, weights)
        return mixed[2], mixed[:2]

    def added(self, x: Tensor, update: Tensor) -> Tensor:
        return x + torch.einsum("b t d, s -> s b t d", update, self.back)


class Conformer(nn.Module):
    """One layer of three wrappers of one class around different work."""

    def __init__(self, wrapper: type[Residual]) -> None:
        super().__init__()
        self.first, self.attend, self.last = wrapper(Mlp()), wrapper(PreNorm(ValueAttention())), wrapper(Mlp())
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, values: Tensor | None, off: bool = False) -> tuple[Tensor, Tensor]:
        h, given = self.attend(self.first(x), values)
        return (x if off else self.norm(self.last(h))), given


class LanesConformer(Conformer):
    def forward(self, x: Tensor, values: Tensor | None, off: bool = False) -> tuple[Tensor, Tensor]:
        if not off:
            return super().forward(x, values)
        read, x = self.attend.carried(self.first.carried(x)[1])  # streams are mixed as before, and nothing is added
        return self.norm(self.last.carried(x)[1]), self.attend.branch(read, values)[1]


class Conformers(Chain):
    def __init__(self, make: Callable[[], nn.Module] = lambda: Conformer(Residual)) -> None:
        super().__init__(make)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        first = None
        for i, block in enumerate(self.blocks):
            x, values = block(x, first, True) if i == off else block(x, first)
            first = values if first is None else first
        return x


class Parallel(Conformers):
    def __init__(self) -> None:
        super().__init__(lambda: LanesConformer(Lanes))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        return super().run(x.expand(2, *x.shape), off).sum(0)


class Skipping(nn.Module):
    """Gives (tanh(y) σ(y) + conv(x), skip of that): where y is shifted, no module gives the update."""

    def __init__(self, shift: float | nn.Parameter) -> None:
        super().__init__()
        self.inner, self.shortcut, self.skip = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.shift = shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inner(x) + self.shift
        x = torch.tanh(y) * torch.sigmoid(y) + self.shortcut(x)
        return x, self.skip(x)


class StackedSkips(Chain):
    """The skips are stacked on a new axis, and summed over it. Closed, a block gives (conv(x), 0)."""

    def __init__(self, shift: float | None = None) -> None:
        super().__init__(lambda: Skipping(nn.Parameter(torch.randn(WIDTH)) if shift is None else shift))
        self.join = nn.Linear(2 * WIDTH, WIDTH)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        skips = []
        for i, block in enumerate(self.blocks):
            x, skip = (block.shortcut(x), torch.zeros_like(x)) if i == off else block(x)
            skips.append(skip)
        return self.join(torch.cat([x, torch.stack(skips).sum(dim=0)], dim=-1))


LANES = (
    Case("conformers", Conformers, numbered("blocks", 3)),
    Case("parallel_streams", Parallel, numbered("blocks", 3)),
    Case("stacked_skips", StackedSkips, numbered("blocks", 3)),
    Case("stacked_skips_shifted_by_one", lambda: StackedSkips(1.0), numbered("blocks", 3)),
    Case("stacked_skips_without_shift", lambda: StackedSkips(0.0), numbered("blocks", 3)),
)
