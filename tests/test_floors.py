"""Imports go strictly down, so there is no circle; hooks have one home, and the core stays free of model libraries.

Read from the source by ast: nothing is imported, so a violation shows even where a package is missing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each floor in reading order: a file imports from lower floors, and on its own floor from files that stand before it.
FLOORS = {
    "words": "errors concepts leaves",
    "tools": """
        statistics ranking stopping score_files score_text scores selection
        state hooks batches
        frames draws dicts generic adapters
        weights waveforms descriptors routing encoders feature_cache weightless teachers
        ranks probe
    """,
    "finding": "trace operations streams owners passages levels blocks",
    "methods": """
        clean calls skipping footprint layout prefix fanout variants envoys cells ablation
        similarity ridge depth bitc teachings lens controls gradients probing
    """,
    "training": "heads schedules recipe targets listening slots width released warmup alignment",
    "shell": """
        __init__ canvas plot plot_lines page report arguments options block_text pictures cli
        integrations/__init__ integrations/lightning integrations/transformers
    """,
}
ORDER = [name for names in FLOORS.values() for name in names.split()]
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}

# Methods stand side by side: neither imports the other.
METHODS = (
    {"calls", "skipping", "footprint", "layout", "prefix", "fanout", "variants", "envoys", "cells", "ablation"},
    {"depth", "bitc", "teachings", "lens", "controls", "gradients", "probing"},
)

# Upward imports inside a function, each with its reason: a method that is sugar for something above it.
LATE_UP: dict[tuple[str, str], str] = {
    ("scores", "plot"): "Scores.plot() is a shorthand for plot_scores(scores)",
}

# Never imported when a file of fog_a is: a user who only wants to attribute pays for none of them.
HEAVY = {
    "matplotlib", "transformers", "diffusers", "torchaudio", "soundfile", "nnsight", "pandas", "sklearn", "accelerate",
    "lightning", "tensorboard", "librosa", "speechbrain", "fog_a_adapters",
}  # fmt: skip

# Files of fog_a that name fog_a_adapters at all: the shell reaches the bundled DiT, late and by name.
SHELL_TO_BUNDLED = {"cli"}

FILES = sorted((ROOT / "fog_a").glob("**/*.py"))
ALL_FILES = [*FILES, *sorted((ROOT / "adapters").glob("**/*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "fog_a").with_suffix("").as_posix()


def imports(tree: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported module as a dotted path, and whether it is imported only when a function runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for kind in node.orelse:
                yield from imports(ast.Module([kind], []), late)
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


def edges(path: Path) -> set[tuple[str, bool]]:
    """The files of fog_a that this one imports."""
    return {
        (module.split(".")[1], late)
        for module, late in imports(parse(path))
        if module.startswith("fog_a.") and (ROOT / "fog_a" / f"{module.split('.')[1]}.py").is_file()
    }


def test_every_file_has_a_floor() -> None:
    missing = [name_of(p) for p in FILES if name_of(p) not in FLOOR]
    assert not missing, f"give {missing} a floor in tests/test_floors.py"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    here = name_of(path)
    if here not in FLOOR:
        pytest.fail(f"{here} has no floor")
    wrong = []
    for there, late in edges(path) - {(here, True), (here, False)}:
        down = there in FLOOR and ORDER.index(there) < ORDER.index(here)
        across = any(here in one and there in other for one in METHODS for other in METHODS if one is not other)
        if (across or not down) and not (late and (here, there) in LATE_UP):
            wrong.append(f"{here} ({FLOOR[here]}) imports {there} ({FLOOR.get(there)}){', late' if late else ''}")
    assert not wrong, wrong


def test_declared_edges_are_in_use() -> None:
    used = {(name_of(p), there) for p in FILES for there, late in edges(p) if late}
    assert not LATE_UP.keys() - used, f"these exceptions are not needed: {LATE_UP.keys() - used}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_core_is_light(path: Path) -> None:
    now = {module.split(".")[0] for module, late in imports(parse(path)) if not late}
    now -= {name_of(path).removeprefix("integrations/")}  # an integration is imported by who uses that library
    assert not now & HEAVY, f"{name_of(path)} imports {now & HEAVY} at module level"
    ever = {module.split(".")[0] for module, _ in imports(parse(path))}
    if name_of(path) not in SHELL_TO_BUNDLED:
        assert "fog_a_adapters" not in ever, f"{name_of(path)} imports fog_a_adapters: adapters are reached by name"


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_hooks_have_one_home(path: Path) -> None:
    if path == ROOT / "fog_a" / "hooks.py":
        return
    calls = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and node.attr.endswith("hook")
    ]
    assert not calls, f"{path.name}: lines {calls} register hooks; only fog_a/hooks.py may"


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
    assert {m for m, late in seen.items() if late} == {"e", "h", "h.i"}
