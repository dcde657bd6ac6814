"""torch.set_default_device("meta"): what fog_a makes holds data; what a user makes without data is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_flow import Statistics, a_batch, a_flow
from torch import Tensor

import fog_a
from fog_a.aligning.alignment import AGREPA
from fog_a.errors import BadFeatures


class Columns(Statistics):
    """Features made of the data, on its device."""

    def __call__(self, samples: Any) -> Tensor:
        return samples.rows(range(len(samples)))["x1"].mean(1)[:, : self.dim]


@pytest.fixture
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


FLOW, BATCH, MORE, TIMES = a_flow(), a_batch(), a_batch(24, domains=("all",)), torch.rand(6)


def train(**options: Any) -> list[float]:
    reg, values = AGREPA(FLOW, Columns(), **options), []
    for _ in range(5):
        loss = FLOW.module(BATCH["x1"], TIMES).square().mean()
        term = reg(BATCH)
        (loss + term).backward()
        values.append(float(term.detach()))
    assert {p.device.type for p in reg.parameters()} == {"cpu"}
    return values


@pytest.mark.parametrize("options", [{"k": 2, "warmup": 3, "every": 1}, {"selection": "blocks.1", "center": True}])
def test_alignment(options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    expected = train(**options)
    request.getfixturevalue("meta")
    assert train(**options) == expected and expected[-1] > 0


def test_storage_and_gradients(request: pytest.FixtureRequest) -> None:
    expected = fog_a.lasp(FLOW, MORE, Columns(), times=2), fog_a.gradnorm(FLOW, BATCH)
    request.getfixturevalue("meta")
    found = fog_a.lasp(FLOW, MORE, Columns(), times=2), fog_a.gradnorm(FLOW, BATCH)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.values, b.values)


@pytest.mark.usefixtures("meta")
def test_features_without_data_are_refused() -> None:
    class Bodiless(Columns):
        def __call__(self, samples: Any) -> Tensor:
            return torch.ones(len(samples), self.dim)

    message = r"on the device meta, without data. Type torch.set_default_device\(None\)"
    with pytest.raises(BadFeatures, match=message):
        fog_a.lasp(FLOW, MORE, Bodiless(), times=2)
    reg = AGREPA(FLOW, Bodiless(), "blocks.1", batch=BATCH)
    FLOW.module(BATCH["x1"], TIMES)
    with pytest.raises(BadFeatures, match=message):
        reg(BATCH)
