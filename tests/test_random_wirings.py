"""Combinations of wirings at random: right, refused with a reason, or open by name, never wrong without a word."""

from __future__ import annotations

import pytest
from random_wirings import verdict, wiring


def wrong(first: int, last: int) -> list[str]:
    said = {seed: verdict(wiring(seed)) for seed in range(first, last)}
    return [f"{seed}: {wiring(seed).name}: {word}" for seed, word in said.items() if word.startswith("WRONG")]


def test_no_combination_is_wrong_without_a_word() -> None:
    assert not wrong(0, 25)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("first", range(25, 425, 100))
def test_no_combination_of_many_is_wrong_without_a_word(first: int) -> None:
    assert not wrong(first, first + 100)
