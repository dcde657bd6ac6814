"""Random residual networks with the truth about them: the layers in order, and v for any gates, computed by hand.

`nets()` is a hypothesis strategy of descriptions, `build(spec)` makes a `Net` of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from random_blocks import Block, ResidualModule, f_block, stream_in, stream_out
from random_branches import Gate, Gates, Params, linear, norm
from random_parents import Body, Label, Parent, Spec, l_block
from random_shapes import ConvNet, Dual, DualModule, UNet, f_convnet, f_dual, f_unet, l_convnet, l_dual, l_unet
from random_stacks import (
    Lists,
    Stack,
    Stages,
    Tied,
    f_lists,
    f_stack,
    f_stages,
    f_tied,
    l_lists,
    l_stack,
    l_stages,
    l_tied,
)
from torch import Tensor, nn

import fog_a


@dataclass
class Net:
    """`v(gates)` is the reference output; `streams(gates)` what each layer hands on, in the layout of its module."""

    spec: Spec
    module: nn.Module
    inputs: Mapping[str, Tensor]
    labels: list[Label]
    reference: Callable[[Gates], tuple[Tensor, list[tuple[Tensor, ...]]]]

    @property
    def batch(self) -> Any:
        """A new copy each time: some of these models write into what they are given."""
        return as_batch(self.spec, {name: x.clone() for name, x in self.inputs.items()})

    @torch.no_grad()
    def run(self) -> Tensor:
        """The module's own v in eval mode: not the reference's."""
        m, b = self.module.eval(), self.batch
        if isinstance(b, fog_a.Inputs):
            out = m(*b.args, **b.kwargs)
        else:
            out = m(**b) if isinstance(b, dict) else m(*b) if isinstance(b, tuple) else m(b)
        if isinstance(out, dict):
            return out["sample"]
        return out[0] if isinstance(out, tuple) else getattr(out, "sample", out)

    def ends(self, k: int) -> tuple[nn.Module, Callable[..., list[Tensor]], Callable[[Any], list[Tensor]]]:
        """The module of layer k, its streams in a call's (args, kwargs), and in the same order in its output."""
        module = self.module.get_submodule(self.labels[k].name.split("@")[0])
        if isinstance(module, DualModule):
            order = -1 if module.swap else 1
            keep = slice(0, 1 if module.drop_b else 2)
            return module, lambda args, kwargs: list(args[keep]), lambda out: list(out[::order][keep])
        s = Block() if not isinstance(module, ResidualModule) else module.s
        return module, lambda args, kwargs: [stream_in(s, args, kwargs)], lambda out: [stream_out(s, out)]

    def v(self, layers: Mapping[int, Gate] = {}, branches: Mapping[tuple[int, int], Gate] = {}) -> Tensor:
        with torch.no_grad():
            return self.reference(Gates(layers, branches))[0]

    def streams(self, layers: Mapping[int, Gate] = {}) -> list[tuple[Tensor, ...]]:
        with torch.no_grad():
            return self.reference(Gates(layers))[1]

    @property
    def main(self) -> list[int]:
        return [k for k, label in enumerate(self.labels) if label.main]


TOPOLOGIES: dict[str, tuple[type[Parent], Callable[..., Body], Callable[[Spec], list[Label]]]] = {
    "stack": (Stack, f_stack, l_stack),
    "stages": (Stages, f_stages, l_stages),
    "tied": (Tied, f_tied, l_tied),
    "lists": (Lists, f_lists, l_lists),
    "unet": (UNet, f_unet, l_unet),
    "dual": (Dual, f_dual, l_dual),
    "convnet": (ConvNet, f_convnet, l_convnet),
}


