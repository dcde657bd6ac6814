"""The public names: pinned here, listed in docs/api.md, each with a docstring."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fog_a

ROOT = Path(__file__).resolve().parents[1]

PUBLIC = """
    AGREPA BareFlow BiTC Blocks FirstOrder Flow FogError Inputs NNsight NoBlocksFound NotResidual ResidualBlock Samples
    Scores Selection Settled ShapeMismatch Shared Teacher UnknownAdapter attribute check find_blocks gate gradnorm lasp
    output_of plot_scd plot_scores select tap wrap
""".split()


def test_all_is_pinned() -> None:
    assert list(fog_a.__all__) == PUBLIC, "a public name came or went: change this list, docs/api.md and CHANGELOG.md"


def test_docs_list_exactly_these() -> None:
    listed = re.findall(r"^::: fog_a\.(?:\w+\.)*(\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    public = [name for name in listed if name in PUBLIC]
    assert sorted(public) == PUBLIC
    assert len(listed) == len(set(listed)), "listed twice"


@pytest.mark.parametrize("name", PUBLIC)
def test_name_has_a_docstring(name: str) -> None:
    value = getattr(fog_a, name)
    assert value.__doc__ and len(value.__doc__.strip()) > 20
    assert value.__module__.startswith("fog_a.")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No fog_a attribute atribute"):
        fog_a.atribute  # noqa: B018


def test_dir_shows_the_names_before_they_are_used() -> None:
    assert set(PUBLIC) <= set(dir(fog_a))
