"""The bundled model through fog_a's own doors: wrapped, its blocks found, probed at any t; what a batch must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fog_a
from fog_a.errors import BadBatch
from fog_a_adapters.dit import DiT, DiTAdapter, DiTConfig, FlowMatching, MelBatch
from fog_a_adapters.dit.audio.data import load_corpus


@pytest.fixture(scope="module")
def batch() -> MelBatch:
    return load_corpus(per_domain=2, held_out=2, audio=True).held_out()[0]


@pytest.fixture
def model() -> FlowMatching:
    model = FlowMatching(DiTConfig.tiny(layers=3, dim=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def test_wrap_knows_the_bundled_model(model: FlowMatching) -> None:
    flow = fog_a.wrap(model)
    assert isinstance(flow, DiTAdapter) and isinstance(flow, fog_a.Flow)
    assert isinstance(flow.module, DiT) and flow.module is model.net
    assert not DiTAdapter.matches(torch.nn.Linear(2, 2))


def test_the_blocks_are_found_in_order(model: FlowMatching, batch: MelBatch) -> None:
    blocks = fog_a.find_blocks(fog_a.wrap(model), batch)
    assert blocks.names == ("blocks.0", "blocks.1", "blocks.2")
    assert {b.form for b in blocks} == {"stream"} and {b.definition for b in blocks} == {"identity"}


def test_what_the_samples_are(model: FlowMatching, batch: MelBatch) -> None:
    flow = fog_a.wrap(model)
    samples = flow.samples(batch)
    assert samples.ids == tuple(batch["ids"]) and samples.domains == ("speech",) * 2 + ("sound",) * 2
    assert samples.rate == 16_000 and samples.audio is not None and samples.lengths is not None
    assert samples.mask is not None and samples.mask.sum((1, 2)).tolist() == batch["lengths"].tolist()
    some = flow.samples(samples.rows([3, 1]))
    assert some.ids == (samples.ids[3], samples.ids[1]) and some.domains == ("sound", "speech")


def test_velocity_is_the_networks_at_x_t(model: FlowMatching, batch: MelBatch) -> None:
    flow = fog_a.wrap(model)
    seen: list[Any] = []
    handle = model.net.register_forward_pre_hook(lambda m, args: seen.append(args))
    v = flow.velocity(batch, 0.25, seed=3)
    handle.remove()
    ((x_t, t, _, _, mask),) = seen
    x0, _ = model.draws(batch, 3)
    torch.testing.assert_close(x_t, 0.75 * x0 + 0.25 * batch["mel"])
    assert t.tolist() == [0.25] * 4 and mask.sum(1).tolist() == batch["lengths"].tolist()
    assert torch.equal(v, flow.velocity(batch, torch.full((4,), 0.25), seed=3))
    assert not torch.equal(v, flow.velocity(batch, 0.25, seed=4))
    part = flow.velocity(flow.samples(batch).rows([2]), 0.25, seed=3)
    torch.testing.assert_close(part[0], v[2], rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_embeddings_through_the_interface(model: FlowMatching, batch: MelBatch) -> None:
    c = fog_a.wrap(model).interface(batch)
    assert c is not None and c.shape == (*batch["mel"].shape[:2], 64)
    c.square().mul(torch.randn_like(c)).sum().backward()
    grads = [p.grad for p in model.interface.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def test_tokens_are_frames(model: FlowMatching, batch: MelBatch) -> None:
    flow = fog_a.wrap(model)
    blocks = fog_a.find_blocks(flow, batch)
    with fog_a.tap(blocks) as h, torch.no_grad():
        flow.velocity(batch, 0.5)
    tokens, mask = flow.tokens(h["blocks.1"], blocks[1], flow.samples(batch))
    assert tokens.shape == (*batch["mel"].shape[:2], 32) and mask is not None
    assert mask.sum(1).tolist() == batch["lengths"].tolist()


def test_a_block_closed_by_fog_a_is_a_block_left_out(model: FlowMatching, batch: MelBatch) -> None:
    flow = fog_a.wrap(model)
    blocks = fog_a.find_blocks(flow, batch)
    shorter = FlowMatching(DiTConfig.tiny(layers=2, dim=32)).eval()
    state = {k: v for k, v in model.state_dict().items() if "blocks.1." not in k}
    shorter.load_state_dict({k.replace("blocks.2.", "blocks.1."): v for k, v in state.items()})
    with torch.no_grad(), fog_a.gate(blocks[1:2], 0):
        got = flow.velocity(batch, 0.6, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(got, shorter.velocity(batch, 0.6, seed=1))


def test_the_loss_trains_every_parameter(model: FlowMatching, batch: MelBatch) -> None:
    model.train()
    fog_a.wrap(model).loss(batch).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, r"the bundled DiT: the batch lacks tokens \(it has"),
        ({"mel": torch.zeros(4, 9, 80)}, r"'mel' is \(samples, frames, 100 mel bins\) .* got \(4, 9, 80\)"),
        ({"mel": torch.zeros(0, 9, 100)}, r"with at least one sample, got \(0, 9, 100\)"),
        ({"ids": ["a"]}, r"same number of samples, got .*'ids': 1"),
        ({"lengths": torch.tensor([0, 1, 1, 1])}, r"'lengths' are 1 to \d+ frames, got \[0, 1, 1, 1\]"),
    ],
)
def test_a_bad_batch_is_explained(model: FlowMatching, batch: MelBatch, change: dict[str, Any], message: str) -> None:
    bad = {k: v for k, v in {**batch, **change}.items() if v is not None}
    with pytest.raises(BadBatch, match=message + r".*load_corpus\(folder\)\.held_out\(\)"):
        fog_a.wrap(model).velocity(bad, 0.5)


def test_a_batch_of_another_kind_is_explained(model: FlowMatching) -> None:
    with pytest.raises(BadBatch, match=r"the bundled DiT reads a dict with mel, .* got Tensor"):
        fog_a.wrap(model).samples(torch.zeros(2, 3))
