"""Random nets whose streams fork, join or change width: U-Nets, dual streams, projection shortcuts.

Each topology is a module, and a function f_… that computes the same by hand, channels last, with gates as variables.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from random_blocks import Block, ResidualModule, f_block
from random_branches import MLP, Gates, Params, branch, f_attn, f_mlp, linear, norm
from random_parents import Body, Label, Parent, Spec, call, l_block
from torch import Tensor, nn


class UNet(Parent):
    """sizes = (n,): n down, one middle, n up. option: cat (merged by a linear map), add, inside (up blocks merge)."""

    def __init__(self, s: Spec) -> None:
        super().__init__(s)
        n, D = s.sizes[0], s.width
        self.down = nn.ModuleList(ResidualModule(s.block, D, "btd") for _ in range(n))
        self.middle = ResidualModule(s.block, D, "btd")
        if s.option == "cat":
            self.merge = nn.ModuleList(nn.Linear(2 * D, D) for _ in range(n))
        up = SkipModule if s.option == "inside" else ResidualModule
        self.up = nn.ModuleList(up(s.block, D, "btd") for _ in range(n))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        s, skips = self.s, []
        for block in self.down:
            h = call(block, s.block, h, c)
            skips.append(h)
        h = call(self.middle, s.block, h, c)
        for i, block in enumerate(self.up):
            skip = skips.pop()
            if s.option == "inside":
                h = block(h, c, skip)
                continue
            h = self.merge[i](torch.cat((h, skip), -1)) if s.option == "cat" else h + skip
            h = call(block, s.block, h, c)
        return h


class SkipModule(ResidualModule):
    """A block that first merges a skip by a linear map, as HunyuanDiT's second half."""

    def __init__(self, s: Block, width: int, layout: str) -> None:
        super().__init__(s, width, layout)
        self.skip = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, c: Tensor, skip: Tensor) -> Tensor:
        return self.run(self.skip(torch.cat((x, skip), -1)), c)


def f_unet(s: Spec, p: Params, h: Tensor, c: Tensor, gates: Gates, k: int) -> Body:
    streams, skips, n = [], [], s.sizes[0]
    for i in range(2 * n + 1):
        path = f"down.{i}" if i < n else "middle" if i == n else f"up.{i - n - 1}"
        if i > n:
            skip = skips.pop()
            if s.option == "add":
                h = h + skip
            else:
                merge = f"merge.{i - n - 1}" if s.option == "cat" else f"{path}.skip"
                h = linear(p, merge, torch.cat((h, skip), -1))
        h = f_block(p, path, s.block, h, c, gates, k + i, whole=s.option == "inside" and i > n)
        streams.append((h,))
        if i < n:
            skips.append(h)
    return h, streams


def l_unet(s: Spec) -> list[Label]:
    n, up = s.sizes[0], "branches" if s.option == "inside" else "identity"
    names = [f"down.{i}" for i in range(n)] + ["middle"]
    return [l_block(s, name) for name in names] + [l_block(s, f"up.{i}", definition=up) for i in range(n)]


class Dual(Parent):
    """sizes = (dual, single): two streams a, b, then blocks on both laid end to end.

    option: joint (attention over both) or mean (each sees the other's mean); equal (b is as long as a); swap or
    alternate (blocks return (b, a), all or every other); none (the last one gives no b).
    """

    def __init__(self, s: Spec) -> None:
        super().__init__(s)
        D, (n, singles) = s.width, s.sizes
        self.to_b = nn.Linear(D, D)
        self.blocks = nn.ModuleList(DualModule(s, i) for i in range(n))
        if singles:
            self.single_blocks = nn.ModuleList(ResidualModule(s.block, D, "btd") for _ in range(singles))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        s, a, b = self.s, h, self.to_b(h[:, : dual_tokens(self.s)])
        for i, block in enumerate(self.blocks):
            if dual_swap(s, i):
                b, a = block(a, b)
            else:
                a, b = block(a, b)
        if not s.sizes[1]:
            return a if b is None else a + b.mean(1, keepdim=True)
        h = torch.cat((b, a), 1)
        for block in self.single_blocks:
            h = call(block, s.block, h, c)
        return h[:, b.shape[1] :]


