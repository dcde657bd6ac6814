"""Random nets with one stream and blocks in a row: in one list, in stages, run repeatedly, or with no block module.

Each topology is a module, and a function f_… that computes the same by hand, channels last, with gates as variables.
"""

from __future__ import annotations

from dataclasses import replace

from random_blocks import Block, ResidualModule, f_block
from random_branches import F_BRANCH, Gates, Params, branch, linear, norm
from random_parents import Body, Label, Parent, Spec, call, l_block
from torch import Tensor, nn


class Stack(Parent):
    """One list of blocks; with option mixed every other one is of another kind and class (hybrid models)."""

    def __init__(self, s: Spec) -> None:
        super().__init__(s)
        kinds = (ResidualModule, OtherModule if s.option == "mixed" else ResidualModule)
        self.blocks = nn.ModuleList(kinds[i % 2](kind(s, i), s.width, s.layout) for i in range(s.sizes[0]))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = call(block, kind(self.s, i), h, c)
        return h


class OtherModule(ResidualModule): ...


def kind(s: Spec, i: int) -> Block:
    return Block(("conv", "mlp"), adaln=True) if s.option == "mixed" and i % 2 else s.block


def f_stack(s: Spec, p: Params, h: Tensor, c: Tensor, gates: Gates, k: int) -> Body:
    streams = []
    for i in range(s.sizes[0]):
        h = f_block(p, f"blocks.{i}", kind(s, i), h, c, gates, k + i)
        streams.append((h,))
    return h, streams


def l_stack(s: Spec) -> list[Label]:
    return [l_block(replace(s, block=kind(s, i)), f"blocks.{i}") for i in range(s.sizes[0])]


class Stages(Parent):
    """Stages of blocks, each with a norm or a linear map at its end: the blocks are the layers."""

    def __init__(self, s: Spec) -> None:
        super().__init__(s)
        self.stages = nn.ModuleList(Stage(s, n) for n in s.sizes)

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        for stage in self.stages:
            h = stage(h, c)
        return h


class Stage(nn.Module):
    def __init__(self, s: Spec, n: int) -> None:
        super().__init__()
        self.s, self.blocks = s, nn.ModuleList(ResidualModule(s.block, s.width, "btd") for _ in range(n))
        if s.option == "linear":
            self.down = nn.Linear(s.width, s.width)
        elif s.option == "norm":
            self.norm = nn.LayerNorm(s.width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            h = call(block, self.s.block, h, c)
        return self.down(h) if self.s.option == "linear" else self.norm(h) if self.s.option == "norm" else h


def f_stages(s: Spec, p: Params, h: Tensor, c: Tensor, gates: Gates, k: int) -> Body:
    streams = []
    for a, n in enumerate(s.sizes):
        for b in range(n):
            h = f_block(p, f"stages.{a}.blocks.{b}", s.block, h, c, gates, k)
            streams.append((h,))
            k += 1
        if s.option == "linear":
            h = linear(p, f"stages.{a}.down", h)
        elif s.option == "norm":
            h = norm(p, f"stages.{a}.norm", h)
    return h, streams


def l_stages(s: Spec) -> list[Label]:
    return [l_block(s, f"stages.{a}.blocks.{b}") for a, n in enumerate(s.sizes) for b in range(n)]


class Tied(Parent):
    """sizes = (modules, rounds): the modules are run round after round; with `option` a step signal is added first."""

    def __init__(self, s: Spec) -> None:
        super().__init__(s)
        self.blocks = nn.ModuleList(ResidualModule(s.block, s.width, "btd") for _ in range(s.sizes[0]))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        for i in range(self.s.sizes[1]):
            if self.s.option == "step":
                h = h + 0.1 * i
            for block in self.blocks:
                h = call(block, self.s.block, h, c)
        return h


def f_tied(s: Spec, p: Params, h: Tensor, c: Tensor, gates: Gates, k: int) -> Body:
    streams = []
    for i in range(s.sizes[1]):
        if s.option == "step":
            h = h + 0.1 * i
        for j in range(s.sizes[0]):
            h = f_block(p, f"blocks.{j}", s.block, h, c, gates, k)
            streams.append((h,))
            k += 1
    return h, streams


def l_tied(s: Spec) -> list[Label]:
    modules, rounds = s.sizes
    return [l_block(s, f"blocks.{j}@{i}", f"blocks.{j}") for i in range(rounds) for j in range(modules)]


class Lists(Parent):
    """No block module: the parent adds. `layers.i` holds a layer's modules, or (option parallel) sibling lists do."""

    def __init__(self, s: Spec) -> None:
        super().__init__(s)
        kinds, n = s.block.branches, s.sizes[0]

        def one(j: int) -> tuple[nn.Module, nn.Module]:
            f = branch(kinds[j], s.width)
            return nn.LayerNorm(s.width), nn.Sequential(f, nn.Dropout(0.2)) if s.block.dropout else f

        if s.option == "parallel":
            made = [[one(j) for j in range(len(kinds))] for _ in range(n)]
            for j, kind in enumerate(kinds):
                setattr(self, f"{kind}s", nn.ModuleList(m[j][1] for m in made))
                setattr(self, f"{kind}_norms", nn.ModuleList(m[j][0] for m in made))
        else:
            self.layers = nn.ModuleList(nn.ModuleList(m for j in range(len(kinds)) for m in one(j)) for _ in range(n))

    def pairs(self, i: int) -> list[tuple[nn.Module, nn.Module]]:
        if self.s.option == "parallel":
            return [(getattr(self, f"{kind}_norms")[i], getattr(self, f"{kind}s")[i]) for kind in self.s.block.branches]
        layer = list(self.layers[i])  # type: ignore[arg-type]
        return list(zip(layer[::2], layer[1::2], strict=True))

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        s = self.s.block
        for i in range(self.s.sizes[0]):
            for n, f in self.pairs(i):
                if s.norm == "post":
                    h = n(h + f(h))
                elif s.inplace:
                    h += f(n(h))
                else:
                    u = f(n(h))
                    h = u + h if s.reverse else h + (0.5 * u if s.scale == "half" else u)
        return h


def f_lists(s: Spec, p: Params, h: Tensor, c: Tensor, gates: Gates, k: int) -> Body:
    streams = []
    for i in range(s.sizes[0]):
        for j, kind in enumerate(s.block.branches):
            fn, n = lists_paths(s, i, j)
            fn = f"{fn}.0" if s.block.dropout else fn
            u = F_BRANCH[kind](p, fn, h if s.block.norm == "post" else norm(p, n, h))
            u = gates.update(k, j, 0.5 * u if s.block.scale == "half" else u, whole=True)
            h = norm(p, n, h + u) if s.block.norm == "post" else h + u
        streams.append((h,))
        k += 1
    return h, streams


def lists_paths(s: Spec, i: int, j: int) -> tuple[str, str]:
    kind = s.block.branches[j]
    if s.option == "parallel":
        return f"{kind}s.{i}", f"{kind}_norms.{i}"
    return f"layers.{i}.{2 * j + 1}", f"layers.{i}.{2 * j}"


def l_lists(s: Spec) -> list[Label]:
    """A layer spread over parallel lists has no container: the name is left open."""
    named = s.option != "parallel"
    parts = [tuple(lists_paths(s, i, j)[0] for j in range(len(s.block.branches))) for i in range(s.sizes[0])]
    return [Label(f"layers.{i}" if named else "", paths, "branch", "branches") for i, paths in enumerate(parts)]
