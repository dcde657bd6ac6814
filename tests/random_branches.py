"""The updates f(x) of random residual nets, as modules and by hand, and the gate that closes them.

The hand-written side never calls a module: it reads the same parameters by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gate = float | Tensor
Params = Mapping[str, Tensor]


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, width: int, seq_first: bool = False) -> None:
        super().__init__()
        self.qkv, self.out, self.seq_first = nn.Linear(width, 3 * width), nn.Linear(width, width), seq_first

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.transpose(0, 1) if self.seq_first else x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in (q, k, v))  # (B, heads, T, D / heads)
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y.transpose(0, 1) if self.seq_first else y


class Conv(nn.Module):
    def __init__(self, width: int, seq_first: bool = False) -> None:
        super().__init__()
        self.inner, self.point, self.seq_first = nn.Conv1d(width, width, 3, 1, 1), nn.Linear(width, width), seq_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.permute(1, 2, 0) if self.seq_first else x.mT)
        return self.point(F.silu(y.permute(2, 0, 1) if self.seq_first else y.mT))


def branch(kind: str, width: int, seq_first: bool = False) -> nn.Module:
    return MLP(width) if kind == "mlp" else {"attn": Attention, "conv": Conv}[kind](width, seq_first)


def linear(p: Params, at: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{at}.weight"], p[f"{at}.bias"])


def norm(p: Params, at: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{at}.weight"], p[f"{at}.bias"])


def f_mlp(p: Params, at: str, x: Tensor) -> Tensor:
    return linear(p, f"{at}.fc2", F.gelu(linear(p, f"{at}.fc1", x)))


def f_attn(p: Params, at: str, x: Tensor) -> Tensor:
    B, T, D = x.shape
    q, k, v = linear(p, f"{at}.qkv", x).reshape(B, T, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
    return linear(p, f"{at}.out", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D))


def f_conv(p: Params, at: str, x: Tensor) -> Tensor:
    y = F.conv1d(x.transpose(1, 2), p[f"{at}.inner.weight"], p[f"{at}.inner.bias"], padding=1)
    return linear(p, f"{at}.point", F.silu(y.transpose(1, 2)))


F_BRANCH = {"mlp": f_mlp, "attn": f_attn, "conv": f_conv}


def blend(x: Tensor, y: Tensor, gate: Gate) -> Tensor:
    """x where the gate is 0, y where it is 1, between them in between; a tensor is one gate per sample (axis 0)."""
    if not isinstance(gate, Tensor):
        return x if gate == 0 else y if gate == 1 else torch.lerp(x, y, gate)
    return torch.stack([blend(a, b, float(g)) for a, b, g in zip(x, y, gate, strict=True)])


class Gates:
    """All open but for those given: `layers[k]` of layer k, `branches[k, j]` of its j-th update."""

    def __init__(self, layers: Mapping[int, Gate] = {}, branches: Mapping[tuple[int, int], Gate] = {}) -> None:
        self.layers, self.branches = layers, branches

    def layer(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return blend(x, y, self.layers.get(k, 1))

    def update(self, k: int, j: int, u: Tensor, whole: bool = False) -> Tensor:
        """The update u of branch j; with `whole` the gate of the layer acts here too (a layer without a module)."""
        u = blend(torch.zeros_like(u), u, self.branches.get((k, j), 1))
        return blend(torch.zeros_like(u), u, self.layers.get(k, 1)) if whole else u
