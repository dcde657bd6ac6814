"""Drift over t: the change of each block's update from step to step, and caches planned by it, replayed by gates."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import Layer, TwoStreams
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadArgument, BadBatch, ShapeMismatch, UnknownBlock, Unsupported
from fog_a.using.cache import CacheSchedule
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import load_corpus


class Timed(nn.Module):
    """v(x_t, t): a stem, three layers of which the last depends on nothing that changes, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x_t) + t[:, None, None]
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def euler(net: Any, batch: dict[str, Tensor], steps: int = 4) -> Tensor:
    """From the noise in the batch to data."""
    x = batch["noise"]
    for j in range(steps):
        x = x + net(x, torch.full((len(x),), j / steps)) / steps
    return x


@pytest.fixture(scope="module")
def net() -> Timed:
    torch.manual_seed(0)
    return Timed().eval()


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(5, 7, 4, generator=generator) for key in ("x1", "noise")}


def wrapped(net: nn.Module) -> fog_a.Flow:
    return fog_a.wrap(net, x="x_t", t="t")


def by_hand(net: Any, batch: dict[str, Tensor]) -> np.ndarray:
    """Samples × (steps − 1) × layers, from the blocks' inputs and outputs."""
    updates: list[list[Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda m, args, out: updates[-1].append((out - args[0]).flatten(1)))
        for block in net.blocks
    ]
    enter = net.register_forward_pre_hook(lambda m, args: updates.append([]))
    with torch.no_grad():
        euler(net, batch)
    for hook in (*hooks, enter):
        hook.remove()
    u = torch.stack([torch.stack(step) for step in updates])  # steps, layers, samples, entries
    return ((u[1:] - u[:-1]).norm(dim=-1) / u[1:].norm(dim=-1)).permute(2, 0, 1).numpy()


