"""The ways to get all L scores of Eq. 9: ours, the release's, by hand, and those of other packages.

Each is a function of (net, batch, blocks) that gives L numbers, ‖v_k − v‖/‖v‖ as mean over samples. A package that is
not installed has no way. Each gets what helps it: other packages are given the clean inputs of all blocks, taken once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from nets import Net
from torch import Tensor

import fog_a
from fog_a.attributing.layout import forget

Way = Callable[[Net, Any, Any], list[float]]


def score(v_k: Tensor, v: Tensor) -> float:
    """Eq. 9, the mean over samples."""
    return float(((v_k - v).flatten(1).norm(dim=1) / (v.flatten(1).norm(dim=1) + 1e-8)).mean())


def ours(net: Net, batch: Any, blocks: Any, **options: Any) -> list[float]:
    return fog_a.attribute(net, batch, blocks=blocks, progress=False, **options).mean().tolist()


def cold(net: Net, batch: Any, blocks: Any) -> list[float]:
    """What a user pays for the first call on a model: nothing is remembered, and the blocks are found."""
    forget(net)
    return fog_a.attribute(net, batch, progress=False).mean().tolist()


@torch.no_grad()
def skip_loop(net: Net, batch: Any, blocks: Any) -> list[float]:
    """The release: one forward per block, in which `continue` leaves it out. Everything is relative to this."""
    v, scores = net(*batch), []
    for k in range(len(net.blocks)):
        net.skip = k
        scores.append(score(net(*batch), v))
    net.skip = None
    return scores


@torch.no_grad()
def hooks(net: Net, batch: Any, blocks: Any) -> list[float]:
    """A forward hook on one block at a time, that gives its input back; the block runs for nothing."""
    v, scores = net(*batch), []
    for block in net.blocks:
        handle = block.register_forward_hook(lambda m, args, out: args[0])
        scores.append(score(net(*batch), v))
        handle.remove()
    return scores


@torch.no_grad()
def prefix_by_hand(net: Net, batch: Any, blocks: Any) -> list[float]:
    """The model's forward written out again, from block k's input on."""
    h, c, inputs = net.into(batch[0]), net.time(batch[1][:, None]), []
    for block in net.blocks:
        inputs.append(h)
        h = block(h, c)
    v, scores = net.out(h), []
    for k, h in enumerate(inputs):
        for block in net.blocks[k + 1 :]:
            h = block(h, c)
        scores.append(score(net.out(h), v))
    return scores


@torch.no_grad()
def fanout_by_hand(net: Net, batch: Any, blocks: Any) -> list[float]:
    """The model's forward written out again, with a batch that grows by one variant at each block."""
    h, c, n = net.into(batch[0]), net.time(batch[1][:, None]), len(batch[0])
    c = c.repeat(len(net.blocks) + 1, 1)
    for block in net.blocks:
        h = torch.cat([block(h, c[: len(h)]), h[:n]])
    v, *rest = net.out(h).split(n)
    return [score(v_k, v) for v_k in rest]


def inputs_of(net: Net, batch: Any) -> list[Tensor]:
    """What each block is given in the clean run."""
    found: list[Tensor] = []
    handles = [b.register_forward_pre_hook(lambda m, args: found.append(args[0])) for b in net.blocks]
    net(*batch)
    for handle in handles:
        handle.remove()
    return found


def with_nnsight() -> Way:
    """`.skip` inside a trace."""
    from nnsight import NNsight

    wrapped: dict[int, Any] = {}

    @torch.no_grad()
    def run(net: Net, batch: Any, blocks: Any) -> list[float]:
        model = wrapped.setdefault(id(net), NNsight(net))
        v, scores = net(*batch), []
        for k in range(len(net.blocks)):
            with model.trace(*batch):
                model.blocks[k].skip(model.blocks[k].input)
                v_k = model.output.save()
            scores.append(score(v_k, v))
        return scores

    return run


def with_captum() -> Way:
    """`LayerFeatureAblation` with all of a layer as one feature, and the block's clean input as its baseline."""
    from captum.attr import LayerFeatureAblation

    @torch.no_grad()
    def run(net: Net, batch: Any, blocks: Any) -> list[float]:
        v, inputs, scores = net(*batch), inputs_of(net, batch), []
        norm = v.flatten(1).norm(dim=1) + 1e-8

        def moved(*batch: Any) -> Tensor:
            return (net(*batch) - v).flatten(1).norm(dim=1) / norm

        for block, h in zip(net.blocks, inputs, strict=True):
            one = torch.zeros_like(h[:1], dtype=torch.long)
            found = LayerFeatureAblation(moved, block).attribute(batch, layer_baselines=h, layer_mask=one)
            scores.append(float(-found[:, 0, 0].mean()))
        return scores

    return run


def with_pyvene() -> Way:
    """An intervention on a block's output, that gives its clean input."""
    from pyvene import IntervenableModel

    @torch.no_grad()
    def run(net: Net, batch: Any, blocks: Any) -> list[float]:
        v, inputs, scores = net(*batch), inputs_of(net, batch), []
        x, t = batch
        net.config = SimpleNamespace(to_dict=dict)  # type: ignore[assignment]  # it takes every model for one of transformers'
        for k, h in enumerate(inputs):
            put = {"component": f"blocks[{k}].output", "intervention": lambda base, source, h=h: h}
            model = IntervenableModel(put, model=net)
            _, v_k = model(base={"x": x, "t": t})
            scores.append(score(v_k, v))
        return scores

    return run


def others() -> dict[str, Way]:
    """Other packages' ways, of those that are installed."""
    made = {"nnsight": with_nnsight, "captum": with_captum, "pyvene": with_pyvene}
    return {name: make() for name, make in made.items() if importlib.util.find_spec(name)}


WAYS: dict[str, Callable[[int], Any]] = {
    "prefix": lambda batch: fog_a.Shared(rows=batch),
    "fanout": lambda batch: fog_a.Shared(rows=10**9),
    "auto": lambda batch: "auto",
}
"""`how=` for a strategy at this batch size."""

OURS: dict[str, Way] = {
    "fog_a": ours,
    "fog_a, cold": cold,
    'fog_a, memory="64MiB"': partial(ours, how=fog_a.Shared(memory="64MiB")),
    "fog_a, prefix": lambda net, batch, blocks: ours(net, batch, blocks, how=WAYS["prefix"](len(batch[0]))),
    "fog_a, fanout": lambda net, batch, blocks: ours(net, batch, blocks, how=WAYS["fanout"](len(batch[0]))),
}
BY_HAND: dict[str, Way] = {
    "hooks": hooks,
    "prefix by hand": prefix_by_hand,
    "fan-out by hand": fanout_by_hand,
}
