"""Heads: shapes, parameter counts of Table 11, padding, resampling."""

from __future__ import annotations

import pytest
import torch

from fog_a.aligning.heads import Head, resample
from fog_a.aligning.recipe import Recipe
from fog_a.errors import ShapeMismatch, Unsupported


def count(head: Head) -> int:
    return sum(p.numel() for p in head.parameters())


def test_parameter_counts_are_those_of_the_release_and_of_table_11() -> None:
    assert count(Head(1024, 1280)) == 1024 * 1024 + 1024 + 1024 * 1280 + 1280  # 2.36 M
    assert round(count(Head(1024, 1280, hidden=78)) / 1e6, 2) == 0.18
    assert count(Head(1024, 768, kind="linear")) == 1024 * 768 + 768


@pytest.mark.parametrize("kind", ["conv1d", "conv2d"])
def test_convolutions_see_neighbours_but_no_padding(kind: str) -> None:
    head = Head(8, 5, kind=kind)  # pyright: ignore[reportArgumentType]
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
    head = Head(4, 3, kind="conv2d", grid=3)
    x = torch.zeros(1, 12, 4)
    near = x.clone()
    near[0, 4] = 1.0  # row 1, column 1: all of rows 0-2
    moved = (head(near) - head(x)).abs().amax(-1)[0] > 0
    assert moved[:9].all() and not moved[9:].any()
    with pytest.raises(ShapeMismatch, match="do not fill rows of 3; set grid="):
        head(torch.zeros(1, 10, 4))


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(Unsupported, match="take 'mlp', 'linear', 'conv1d' or 'conv2d'"):
        Head(4, 4, kind="transformer")  # pyright: ignore[reportArgumentType]
    assert Recipe().head == "mlp"


def test_first_values_are_xavier_and_zero_bias() -> None:
    head = Head(64, 32)
    assert all(not p.any() for p in head.parameters() if p.ndim == 1)
    bound = (6 / (64 + 32)) ** 0.5
    assert head.outer.weight.abs().max() <= bound


def test_resampling_keeps_constants_and_lines() -> None:
    line = torch.arange(8.0)[None, :, None]
    assert torch.equal(resample(line, 8), line)
    assert resample(torch.ones(1, 5, 2), 9).eq(1).all()
    half = resample(line, 4)[0, :, 0]
    assert torch.allclose(half, torch.tensor([0.5, 2.5, 4.5, 6.5]))
