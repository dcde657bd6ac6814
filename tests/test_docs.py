"""The pages stay true: every Python snippet of README.md and docs/ runs, in order, one namespace a page.

A snippet that cannot run here stands below a comment that says why: `<!-- not run: needs the model's weights -->`.
`<!-- saved as: name.py -->` says that the snippet is a file, which the following ones import.
A snippet with the comment `<!-- raises: NoBlocksFound -->` must raise just that. Equality in a trailing comment
is checked: a line `expression  # -> value` must have a value that prints so.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- *(?P<mark>not run|raises|saved as): *(?P<what>[^\n]+?) *-->\n+)?^```python[^\n]*\n(?P<code>.*?)^```",
    re.M | re.S,
)


def snippets(page: Path) -> list[tuple[int, str, str, str]]:
    """(line, mark, what, code) of each Python fence."""
    text = page.read_text()
    return [
        (text[: m.start("code")].count("\n"), m["mark"] or "", m["what"] or "", m["code"]) for m in FENCE.finditer(text)
    ]


def run(code: str, name: str, line: int, namespace: dict[str, object]) -> None:
    """Execute with the page's own line numbers, and hold each `expression  # -> value` to its word."""
    tree = ast.parse("\n" * line + code, filename=name)
    lines = ("\n" * line + code).splitlines()
    for node in tree.body:
        claim = lines[(node.end_lineno or 1) - 1].partition("  # -> ")[2].strip()
        if claim and isinstance(node, ast.Expr):
            got = eval(compile(ast.Expression(node.value), name, "eval"), namespace)
            assert str(got) == claim, f"{name}:{node.lineno}: the page says {claim}, it is {got}"
        else:
            exec(compile(ast.Module([node], []), name, "exec"), namespace)


@pytest.fixture
def own_modules(tmp_path: Path) -> Iterator[None]:
    """Modules that a page saves and imports are forgotten afterwards."""
    yield
    for name, module in list(sys.modules.items()):
        # by the dict: to ask a lazy module for an attribute would import it
        if str(getattr(module, "__dict__", {}).get("__file__")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: p.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for line, mark, what, code in snippets(page):
        if mark == "not run":
            compile(code, page.name, "exec")
        elif mark == "saved as":
            (tmp_path / what).write_text(code)
        elif mark == "raises":
            with pytest.raises(Exception) as error:
                run(code, page.name, line, namespace)
            assert type(error.value).__name__ == what
        else:
            run(code, page.name, line, namespace)


def test_links_between_pages_exist() -> None:
    """Relative links and pictures of README and docs point at files."""
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing


def test_runner_catches_a_wrong_claim() -> None:
    run("x = 2\nx + 1  # -> 3\n", "page", 0, {})
    with pytest.raises(AssertionError, match="the page says 4, it is 3"):
        run("x = 2\nx + 1  # -> 4\n", "page", 0, {})
