"""AGREPA(local=): the term trains the aligned layers' own parameters, and nothing before them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_flow import WIDTH, Net, Statistics, a_batch, a_flow
from torch import Tensor, nn

import fog_a
from fog_a.aligning.alignment import AGREPA
from fog_a.errors import NoActivations, UnknownBlock, Unsupported


class Branches(nn.Module):
    """The parent adds; a layer is a container of its modules. All layers share the condition e(t)."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.into, self.out = nn.Linear(1, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6)
        parts = [nn.ModuleList([nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]) for _ in "abc"]
        self.layers = nn.ModuleList(parts)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h, e = self.into(x_t), self.time(t[:, None, None])
        for layer in self.layers:
            h = self.layer(layer, h, e)
        return self.out(h)

    @staticmethod
    def layer(parts: Any, h: Tensor, e: Tensor) -> Tensor:
        norm, mix, feed = parts
        h = h + mix(norm(h) + e).tanh()
        return h + feed(F.gelu(h))


class PostNorm(Net):
    """norm(h + f(h))."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.3, batch_first=True) for _ in range(4)]
        self.blocks = nn.ModuleList(layers)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = self.into(x_t) + self.time(t[:, None, None])
        for block in self.blocks:
            h = block(h)
        return self.out(h)


def of_block(net: Any, k: int, h: Tensor, e: Tensor) -> Tensor:
    return net.blocks[k](h, e)


def of_branches(net: Any, k: int, h: Tensor, e: Tensor) -> Tensor:
    return net.layer(net.layers[k], h, e)


def by_hand(net: Any, layer: Callable[[Any, int, Tensor, Tensor], Tensor], k: int, x_t: Tensor, t: Tensor) -> Tensor:
    """h_{k-1}.detach() + f_k(h_{k-1}.detach(), e.detach()), written out."""
    e = net.time(t[:, None, None]).detach()
    h = net.into(x_t)
    for i in range(k):
        h = layer(net, i, h, e)
    h = h.detach()
    return h + (layer(net, k, h, e) - h)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize(
    ("make", "layer", "stack"), [(Net, of_block, "blocks"), (Branches, of_branches, "layers")], ids=["stream", "branch"]
)
def test_it_is_the_gradient_of_the_reference(make: Any, layer: Any, stack: str, k: int) -> None:
    torch.manual_seed(0)
    net, batch, seen = make(), a_batch(), list[Any]()
    flow = fog_a.wrap(net, x="x_t", t="t")
    reg = AGREPA(flow, Statistics(), f"{stack}.{k}", batch=batch, local=True)
    handle = net.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    flow.loss(batch)
    handle.remove()
    term = reg(batch)
    term.backward()
    mine, heads = gradients(net), gradients(reg)

    net.zero_grad()
    reg.zero_grad()
    (args, kwargs) = seen[0]
    x_t, t = (*args, *kwargs.values())[:2]
    head: Any = reg.slots.heads["all"][0]  # pyright: ignore[reportIndexIssue]
    target = Statistics()(flow.samples(batch))
    expected = 0.5 * (1 - F.cosine_similarity(head(by_hand(net, layer, k, x_t, t)), target)).mean()
    expected.backward()
    theirs = gradients(net)
    assert torch.allclose(term, expected, atol=1e-6)
    assert mine and all(name.startswith(f"{stack}.{k}.") for name in mine) and mine.keys() == theirs.keys()
    for a, b in ((mine, theirs), (heads, gradients(reg))):
        assert all(torch.allclose(a[name], b[name], rtol=1e-5, atol=3e-7) for name in b)


def one_step(local: Any, make: Callable[[], Any] = Net, scale: float = 1.0, **options: Any) -> dict[str, Tensor]:
    """All gradients of one step of the whole loss, on the same random numbers."""
    torch.manual_seed(0)
    net, batch = make(**options), a_batch()
    flow = fog_a.wrap(net, x="x_t", t="t")
    reg = AGREPA(flow, Statistics(), ["blocks.1", "blocks.3"], batch=batch, local=local, total=2.0)
    torch.manual_seed(1)
    loss = flow.loss(batch)
    (scale * (loss + reg(batch))).backward()
    return {name: g / scale for name, g in {**gradients(net), **gradients(reg)}.items()}


def plain_step(make: Callable[[], Any] = Net) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net, batch = make(), a_batch()
    torch.manual_seed(1)
    fog_a.wrap(net, x="x_t", t="t").loss(batch).backward()
    return gradients(net)


@pytest.mark.parametrize("make", [Net, PostNorm])
def test_other_parameters_get_what_they_get_without_it(make: Any) -> None:
    """To the bit, also with dropout: the forward is run once and its masks are the training's own."""
    alone, without, streams = one_step(True, make), plain_step(make), one_step(False, make)
    changed = {name for name in without if not torch.equal(alone[name], without[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("blocks")} == {"1", "3"}
    assert all(name.startswith("blocks") for name in changed)
    assert not torch.equal(streams["into.weight"], without["into.weight"])


def test_some_layers_local() -> None:
    some, without = one_step({"blocks.1"}), plain_step()
    assert not torch.equal(some["blocks.2.f.0.weight"], without["blocks.2.f.0.weight"]), "the stream of blocks.3"
    only_first = one_step("blocks.1")
    assert all(torch.equal(some[name], only_first[name]) for name in some)
    for local in (True, {"blocks.3"}):
        alone = one_step(local)
        assert torch.equal(alone["blocks.2.f.0.weight"], without["blocks.2.f.0.weight"])


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    plain, saved = one_step(True), one_step(True, reentrant=False)
    assert all(torch.allclose(plain[name], saved[name], atol=1e-7) for name in plain)
    with pytest.raises(Unsupported, match=r"re-entrant checkpointing, and local.*use_reentrant=False"):
        one_step(True, reentrant=True)


def test_a_scaled_loss_scales_the_gradients() -> None:
    """As a GradScaler does: nothing is computed before the caller's own backward pass."""
    plain, scaled = one_step(True), one_step(True, scale=1024.0)
    assert all(torch.allclose(plain[name], scaled[name], atol=1e-7) for name in plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        alone, without = one_step(True), plain_step()
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in alone.values())
    changed = {name.split(".")[1] for name in without if not torch.equal(alone[name], without[name])}
    assert changed == {"1", "3"}


@pytest.mark.slow
def test_a_compiled_model() -> None:
    def compiled() -> Net:
        net = Net()
        net.compile(backend="aot_eager")
        return net

    torch.compiler.reset()
    plain, fast = one_step(True), one_step(True, compiled)
    assert all(torch.allclose(plain[name], fast[name], atol=1e-6) for name in plain)


def test_it_goes_on_after_a_resume_and_in_a_copy() -> None:
    torch.manual_seed(0)
    net, batch = Branches(), a_batch()
    flow = fog_a.wrap(net, x="x_t", t="t")
    reg = AGREPA(flow, Statistics(), "layers.1", batch=batch, local=True)
    again = AGREPA(flow, Statistics(), "layers.1", local=True)
    again.load_state_dict(reg.state_dict())
    copied = copy.deepcopy(again)
    copied.open()
    for r in (again, copied):
        r.flow.loss(batch)
        r(batch).backward()
        assert {name.split(".")[1] for name in gradients(r.flow.module)} == {"1"}


def test_what_is_refused() -> None:
    flow, batch = a_flow(), a_batch()
    with pytest.raises(UnknownBlock, match=r"local= names 'blocks\.2', and the layers to align are blocks\.1"):
        AGREPA(flow, Statistics(), "blocks.1", local=["blocks.2"])
    reg = AGREPA(flow, Statistics(), k=1, local="block.1")
    flow.loss(batch)
    with pytest.raises(UnknownBlock, match=r"local= names 'block\.1', and the layers to align are blocks\.0, "):
        reg(batch)
    reg = AGREPA(flow, Statistics(), "blocks.1", batch=batch, local=True)
    flow.module.blocks[1].requires_grad_(False)
    flow.loss(batch)
    with pytest.raises(NoActivations, match=r"no parameter of block 'blocks\.1' is trained"):
        reg(batch)


def test_shared_parameters_are_refused() -> None:
    class Tied(Net):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            h, e = self.into(x_t), self.time(t[:, None, None])
            for block in (*self.blocks, *self.blocks):
                h = block(h, e)
            return self.out(h)

    shared = Net()
    shared.blocks[2].f[0].weight = shared.blocks[1].f[0].weight  # pyright: ignore[reportIndexIssue]
    for net, name in ((Tied(), "blocks.1@1"), (shared, "blocks.1")):
        flow = fog_a.wrap(net, x="x_t", t="t")
        with pytest.raises(Unsupported, match=rf"{name}' shares parameters with other calls"):
            AGREPA(flow, Statistics(), name, batch=a_batch(), local=True)
