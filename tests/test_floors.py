"""Imports go strictly down, so there is no circle; hooks have one home, and the core stays free of model libraries.

Read from the source by ast: nothing is imported, so a violation shows even where a package is missing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each floor in reading order, `folder: files`: a file imports from lower floors, and on its own floor from files that
# stand before it.
FLOORS = {
    "words": ["errors concepts leaves"],
    "tools": [
        "scoring: statistics ranking stopping text files scores selection",
        "state hooks batches",
        "flows: frames draws dicts generic adapters clean",
        "teachers: weights waveforms descriptors routing encoders cached weightless whisper beats __init__",
        "ranks probe",
    ],
    "finding": ["finding: trace operations streams owners passages likeness levels blocks"],
    "methods": [
        "ablating: calls skipping footprint layout prefix fanout variants first_order envoys cells",
        "ablating: measurement ablation",
        "probing: similarity ridge depth bitc teachings lens controls gradients storage",
    ],
    "training": ["aligning: heads schedules recipe targets listening slots width released warmup alignment"],
    "shell": [
        "__init__",
        "showing: canvas plot plot_lines page report",
        "shell: options arguments pictures tree",
        "cli",
        "integrations: lightning transformers",
    ],
}


def stems(line: str) -> list[str]:
    """The files of one line of FLOORS, as paths below fog_a without `.py`."""
    folder, _, files = line.rpartition(":")
    return [f"{folder}/{name}" if folder else name for name in files.split()]


ORDER = [name for lines in FLOORS.values() for line in lines for name in stems(line)]
FLOOR = {name: floor for floor, lines in FLOORS.items() for line in lines for name in stems(line)}

# Methods stand side by side: neither imports the other.
METHODS = ("ablating", "probing")

# Upward imports inside a function, each with its reason: a method that is sugar for something above it.
LATE_UP: dict[tuple[str, str], str] = {
    ("scoring/scores", "showing/plot"): "Scores.plot() is a shorthand for plot_scores(scores)",
}

# Never imported when a file of fog_a is: a user who only wants to attribute pays for none of them.
HEAVY = {
    "matplotlib", "transformers", "diffusers", "torchaudio", "soundfile", "nnsight", "pandas", "sklearn", "accelerate",
    "lightning", "tensorboard", "librosa", "speechbrain", "fog_a_adapters",
}  # fmt: skip

# Files of fog_a that name fog_a_adapters at all: the shell reaches the bundled DiT, late and by name.
SHELL_TO_BUNDLED = {"cli"}

# A folder's __init__ says what the folder is for, and imports nothing; those with a place in FLOORS hold names.
FILES = sorted(
    p for p in (ROOT / "fog_a").glob("**/*.py") if p.name != "__init__.py" or p.parent.name in ("fog_a", "teachers")
)
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
    found = set()
    for module, late in imports(parse(path)):
        there = module.removeprefix("fog_a.").replace(".", "/")
        if module.startswith("fog_a."):
            found |= {(name, late) for name in (there, f"{there}/__init__") if name in FLOOR}
    return found


def test_every_file_has_a_floor() -> None:
    missing, gone = {name_of(p) for p in FILES} - FLOOR.keys(), FLOOR.keys() - {name_of(p) for p in FILES}
    assert not missing, f"give {missing} a floor in tests/test_floors.py"
    assert not gone, f"{gone} stand in tests/test_floors.py and nowhere else"


def test_a_folder_says_what_it_is_for() -> None:
    for path in sorted((ROOT / "fog_a").glob("*/__init__.py")):
        tree = parse(path)
        assert ast.get_docstring(tree), f"{path.parent.name} does not say what it is for"
        assert name_of(path) in FLOOR or not list(imports(tree)), f"{path} imports, but has no place in FLOORS"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    here = name_of(path)
    if here not in FLOOR:
        pytest.fail(f"{here} has no floor")
    wrong = []
    for there, late in edges(path) - {(here, True), (here, False)}:
        down = there in FLOOR and ORDER.index(there) < ORDER.index(here)
        across = {here.split("/")[0], there.split("/")[0]} == set(METHODS)
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
