"""How the sum of stream and update is written: one block class each, three of them in a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Attention, Case, Ends, Mlp, chain, numbered


class StackSum(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, super().forward(x)]).sum(0)


class SumOfList(Mlp):
    """`sum` starts with 0 + x."""

    def forward(self, x: Tensor) -> Any:
        f = super().forward(x)
        return sum([x, f, 0.5 * f])


class Lerp(Mlp):
    """x + 0.3 (f − x): the weight is a constant, so this is no gate."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, super().forward(x), 0.3)


class Minus(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return x - super().forward(x)


class Fused(Mlp):
    """Sum and last product are one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.up(self.norm(x)))
        return torch.addmm(x.flatten(0, 1), h.flatten(0, 1), self.down.weight.T).view_as(x)


class Padded(Mlp):
    """Padded tokens keep their value."""

    def forward(self, x: Tensor) -> Tensor:
        real = (torch.arange(x.shape[1]) < 5)[None, :, None]
        return torch.where(real, x + super().forward(x), x)


class TopTokens(nn.Module):
    """Mixture of depths: only the tokens that a score picks are updated."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.f = nn.Linear(WIDTH, 1), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        top = self.score(x).squeeze(-1).topk(3, 1).indices[..., None].expand(-1, -1, WIDTH)
        return x.scatter_add(1, top, self.f(x.gather(1, top)))


class WritesSlice(Mlp):
    """An in-place addition to a view of a part of the stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 1:] += super().forward(x)[:, 1:]
        return x


class InPlace(Mlp):
    """Writes into the tensor that the caller handed in."""

    def forward(self, x: Tensor) -> Tensor:
        x += super().forward(x)
        return x


class WritesIn(nn.Module):
    """Writes the update that a module gives it into the tensor that the caller handed in."""

    def __init__(self) -> None:
        super().__init__()
        self.f = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.f(x))


class GoesOn(Ends):
    """Goes on with the tensor that its blocks write into, whatever they return."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make() for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        h = x.clone()
        for i, block in enumerate(self.blocks):
            if i != off:
                block(h)
        return h


class Experts(nn.Module):
    """Routed tokens: shapes depend on the data, results are added into zeros by index."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(0, 1)
        weight, chosen = self.router(h).softmax(-1).topk(2, -1)
        y = torch.zeros_like(h)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == e)
            y.index_add_(0, token, expert(h[token]) * weight[token, slot, None])
        return x + y.view_as(x)


class Raw(nn.Module):
    """A leaf module: parameters and einsum alone, the norm written out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = (nn.Parameter(0.2 * torch.randn(2, WIDTH, 8)) for _ in range(2))
        self.o, self.w = nn.Parameter(0.2 * torch.randn(2, 8, WIDTH)), nn.Parameter(0.2 * torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        q, v = torch.einsum("btd,hde->bthe", h, self.q), torch.einsum("btd,hde->bthe", h, self.v)
        mix = torch.einsum("bthe,bshe->bhts", q, q).softmax(-1)
        x = x + torch.einsum("bhts,bshe,hed->btd", mix, v, self.o)
        return x + torch.einsum("btf,fd->btd", x.relu().square(), self.w)


class Macaron(nn.Module):
    """Half steps, and a norm after the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attend, self.norm, self.after = Mlp(), Attention(), nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        x = x + self.norm(self.attend(x))
        return x + 0.5 * self.after(x)


class Orthogonal(nn.Module):
    """Adds what is orthogonal to the stream: f − (f·u) u, u = x / ‖x‖."""

    def __init__(self) -> None:
        super().__init__()
        self.f = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        f, u = self.f(x), F.normalize(x, dim=-1)
        return x + (f - (f * u).sum(-1, keepdim=True) * u)


class ClassToken(nn.Module):
    """The branch is new for the first token only; for the others it is the stream itself, normed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attend, self.feed = nn.LayerNorm(WIDTH), Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        x = x + torch.cat((self.attend(h)[:, :1], h[:, 1:]), 1)
        return x + torch.cat((self.feed(x[:, :1]), x[:, 1:]), 1)


SUMS = (
    chain("stack_sum", StackSum),
    chain("sum_of_list", SumOfList),
    chain("lerp", Lerp),
    chain("minus", Minus),
    chain("fused", Fused),
    chain("padded", Padded),
    chain("top_tokens", TopTokens),
    chain("writes_slice", WritesSlice),
    chain("in_place", InPlace),
    Case("return_ignored", lambda: GoesOn(WritesIn), numbered("blocks", 3)),
    chain("experts", Experts),
    chain("raw", Raw),
    chain("macaron", Macaron),
    chain("orthogonal", Orthogonal),
    chain("class_token", ClassToken),
)
