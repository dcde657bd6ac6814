"""Scores given that others are closed, by other yardsticks, along a trajectory; two blocks at once; what can go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from random_nets import build, nets
from random_parents import Spec
from row_counter import rows
from sharing import how
from small_flow import a_batch, a_flow
from small_nets import Joint, Net, TwoStreams, tokens
from test_properties import random_nets
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadArgument, BadBatch, BadOutput, BadScores, UnknownBlock, Unsupported


def relative(v_k: Tensor, v: Tensor) -> np.ndarray:
    return ((v_k - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)).numpy()


@torch.no_grad()
def without(net: Any, x: Tensor, names: Any) -> Tensor:
    with fog_a.gate(fog_a.find_blocks(net, x).named(names), 0):
        return net(x)


@random_nets
@given(nets())
def test_given_closed_blocks_all_ways_agree(spec: Spec) -> None:
    net = build(spec)
    blocks = fog_a.find_blocks(net.module, net.batch).main
    if len(blocks) < 2:
        return
    options: dict[str, Any] = {"blocks": blocks[1:], "closed": blocks[:1], "progress": False}
    try:
        loop = fog_a.attribute(net.module, net.batch, how="loop", **options)
    except (BadOutput, fog_a.FogError) as error:
        with pytest.raises(type(error)):
            fog_a.attribute(net.module, net.batch, **options)
        return
    prefix = fog_a.attribute(net.module, net.batch, how=how("prefix", net.module, net.batch), **options)
    np.testing.assert_array_equal(prefix.values, loop.values)
    auto = fog_a.attribute(net.module, net.batch, **options)
    np.testing.assert_allclose(auto.values, loop.values, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("way", ["loop", "prefix", "fanout"])
def test_scores_given_that_others_are_closed(way: str) -> None:
    net, x = Net(depth=5), tokens()
    scores = fog_a.attribute(net, x, closed=["blocks.1", "blocks.3"], how=how(way, net, x), progress=False)
    assert scores.layers == ("blocks.0", "blocks.2", "blocks.4") and scores.info["closed"] == ["blocks.1", "blocks.3"]
    base = without(net, x, ["blocks.1", "blocks.3"])
    for i, name in enumerate(scores.layers):
        want = relative(without(net, x, ["blocks.1", "blocks.3", name]), base)
        np.testing.assert_allclose(scores.values[:, 0, i], want, rtol=1e-4)


def test_closed_may_be_one_block_its_name_or_blocks() -> None:
    net, x = Net(depth=3), tokens()
    blocks = fog_a.find_blocks(net, x)
    for closed in ("blocks.1", blocks[1], blocks[1:2], ["blocks.1"]):
        assert fog_a.attribute(net, x, closed=closed, progress=False).layers == ("blocks.0", "blocks.2")


def test_closed_tied_blocks() -> None:
    net, x = Net(depth=2), tokens()
    net.blocks.append(net.blocks[0])
    names = fog_a.find_blocks(net, x).names
    assert "blocks.0@1" in names
    scores = fog_a.attribute(net, x, closed="blocks.0@1", progress=False)
    base = without(net, x, ["blocks.0@1"])
    np.testing.assert_allclose(scores.values[:, 0, 0], relative(without(net, x, ["blocks.0@1", names[0]]), base), 1e-4)
    assert fog_a.remove(net, x, keep=1).kept[0] in names


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"closed": ["blocks.0", "blocks.1", "blocks.2"]}, BadArgument, "closes all 3 blocks"),
        ({"closed": "blocks.1", "blocks": ["blocks.1"]}, BadArgument, "stands in blocks= and in closed="),
        ({"closed": "bloks.1"}, UnknownBlock, "near: blocks.1"),
        ({"closed": []}, UnknownBlock, "at least one block in closed="),
        ({"closed": "blocks.1", "how": fog_a.NNsight()}, BadArgument, "Leave closed= out"),
        ({"metric": "los"}, BadArgument, "expected metric=None, 'loss' or a function"),
        ({"metric": "loss"}, Unsupported, "needs a flow"),
        ({"metric": "loss", "how": fog_a.FirstOrder()}, BadArgument, "FirstOrder estimates the relative change"),
        ({"metric": lambda v, v_k, b: v_k}, BadArgument, "one number per sample"),
        ({"metric": lambda v, v_k, b: None}, BadArgument, r"one number per sample, \(3,\), got None"),
        ({"metric": lambda v, v_k, b: "0.5"}, BadArgument, "one number per sample, .* got '0.5'"),
        (
            {"metric": lambda v, v_k, b: v_k.flatten(1)[:, 0].to(torch.complex64)},
            BadArgument,
            "got .* of torch.complex64",
        ),
        ({"metric": lambda v, v_k, b: v_k.flatten(1).mean(1) * float("nan")}, BadOutput, "gave NaN or inf without"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], words: str) -> None:
    net, x = Net(depth=3), tokens()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(error, match=words):
        fog_a.attribute(net, x, progress=False, **options)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_closed_blocks_are_not_run_again() -> None:
    net, x = Net(depth=6), tokens(samples=2)
    blocks = fog_a.find_blocks(net, x)
    once = rows(lambda: net(x), [[*net.blocks]])[0] // 6
    options: dict[str, Any] = {"blocks": blocks[2:], "closed": blocks[:2], "progress": False}
    way = how("prefix", net, x)
    run = lambda: fog_a.attribute(net, x, how=way, **options)  # noqa: E731
    run()  # which axis the samples are on is known from now on
    assert rows(run, [[*net.blocks]])[0] == once * (2 + 4 * 5 // 2)  # the closed ones once, in the clean run


def test_the_flow_loss_is_signed_and_paired() -> None:
    flow, batch = a_flow(), a_batch(3)
    scores = fog_a.attribute(flow, batch, metric="loss", times=[0.25], seed=5, progress=False)
    assert scores.kind == "loss" and scores.info["metric"] == "loss" and (scores.values < 0).any()
    target, mask = flow.target(batch, 0.25, 5), flow.samples(batch).mask
    mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask.expand_as(target)

    def loss(v: Tensor) -> Tensor:
        return ((v - target).square() * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)

    blocks = fog_a.find_blocks(flow, batch)
    with torch.no_grad():
        v = flow.velocity(batch, 0.25, 5)
        with fog_a.gate(blocks[1:2], 0):
            v_k = flow.velocity(batch, 0.25, 5)
    np.testing.assert_allclose(scores.values[:, 0, 1], (loss(v_k) - loss(v)).numpy(), rtol=1e-3, atol=1e-5)
    assert (scores.interval(warn=False)[:, 0] < 0).any() and "loss" in scores.table()


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    net, x = Net(), tokens()
    worst = lambda v, v_k, batch: (v_k - v).abs().flatten(1).amax(1)  # noqa: E731
    scores = fog_a.attribute(net, x, metric=worst, checkpoint=tmp_path, progress=False)
    v = net(x).detach()
    np.testing.assert_allclose(scores.values[:, 0, 0], worst(v, without(net, x, "blocks.0"), x).numpy(), rtol=1e-4)
    assert scores.kind == "metric"
    with pytest.raises(BadScores, match="another run"):
        fog_a.attribute(net, x, checkpoint=tmp_path, progress=False)


def test_a_metric_that_writes_into_what_it_was_given() -> None:
    net, x = Net(depth=3), tokens()
    plain = lambda v, v_k, batch: (v_k - v).flatten(1).norm(dim=1)  # noqa: E731
    writing = lambda v, v_k, batch: v_k.sub_(v).flatten(1).norm(dim=1) + 0 * v.zero_().flatten(1).sum(1)  # noqa: E731
    for measure in (
        lambda m: fog_a.attribute(net, x, metric=m, progress=False).values,
        lambda m: fog_a.interactions(net, x, metric=m).joint.values,
        lambda m: fog_a.remove(net, x, keep=1, metric=m).curve,
    ):
        np.testing.assert_array_equal(measure(writing), measure(plain))


def euler(model: Any, batch: Any, steps: int) -> Tensor:
    x = batch
    for _ in range(steps):
        x = x + model(x) / steps
    return x


def test_along_a_trajectory() -> None:
    net, x = Net(), tokens()
    scores = fog_a.attribute(net, x, times=fog_a.Along(euler, 3), progress=False)
    assert scores.times == (0.0, 1 / 3, 2 / 3)
    with torch.no_grad():
        second = x + net(x) / 3
    plain = fog_a.attribute(net, second, progress=False)
    np.testing.assert_allclose(scores.values[:, 1], plain.values[:, 0], rtol=1e-4)


def guided(model: Any, batch: Any) -> None:
    x = batch
    for _ in range(2):
        cond, uncond = model(torch.cat([x, 0 * x])).chunk(2)
        x = x + (uncond + 3 * (cond - uncond)) / 2


def test_along_a_guided_trajectory() -> None:
    net, x = Net(), tokens()

    def combine(v: Tensor) -> Tensor:
        cond, uncond = v.chunk(2)
        return uncond + 3 * (cond - uncond)

    scores = fog_a.attribute(net, x, times=fog_a.Along(guided, 2, combine), progress=False)
    assert scores.values.shape == (3, 2, len(scores.layers))
    with torch.no_grad():
        v = combine(net(torch.cat([x, 0 * x])))
        v_k = combine(without(net, torch.cat([x, 0 * x]), "blocks.0"))
    np.testing.assert_allclose(scores.values[:, 0, 0], relative(v_k, v), rtol=1e-4)
    with pytest.raises(BadBatch, match="guidance on a doubled batch"):
        fog_a.attribute(net, x, times=fog_a.Along(guided, 2), progress=False)
    with pytest.raises(BadArgument, match="calls the network 2 times in a step"):
        fog_a.attribute(net, x, times=fog_a.Along(guided, 1), progress=False)
    with pytest.raises(BadBatch, match="as often in each of 3 steps"):
        fog_a.attribute(net, x, times=fog_a.Along(guided, 3, combine), progress=False)


def test_times_along_of_a_network_with_a_clock_of_its_own() -> None:
    """Also where the sampler gives one number for all samples."""

    class Timed(Net):
        def forward(self, x: Tensor, t: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x) * (1 + torch.as_tensor(t).float().mean() / 1000)

    def sampler(model: Any, batch: Any) -> None:
        x = batch["x1"]
        for tick in (1000.0, torch.tensor(750.0), torch.full((3,), 500.0)):
            x = x + model(x, tick) / 4

    flow = fog_a.wrap(Timed(), x="x", t="t", time=lambda t: 1000 * (1 - t))
    scores = fog_a.attribute(flow, {"x1": tokens()}, times=fog_a.Along(sampler, 3), progress=False)
    assert scores.times == pytest.approx((0.0, 0.25, 0.5))


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": 3, "steps": 2},
        {"sampler": guided, "steps": 0},
        {"sampler": lambda batch: batch, "steps": 2},
        {"sampler": lambda model, batch, steps, scale: batch, "steps": 2},
        {"sampler": guided, "steps": 2, "combine": 3},
    ],
)
def test_along_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(BadArgument, match="expected Along"):
        fog_a.Along(**options)


def test_only_a_third_argument_for_steps_is_given_them() -> None:
    given: list[Any] = []

    def seeded(model: Any, batch: Any, seed: int = 0) -> None:
        given.append(seed)
        euler(model, batch, 2)

    def stepping(model: Any, batch: Any, num_steps: int = 7) -> None:
        given.append(num_steps)
        euler(model, batch, num_steps)

    for sampler in (seeded, stepping):
        fog_a.attribute(Net(), tokens(), times=fog_a.Along(sampler, 2), progress=False)
    assert given == [0, 2]


def test_what_is_asked_of_a_trajectory_and_does_not_fit() -> None:
    net, x = Net(), tokens()

    def along(combine: Any = None) -> fog_a.Along:
        return fog_a.Along(euler, 2, combine)

    with pytest.raises(BadArgument, match=r"expected times= as numbers, got <function euler.*Along\(sampler, steps\)"):
        fog_a.attribute(net, x, times=euler)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadArgument, match="expected times= as numbers"):
        fog_a.remove(net, x, 2, times=euler)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadArgument, match=r"calls the network 1 times in a step, and combine= must make v of as many"):
        fog_a.attribute(net, x, times=along(lambda cond, uncond: cond))
    with pytest.raises(BadArgument, match=r"expected combine= to return v, a tensor .*, got NoneType"):
        fog_a.attribute(net, x, times=along(lambda v: None))
    with pytest.raises(BadArgument, match=r"metric='loss' needs x_t made of data, and times=Along\(...\)"):
        fog_a.attribute(net, x, times=along(), metric="loss")


def test_a_metric_of_two_arguments_is_refused_at_once() -> None:
    for use in (fog_a.attribute, fog_a.interactions):
        with pytest.raises(BadArgument, match=r"metric= as a function \(v, v_k, batch\).* too many positional"):
            use(Net(), tokens(), metric=lambda v, v_k: v.mean(1))
    with pytest.raises(BadArgument, match="interactions has no keyword 'block': did you mean blocks"):
        fog_a.interactions(Net(), tokens(), block=["blocks.0"])  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("shared", [True, False])
def test_pairs_are_joint_minus_sum(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if shared:
        monkeypatch.setattr("fog_a.attributing.variants.LAUNCH_BOUND", 0)  # by prefix
    net, x = Net(depth=4), tokens()
    pairs = fog_a.interactions(net, x, ["blocks.3", "blocks.0", "blocks.2"])
    assert pairs.blocks == ("blocks.0", "blocks.2", "blocks.3") and pairs.scores.kind == "interaction"
    v = net(x).detach()
    for (a, b), value in zip(pairs.pairs, pairs.scores.values[:, 0].T, strict=True):
        both, alone, other = (relative(without(net, x, n), v) for n in ([a, b], [a], [b]))
        np.testing.assert_allclose(value, both - alone - other, atol=1e-5)
    assert pairs.mean().shape == (3, 3) and np.isnan(np.diag(pairs.mean())).all()
    assert pairs.interval(warn=False).shape == (3, 3, 2) and "blocks.0 × blocks.2" in str(pairs)
    with pytest.raises(BadArgument, match="two or more blocks"):
        fog_a.interactions(net, x, ["blocks.0"])


def test_pairs_that_have_nothing_to_do_with_each_other() -> None:
    """Each layer turns its own quarter of the width: joint − sum is below 0 though nothing overlaps, `beyond` is 0."""

    class Quarter(nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            self.fc, self.i = nn.Linear(2, 2), i

        def forward(self, x: Tensor) -> Tensor:
            at = slice(2 * self.i, 2 * self.i + 2)
            return x + nn.functional.pad(self.fc(x[..., at]), (at.start, 8 - at.stop))

    torch.manual_seed(0)
    net, x = nn.Sequential(*(Quarter(i) for i in range(4))), torch.randn(16, 5, 8)
    pairs = fog_a.interactions(net, x)
    assert (pairs.scores.interval()[:, 1] < 0).all()
    np.testing.assert_allclose(pairs.beyond.values, 0, atol=1e-6)
    squares = fog_a.interactions(net, x, metric=lambda v, v_k, batch: (v_k - v).square().flatten(1).sum(1))
    np.testing.assert_allclose(squares.scores.values, 0, atol=1e-4)
    np.testing.assert_array_equal(squares.beyond.values, squares.scores.values)


def test_a_block_named_twice_is_one() -> None:
    net, x = Net(depth=3), tokens()
    assert fog_a.attribute(net, x, blocks=["blocks.1", "blocks.1"], progress=False).layers == ("blocks.1",)
    with pytest.raises(BadArgument, match="expected two or more blocks, got 1"):
        fog_a.interactions(net, x, ["blocks.1", "blocks.1"])


@pytest.mark.parametrize("metric", ["loss", lambda v, v_k, batch: (v_k - v).square().flatten(1).mean(1)])
def test_pairs_and_removal_by_another_yardstick(metric: Any) -> None:
    """The change of the flow loss, or of a function of one's own: as `attribute` measures it with the others closed."""
    flow, batch, options = a_flow(), a_batch(3), {"times": [0.25], "seed": 5, "metric": metric}
    single = fog_a.attribute(flow, batch, progress=False, **options)
    pairs = fog_a.interactions(flow, batch, **options)
    np.testing.assert_allclose(pairs.singles.values, single.values, rtol=1e-4, atol=1e-6)
    assert (
        pairs.singles.kind == pairs.joint.kind == single.kind and pairs.scores.info["metric"] == single.info["metric"]
    )
    what = fog_a.remove(flow, batch, keep=2, **options)
    assert what.removed[0] == single.layers[int(single.mean().argmin())]
    np.testing.assert_allclose(what.curve[1], single.mean().min(), rtol=1e-4, atol=1e-6)
    joint = dict(zip(pairs.pairs, pairs.joint.mean(), strict=True))
    given = [mean for pair, mean in joint.items() if what.removed[0] in pair]
    np.testing.assert_allclose(what.curve[2], min(given), rtol=1e-4, atol=1e-6)
    assert what.scores.kind == single.kind and "relative change" not in str(what)