def dual_tokens(s: Spec) -> int:
    return s.tokens if "equal" in s.option else max(1, s.tokens - 1)


def dual_swap(s: Spec, i: int) -> bool:
    """Whether block i returns (b, a)."""
    return "swap" in s.option or ("alternate" in s.option and i % 2 == 1)


def dual_drops(s: Spec, i: int) -> bool:
    """Whether block i returns None for b."""
    return "none" in s.option and i == s.sizes[0] - 1 and not s.sizes[1]


class DualModule(nn.Module):
    def __init__(self, s: Spec, i: int) -> None:
        super().__init__()
        D, self.joint, self.swap, self.drop_b = s.width, "joint" in s.option, dual_swap(s, i), dual_drops(s, i)
        self.norm_a, self.norm_b, self.norm2_a = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        if self.joint:
            self.attn = branch("attn", D)
        else:
            self.mix_a = MLP(D)
            if not self.drop_b:
                self.mix_b = MLP(D)
        self.ff_a = MLP(D)
        if not self.drop_b:
            self.norm2_b, self.ff_b = nn.LayerNorm(D), MLP(D)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = self.norm_a(a), self.norm_b(b)
        if self.joint:
            u, w = self.attn(torch.cat((x, y), 1)).split([a.shape[1], b.shape[1]], 1)
        else:
            u = self.mix_a(x + y.mean(1, keepdim=True))
            w = None if self.drop_b else self.mix_b(y + x.mean(1, keepdim=True))
        a = a + u
        a = a + self.ff_a(self.norm2_a(a))
        out_b: Tensor | None = None
        if w is not None and not self.drop_b:
            b = b + w
            out_b = b + self.ff_b(self.norm2_b(b))
        return (out_b, a) if self.swap else (a, out_b)


def f_dual(s: Spec, p: Params, h: Tensor, c: Tensor, gates: Gates, k: int) -> Body:
    a, b, streams = h, linear(p, "to_b", h[:, : dual_tokens(s)]), []
    n, singles = s.sizes
    for i in range(n):
        a1, b1 = f_dual_block(s, p, i, a, b, gates, k + i)
        a = gates.layer(k + i, a, a1)
        if b1 is not None:
            b = gates.layer(k + i, b, b1)
        streams.append((a,) if b1 is None else (a, b))
    if not singles:
        return (a if dual_drops(s, n - 1) else a + b.mean(1, keepdim=True)), streams
    h = torch.cat((b, a), 1)
    for i in range(singles):
        h = f_block(p, f"single_blocks.{i}", s.block, h, c, gates, k + n + i)
        streams.append((h,))
    return h[:, b.shape[1] :], streams


def f_dual_block(
    s: Spec, p: Params, i: int, a: Tensor, b: Tensor, gates: Gates, k: int
) -> tuple[Tensor, Tensor | None]:
    at, A, parts, drops = f"blocks.{i}", a.shape[1], dual_parts(s, i), dual_drops(s, i)
    x, y = norm(p, f"{at}.norm_a", a), norm(p, f"{at}.norm_b", b)
    if "joint" in s.option:
        both = gates.update(k, 0, f_attn(p, f"{at}.attn", torch.cat((x, y), 1)))
        u, w = both[:, :A], both[:, A:]
    else:
        u = gates.update(k, 0, f_mlp(p, f"{at}.mix_a", x + y.mean(1, keepdim=True)))
        w = u if drops else gates.update(k, 1, f_mlp(p, f"{at}.mix_b", y + x.mean(1, keepdim=True)))
    a = a + u
    a = a + gates.update(k, parts.index("ff_a"), f_mlp(p, f"{at}.ff_a", norm(p, f"{at}.norm2_a", a)))
    if drops:
        return a, None
    b = b + w
    return a, b + gates.update(k, parts.index("ff_b"), f_mlp(p, f"{at}.ff_b", norm(p, f"{at}.norm2_b", b)))


