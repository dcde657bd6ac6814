"""One random residual block: its description, the module, and a hand-written forward with its gates as variables."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from random_branches import F_BRANCH, Gates, Params, branch, linear, norm
from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """What a block does and how it is called. The defaults are the plainest pre-norm block there is."""

    branches: tuple[str, ...] = ("mlp",)  # of mlp, attn, conv, each at most once
    norm: str = "pre"  # pre | post | sandwich | final | relu | none
    parallel: bool = False  # x + f(x) + g(x)
    scale: str = ""  # "" | half | vector | addcmul | alpha | root
    adaln: bool = False
    inplace: str = ""  # "" | own (on a clone) | caller (on the tensor that was passed in)
    reverse: bool = False  # f(x) + x
    nest: str = ""  # "" | list | wrap | adder: each addition in a module of its own
    style: str = "plain"  # plain | keywords | tuple | dict | same_dict | dataclass | namedtuple
    dropout: bool = False


@dataclass
class State:
    """Not the stream first, so that "the first tensor" is wrong."""

    mean: Tensor
    hidden: Tensor


Pair = namedtuple("Pair", "mean hidden")


def add(s: Block, x: Tensor, u: Tensor, gamma: Tensor | None) -> Tensor:
    """x + u in the ways people write it."""
    if s.inplace:
        return x.add_(u, alpha=0.5) if s.scale in ("half", "alpha") else x.add_(u)
    if s.scale == "alpha":
        return torch.add(x, u, alpha=0.5)
    if s.scale == "half":
        u = 0.5 * u
    elif gamma is not None:
        if s.scale == "addcmul":
            return torch.addcmul(x, gamma, u)
        u = u * gamma
    y = u + x if s.reverse else x + u
    return y * 0.5**0.5 if s.scale == "root" else y


class Residual(nn.Module):
    """One update and its addition, by itself or called by a block with `residual` (as BERT's output modules are)."""

    def __init__(self, s: Block, kind: str, width: int, seq_first: bool) -> None:
        super().__init__()
        self.s = s
        if s.norm in ("pre", "sandwich") and s.nest != "adder":
            self.norm = nn.LayerNorm(width)
        if s.nest == "adder":
            self.dense = nn.Linear(width, width)
        else:
            self.fn = branch(kind, width, seq_first)
        if s.norm in ("post", "sandwich"):
            self.norm_out = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.3 if s.dropout else 0.0)
        self.gamma = nn.Parameter(torch.ones(width)) if s.scale in ("vector", "addcmul") else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        s = self.s
        u = self.norm(x) if s.norm in ("pre", "sandwich") and residual is None else x
        u = self.drop(self.dense(u) if s.nest == "adder" else self.fn(u))
        if s.norm == "sandwich":
            u = self.norm_out(u)
        y = add(s, x if residual is None else residual, u, self.gamma)
        y = F.relu(y) if s.norm == "relu" else y
        return self.norm_out(y) if s.norm == "post" else y


class AttnLayer(Residual): ...


class MlpLayer(Residual): ...


class ConvLayer(Residual): ...


NESTED = {"attn": AttnLayer, "mlp": MlpLayer, "conv": ConvLayer}


