"""The examples in docstrings run and print what they claim: in fog_a, its adapters and its application."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def modules() -> list[str]:
    homes = [(ROOT, "fog_a"), (ROOT / "adapters", "fog_a_adapters"), (ROOT / "examples", "unified_audio")]
    paths = [(home, path) for home, package in homes for path in sorted((home / package).glob("**/*.py"))]
    dotted = [".".join(path.relative_to(home).with_suffix("").parts).removesuffix(".__init__") for home, path in paths]
    return [name for name, (_, path) in zip(dotted, paths, strict=True) if ">>>" in path.read_text()]


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert failed == 0, "see the captured output"
