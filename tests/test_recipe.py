"""Recipe: validation, messages."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from fog_a.aligning.recipe import Recipe, RecipeOptions, recipe
from fog_a.errors import Unsupported


def test_the_keywords_that_editors_know_are_the_fields() -> None:
    """At most 14, each of the same type."""
    known, fields = get_type_hints(RecipeOptions), get_type_hints(Recipe, include_extras=False)
    assert list(known) == list(Recipe.model_fields) and len(known) <= 14
    assert all(known[name] == fields[name] for name in known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmpu": 3}, "no option 'warmpu'; did you mean warmup"),
        ({"k": 0}, "option k=0: Input should be greater than or equal to 1"),
        ({"head": "conv1d"}, r"option head='conv1d': .*a factory \(width, dim\) -> nn.Module. Type head=fog_a"),
        ({"schedule": "cosine"}, "option schedule='cosine': Input should be .*Schedule"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        recipe(**options)  # pyright: ignore[reportArgumentType]
