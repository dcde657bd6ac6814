"""The first-order estimate: its slopes against finite differences of the gates, its scatter, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from own_zoo import CASES
from own_zoo.case import Case, Chain
from small_nets import Net, tokens
from torch import Tensor, nn
from trap_nets import CLEAR, HARD

import fog_a
from fog_a.attributing.first_order import shrinkage
from fog_a.errors import BadArgument, ShapeMismatch, Unsupported
from fog_a.flows.batches import velocity_of

STEP = 1e-4


def estimated(model: Any, batch: Any, **options: Any) -> fog_a.Scores:
    way = fog_a.FirstOrder(options.pop("projections", 8))
    return fog_a.attribute(model, batch, how=way, progress=False, **options)


def flat(batch: Any) -> tuple[Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def by_differences(model: nn.Module, batch: Any, projections: int, level: Any = "layer") -> np.ndarray:
    """(B, L): the same projections of the same velocities, moved by hand: every gate in turn a little less open."""
    blocks = fog_a.find_blocks(model, batch, level=level)
    run = lambda: velocity_of(model(*flat(batch)))  # noqa: E731
    with torch.no_grad():
        v, slopes = run().clone(), []
        for k in range(len(blocks)):
            with fog_a.gate(blocks[k : k + 1], 1 - STEP):
                slopes.append((v - run()).flatten(1) / STEP)
    generator = torch.Generator().manual_seed(0)
    u = torch.stack([torch.randn(v.flatten(1).shape, generator=generator) for _ in range(projections)]).double()
    square = torch.stack([(u * slope).sum(-1).square().mean(0) for slope in slopes])
    return ((square.sqrt() / shrinkage(projections)) / v.flatten(1).norm(dim=1)).T.numpy()


OVERWRITE = ("writes_slice", "in_place", "alternating_updates", "return_ignored")
"""These write into what their own backward pass needs: they cannot be trained either."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_slopes_are_differences_of_the_gates(case: Case) -> None:
    model, batch = case.model().double(), case.batch().double()
    if case.name in OVERWRITE:
        with pytest.raises(Unsupported, match=r"the model's own fails: one of the variables .* inplace"):
            estimated(model, batch)
        return
    blocks = fog_a.find_blocks(model, batch)
    sources = [source for b in blocks for point in b.gate_points for source in point.give.values() if source]
    if any(source.inside for source in sources):
        with pytest.raises(Unsupported, match=r"needs the shortcut of 'blocks\.0' among its inputs"):
            estimated(model, batch)
        return
    got = estimated(model, batch, projections=3).values[:, 0]
    np.testing.assert_allclose(got, by_differences(model, batch, 3), rtol=5e-3, atol=1e-4)


def test_slopes_of_branches() -> None:
    model, batch = Chain().double().eval(), torch.randn(2, 6, 16, dtype=torch.float64)
    got = estimated(model, batch, projections=3, level="branch")
    assert len(got.layers) == 6
    np.testing.assert_allclose(got.values[:, 0], by_differences(model, batch, 3, "branch"), rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("name", CLEAR)
def test_each_sample_has_its_own_slope(name: str) -> None:
    """Whatever the layout: where the samples lie was measured."""
    net, batch = CLEAR[name]()
    net, batch = net.double().eval(), tuple(x.double() if x.is_floating_point() else x for x in flat(batch))
    got = estimated(net, batch, projections=3)
    np.testing.assert_allclose(got.values[:, 0], by_differences(net, batch, 3), rtol=5e-3, atol=1e-4)


class Linear(nn.Module):
    """h_l = (I + A_l) h_{l-1}: v is linear in every gate, so that a first order is exact."""

    def __init__(self, layers: int = 4, width: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.out = nn.Linear(width, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.out(x)


class Timeless(Linear):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([super().forward(x), x[:, 5:]], -1)  # in the shape of x_t


def test_where_a_first_order_is_exact_only_the_projections_scatter() -> None:
    torch.manual_seed(0)
    net, x = Linear(), torch.randn(4000, 12)
    exact = fog_a.attribute(net, x, progress=False).values
    for r in (1, 8):
        ratio = estimated(net, x, projections=r).values / exact
        off = (shrinkage(r) ** -2 - 1) ** 0.5
        assert np.allclose(ratio.mean(0), 1, atol=4 * off / 4000**0.5)
        assert np.allclose(ratio.std(0), off, rtol=0.1)


def test_each_time_has_projections_of_its_own() -> None:
    """What they are off by averages out over times: shown by a net that does not see t, on data without noise."""
    torch.manual_seed(0)
    flow, batch = fog_a.wrap(Timeless(), x="x", t="t", path=lambda x0, x1, t: (x1, x0)), {"x1": torch.randn(500, 12)}
    exact = fog_a.attribute(flow, batch, times=8, progress=False).values
    ratio = (estimated(flow, batch, projections=1, times=8).values / exact).mean(1)
    off = (shrinkage(1) ** -2 - 1) ** 0.5
    assert np.allclose(ratio.std(0), off / 8**0.5, rtol=0.2)


def test_a_mask_is_respected() -> None:
    net, x = Net(), tokens(4, 5)
    mask = torch.ones(4, 5, 1, dtype=torch.bool)
    mask[:, 3:] = False
    other = x.clone()
    other[:, 3:] += 1
    assert np.array_equal(estimated(net, x, mask=mask).values, estimated(net, other, mask=mask).values)


def test_it_is_labelled_and_not_mixed_with_exact_scores(tmp_path: Any) -> None:
    net, x = Net(), tokens(16)
    scores, exact = estimated(net, x), fog_a.attribute(net, x, progress=False)
    assert scores.info["method"] == "first_order" and exact.info["method"] == "exact"
    assert "a first-order estimate from 8 projections" in scores.table()
    scores.save(tmp_path / "scores.json")
    assert fog_a.Scores.load(tmp_path / "scores.json").info["method"] == "first_order"
    with pytest.raises(ShapeMismatch, match="of method first_order and of exact"):
        scores.concat(exact)
    assert np.array_equal(scores.values, estimated(net, x).values)
    assert not np.array_equal(scores.values, estimated(net, x, seed=1).values)


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (HARD["samples talk"], {}, Unsupported, "can be told apart: its samples depend on each other. Use how='auto'"),
    (HARD["draws"], {}, Unsupported, "can be told apart: the model draws random numbers"),
    (lambda: (Detached(), tokens(4)), {}, Unsupported, "the velocity has no graph"),
    (lambda: (Net(), tokens(4)), {"gate": 0.5}, BadArgument, r"got gate=0\.5\. Leave gate= out"),
    (lambda: (Net(), tokens(4)), {"projections": 0}, BadArgument, r"FirstOrder\(projections=\) of 1 or more, got 0"),
]


@pytest.mark.parametrize(("make", "options", "error", "message"), REFUSED)
def test_what_it_refuses(make: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, batch = make()
    with pytest.raises(error, match=message):
        estimated(model.eval(), batch, **options)


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_whatever_the_callers_grad_mode(inside: Any) -> None:
    net, x = Net(), tokens(4)
    want = estimated(net, x).values
    with inside():
        assert np.array_equal(estimated(net, x).values, want)
