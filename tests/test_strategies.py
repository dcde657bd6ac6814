"""However ablations are run, scores are those of one ablation at a time; and no block runs oftener than it must."""

from __future__ import annotations

import inspect
import re
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from random_nets import Net, build, nets
from random_parents import Spec
from row_counter import rows
from sharing import how
from small_nets import Net as SmallNet
from small_nets import TwoStreams, tokens
from test_properties import random_nets, score
from torch import nn
from trap_nets import CLEAR, HARD

import fog_a
from fog_a.errors import FogError, Unsupported
from fog_a.finding import recording

ROUNDING = 2e-5
"""How far fan-out may be from the loop, relative: a matmul on more rows may round its last bit otherwise."""


def attribute(module: nn.Module, batch: Any, strategy: str, **options: Any) -> fog_a.Scores:
    budget = {name: options.pop(name) for name in ("rows", "memory") if name in options}
    way = how(strategy, module, batch, **budget)
    return fog_a.attribute(module, batch, how=way, progress=False, **options)


def moving(spec: Spec) -> Net:
    """A net whose scores are not all nearly zero."""
    net = build(spec)
    v = net.v()
    assume(max(score(net.v({k: 0}), v).max() for k in net.main) > 0.01)
    return net


@random_nets
@given(nets(dtypes=("float32", "float64", "bfloat16")))
def test_prefix_is_bit_equal_to_one_at_a_time(spec: Spec) -> None:
    """With a clean run of its own, and with the forward that blocks are found in, which then covers the same."""
    net = moving(spec)
    loop, prefix = (attribute(net.module, net.batch, way) for way in ("loop", "prefix"))
    plain = fog_a.find_blocks(net.module, net.batch).coverage
    with mock.patch.object(recording, "WORTH", 0):  # else nets of this size are simply run
        kept = fog_a.find_blocks(net.module, net.batch).coverage
        shown = attribute(net.module, net.batch, "prefix")
    assert kept.passing == plain.passing and kept.rows == plain.rows
    for scores in (prefix, shown):
        assert scores.info["strategy"] == "prefix" and scores.layers == loop.layers
        np.testing.assert_array_equal(scores.values, loop.values)