def reference(s: Spec, p: Params, inputs: Mapping[str, Tensor], gates: Gates) -> Body:
    """v and what each layer hands on, by hand."""
    h = inputs["x"].clone()
    if s.stem:
        h = linear(p, "stem", h)
    if s.position:
        h = h + p["position"]
    c = h.new_ones(s.samples, s.width)
    if s.time:
        c = linear(p, "time_out", F.silu(linear(p, "time_in", inputs["t"].reshape(-1, 1))))
        h = h + c.unsqueeze(1)
    streams: list[tuple[Tensor, ...]] = []
    if s.text:
        text = inputs["text"]
        for i in range(s.text):
            text = f_block(p, f"text_blocks.{i}", Block(), text, None, gates, i)
            streams.append((text,))
        c = c + linear(p, "text_out", text.mean(1))
        h = h + c.unsqueeze(1)
    h, body = TOPOLOGIES[s.topology][1](s, p, h, c, gates, s.text)
    if s.head == "norm":
        h = norm(p, "norm", h)
    turn = {"btd": (0, 1, 2), "bdt": (0, 2, 1), "tbd": (1, 0, 2)}[s.layout]
    return (linear(p, "head", h) if s.head else h), streams + [tuple(y.permute(turn) for y in ys) for ys in body]


@torch.no_grad()
def randomize(module: nn.Module, g: torch.Generator) -> None:
    """Weights large enough that every layer matters, buffers that are not their defaults."""
    for p in module.parameters():
        r = torch.randn(p.shape, generator=g)
        if p.ndim > 1:
            p.copy_(r * (1.0 / p[0].numel()) ** 0.5)
        elif bool((p == 1).all()):
            p.copy_(1 + 0.2 * r)
        else:
            p.copy_(0.2 * r)
    for name, b in module.named_buffers():
        if name.endswith("running_var"):
            b.copy_(0.5 + torch.rand(b.shape, generator=g))
        elif name.endswith("running_mean"):
            b.copy_(0.2 * torch.randn(b.shape, generator=g))


def build(s: Spec) -> Net:
    """The net of a description: the module in the mode it asks for, a batch, labels and reference."""
    g = torch.Generator().manual_seed(s.seed)
    with torch.random.fork_rng(devices=[]):
        module = TOPOLOGIES[s.topology][0](s)
    randomize(module, g)
    dtype = getattr(torch, s.dtype)
    module.to(dtype).train(s.train)
    inputs = {"x": torch.randn(s.samples, s.tokens, 3 if s.stem else s.width, generator=g).to(dtype)}
    if s.time:
        inputs["t"] = torch.rand(s.samples, generator=g).to(dtype)
    if s.text:
        inputs["text"] = torch.randn(s.samples, 4, 5, generator=g).to(dtype)
    state = {
        name: x.detach().clone() for name, x in module.state_dict().items()
    }  # what a probe does to it must not matter
    labels = l_text(s) + TOPOLOGIES[s.topology][2](s)
    return Net(s, module, inputs, labels, lambda gates: reference(s, state, inputs, gates))


def as_batch(s: Spec, inputs: Mapping[str, Tensor]) -> Any:
    """The batch in the form that the description asks for."""
    x = inputs["x"]
    if s.given == "Inputs":
        return fog_a.Inputs(x, **{name: y for name, y in inputs.items() if name != "x"})
    if s.given == "dict" or (s.text and not s.time):
        return dict(inputs)
    if s.given == "tuple" or len(inputs) > 1:
        return tuple(inputs.values())
    return x


def l_text(s: Spec) -> list[Label]:
    block = replace(s, block=Block())
    return [l_block(block, f"text_blocks.{i}", main=False, inputs=frozenset({"text"})) for i in range(s.text)]


few = st.integers(1, 3)


