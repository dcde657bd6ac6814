"""Imports go strictly down, so there is no circle; hooks have one home, and the core stays free of model libraries.

Read from the source by ast: nothing is imported, so a violation shows even where a package is missing.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import house
import pytest
from house import FLOORS, ROOT, Package, imports, parse, room_of

FLOOR = {room: number for number, rooms in enumerate(FLOORS, start=1) for room in rooms}
CORE, ADAPTERS = Package(ROOT / "fog_a"), Package(ROOT / "adapters" / "fog_a_adapters")

SERVES_ANY = {"compare", "released", "straight"}
"""Rooms of the adapters that belong to no model: any adapter may import them, they import none."""
DIT_FLOORS = ["model", "audio", "demo"]
"""Rooms of the bundled model, from the ground up."""

OVER = {"lines of fog_a/"}
"""Rows of tools/house.py that are over their limit. Take each out when it is kept; put none in."""

# Never imported when a file of fog_a is: a user who only wants to attribute pays for none of them.
HEAVY = {
    "matplotlib", "transformers", "diffusers", "torchaudio", "soundfile", "nnsight", "pandas", "sklearn", "accelerate",
    "lightning", "tensorboard", "librosa", "speechbrain", "fog_a_adapters",
}  # fmt: skip

FILES = [*CORE.files.values(), *ADAPTERS.files.values()]


def placed(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(name) for name in CORE.files}
    assert rooms == set(FLOOR), f"rooms without a floor or floors without a room: {rooms ^ set(FLOOR)}"
    assert len(FLOORS) <= 6


def test_a_room_says_what_it_is_for() -> None:
    for package in (CORE, ADAPTERS):
        for name in [n for n in package.files if n.endswith("/__init__")]:
            assert ast.get_docstring(package.trees[name]), f"{name} does not say what its room is for"


@pytest.mark.parametrize("name", CORE.files)
def test_imports_go_down(name: str) -> None:
    room = room_of(name)
    up = [t for t in CORE.graph[name] if room_of(t) != room and FLOOR[room_of(t)] >= FLOOR[room]]
    assert not up, f"{name} (floor {FLOOR[room]}) imports {up}"


@pytest.mark.parametrize("package", [CORE, ADAPTERS], ids=["fog_a", "fog_a_adapters"])
def test_no_circle(package: Package) -> None:
    try:
        list(graphlib.TopologicalSorter(package.graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"these files import each other in a circle: {error.args[1]}")


@pytest.mark.parametrize("name", ADAPTERS.files)
def test_an_adapter_imports_no_other_model(name: str) -> None:
    room, targets = room_of(name), ADAPTERS.graph[name]
    foreign = [t for t in targets if room_of(t) not in SERVES_ANY | {room}]
    assert not foreign, f"{name} imports {foreign}: what two models share belongs to neither"


@pytest.mark.parametrize("name", [n for n in ADAPTERS.files if n.count("/") == 2])
def test_the_bundled_model_has_floors(name: str) -> None:
    _, room, _ = name.split("/")
    rooms = [t.split("/")[1] for t in ADAPTERS.graph[name] if t.startswith("dit/")]
    up = [r for r in rooms if r not in DIT_FLOORS or DIT_FLOORS.index(r) > DIT_FLOORS.index(room)]
    assert not up, f"{name} imports {up}"


@pytest.mark.parametrize("name", [*CORE.files, *ADAPTERS.files])
def test_a_file_is_short(name: str) -> None:
    lines = (CORE.lines | ADAPTERS.lines)[name]
    assert lines <= house.LONGEST, f"{name} has {lines} lines: one noun a file"


@pytest.mark.parametrize("row", house.rows(), ids=lambda row: row.name)
def test_the_house_keeps_its_limits(row: house.Row) -> None:
    if row.name in OVER and not row.kept:
        pytest.xfail(f"{row.name}: {row.now}, at most {row.limit}")
    assert row.kept, f"{row.name}: {row.now}, at most {row.limit} ({row.where})"


@pytest.mark.parametrize("name", CORE.files)
def test_core_is_light(name: str) -> None:
    found = list(imports(CORE.trees[name]))
    now = {i.module.split(".")[0] for i in found if i.at_once}
    now -= {name.removeprefix("aligning/")}  # an integration is imported by who uses that library
    assert not now & HEAVY, f"{name} imports {now & HEAVY} at module level"
    assert "fog_a_adapters" not in {i.module.split(".")[0] for i in found}, (
        f"{name} imports fog_a_adapters: adapters are reached by name"
    )


@pytest.mark.parametrize("path", FILES, ids=placed)
def test_hooks_have_one_home(path: Path) -> None:
    if path == ROOT / "fog_a" / "blocks" / "calls.py":
        return
    calls = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and node.attr.endswith("hook")
    ]
    assert not calls, f"{path.name}: lines {calls} register hooks; only fog_a/blocks/calls.py may"


@pytest.mark.parametrize("path", FILES, ids=placed)
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
    seen = list(imports(tree))
    assert {i.module for i in seen if i.at_once} == {"a", "b", "b.c", "g", "j"}
    assert {i.module for i in seen if i.typing} == {"d"}
    assert {i.module for i in seen if i.late} == {"e", "h", "h.i"}


def test_the_table_of_the_house_has_every_row() -> None:
    """tools/house.py measures what this file holds, and counts a circle and a climb where there is one."""
    assert [row.name for row in house.rows()] == list(house.BEFORE)
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert house.circular(graph) == {"b", "c"} and house.floors(graph) == 3