class ResidualModule(nn.Module):
    """The block of description `s`. `layout`: how its stream lies, btd, bdt (channels first) or tbd."""

    def __init__(self, s: Block, width: int, layout: str) -> None:
        super().__init__()
        self.s, self.layout, seq_first = s, layout, layout == "tbd"
        if s.nest == "list":
            self.layer = nn.ModuleList(NESTED[kind](s, kind, width, seq_first) for kind in s.branches)
        for j, kind in enumerate(s.branches):
            if s.nest == "wrap":
                setattr(self, f"sub_{kind}", Residual(s, kind, width, seq_first))
            elif s.nest in ("", "adder"):
                setattr(self, kind, branch(kind, width, seq_first))
                if s.norm in ("pre", "sandwich") and not (s.parallel and j):  # parallel branches share one
                    setattr(self, f"norm{j}", nn.LayerNorm(width))
            if s.nest == "adder":
                setattr(self, f"{kind}_output", Residual(s, kind, width, seq_first))
            elif s.nest == "" and s.norm in ("post", "sandwich"):
                setattr(self, f"norm{j}_out", nn.LayerNorm(width))
        if s.norm == "final":
            self.final = nn.LayerNorm(width)
        if s.adaln:
            self.modulation = nn.Linear(width, 3 * width * len(s.branches))
        if s.nest == "" and s.scale in ("vector", "addcmul"):
            self.gamma = nn.Parameter(torch.ones(width))
        self.drop = nn.Dropout(0.3 if s.dropout else 0.0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The calling convention; the arithmetic is `run`."""
        style = self.s.style
        state: Any = args[0] if args else kwargs
        if style in ("dict", "same_dict"):
            x, c = state["hidden"], state["c"]
        elif style == "keywords":
            x, c = kwargs["hidden"], kwargs["c"]
        elif style in ("dataclass", "namedtuple"):
            x, c = state.hidden, kwargs["c"]
        else:
            x, c = args
        mean = x.mean()
        x = x.transpose(1, 2) if self.layout == "bdt" else x
        y = self.run(x, c)
        y = y.transpose(1, 2) if self.layout == "bdt" else y
        if style == "same_dict":
            state["hidden"] = y
        return {
            "tuple": (None, mean, y),
            "same_dict": state,
            "dict": {"mean": mean, "hidden": y, "c": c, "name": "block"},
            "dataclass": State(mean, y),
            "namedtuple": Pair(mean, y),
        }.get(style, y)

    def run(self, x: Tensor, c: Tensor | None) -> Tensor:
        s = self.s
        if s.inplace == "own":
            x = x.clone()
        if s.nest in ("list", "wrap"):
            for j, kind in enumerate(s.branches):
                x = self.layer[j](x) if s.nest == "list" else getattr(self, f"sub_{kind}")(x)
        elif s.nest == "adder":
            for j, kind in enumerate(s.branches):
                y = getattr(self, f"norm{j}")(x) if s.norm in ("pre", "sandwich") else x
                x = getattr(self, f"{kind}_output")(getattr(self, kind)(y), x)
        elif s.parallel:
            y = self.get_submodule("norm0")(x) if s.norm in ("pre", "sandwich") else x
            updates = [self.update(j, y, c) for j in range(len(s.branches))]
            x = self.join(x, sum(updates[1:], updates[0]), 0)
        else:
            for j in range(len(s.branches)):
                y = getattr(self, f"norm{j}")(x) if s.norm in ("pre", "sandwich") else x
                x = self.join(x, self.update(j, y, c), j)
        return self.final(x) if s.norm == "final" else x

    def update(self, j: int, y: Tensor, c: Tensor | None) -> Tensor:
        """f_j(y), modulated and gated by the conditioning when adaLN."""
        s, f = self.s, getattr(self, self.s.branches[j])
        if s.adaln:
            assert c is not None
            terms = self.modulation(c).unsqueeze(0 if self.layout == "tbd" else 1).chunk(3 * len(s.branches), -1)
            shift, scale, gate = terms[3 * j : 3 * j + 3]
            u = gate * f(y * (1 + scale) + shift)
        else:
            u = f(y)
        if s.norm == "sandwich":
            u = getattr(self, f"norm{j}_out")(u)
        return self.drop(u)

    def join(self, x: Tensor, u: Tensor, j: int) -> Tensor:
        x = add(self.s, x, u, getattr(self, "gamma", None))
        x = F.relu(x) if self.s.norm == "relu" else x
        return getattr(self, f"norm{j}_out")(x) if self.s.norm == "post" else x


def stream_in(s: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stream among the arguments of a block of this style."""
    return kwargs["hidden"] if s.style == "keywords" else stream_out(s, args[0]) if s.style != "tuple" else args[0]


def stream_out(s: Block, out: Any) -> Tensor:
    """The stream in what it returns."""
    if s.style == "tuple":
        return out[2]
    if s.style in ("dict", "same_dict"):
        return out["hidden"]
    return out.hidden if s.style in ("dataclass", "namedtuple") else out


def part(s: Block, j: int) -> str:
    """The path inside the block of the module that makes update j; a reader would name either of two joined by |."""
    kind = s.branches[j]
    return {"list": f"layer.{j}.fn", "wrap": f"sub_{kind}.fn", "adder": f"{kind}|{kind}_output"}.get(s.nest, kind)


def f_block(
    p: Params, at: str, s: Block, x: Tensor, c: Tensor | None, gates: Gates, k: int, whole: bool = False
) -> Tensor:
    """The block at path `at`, channels last, as layer k of the net. `whole`: its gate scales the updates."""
    x0, updates, parallel = x, [], s.parallel
    normed = s.norm in ("pre", "sandwich")
    for j, kind in enumerate(s.branches):
        pre, fn, out, gamma = f_paths(at, s, j)
        y = x0 if parallel else x
        y = norm(p, f"{at}.norm0" if parallel else pre, y) if normed else y
        if s.adaln:
            assert c is not None
            D = x.shape[-1]
            shift, scale, gate = linear(p, f"{at}.modulation", c)[:, None, 3 * j * D : 3 * (j + 1) * D].split(D, -1)
            u = gate * F_BRANCH[kind](p, fn, y * (1 + scale) + shift)
        else:
            u = F_BRANCH[kind](p, fn, y)
        if s.nest == "adder":
            u = linear(p, f"{at}.{kind}_output.dense", u)
        if s.norm == "sandwich":
            u = norm(p, out, u)
        u = gates.update(k, j, u, whole)
        if parallel:
            updates.append(u)
        else:
            x = f_add(p, s, x, u, p.get(gamma), out)
    if parallel:
        x = f_add(p, s, x0, sum(updates[1:], updates[0]), p.get(f"{at}.gamma"), f"{at}.norm0_out")
    if s.norm == "final":
        x = norm(p, f"{at}.final", x)
    return x if whole else gates.layer(k, x0, x)


def f_paths(at: str, s: Block, j: int) -> tuple[str, str, str, str]:
    """Where update j has its pre-norm, its function, its norm behind, its scale."""
    kind = s.branches[j]
    if s.nest in ("list", "wrap"):
        inner = f"{at}.layer.{j}" if s.nest == "list" else f"{at}.sub_{kind}"
        return f"{inner}.norm", f"{inner}.fn", f"{inner}.norm_out", f"{inner}.gamma"
    adder = f"{at}.{kind}_output" if s.nest == "adder" else ""
    out = f"{adder}.norm_out" if adder else f"{at}.norm{j}_out"
    return f"{at}.norm{j}", f"{at}.{kind}", out, f"{adder or at}.gamma"


def f_add(p: Params, s: Block, x: Tensor, u: Tensor, gamma: Tensor | None, out: str) -> Tensor:
    if gamma is not None:
        y = torch.addcmul(x, gamma, u) if s.scale == "addcmul" else x + u * gamma
    else:
        y = torch.add(x, u, alpha=0.5) if s.scale in ("half", "alpha") else x + u
    if s.scale == "root":
        y = y * 0.5**0.5
    y = F.relu(y) if s.norm == "relu" else y
    return norm(p, out, y) if s.norm == "post" else y
