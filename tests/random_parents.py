"""What all random nets share: the description, stem, conditioning and head, and how a parent calls its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from random_blocks import Block, Pair, ResidualModule, State, part
from torch import Tensor, nn


@dataclass(frozen=True)
class Spec:
    """A random net. Everything is decided by it, so a failing example is its repr."""

    topology: str = "stack"
    sizes: tuple[int, ...] = (2,)  # blocks, or blocks per stage
    block: Block = field(default_factory=Block)
    option: str = ""  # of the topology
    width: int = 4
    samples: int = 2
    tokens: int = 3
    layout: str = "btd"
    dtype: str = "float32"
    stem: bool = True
    head: str = "linear"  # linear | norm | "" (v is the last stream)
    position: bool = False
    time: bool = False  # a second input, embedded and added to the stream
    text: int = 0  # residual blocks of an encoder of a third input
    given: str = "tensor"  # tensor | tuple | dict | Inputs
    returned: str = "tensor"  # tensor | tuple | dict | dataclass | namedtuple
    train: bool = False  # the mode it is handed over in
    seed: int = 0


@dataclass(frozen=True)
class Label:
    """One true layer. `parts` are its updates, as the modules that make them (alternatives are joined by |)."""

    name: str
    parts: tuple[str, ...]
    form: str = "stream"
    definition: str = "identity"
    main: bool = True
    inputs: frozenset[str] | None = None


def l_block(s: Spec, name: str, path: str = "", **changes: Any) -> Label:
    keys = [part(s.block, j).split("|") for j in range(len(s.block.branches))]
    return Label(name, tuple("|".join(f"{path or name}.{key}" for key in either) for either in keys), **changes)


@dataclass
class Output:
    sample: Tensor
    steps: int = 1


Body = tuple[Tensor, list[tuple[Tensor, ...]]]


class Parent(nn.Module):
    """x (B, T, 3) and perhaps t (B,), text (B, 4, 5) → v. A subclass is what lies between stem and head."""

    def __init__(self, s: Spec) -> None:
        super().__init__()
        self.s, D = s, s.width
        if s.stem:
            self.stem = nn.Linear(3, D)
        if s.position:
            self.position = nn.Parameter(torch.ones(s.tokens, D))
        if s.time:
            self.time_in, self.time_out = nn.Linear(1, D), nn.Linear(D, D)
        if s.text:
            self.text_blocks = nn.ModuleList(ResidualModule(Block(), 5, "btd") for _ in range(s.text))
            self.text_out = nn.Linear(5, D)
        if s.head == "norm":
            self.norm = nn.LayerNorm(D)
        if s.head:
            self.head = nn.Linear(D, 3)

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor | None = None, text: Tensor | None = None) -> Any:
        s = self.s
        h = self.stem(x) if s.stem else x
        if s.position:
            h = h + self.position
        c = h.new_ones(len(h), s.width)
        if s.time:
            assert t is not None
            c = self.time_out(F.silu(self.time_in(t[:, None])))
            h = h + c[:, None]
        if s.text:
            for block in self.text_blocks:
                text = block(text, None)
            assert text is not None
            c = c + self.text_out(text.mean(1))
            h = h + c[:, None]
        if s.layout != "btd":
            h = h.permute(1, 0, 2) if s.layout == "tbd" else h.transpose(1, 2)
        h = self.body(h, c)
        if s.layout != "btd":
            h = h.permute(1, 0, 2) if s.layout == "tbd" else h.transpose(1, 2)
        if s.head == "norm":
            h = self.norm(h)
        v = self.head(h) if s.head else h
        return {
            "tuple": (v, h.mean()),
            "dict": {"steps": 1, "sample": v},
            "dataclass": Output(v),
            "namedtuple": Pair(v, h.detach()),
        }.get(s.returned, v)


def call(block: nn.Module, s: Block, h: Any, c: Tensor) -> Any:
    """Calls a block in its style, and takes the stream out of what it returns."""
    if s.style in ("dict", "same_dict"):
        return block({"hidden": h, "c": c})["hidden"]
    if s.style == "dataclass":
        return block(State(c.mean(), h), c=c).hidden
    if s.style == "namedtuple":
        return block(Pair(c.mean(), h), c=c).hidden
    if s.style == "keywords":
        return block(c=c, hidden=h)
    return block(h, c)[2] if s.style == "tuple" else block(h, c)