def test_domains_and_masks_of_pairs_and_removal() -> None:
    net, x = Net(depth=4), tokens(samples=4)
    mask, domains = torch.ones(4, 5, dtype=torch.bool), ["a", "b", "a", "b"]
    mask[:, 2:] = False
    options: dict[str, Any] = {"domains": domains, "mask": mask}
    single = fog_a.attribute(net, x, progress=False, **options)
    pairs, what = fog_a.interactions(net, x, **options), fog_a.remove(net, x, keep=3, **options)
    np.testing.assert_allclose(pairs.singles.mean("b"), single.mean("b"), rtol=1e-5)
    assert what.scores.domains == tuple(domains)
    np.testing.assert_allclose(what.curve[1], single.mean().min(), rtol=1e-5)


@pytest.mark.parametrize("chosen", [range(6), (1, 3, 4)])
@pytest.mark.parametrize("way", ["prefix", "fanout", "loop"])
def test_pairs_take_no_more_than_their_suffixes(
    way: str, chosen: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of k blocks alone, and each pair, takes what comes after its last block: k(k + 1)/2 suffixes, by prefix
    beside one clean run, by fan-out beside the clean rows of k + 1 forwards and what compares the case's first ones
    with the definition. A loop shares nothing: it runs k(k + 1)/2 forwards beside the clean one and its checks."""
    net, x = Net(depth=6), tokens(samples=2)
    blocks, k = fog_a.find_blocks(net, x).named([f"blocks.{i}" for i in chosen]), len(chosen)
    once = rows(lambda: net(x), [[*net.blocks]])[0] // 6
    suffixes = sum((place + 1) * (5 - i) for place, i in enumerate(chosen))  # alone, and with each block before it
    if way == "loop":
        monkeypatch.setattr("fog_a.attributing.variants._order", lambda *case: ["loop"])
        suffixes, clean = k * (k + 1) // 2 * 6, 6 + 6 * (k + 1)  # each closed block runs, and each round checks its v
    else:
        monkeypatch.setattr("fog_a.attributing.variants.LAUNCH_BOUND", 0 if way == "prefix" else 1 << 15)
        fog_a.interactions(net, x, blocks)  # where the samples are is known from now on
        clean = 6 if way == "prefix" else 6 * (k + 1)
    assert rows(lambda: fog_a.interactions(net, x, blocks), [[*net.blocks]])[0] <= once * (suffixes + clean)


@pytest.mark.parametrize("shared", [True, False])
def test_what_can_go_is_greedy(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if shared:
        monkeypatch.setattr("fog_a.attributing.variants.LAUNCH_BOUND", 0)  # by prefix
    net, x = Net(depth=5), tokens()
    before = {k: p.clone() for k, p in net.state_dict().items()}
    what = fog_a.remove(net, x, keep=2)
    v, gone, left = net(x).detach(), list[str](), list(fog_a.find_blocks(net, x).names)
    for r, name in enumerate(what.removed):
        sizes = {n: relative(without(net, x, [*gone, n]), v).mean() for n in left}
        assert name == min(sizes, key=lambda n: sizes[n])
        np.testing.assert_allclose(what.curve[r + 1], sizes[name], rtol=1e-4)
        assert what.rounds[r] == pytest.approx(sizes, rel=1e-4)
        gone.append(name)
        left.remove(name)
    assert what.kept == tuple(left) and what.left == (5, 4, 3, 2) and what.curve[0] == 0
    assert all(torch.equal(p, before[k]) for k, p in net.state_dict().items())
    assert what.interval(warn=False).shape == (4, 2) and what.removed[0] in str(what)


def test_what_can_go_costs_half_of_single_ablations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run without the block that goes is the clean run of the next round."""
    monkeypatch.setattr("fog_a.attributing.variants.LAUNCH_BOUND", 0)
    net, x = Net(depth=24), tokens(samples=2)
    blocks = fog_a.find_blocks(net, x)
    once = rows(lambda: net(x), [[*net.blocks]])[0] // 24
    fog_a.remove(net, x, keep=23, blocks=blocks)  # which axis the samples are on is known from now on
    counted = rows(lambda: fog_a.remove(net, x, keep=12, blocks=blocks), [[*net.blocks]])[0] / once
    loop = sum(n * (n - 1) for n in range(13, 25))  # each round n ablations, the closed left out
    assert counted <= 24 + loop / 2


def test_over_several_batches_and_times() -> None:
    flow, batches = a_flow(), [a_batch(3), a_batch(2)]
    what = fog_a.remove(flow, batches, keep=2, times=2)
    assert what.scores.times == (0.25, 0.75) and len(what.scores.ids) == 5
    assert fog_a.interactions(flow, batches, times=2).scores.times == (0.25, 0.75)


def test_a_metric_that_gives_nan_leaves_the_model() -> None:
    net, x = Net(depth=3), tokens()
    for measure in (lambda **o: fog_a.remove(net, x, keep=1, **o), lambda **o: fog_a.interactions(net, x, **o)):
        with pytest.raises(BadOutput, match=r"metric= gave NaN or inf without blocks\.0"):
            measure(metric=lambda v, v_k, batch: torch.full((len(v),), torch.nan))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("keep", [0, -1, 2.5, True, None, 4, 9])
def test_keep_out_of_range(keep: Any) -> None:
    with pytest.raises(BadArgument, match="expected keep="):
        fog_a.remove(Net(), tokens(), keep=keep)
    with pytest.raises(BadArgument, match="two or more blocks, got 1"):
        fog_a.remove(Net(), tokens(), keep=keep, blocks=["blocks.1"])


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    net, x = Net(), tokens()
    pairs, gone = fog_a.interactions(net, x, ["blocks.0", "blocks.2"]).plot(), fog_a.remove(net, x, keep=1).plot()
    for axis in (pairs.axes[0].xaxis, pairs.axes[0].yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["blocks.0", "blocks.2"]
    assert all(float(tick).is_integer() for tick in gone.axes[0].get_xticks())


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_removal_runs_a_block_again_only_behind_the_one_that_went_last(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room every candidate starts at itself; with room those before the block that went last start there."""
    monkeypatch.setattr("fog_a.attributing.variants.LAUNCH_BOUND", 0)  # by prefix
    monkeypatch.setattr("fog_a.using.removal.room_of", lambda cases: room)
    net, x = Net(depth=8), tokens(samples=2)
    blocks = fog_a.find_blocks(net, x)
    once = rows(lambda: net(x), [[*net.blocks]])[0] // 8
    fog_a.remove(net, x, keep=7, blocks=blocks)  # which axis the samples are on is known from now on
    what: list[fog_a.Removal] = []
    counted = rows(lambda: what.append(fog_a.remove(net, x, keep=2, blocks=blocks)), [[*net.blocks]])[0] / once
    left, last, expected = list(range(8)), -1, 8
    for name in what[0].removed:
        starts = [max(k, last) if room else k for k in left]
        expected += sum(sum(j > start for j in left) for start in starts)
        last = int(name.split(".")[1])
        left.remove(last)
    assert counted == expected


@pytest.mark.parametrize("way", ["auto", "loop", fog_a.Shared(rows=4)])
@pytest.mark.parametrize("shut", [[(0, 0), (0, 1)], [(0, 0)], [(1, 1)]])
def test_closed_branches_with_their_gates_at_one_call(way: Any, shut: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    net, x = TwoStreams().eval(), torch.randn(4, 5, 6)
    closed = [f"attends.{i}[{j}]" for i, j in shut]
    scores = fog_a.attribute(net, x, level="branch", closed=closed, how=way, progress=False)
    rest = [(i, j) for i in range(3) for j in range(2) if (i, j) not in shut]
    with torch.no_grad():
        want = [relative(net(x, [*shut, k]), net(x, shut)) for k in rest]
    np.testing.assert_allclose(scores.values[:, 0], np.stack(want, 1), rtol=1e-5, atol=1e-7)


def test_pairs_and_removal_of_branches_with_their_gates_at_one_call() -> None:
    torch.manual_seed(0)
    net, x = TwoStreams().eval(), torch.randn(4, 5, 6)
    places = {f"attends.{i}[{j}]": (i, j) for i in range(3) for j in range(2)}
    pairs = fog_a.interactions(net, x, level="branch")
    what = fog_a.remove(net, x, keep=1, level="branch")
    with torch.no_grad():
        joint = [relative(net(x, [places[a], places[b]]), net(x)).mean() for a, b in pairs.pairs]
        gone = [[places[name] for name in what.removed[:n]] for n in range(1, 6)]
        curve = [relative(net(x, off), net(x)).mean() for off in gone]
    np.testing.assert_allclose(pairs.joint.mean(), joint, rtol=1e-5)
    np.testing.assert_allclose(what.curve[1:], curve, rtol=1e-5)


def test_branches_with_their_gates_at_one_call_that_runs_twice_in_a_forward() -> None:
    torch.manual_seed(0)
    attends, x = nn.ModuleList(Joint() for _ in range(2)), torch.randn(4, 5, 6)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attends = attends

        def forward(self, x: Tensor, off: Collection[tuple[int, int]] = ()) -> Tensor:
            y = 0.7 * x[:, :2].flip(1)
            for i, attend in enumerate([*self.attends, *self.attends]):
                a, b = attend(x, y)
                x, y = (x if (i, 0) in off else x + a), (y if (i, 1) in off else y + b)
            return torch.cat([x, y], 1)

    net = Twice().eval()
    blocks = fog_a.find_blocks(net, x, level="branch").named(["attends.0@0[1]", "attends.1@0[0]", "attends.0@1[0]"])
    with torch.no_grad():
        want = net(x, [(0, 1), (1, 0), (2, 0)])
        with fog_a.gate(blocks, 0.0) as gate:
            assert torch.equal(net(x), want)
    assert set(gate.fired.values()) == {1}
