"""Imports go strictly down, so there is no circle; hooks have one home, and the core stays free of model libraries.

Read from the source by ast: nothing is imported, so a violation shows even where a package is missing.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms from the ground up: a file imports from rooms of lower floors, or from its own room. Rooms of one floor stand
# side by side: none imports another.
FLOORS = [
    {"errors"},
    {"ranks", "blocks", "files"},
    {"flows", "scores"},
    {"finding", "teachers"},
    {"attributing", "probing"},
    {"aligning", "shell"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, start=1) for room in rooms}
LONGEST = 350
"""Lines of a file, at most."""

# Never imported when a file of fog_a is: a user who only wants to attribute pays for none of them.
HEAVY = {
    "matplotlib", "transformers", "diffusers", "torchaudio", "soundfile", "nnsight", "pandas", "sklearn", "accelerate",
    "lightning", "tensorboard", "librosa", "speechbrain", "fog_a_adapters",
}  # fmt: skip

# Files of fog_a that name fog_a_adapters at all: the shell reaches the bundled DiT, late and by name.
SHELL_TO_BUNDLED = {"shell/cli"}

FILES = sorted(p for p in (ROOT / "fog_a").glob("**/*.py") if p != ROOT / "fog_a" / "__init__.py")
ALL_FILES = [*FILES, *sorted((ROOT / "adapters").glob("**/*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "fog_a").with_suffix("").as_posix()


def room_of(name: str) -> str:
    return name.split("/")[0]


def imports(tree: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported module as a dotted path, and whether only when a function runs, or for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imports(ast.Module(node.body, []), late=True)
            yield from imports(ast.Module(node.orelse, []), late)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, late
            yield from ((f"{module}.{alias.name}", late) for alias in node.names)
        else:
            yield from imports(node, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


NAMES = {name_of(p) for p in FILES}


def edges(path: Path, *, late: bool = True) -> set[str]:
    """The files of fog_a that this one imports, late or not, for type checkers only or not."""
    found = [module for module, when in imports(parse(path)) if late or not when]
    modules = {module.removeprefix("fog_a.").replace(".", "/") for module in found}
    return {name for module in modules for name in (module, f"{module}/__init__") if name in NAMES} - {name_of(path)}


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(name) for name in NAMES}
    assert rooms == set(FLOOR), f"rooms without a floor or floors without a room: {rooms ^ set(FLOOR)}"
    assert len(FLOORS) <= 6


def test_a_room_says_what_it_is_for() -> None:
    for path in sorted((ROOT / "fog_a").glob("*/__init__.py")):
        assert ast.get_docstring(parse(path)), f"{path.parent.name} does not say what it is for"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    room = room_of(name_of(path))
    up = [there for there in edges(path) if room_of(there) != room and FLOOR[room_of(there)] >= FLOOR[room]]
    assert not up, f"{name_of(path)} (floor {FLOOR[room]}) imports {up}"


def test_no_circle() -> None:
    try:
        list(graphlib.TopologicalSorter({name_of(p): edges(p, late=False) for p in FILES}).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"these files import each other in a circle: {error.args[1]}")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_core_is_light(path: Path) -> None:
    now = {module.split(".")[0] for module, late in imports(parse(path)) if not late}
    now -= {name_of(path).removeprefix("aligning/")}  # an integration is imported by who uses that library
    assert not now & HEAVY, f"{name_of(path)} imports {now & HEAVY} at module level"
    ever = {module.split(".")[0] for module, _ in imports(parse(path))}
    if name_of(path) not in SHELL_TO_BUNDLED:
        assert "fog_a_adapters" not in ever, f"{name_of(path)} imports fog_a_adapters: adapters are reached by name"


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_hooks_have_one_home(path: Path) -> None:
    if path == ROOT / "fog_a" / "blocks" / "calls.py":
        return
    calls = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and node.attr.endswith("hook")
    ]
    assert not calls, f"{path.name}: lines {calls} register hooks; only fog_a/blocks/calls.py may"


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nobody_assigns_forward(path: Path) -> None:
    lines = []
    for node in ast.walk(parse(path)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        lines += [t.lineno for t in targets if isinstance(t, ast.Attribute) and t.attr == "forward"]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr" and len(node.args) > 1:
            lines += [node.lineno] * (isinstance(node.args[1], ast.Constant) and node.args[1].value == "forward")
    assert not lines, f"{path.name}: lines {lines} assign .forward; intercept the call by a hook"


def test_ast_sees_what_it_must() -> None:
    """The reader itself: late, conditional and relative forms are told apart."""
    tree = ast.parse(
        "import a\nfrom b import c\nif TYPE_CHECKING:\n    import d\n"
        "def f():\n    import e\nclass K:\n    import g\n    def m(self):\n        from h import i\n"
        "try:\n    import j\nexcept ImportError:\n    pass\n"
    )
    seen = {module: late for module, late in imports(tree)}
    assert {m for m, late in seen.items() if not late} == {"a", "b", "b.c", "g", "j"}
    assert {m for m, late in seen.items() if late} == {"d", "e", "h", "h.i"}
