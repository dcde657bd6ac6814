"""What a batch says of its clips reaches the Scores of lasp and gradnorm."""

from __future__ import annotations

import pytest
from small_flow import Statistics, a_batch, a_flow

import fog_a


@pytest.mark.filterwarnings("ignore:the head of")  # these features say nothing of the data
def test_crops_of_one_clip_are_one_group() -> None:
    """And they never lie in both halves, of which one fits the head."""
    flow, names = a_flow(), tuple(f"clip{i // 2}" for i in range(16))
    batch = {**a_batch(16, domains=("all",)), "groups": list(names)}
    scores = fog_a.lasp(flow, batch, Statistics(), times=1, beside=())
    assert len(scores.groups) == 8 and len(set(scores.groups)) == 4
    assert fog_a.gradnorm(flow, batch).groups == names
