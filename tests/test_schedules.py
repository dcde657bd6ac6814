"""Schedules over steps, saturation, and weights over t."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fog_a.aligning.schedules import Plateau, Schedule, TimeWeight
from fog_a.errors import Unsupported


def test_each_kind_starts_at_one_and_ends_at_zero() -> None:
    for kind in ("linear", "cosine", "stop"):
        s = Schedule(kind, 100)
        values = [s(i) for i in range(120)]
        assert values[0] == 1.0 and values[100:] == [0.0] * 20
        assert all(a >= b for a, b in itertools.pairwise(values))
    assert Schedule("linear", 10)(3) == pytest.approx(0.7)
    assert Schedule("stop", 10)(9) == 1.0
    assert Schedule()(10**9) == 1.0


def test_what_cannot_be_scheduled_is_refused() -> None:
    with pytest.raises(Unsupported, match="needs a length"):
        Schedule("cosine")
    with pytest.raises(Unsupported, match="take 'constant'"):
        Schedule("warm", 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unsupported, match="take 'snr', 'hard' or 'soft'"):
        TimeWeight("log")  # pyright: ignore[reportArgumentType]


def test_a_plateau_is_reached_only_when_growth_stops_and_survives_a_save() -> None:
    schedule = Schedule("saturated", 20, growth=1e-3, decay=0.9)
    one = Plateau(schedule)
    for i in range(100):
        one.update(i / 100)
    assert not one.reached
    two = Plateau(schedule)
    two.restore(one.state())
    for plateau in (one, two):
        for _ in range(200):
            plateau.update(0.99)
    assert one.reached and one == two
    fresh = Plateau(schedule)
    fresh.restore(Plateau(schedule).state())
    assert fresh.best == -math.inf


def test_time_weights() -> None:
    t = torch.linspace(0, 1, 11)
    snr = TimeWeight("snr", sigma=0.5)(t)
    inner = t[1:-1]
    assert torch.allclose(snr[1:-1], torch.sigmoid(2 * torch.log(inner / ((1 - inner) * 0.5))), atol=1e-6)
    assert snr[0] == 0 and snr[-1] == 1
    assert TimeWeight("hard", tau=0.7)(t).tolist() == [0.0] * 7 + [1.0] * 4
    soft = TimeWeight("soft", tau=0.7, kappa=20)(t)
    assert soft[7] == pytest.approx(0.5, abs=1e-5) and (soft.diff() > 0).all()