def test_drift_along_a_sampler_is_what_hooks_see(net: Timed, batch: dict[str, Tensor]) -> None:
    flow = wrapped(net)
    data = {"x1": batch["x1"]}
    scores = fog_a.drift(flow, data, lambda model, _: euler(model, batch))
    assert (
        scores.kind == "drift"
        and scores.values.shape == (5, 3, 3)
        and scores.layers == ("blocks.0", "blocks.1", "blocks.2")
    )
    assert scores.times == (0.25, 0.5, 0.75)
    assert np.allclose(scores.values, by_hand(net, batch), rtol=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_without_a_sampler_the_path_is_made_of_the_data(net: Timed, batch: dict[str, Tensor]) -> None:
    scores = fog_a.drift(wrapped(net), {"x1": batch["x1"]}, steps=5)
    assert scores.times == pytest.approx((0.3, 0.5, 0.7, 0.9)) and scores.values.shape == (5, 4, 3)
    assert (scores.values > 0).all()
    again = fog_a.drift(wrapped(net), {"x1": batch["x1"]}, steps=5, blocks=["blocks.1"])
    assert (again.values[..., 0] == scores.values[..., 1]).all()
    scores.plot()


def test_padding_does_not_count() -> None:
    """What a clip's drift is does not depend on how far it is padded."""
    torch.manual_seed(0)
    model, corpus = FlowMatching(DiTConfig.tiny(layers=3, dim=16)), load_corpus(per_domain=2, held_out=2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    flow, whole = fog_a.wrap(model), corpus.held_out()[0]
    shortest = int(whole["lengths"].argmin())
    alone = flow.samples(whole).rows([shortest])
    alone = {**alone, "mel": alone["mel"][:, : int(alone["lengths"][0])]}
    assert alone["mel"].shape[1] < whole["mel"].shape[1]
    values = fog_a.drift(flow, whole, steps=3).values[shortest]
    assert np.allclose(fog_a.drift(flow, alone, steps=3).values[0], values, rtol=1e-3)


def test_guided_samplers_name_the_calls_that_count() -> None:
    torch.manual_seed(0)
    model, batch = FlowMatching(DiTConfig.tiny(layers=3, dim=16)), load_corpus(per_domain=2, held_out=2).held_out()[0]
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    scores = fog_a.drift(
        fog_a.wrap(model), batch, lambda m, b: m.sample(b, steps=4, cfg=2), when=lambda call: call.args[2].any()
    )
    assert scores.values.shape[1] == 2 and len(set(scores.domains)) == 2


def test_a_schedule_computes_where_the_updates_change() -> None:
    values = np.full((16, 7, 2), 0.1, dtype=np.float32)
    values[:, :, 1] = 0.4
    scores = fog_a.Scores(values, layers=("calm", "busy"), times=tuple(np.linspace(0, 1, 7)), kind="drift")
    half = fog_a.cache_schedule(scores, share=0.5)
    assert half.share <= 0.5 and half.compute[0].all()
    assert len(half.steps("calm")) < len(half.steps("busy"))
    assert fog_a.cache_schedule(scores, share=1.0).compute.all()
    assert fog_a.cache_schedule(scores, share=1 / 8).share == 1 / 8
    shares = [fog_a.cache_schedule(scores, share=s).share for s in np.linspace(0.2, 1, 9)]
    assert shares == sorted(shares)


def test_a_replayed_schedule(net: Timed, batch: dict[str, Tensor]) -> None:
    """All computed: the bits of no cache. Nothing computed: the first updates are used throughout."""
    blocks = fog_a.find_blocks(net, (batch["x1"], torch.zeros(5)))
    plain = euler(net, batch)
    full = CacheSchedule.every(1, blocks.names, steps=4)
    with torch.no_grad(), full.replay(net, blocks) as run:
        assert torch.equal(euler(net, batch), plain) and run.calls == 4 and full.share == 1
    once = CacheSchedule.every(9, blocks.names, steps=4)
    with torch.no_grad(), once.replay(net, blocks):
        cached = euler(net, batch)
    with torch.no_grad():
        h = net.stem(batch["noise"])
        updates = [h := block(h) for block in net.blocks][-1] - net.stem(batch["noise"])
        x = batch["noise"]
        for j in range(4):
            x = x + net.head(net.stem(x) + j / 4 + updates) / 4
    assert torch.allclose(cached, x, atol=1e-5) and not torch.allclose(cached, plain, atol=1e-3)
    with (
        pytest.raises(BadArgument, match="the schedule has 4 steps, and the sampler makes another"),
        torch.no_grad(),
        once.replay(net, blocks),
    ):
        euler(net, batch, steps=5)
    with (
        pytest.raises(BadArgument, match="the schedule has 4 steps, and the sampler made 3"),
        torch.no_grad(),
        once.replay(net, blocks),
    ):
        euler(net, batch, steps=3)
    with pytest.raises(KeyboardInterrupt), once.replay(net, blocks):
        raise KeyboardInterrupt


def test_a_schedule_by_drift_errs_less_than_every_second_step(net: Timed, batch: dict[str, Tensor]) -> None:
    flow, data = wrapped(net), {"x1": batch["x1"]}
    blocks = fog_a.find_blocks(flow, data)
    planned = fog_a.cache_schedule(fog_a.drift(flow, data, lambda m, _: euler(m, batch, 12)), share=0.5)
    plain, errors = euler(net, batch, 12), []
    for schedule in (planned, CacheSchedule.every(2, blocks.names, 12)):
        with torch.no_grad(), schedule.replay(flow, blocks):
            errors.append(float((euler(net, batch, 12) - plain).norm() / plain.norm()))
    assert planned.share <= 0.5 and max(errors) < 0.2


def test_what_has_no_drift(net: Timed, batch: dict[str, Tensor]) -> None:
    flow, data = wrapped(net), {"x1": batch["x1"]}
    with pytest.raises(BadBatch, match="a bare module has no time axis"):
        fog_a.drift(net, (batch["x1"], torch.zeros(5)))
    with pytest.raises(BadBatch, match="two steps or more, the network was called 1 times"):
        fog_a.drift(flow, data, steps=1)
    with pytest.raises(ShapeMismatch, match="calls the network on 10 rows, the batch has 5 samples"):
        fog_a.drift(flow, data, lambda m, b: [m(b["x1"].repeat(2, 1, 1), torch.zeros(10)) for _ in range(2)])
    with pytest.raises(UnknownBlock, match=r"near: blocks\.1"):
        fog_a.drift(flow, data, blocks=["block.1"])
    scores = fog_a.Scores([[1.0, 2.0]], layers=("a", "b"))
    with pytest.raises(BadArgument, match="expected scores of kind 'drift', got 'contribution'"):
        fog_a.cache_schedule(scores)
    with pytest.raises(BadArgument, match=r"share = 0\.1: expected 0\.200 to 1; the first of 5 steps is computed"):
        fog_a.cache_schedule(fog_a.drift(flow, data, steps=5), share=0.1)
    with pytest.raises(UnknownBlock, match=r"no layer 'block\.1' in this schedule; near: blocks\.1"):
        CacheSchedule.every(2, ["blocks.1"], 4).steps("block.1")


@pytest.mark.parametrize(("n", "steps"), [(0, 4), (-1, 4), (1.5, 4), (True, 4), (2, 0)])
def test_every_nth_of_no_number(n: Any, steps: Any) -> None:
    with pytest.raises(BadArgument, match="expected n and steps as whole numbers, 1 or more"):
        CacheSchedule.every(n, ["a"], steps)


@pytest.mark.parametrize("share", ["0.5", None, True, float("nan"), 1.1])
def test_no_share(share: Any) -> None:
    scores = fog_a.Scores(np.ones((16, 3, 1)), layers=("a",), times=(0.2, 0.5, 0.8), kind="drift")
    with pytest.raises(BadArgument, match=r"share = .*: expected 0\.250 to 1"):
        fog_a.cache_schedule(scores, share)


class Talking(Timed):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().forward(x_t - x_t.mean(0), t)


def test_samples_without_rows_of_their_own(batch: dict[str, Tensor]) -> None:
    with pytest.raises(
        Unsupported, match="drift is measured for each sample, and here its samples depend on each other"
    ):
        fog_a.drift(wrapped(Talking()), {"x1": batch["x1"]}, steps=3)


def test_branches_with_their_gates_at_one_call() -> None:
    torch.manual_seed(0)
    net, x = TwoStreams().eval(), torch.randn(4, 5, 6)
    seen: list[tuple[Tensor, Tensor]] = []

    def sampler(net: nn.Module, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + net(x) / 3
        return x

    blocks = fog_a.find_blocks(net, x, level="branch")
    scores = fog_a.drift(net, x, sampler, blocks=blocks)
    hook = net.attends[0].register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        sampler(net, x)
    hook.remove()
    for j in range(2):
        updates = [out[j].flatten(1) for out in seen]
        want = [(b - a).norm(dim=1) / b.norm(dim=1) for a, b in itertools.pairwise(updates)]
        np.testing.assert_allclose(scores.values[:, :, j], torch.stack(want, 1), rtol=1e-4)
