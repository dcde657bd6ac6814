"""torch's default dtype and device are the user's: what is measured does not depend on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_flow import TEACHER, a_batch, a_flow
from torch import Tensor

import fog_a
from fog_a.flows.samples import Samples


class Reads:
    """A teacher that says where its features lie."""

    name, dim = "reads", TEACHER

    def __call__(self, samples: Samples) -> Tensor:
        rows = [np.random.default_rng(sum(i.encode())).normal(size=TEACHER) for i in samples.ids]
        return torch.tensor(np.stack(rows), dtype=torch.float32, device="cpu")


@pytest.fixture(params=["float64", "meta", "cpu"])
def defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "float64":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device(request.param)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


pytestmark = pytest.mark.filterwarnings("ignore:the head of")
FLOW, BATCH = a_flow(), a_batch(30)


def measured() -> list[fog_a.Scores]:
    return [
        fog_a.attribute(FLOW, BATCH, times=2, progress=False),
        fog_a.attribute(FLOW, BATCH, times=2, how=fog_a.FirstOrder(2), progress=False),
        fog_a.lasp(FLOW, BATCH, Reads(), times=2),
    ]


@pytest.fixture(scope="module")
def plain() -> list[fog_a.Scores]:
    return measured()


@pytest.mark.usefixtures("plain", "defaults")
def test_scores_do_not_depend_on_defaults(plain: list[fog_a.Scores]) -> None:
    if torch.get_default_device().type == "meta":  # heads are fitted on the default device
        now = [fog_a.attribute(FLOW, BATCH, times=2, progress=False)]
    else:
        now = measured()
    for scores, want in zip(now, plain, strict=False):
        np.testing.assert_allclose(scores.values, want.values, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("defaults")
def test_alignment_does_not_depend_on_defaults() -> None:
    if torch.get_default_device().type == "meta":
        pytest.skip("heads that are made on meta have no values")
    reg = fog_a.AGREPA(FLOW, Reads(), batch=BATCH)
    for _ in range(2):
        FLOW.loss(BATCH)
        assert bool(torch.isfinite(reg(BATCH)))
