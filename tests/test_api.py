"""The public names: pinned here, listed in docs/api.md, each with a docstring; so is whatever docs and examples use."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fog_a

ROOT = Path(__file__).resolve().parents[1]
API = (ROOT / "docs" / "api.md").read_text()
ENTRIES = re.findall(r"^::: ([\w.]+)", API, re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))  # the applications in folders there are built on the inside too
OURS = ("fog_a", "fog_a_adapters")
# Files that can be imported with the base packages alone.
MODULES = sorted(
    path.relative_to(ROOT / "fog_a").with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "fog_a").glob("*/*.py")
    if path.stem not in ("lightning", "transformers", "nnsight", "__init__")
)

PUBLIC = """
    AGREPA Along BareFlow BiTC Blocks CacheSchedule FirstOrder Flow FogError Inputs Interactions Interrupted NNsight
    NoBlocksFound NotResidual Pruned Removal ResidualBlock Samples Scores Selection Settled ShapeMismatch Shared
    Teacher UnknownAdapter attribute cache_schedule check compare_scores drift find_blocks gate gradnorm
    interactions lasp output_of plot_scd plot_scores prune remove select skip_guidance tap wrap
""".split()


def test_all_is_pinned() -> None:
    assert list(fog_a.__all__) == sorted([*PUBLIC, "errors", "teachers"]), (
        "a public name came or went: change this list, docs/api.md and CHANGELOG.md"
    )


def test_docs_list_exactly_these() -> None:
    listed = re.findall(r"^::: fog_a\.(?:\w+\.)*(\w+)", API, re.MULTILINE)
    public = [name for name in listed if name in PUBLIC]
    assert sorted(public) == PUBLIC
    assert len(ENTRIES) == len(set(ENTRIES)), "listed twice"


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


def resolved(path: str) -> Any:
    """What a dotted path names: a module, or something in one."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize("path", ENTRIES)
def test_every_entry_exists(path: str) -> None:
    assert resolved(path) is not None


@functools.cache
def documented() -> list[Any]:
    """Everything that has an entry in docs/api.md; a module's entry shows all that it defines."""
    values = []
    for path in ENTRIES:
        with contextlib.suppress(ImportError, AttributeError, TypeError):  # test_every_entry_exists says so
            values.append(resolved(path))
    inside = [v for m in values if isinstance(m, ModuleType) for v in vars(m).values() if _home(v) == m.__name__]
    return [*values, *inside]


def _home(value: Any) -> str | None:
    return getattr(value, "__module__", None)


def names_in(code: str) -> Iterator[str]:
    """Dotted paths of what a piece of Python takes from us."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fog_a":
            yield f"fog_a.{node.attr}"


def used() -> dict[str, str]:
    """Dotted path → a file that uses it: from Python, and from inline code that is a dotted path."""
    places: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text()
        for code in re.findall(r"^```python[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            places |= dict.fromkeys(names_in(code), page.name)
        places |= dict.fromkeys(re.findall(r"`((?:fog_a|fog_a_adapters)\.[\w.]+\w)[`(]", text), page.name)
    for example in EXAMPLES:
        places |= dict.fromkeys(names_in(example.read_text()), example.name)
    return places


@pytest.mark.parametrize(("path", "place"), used().items())
def test_every_name_in_use_is_documented(path: str, place: str) -> None:
    value = resolved(path)  # AttributeError: the page names what does not exist
    if inspect.isclass(value) or inspect.isfunction(value):
        assert any(value is entry for entry in documented()), f"{place} uses {path}: give it an entry in docs/api.md"


def test_every_class_that_is_named_is_documented() -> None:
    """A CamelCase word in inline code that is a class of ours has an entry."""
    classes = {
        name: value
        for module in [importlib.import_module(f"fog_a.{m}") for m in MODULES]
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__.startswith("fog_a.") and not name.startswith("_")
    }
    entries = documented()
    missing = {
        f"{word} ({page.name})"
        for page in PAGES
        for word in re.findall(r"`([A-Z]\w+)[`(.]", page.read_text())
        if word in classes and not any(classes[word] is entry for entry in entries)
    }
    assert not missing, f"no entry in docs/api.md: {sorted(missing)}"