@pytest.mark.parametrize("samples", [3, 2000])
def test_a_first_call_runs_no_block_oftener_than_it_must(samples: int) -> None:
    """Finding and the clean run are one forward, where blocks take longer to run than to skip. One row alone shows
    that the samples are on the first axis."""
    net, x = SmallNet(depth=6), tokens(samples)
    once = rows(lambda: net(x), [[*net.blocks]])[0]
    counted = rows(lambda: fog_a.attribute(net, x, progress=False), [[*net.blocks]])[0]
    assert ((counted - once // samples) * 6 == once * 21) == (samples == 2000)


@random_nets
@given(nets())
def test_fan_out_agrees_with_one_at_a_time(spec: Spec) -> None:
    net = moving(spec)
    loop = attribute(net.module, net.batch, "loop")
    fan = attribute(net.module, net.batch, "fanout")
    assert fan.info["strategy"] == "fanout" and fan.layers == loop.layers
    np.testing.assert_allclose(fan.values, loop.values, rtol=ROUNDING, atol=ROUNDING / 10)


@random_nets
@given(nets(topologies=("stack", "stages", "tied", "lists", "dual")))
def test_blocks_run_no_oftener_than_they_must(spec: Spec) -> None:
    """Block k in the clean run and in the k variants before it: L(L+1)/2 in all, counted at its weights."""
    net = moving(spec)
    blocks = fog_a.find_blocks(net.module, net.batch).main
    modules = dict(net.module.named_modules())
    tied = spec.sizes[0] if spec.topology == "tied" else len(blocks)  # calls of one module are counted together
    labels = [net.labels[k] for k in net.main]
    paths = [[p for part in label.parts for p in part.split("|")] for label in labels[:tied]]
    groups = [[modules[p] for p in path] for path in paths]
    clean = rows(net.run, groups)
    calls = len(blocks) // tied
    want = [sum(r // calls * (k + 1) for k in range(i, len(blocks), tied)) for i, r in enumerate(clean)]
    attribute(net.module, net.batch, "loop", blocks=blocks)  # whether time comes first is looked at once
    try:
        way = how("prefix", net.module, net.batch)
        prefix = rows(lambda: fog_a.attribute(net.module, net.batch, how=way, blocks=blocks, progress=False), groups)
    except Unsupported as refusal:  # a block seems to leave something behind: then it is the loop, and that is said
        assert spec.block.inplace and "leaves something behind" in str(refusal)
        return
    if spec.block.inplace == "caller" and prefix != want:  # a second clean run, that keeps copies
        prefix = [n - r for n, r in zip(prefix, clean, strict=True)]
    assert prefix == want
    attribute(net.module, net.batch, "fanout", blocks=blocks)  # where the samples are is measured once
    assert rows(lambda: attribute(net.module, net.batch, "fanout", blocks=blocks), groups) == want


@pytest.mark.parametrize("L", [6, 12, 24, 48, 96])
@pytest.mark.parametrize("strategy", ["prefix", "fanout", "auto"])
def test_row_evaluations_are_the_least_possible(strategy: str, L: int) -> None:
    net, x = SmallNet(depth=L), tokens(samples=2)
    blocks = fog_a.find_blocks(net, x)
    way = how(strategy, net, x)
    attribute(net, x, strategy, blocks=blocks)
    clean = rows(lambda: net(x), [[*net.blocks]])[0]
    counted = rows(lambda: fog_a.attribute(net, x, how=way, blocks=blocks, progress=False), [[*net.blocks]])[0]
    assert counted * L == clean * L * (L + 1) // 2


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("strategy", ["prefix", "fanout", "auto"])
def test_batch_axes_are_measured(strategy: str, name: str) -> None:
    torch.manual_seed(0)
    module, batch = CLEAR[name]()
    loop = attribute(module, batch, "loop")
    scores = attribute(module, batch, strategy)
    assert scores.info["strategy"] == strategy or strategy == "auto"
    assert not scores.info["notes"], scores.info["notes"]
    rtol = 0 if scores.info["strategy"] == "prefix" else ROUNDING
    np.testing.assert_allclose(scores.values, loop.values, rtol=rtol, atol=rtol / 10)
    assert loop.values.min() > 0


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("variants", [1, 2])
def test_chunks_change_nothing(name: str, variants: int) -> None:
    torch.manual_seed(0)
    module, batch = CLEAR[name]()
    loop = attribute(module, batch, "loop")
    chunked = attribute(module, batch, "fanout", rows=len(loop.values) * (1 + variants))
    np.testing.assert_allclose(chunked.values, loop.values, rtol=ROUNDING, atol=ROUNDING / 10)


@pytest.mark.filterwarnings("ignore:the blocks run once for each sample")
@pytest.mark.parametrize("name", HARD)
def test_what_cannot_be_shared_is_noticed(name: str) -> None:
    """auto is never wrong; a strategy that was asked for is right or refuses."""
    torch.manual_seed(0)
    module, batch = HARD[name]()
    loop = attribute(module, batch, "loop")
    auto = attribute(module, batch, "auto")
    np.testing.assert_allclose(auto.values, loop.values, rtol=ROUNDING, atol=ROUNDING / 10)
    for strategy in ("prefix", "fanout"):
        try:
            scores = attribute(module, batch, strategy)
        except Unsupported as refusal:
            assert "cannot be used" in str(refusal) and "auto" in str(refusal)
        else:
            np.testing.assert_allclose(scores.values, loop.values, rtol=ROUNDING, atol=ROUNDING / 10)


@pytest.mark.parametrize(
    ("name", "why"), [("samples talk", "depend on each other|other clean rows"), ("draws", "random numbers")]
)
def test_the_fall_back_is_announced(name: str, why: str) -> None:
    module, batch = HARD[name]()
    notes = attribute(module, batch, "auto").info["notes"]
    assert any(re.search(why, note) for note in notes), notes
    try:  # one ablation at a time may share what comes before it
        assert any(re.search(why, note) for note in attribute(module, batch, "fanout").info["notes"])
    except Unsupported as refusal:
        assert re.search(why, str(refusal))


def test_nan_in_one_variant_stays_there() -> None:
    class Fragile(SmallNet):
        """0/0 without block 1, for sample 0."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x)
            moved = h.new_ones(len(x), 1, 1)
            for i, block in enumerate(self.blocks):
                y = block(h)
                if i == 1:
                    change = (y - h).abs().sum((1, 2), keepdim=True)
                    moved = torch.where(h[:, :1, :1] == h[:1, :1, :1], change / change, moved)
                h = y
            return self.head(h) * moved

    net, x = Fragile(), tokens()
    values = {}
    for strategy in ("loop", "prefix", "fanout"):
        with pytest.warns(UserWarning, match=r"blocks\.1"):
            values[strategy] = attribute(net, x, strategy).values[:, 0]
        assert np.isnan(values[strategy][0, 1]) and np.isnan(values[strategy]).sum() == 1
    np.testing.assert_array_equal(values["prefix"], values["loop"])
    np.testing.assert_allclose(values["fanout"], values["loop"], rtol=ROUNDING)


def test_a_budget_under_one_sample() -> None:
    with pytest.raises(FogError, match=r"room for the batch's 3 samples, got rows=2"):
        attribute(SmallNet(), tokens(), "fanout", rows=2)


@pytest.mark.parametrize("rows", [3, 5])
def test_a_budget_for_the_batch_alone_is_one_ablation_at_a_time(rows: int) -> None:
    scores = attribute(SmallNet(), tokens(), "fanout", rows=rows)
    assert scores.info["strategy"] == "prefix" and not scores.info["notes"]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("fan-out", r"expected how='auto', 'loop', fog_a\.Shared\(\), .* got 'fan-out'"),
        (fog_a.Shared, r"expected an object in how=, got the class Shared\. Type how=fog_a\.Shared\(\)"),
        (3, "expected how='auto'.*got 3"),
    ],
)
def test_an_unknown_way(how: Any, why: str) -> None:
    with pytest.raises(FogError, match=why):
        fog_a.attribute(SmallNet(), tokens(), how=how)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True])
def test_no_room(rows: Any) -> None:
    with pytest.raises(FogError, match=r"expected Shared\(rows=\) as a number of rows, 1 or more, got"):
        fog_a.Shared(rows=rows)


def test_an_unknown_keyword_gets_the_near_names() -> None:
    with pytest.raises(FogError, match=r"attribute has no keyword 'time': did you mean times"):
        fog_a.attribute(SmallNet(), tokens(), time=3)  # type: ignore[call-arg]
    with pytest.raises(FogError, match=r"no keyword 'strategy': did you mean"):
        fog_a.attribute(SmallNet(), tokens(), strategy="loop")  # type: ignore[call-arg]


def test_help_fits_two_screens() -> None:
    assert len(inspect.getdoc(fog_a.attribute).splitlines()) + 20 <= 90  # type: ignore[union-attr]
    assert len(inspect.signature(fog_a.attribute).parameters) - 2 <= 15


def test_another_batch_shape_is_measured_anew() -> None:
    net = SmallNet()
    blocks = fog_a.find_blocks(net, tokens())
    for samples, length in ((3, 5), (5, 3), (5, 5), (1, 1), (3, 5), (4, 4)):
        x = tokens(samples, length, seed=samples)
        loop, fan = (attribute(net, x, s, blocks=blocks).values for s in ("loop", "fanout"))
        np.testing.assert_allclose(fan, loop, rtol=ROUNDING)


def test_weights_that_change_between_calls_are_seen() -> None:
    """What was measured once is where the samples are, not what the model computes."""
    net, x = SmallNet(), tokens()
    blocks = fog_a.find_blocks(net, x)
    for _ in range(3):
        values = {s: attribute(net, x, s, blocks=blocks).values for s in ("loop", "prefix", "fanout")}
        np.testing.assert_array_equal(values["prefix"], values["loop"])
        np.testing.assert_allclose(values["fanout"], values["loop"], rtol=ROUNDING)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))


@pytest.mark.parametrize("way", ["auto", "loop", fog_a.Shared(rows=10**6), fog_a.Shared(rows=4), fog_a.FirstOrder(256)])
def test_two_branches_with_their_gates_at_one_call(way: Any) -> None:
    torch.manual_seed(0)
    net, x = TwoStreams().eval(), torch.randn(4, 5, 6)
    scores = fog_a.attribute(net, x, level="branch", how=way, progress=False)
    assert scores.layers == tuple(f"attends.{i}[{j}]" for i in range(3) for j in range(2))
    with torch.no_grad():
        base = net(x).flatten(1)
        hand = [(net(x, [(i, j)]).flatten(1) - base).norm(dim=1) / base.norm(dim=1) for i in range(3) for j in range(2)]
    close = dict(rtol=0.5) if isinstance(way, fog_a.FirstOrder) else dict(rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scores.values[:, 0].mean(0), torch.stack(hand, 1).mean(0), **close)
