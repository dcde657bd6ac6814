"""What a forward changes beside its output is as it was before every run, and afterwards."""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as prune
from torch import Tensor, nn

import fog_a
from fog_a.blocks.state import State
from fog_a.errors import Unsupported
from fog_a.flows.case import weights_mark

X = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))


class Res(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.f(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Res() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Drawing(Net):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.3 * torch.randn(x.shape, generator=self.generator))


class Streaming(Net):
    """Each call sees the end of the last one, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(6, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.last, x], 1)[:, :-1] + x
        self.last = x[:, -1:].clone()
        return super().forward(y)


class Counting(Net):
    """Numbers its calls in a plain attribute, and keeps what it saw in a list."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        return super().forward(x * self.calls + len(self.seen))


def by_hand(model: nn.Module, batch: Any) -> np.ndarray:
    """Eq. 9 with each run on a fresh copy of the model."""
    with torch.no_grad():
        v = copy.deepcopy(model)(batch)
        scores = []
        for i in range(3):
            closed: Any = copy.deepcopy(model)
            closed.blocks[i] = nn.Identity()
            change = (closed(batch) - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
            scores.append(float(change.mean()))
    return np.asarray(scores)


def test_every_run_starts_from_the_same_state() -> None:
    for kind in (Drawing, Streaming, Counting):
        for way in ("loop", "auto"):
            net = kind()
            before = {k: v for k, v in net.__dict__.items() if k in ("seen", "calls")}
            got = fog_a.attribute(net, X, progress=False, how=way).mean()
            np.testing.assert_allclose(got, by_hand(kind(), X), rtol=1e-4, err_msg=f"{kind.__name__} {way}")
            assert {k: v for k, v in net.__dict__.items() if k in ("seen", "calls")} == before
    drawn, fresh = Drawing(), Drawing()
    fog_a.attribute(drawn, X, progress=False)
    assert torch.equal(drawn(X), fresh(X)), "its generator stands where it stood"


class Counter:
    """A plain object with a number in it."""

    calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return 0.1 * self.calls


GENERATORS: dict[str, Any] = {
    "torch": lambda: (torch.Generator().manual_seed(3), lambda g: float(torch.rand((), generator=g))),
    "numpy": lambda: (np.random.default_rng(3), lambda g: g.random()),
    "numpy's old": lambda: (np.random.RandomState(3), lambda g: g.rand()),
    "Python": lambda: (random.Random(3), lambda g: g.random()),
    "counter": lambda: (Counter(), lambda g: g()),
}


class Scaled(Res):
    """Its update is scaled by a number that Python draws."""

    source: Any
    draw: Any

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.f(x)) * (0.5 + self.draw(self.source))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_stands_where_it_stood_before_every_run(name: str, shared: bool) -> None:
    """One of all blocks, or one of each: the same numbers in the clean run and in every ablation, however it is run."""
    net, common = Net(), GENERATORS[name]()
    net.blocks = nn.ModuleList(Scaled() for _ in range(3))
    for block in net.blocks:
        block.source, block.draw = common if shared else GENERATORS[name]()
    fresh = copy.deepcopy(net)
    loop = fog_a.attribute(net, X, progress=False, how="loop").values
    np.testing.assert_allclose(fog_a.attribute(net, X, progress=False).values, loop, rtol=1e-5)
    assert torch.equal(net(X), fresh(X)), "its generator stands where it stood"


class Noisy(Res):
    """Noise of the batch's shape, from a generator of the model's own."""

    generator: Any

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.randn(x.shape, generator=self.generator)


def test_noise_of_the_models_own_is_not_shared() -> None:
    net, generator = Net(), torch.Generator().manual_seed(3)
    net.blocks = nn.ModuleList(Noisy() for _ in range(3))
    for block in net.blocks:
        block.generator = generator
    for rows in (6, 24):
        with pytest.raises(Unsupported, match=r"draws random numbers in eval mode \(in blocks.0\)"):
            fog_a.attribute(net, X, progress=False, how=fog_a.Shared(rows=rows))
    assert fog_a.attribute(net, X, progress=False).info["strategy"] == "loop"


TICKS: list[int] = []


class Ticking(Res):
    """State that nothing holds but Python."""

    def forward(self, x: Tensor) -> Tensor:
        TICKS.append(1)
        return x + torch.tanh(self.f(x)) * len(TICKS)


class Lifted(Ticking):
    """The same, as a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        TICKS.append(1)
        return x + torch.tanh(self.f(x)) * torch.tensor([float(len(TICKS))] * 4)


@pytest.mark.parametrize("kind", [Ticking, Lifted])
@pytest.mark.parametrize("how", ["auto", "loop", fog_a.Shared(rows=6)])
def test_state_in_the_blocks_that_nobody_can_restore_is_refused(kind: type[Res], how: Any) -> None:
    """Also where the clean run, and the one that it is compared with, skip the blocks."""
    net = Net()
    net.blocks = nn.ModuleList(kind() for _ in range(3))
    match = "'blocks.0' keeps state between runs" if how != fog_a.Shared(rows=6) else "prefix cannot be used"
    with pytest.raises(Unsupported, match=match):
        fog_a.attribute(net, X, progress=False, how=how)


class Logging(Net):
    """Asks for a logger that nobody has asked for before."""

    def __init__(self) -> None:
        super().__init__()
        self.log = logging.getLogger("tests.state")

    def forward(self, x: Tensor) -> Tensor:
        logging.getLogger("tests.state.asked_for_in_a_forward")
        return super().forward(x)


def test_what_belongs_to_the_process_is_left_alone() -> None:
    fog_a.attribute(Logging(), X, progress=False)
    assert "tests.state.asked_for_in_a_forward" in logging.Logger.manager.loggerDict


class Cache:
    def __init__(self) -> None:
        self.k: list[Any] = [None, None, None]


class Cached(Net):
    def forward(self, x: Tensor, cache: Cache) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for i, block in enumerate(self.blocks):
            old = cache.k[i]
            cache.k[i] = x if old is None else torch.cat([old, x], 1)
            x = block(x) + 0.1 * cache.k[i].mean(1, keepdim=True)
        return x


def test_a_key_cache_in_the_batch() -> None:
    net, cache = Cached(), Cache()
    with torch.no_grad():
        net(torch.ones(6, 2, 4), cache)
    kept = list(cache.k)
    scores = fog_a.attribute(net, {"x": X, "cache": cache}, progress=False)
    assert all(a is b for a, b in zip(cache.k, kept, strict=True)) and np.isfinite(scores.values).all()
    again = fog_a.attribute(net, {"x": X, "cache": cache}, progress=False, how="loop")
    np.testing.assert_allclose(scores.values, again.values, rtol=1e-4)


def test_a_batch_of_inference_tensors_is_restored() -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x += torch.tanh(block.f(x))  # pyright: ignore
            return x * 1.0

    right = fog_a.attribute(InPlace(), X.clone(), progress=False).values
    with torch.inference_mode():
        x = X.clone()
        got = fog_a.attribute(InPlace(), x, progress=False).values
        assert torch.equal(x, X)
    np.testing.assert_allclose(got, right, rtol=1e-5)


def test_weights_that_hooks_set_keep_their_graph() -> None:
    net = Net()
    prune.l1_unstructured(net.blocks[0].f, "weight", 0.3)  # pyright: ignore
    net(X)
    weight: Any = net.blocks[0].f.weight
    fog_a.attribute(net, X, progress=False)
    assert net.blocks[0].f.weight is weight and weight.requires_grad


def test_a_gate_around_the_call() -> None:
    net = Net()
    with fog_a.gate(fog_a.find_blocks(net, X)[:1], 0.5):
        got = fog_a.attribute(net, X, progress=False).values
        np.testing.assert_allclose(got, fog_a.attribute(net, X, progress=False, how="loop").values, rtol=1e-4)


def test_a_second_output_has_scores_of_its_own() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Any:
            a = self.blocks[0](x)
            return a, self.blocks[2](self.blocks[1](a))

    def second(model: nn.Module, batch: Any) -> Tensor:
        return model(batch)[1]

    blocks = ["blocks.0", "blocks.1", "blocks.2"]
    right = fog_a.attribute(Two(), X, forward=second, blocks=blocks, progress=False).values
    net = Two()
    fog_a.attribute(net, X, blocks=blocks, progress=False)
    got = fog_a.attribute(net, X, forward=second, blocks=blocks, progress=False).values
    np.testing.assert_allclose(got, right, rtol=1e-5)


def test_a_state_gives_back_what_changed() -> None:
    net: Any = Net()
    net.register_buffer("graph", torch.eye(3).to_sparse())
    net.table, net.names = {"a": [1]}, {"x"}
    batch = {"x": X.clone(), "more": [torch.zeros(2)]}
    state = State(net, batch)
    net.table["a"].append(2)
    net.table["b"] = 1
    net.names.add("y")
    net.late = 3
    del net.graph
    batch["more"].append(X)
    batch["x"].add_(1)
    state.restore()
    assert net.table == {"a": [1]} and net.names == {"x"} and not hasattr(net, "late") and net.graph.is_sparse
    assert len(batch["more"]) == 1 and torch.equal(batch["x"], X)


def test_a_sparse_buffer_is_marked_by_its_values() -> None:
    """A fingerprint of a sparse matrix asks for no dense one, which may not fit."""
    plain, sparse = Net(), Net()
    sparse.register_buffer("graph", torch.eye(3).to_sparse())
    sparse.register_buffer("large", torch.ones(1, 1).to_sparse().sparse_resize_((10**7, 10**7), 2, 0))
    first = weights_mark(sparse)
    scores = [fog_a.attribute(net, X, progress=False).mean() for net in (sparse, plain)]
    assert np.array_equal(*scores)
    sparse.graph.mul_(2)
    assert weights_mark(sparse) != first
