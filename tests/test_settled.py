"""Drawing batches until the top-k set holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_flow import a_batch, a_flow

import fog_a
from fog_a.errors import FogError

SAMPLES = 250
"""Of a batch: more than the 183 that a claim at 95 % needs."""


def attribute(batches: Any, **options: Any) -> fog_a.Scores:
    return fog_a.attribute(a_flow(), batches, times=1, until=fog_a.Settled(**{"k": 2, **options}), progress=False)


def batches(count: int, drawn: list[int] | None = None) -> Iterator[dict[str, Any]]:
    for i in range(count):
        if drawn is not None:
            drawn.append(i)
        yield {**a_batch(SAMPLES, domains=("speech",), seed=i)}


def test_clear_layers_settle_at_the_first_look() -> None:
    """Blocks 1 and 3 are five times as strong as the others."""
    drawn: list[int] = []
    scores = attribute(batches(8, drawn), looks=8)
    settled = scores.info["settled"]["speech"]
    assert drawn == [0] and scores.values.shape[0] == SAMPLES
    assert settled["holds"] and settled["look"] == 1 and "holds at 95% confidence" in settled["reason"]
    assert {ranked.layer for ranked in scores.top(2)} == {"blocks.1", "blocks.3"}


def test_equal_layers_never_settle_and_the_result_says_so() -> None:
    flow: Any = a_flow(scales=(1.0, 1.0, 1.0))
    with torch.no_grad():
        for block in flow.module.blocks[1:]:
            block.load_state_dict(flow.module.blocks[0].state_dict())
    drawn: list[int] = []
    batch = a_batch(SAMPLES, domains=("speech",))

    def same() -> Iterator[dict[str, Any]]:
        for i in range(9):
            drawn.append(i)
            yield batch | {"x1": batch["x1"] * 1e-3, "ids": [f"{i}/{j}" for j in range(SAMPLES)]}

    scores = fog_a.attribute(
        flow, same(), times=1, until=fog_a.Settled(k=1, looks=3, confidence=0.999999), progress=False
    )
    settled = scores.info["settled"]["speech"]
    assert len(drawn) == 3 and scores.values.shape[0] == 3 * SAMPLES
    assert not settled["holds"] and settled["look"] == 3 and "does not hold" in settled["reason"]


def test_few_samples_are_never_enough() -> None:
    scores = attribute([a_batch(4, domains=("speech",), seed=i) for i in range(3)])
    settled = scores.info["settled"]["speech"]
    assert not settled["holds"] and "at least 183 are needed to tell" in settled["reason"]
    assert scores.values.shape[0] == 12


def test_every_domain_must_settle() -> None:
    """Speech has enough samples at once, sound only after four batches."""
    names = ["speech"] * 250 + ["sound"] * 60
    looks = []
    many = ({**a_batch(310, seed=i), "domains": names} for i in range(10) if looks.append(i) is None)
    scores = attribute(many, looks=10)
    assert len(looks) == 4
    assert all(verdict["holds"] for verdict in scores.info["settled"].values())
    assert set(scores.info["settled"]) == {"speech", "sound"}


def test_asking_for_more_looks_costs_confidence() -> None:
    """The p that must be undercut is (1 − confidence) / (2 · looks): planned before the first look."""
    reasons = [attribute(batches(1), looks=n).info["settled"]["speech"]["reason"] for n in (1, 5)]
    assert "< 0.025" in reasons[0] and "< 0.005" in reasons[1]


def test_the_number_of_looks_must_be_known() -> None:
    for unbounded in (batches(3), a_batch(3), torch.randn(2, 3)):
        with pytest.raises(FogError, match=r"how many there may be.*looks="):
            attribute(unbounded)


def test_an_unknown_rule() -> None:
    with pytest.raises(FogError, match=r"expected until=None, 'settled' or fog_a\.Settled\(.*got 'sure'"):
        fog_a.attribute(a_flow(), batches(1), until="sure")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"k": 0}, {"confidence": 2}, {"confidence": 0.0}, {"looks": 0}, {"looks": 1.5}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(FogError, match=rf"expected Settled\({name}=\) .*got {options[name]}"):
        fog_a.Settled(**options)


def test_without_the_rule_all_batches_are_used() -> None:
    scores = fog_a.attribute(a_flow(), batches(3), times=1, progress=False)
    assert scores.values.shape[0] == 3 * SAMPLES and "settled" not in scores.info
