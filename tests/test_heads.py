"""Heads: shapes, parameter counts of Table 11, padding, resampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fog_a.aligning import heads
from fog_a.aligning.distances import resample
from fog_a.aligning.recipe import Recipe
from fog_a.errors import BadBatch, ShapeMismatch


def count(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


def test_parameter_counts_are_those_of_the_release_and_of_table_11() -> None:
    assert count(heads.mlp(1024, 1280)) == 1024 * 1024 + 1024 + 1024 * 1280 + 1280  # 2.36 M
    assert round(count(heads.mlp(1024, 1280, hidden=78)) / 1e6, 2) == 0.18
    assert count(heads.linear(1024, 768)) == 1024 * 768 + 768


@pytest.mark.parametrize("factory", [heads.conv1d, heads.conv2d])
def test_convolutions_see_neighbours_but_no_padding(factory: Any) -> None:
    head = factory(8, 5, pool=False)
    x = torch.randn(2, 6, 8)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    y = head(x, mask)
    other = x.clone()
    other[0, 4:] = 100.0
    assert torch.equal(head(other, mask)[0, :4], y[0, :4])
    changed = x.clone()
    changed[0, 1] += 1.0
    moved = (head(changed, mask)[0] - y[0]).abs().amax(-1) > 0
    assert moved[:3].all() and not moved[3:].any()


def test_conv2d_over_a_grid_mixes_columns() -> None:
    head = heads.conv2d(4, 3, grid=3, pool=False, normalize=nn.Identity())
    x = torch.zeros(1, 12, 4)
    near = x.clone()
    near[0, 4] = 1.0  # row 1, column 1: all of rows 0-2
    moved = (head(near) - head(x)).abs().amax(-1)[0] > 0
    assert moved[:9].all() and not moved[9:].any()
    with pytest.raises(ShapeMismatch, match="do not fill rows of 3: type partial\\(conv2d, grid="):
        head(torch.zeros(1, 10, 4))


def test_a_head_of_a_part_of_the_flow_times() -> None:
    """Each sample by the head of its own part of [0, 1], in the order of the batch; without its time no sample."""
    head = heads.by_time(4, 3, bins=2, head=heads.linear)
    h, t = torch.randn(4, 5, 4), torch.tensor([0.9, 0.1, 1.0, 0.49])
    y = head(h, None, t)
    for i, part in enumerate((1, 0, 1, 0)):
        assert torch.allclose(y[i], head.parts[part](h[i : i + 1])[0])
    with pytest.raises(
        BadBatch, match=r"heads by flow time and SelfTeacher.* need this batch's flow times.*type reg\(batch, t=t\)"
    ):
        head(h)
    with pytest.raises(BadBatch, match=r"must lie in \[0, 1\], 0 noise and 1 data; got 100 to 1000"):
        head(h, None, 1000 * t)


def test_the_default_head() -> None:
    assert Recipe().head is heads.mlp


def test_first_values_are_xavier_and_zero_bias() -> None:
    head = heads.mlp(64, 32)
    assert all(not p.any() for p in head.parameters() if p.ndim == 1)
    bound = (6 / (64 + 32)) ** 0.5
    assert head.outer.weight.abs().max() <= bound


def test_resampling_keeps_constants_and_lines() -> None:
    line = torch.arange(8.0)[None, :, None]
    assert torch.equal(resample(line, 8), line)
    assert resample(torch.ones(1, 5, 2), 9).eq(1).all()
    half = resample(line, 4)[0, :, 0]
    assert torch.allclose(half, torch.tensor([0.5, 2.5, 4.5, 6.5]))