@st.composite
def blocks(draw: st.DrawFn, plain: bool = False) -> Block:
    """A random block; `plain`: called as `block(x, c)`."""
    kinds = tuple(draw(st.lists(st.sampled_from(["mlp", "attn", "conv"]), min_size=1, max_size=3, unique=True)))
    many = len(kinds) > 1
    nest = draw(st.sampled_from(["", "", "", "list", "wrap", "adder"])) if many else ""
    normed = draw(st.sampled_from(["pre", "post", "sandwich", "final", "relu", "none"]))
    inplace = draw(st.sampled_from(["", "", "own", "caller"])) if normed != "final" or nest != "wrap" else ""
    scales = ["", "half"] if inplace else ["", "half", "vector", "addcmul", "alpha", "root"]
    styles = ["plain", "keywords", "tuple", "dict", "same_dict", "dataclass", "namedtuple"]
    return Block(
        branches=kinds,
        norm=normed,
        parallel=many and not nest and draw(st.booleans()),
        scale=draw(st.sampled_from(scales)),
        adaln=not nest and draw(st.booleans()),
        inplace=inplace,
        reverse=not inplace and draw(st.booleans()),
        nest=nest,
        style="plain" if plain else draw(st.sampled_from(styles)),
        dropout=draw(st.booleans()),
    )


@st.composite
def shapes(draw: st.DrawFn, topology: str) -> Spec:
    """A topology with its sizes, options and block."""
    plain = topology in ("unet", "convnet", "lists")
    block = draw(blocks(plain))

    def pick(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    def words(*options: tuple[str, ...]) -> str:
        return " ".join(filter(None, (pick(*o) for o in options)))

    match topology:
        case "stack":
            least = 2 if block.nest == "wrap" else 1  # two residual modules inside a lone one: who is the layer?
            layout = pick("btd", "bdt", "tbd")
            if pick(False, False, True):
                return Spec(topology, (4,), block, "mixed", layout=layout)
            return Spec(topology, (draw(st.integers(least, 4)),), block, layout=layout)
        case "stages":
            return Spec(topology, tuple(draw(st.lists(few, min_size=2, max_size=3))), block, pick("", "linear", "norm"))
        case "tied":
            return Spec(
                topology, (pick(2) if block.nest == "wrap" else pick(1, 2), pick(2, 3)), block, pick("", "step")
            )
        case "lists":
            how = pick({}, {"norm": "post"}, {"inplace": "caller"}, {"reverse": True}, {"scale": "half"})
            block = Block(block.branches, dropout=block.dropout, **how)
            return Spec(topology, (pick(2, 3),), block, pick("", "parallel"))
        case "unet":
            block = replace(block, inplace="own" if block.inplace else "")  # a skip must not be overwritten
            option = pick("cat", "add", "inside")
            return Spec(topology, (2 if option == "inside" else pick(1, 2),), block, option)
        case "dual":
            option = words(("joint", "mean"), ("", "equal"), ("", "swap", "alternate"), ("", "none"))
            singles = pick(0, 2) if block.nest == "wrap" else pick(0, 1, 2)
            return Spec(topology, (draw(few), singles), block, option)
    widths = draw(st.lists(st.sampled_from([4, 6]), min_size=2, max_size=4))
    return Spec(topology, tuple(widths), option=words(("", "always"), ("", "batch"), ("", "tail")))


@st.composite
def nets(draw: st.DrawFn, dtypes: Sequence[str] = ("float32",), topologies: Sequence[str] = tuple(TOPOLOGIES)) -> Spec:
    """A description of a random net."""
    stem, text = draw(st.booleans()), draw(st.sampled_from([0, 0, 1, 2]))
    heads = ["linear", "norm", ""]
    if text:  # v has the shape of x, so that x can be told from text
        heads = heads[:2] if stem else heads[2:]
    return replace(
        draw(shapes(draw(st.sampled_from(topologies)))),
        width=draw(st.sampled_from([4, 6])),
        samples=draw(few),
        tokens=draw(st.integers(2, 4)),
        dtype=draw(st.sampled_from(dtypes)),
        stem=stem,
        head=draw(st.sampled_from(heads)),
        position=draw(st.booleans()),
        time=draw(st.booleans()),
        text=text,
        given=draw(st.sampled_from(["tensor", "tuple", "dict", "Inputs"])),
        returned=draw(st.sampled_from(["tensor", "tuple", "dict", "dataclass", "namedtuple"])),
        train=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
