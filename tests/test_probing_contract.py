"""LASP, BiT-C and gradnorm over every adapter, on its package's real classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flow_cases import CASES
from torch import Tensor, nn

import fog_a
from fog_a.blocks.calls import hooked
from fog_a.blocks.tree import leaves
from fog_a.blocks.untouched import preserved, rng
from fog_a_adapters.released import clean_input

pytestmark = [
    # Theirs, raised where our code calls them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore:.*LoRACompatible.*", "ignore:.*torch.cuda.amp.*", "ignore:.*hyperparameter.*"),
    pytest.mark.filterwarnings("ignore:the head of"),  # fitted on three samples
]


@pytest.mark.parametrize("name", CASES)
def test_probes(name: str) -> None:
    with rng(0):
        case = CASES[name]()
    flow, batch = fog_a.wrap(case.model, **case.options), case.batch
    count = len(flow.samples(batch).ids)
    features = torch.randn(count, 5)
    scores = fog_a.lasp(flow, batch, features=lambda _: features, fit=[batch, batch], times=2, beside=("shuffled",))
    assert scores.layers == case.blocks and scores.values.shape == (count, 2, len(case.blocks))
    assert (np.abs(scores.values) <= 1 + 1e-5).all() and scores.missing == 0
    norms = fog_a.gradnorm(flow, batch)
    assert norms.layers == case.blocks and (norms.values > 0).all()
    if flow.interface(batch) is not None:
        bitc = fog_a.BiTC(flow, 5, batch=batch)
        loss = bitc(batch, features=features)
        loss.backward()
        gradient = bitc.head("all").weight.grad
        assert 0 <= loss.item() <= 2 and gradient is not None and gradient.any()
        assert scores.info["interface"].keys() == set(scores.domains)


@pytest.mark.parametrize("name", CASES)
def test_clean_input_is_the_data(name: str) -> None:
    """The network's arguments at t = .8 with x_1 in x_t's place: those of t = 1, but for the time."""
    with rng(0):
        case = CASES[name]()
    flow, batch = fog_a.wrap(case.model, **case.options), case.batch

    def arguments(t: float, clean: bool) -> dict[Any, Tensor]:
        seen: dict[Any, Tensor] = {}

        def keep(args: Any, kwargs: Any) -> None:
            seen.update(leaves({"args": args, "kwargs": kwargs}))

        whole = [m for m in (flow.module, flow.model) if isinstance(m, nn.Module)]
        with preserved(*whole):
            if not clean:
                with hooked(flow.module, before=keep):
                    flow.velocity(batch, t, 0)
            else:
                with clean_input(flow, batch, 0), hooked(flow.module, before=keep):
                    flow.velocity(batch, t, 0)
        return seen

    data, noisy, clean = arguments(1.0, False), arguments(0.8, False), arguments(0.8, True)
    moved = [path for path in data if not torch.equal(data[path], noisy[path])]
    times = [path for path in moved if torch.equal(clean[path], noisy[path])]
    assert len(moved) == len(times) + 1  # x alone was exchanged
    assert all(torch.equal(clean[path], data[path]) for path in data if path not in times)