def dual_parts(s: Spec, i: int) -> tuple[str, ...]:
    mix = ("attn",) if "joint" in s.option else ("mix_a", "mix_b")
    return (mix[0], "ff_a") if dual_drops(s, i) else (*mix, "ff_a", "ff_b")


def l_dual(s: Spec) -> list[Label]:
    n, singles = s.sizes
    duals = [Label(f"blocks.{i}", tuple(f"blocks.{i}.{q}" for q in dual_parts(s, i))) for i in range(n)]
    return duals + [l_block(s, f"single_blocks.{i}") for i in range(singles)]


class ConvNet(Parent):
    """sizes = the widths of channels-first residual conv blocks; a shortcut is a 1 x 1 conv where the width changes.

    option: always (a conv shortcut everywhere), batch (BatchNorm), tail (an update ends in norm and activation, as in
    Matcha-TTS).
    """

    def __init__(self, s: Spec) -> None:
        super().__init__(s)
        widths = (s.width, *s.sizes)
        self.blocks = nn.ModuleList(ConvModule(s, a, b) for a, b in pairwise(widths))
        self.last = nn.Conv1d(widths[-1], s.width, 1)

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        h = h.transpose(1, 2)
        for block in self.blocks:
            h = block(h, c)
        return self.last(h).transpose(1, 2)


class ConvModule(nn.Module):
    def __init__(self, s: Spec, a: int, b: int) -> None:
        super().__init__()
        self.conv1, self.mod = nn.Conv1d(a, b, 3, padding=1), nn.Linear(s.width, b)
        self.norm = nn.BatchNorm1d(b) if "batch" in s.option else nn.GroupNorm(2, b)
        conv2 = nn.Conv1d(b, b, 3, padding=1)
        self.conv2 = nn.Sequential(conv2, nn.GroupNorm(2, b), nn.Mish()) if "tail" in s.option else conv2
        self.shortcut = nn.Conv1d(a, b, 1) if a != b or "always" in s.option else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = F.silu(self.norm(self.conv1(x))) + self.mod(c)[:, :, None]
        return self.conv2(h) + self.shortcut(x)


def f_convnet(s: Spec, p: Params, h: Tensor, c: Tensor, gates: Gates, k: int) -> Body:
    h, streams, projected = h.transpose(1, 2), [], projections(s)
    conv = partial(f_conv1d, p)
    for i in range(len(s.sizes)):
        at = f"blocks.{i}"
        u = conv(f"{at}.conv1", h)
        if "batch" in s.option:
            mean, var = p[f"{at}.norm.running_mean"], p[f"{at}.norm.running_var"]
            u = F.batch_norm(u, mean, var, p[f"{at}.norm.weight"], p[f"{at}.norm.bias"])
        else:
            u = F.group_norm(u, 2, p[f"{at}.norm.weight"], p[f"{at}.norm.bias"])
        u = F.silu(u) + linear(p, f"{at}.mod", c)[:, :, None]
        if "tail" in s.option:
            u = F.group_norm(conv(f"{at}.conv2.0", u), 2, p[f"{at}.conv2.1.weight"], p[f"{at}.conv2.1.bias"])
            u = F.mish(u)
        else:
            u = conv(f"{at}.conv2", u)
        h = gates.update(k + i, 0, u, whole=True) + (conv(f"{at}.shortcut", h, 0) if projected[i] else h)
        streams.append((h,))
    return conv("last", h, 0).transpose(1, 2), streams


def f_conv1d(p: Params, at: str, x: Tensor, padding: int = 1) -> Tensor:
    return F.conv1d(x, p[f"{at}.weight"], p[f"{at}.bias"], padding=padding)


def projections(s: Spec) -> list[bool]:
    return ["always" in s.option or a != b for a, b in pairwise((s.width, *s.sizes))]


def l_convnet(s: Spec) -> list[Label]:
    definition = {True: "branches", False: "identity"}
    return [
        Label(f"blocks.{i}", (f"blocks.{i}.conv1|blocks.{i}.conv2",), definition=definition[projected])
        for i, projected in enumerate(projections(s))
    ]
