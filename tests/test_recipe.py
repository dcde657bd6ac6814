"""Recipe: presets, validation, messages."""

from __future__ import annotations

import pytest

from fog_a.aligning.recipe import PRESETS, Recipe, recipe
from fog_a.aligning.schedules import Schedule
from fog_a.errors import Unsupported


def test_every_preset_is_valid_and_every_deviation_can_be_undone() -> None:
    for name, changes in PRESETS.items():
        full = recipe(name)
        for option, value in changes.items():
            assert getattr(full, option) == value != getattr(Recipe(), option)
            undone = recipe(name, **{option: getattr(Recipe(), option)})
            assert getattr(undone, option) == getattr(Recipe(), option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmpu": 3}, "no option 'warmpu'; did you mean warmup"),
        ({"k": 0}, "option k=0: Input should be greater than or equal to 1"),
        ({"head": "conv3d"}, "option head='conv3d'"),
        ({"preset": "authors"}, "preset 'authors': take one of paper, release"),
        ({"schedule": "cosine"}, "needs a length"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        recipe(**options)  # pyright: ignore[reportArgumentType]


def test_names_stand_for_schedules() -> None:
    assert recipe(schedule="constant").schedule == Schedule()
    assert recipe(time_weight="snr").needs_time and recipe(time_bins=2).needs_time and not recipe().needs_time
