"""The state of the house: how large the library is, how its files depend on each other, how many options calls have.

    python tools/house.py                      # a table: each measure before and now, its limit; status 1 over a limit
    python tools/house.py --tests pytest.log   # also the slowest tests of a log written with --durations

Everything is read from the source by ast: nothing is imported, so a fault shows even where a package is missing.
tests/test_floors.py holds the library to the limits.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Rooms from the ground up: a file imports from rooms of lower floors, or from its own room. Rooms of one floor stand
# side by side: none imports another.
FLOORS = [
    {"errors"},
    {"ranks", "blocks", "files"},
    {"flows", "scores"},
    {"finding", "teachers"},
    {"attributing", "probing"},
    {"aligning", "shell", "using"},
]
LINES = 10_500
"""Of the whole of fog_a/."""
LONGEST = 250
"""Lines of a file, in fog_a/ and in adapters/."""
FUNCTION, P90 = 60, 22
"""Lines of a function's body: the longest, and the 90th percentile."""
KEYWORDS = {"attribute": 15, "lasp": 9, "AGREPA": 7, "recipe": 14}
"""Options of a call, without the model or flow, the batch and the teachers."""


@dataclass(frozen=True)
class Import:
    """One imported module, as a dotted path.

    `late`: only when a function runs. `typing`: for type checkers only.
    """

    module: str
    late: bool = False
    typing: bool = False

    @property
    def at_once(self) -> bool:
        """Imported whenever the file is."""
        return not (self.late or self.typing)


def imports(tree: ast.AST, late: bool = False, typing: bool = False) -> Iterator[Import]:
    """Every import below a node, and when it takes place."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imports(ast.Module(node.body, []), late, typing=True)
            yield from imports(ast.Module(node.orelse, []), late, typing)
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, late, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield Import(module, late, typing)
            yield from (Import(f"{module}.{alias.name}", late, typing) for alias in node.names)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, late or inside, typing)


def parse(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


class Package:
    """The files of a package by their path below it without suffix, and which imports which."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        face = folder / "__init__.py"
        paths = sorted(p for p in folder.glob("**/*.py") if p != face)
        self.files = {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}
        self.trees = {name: parse(path) for name, path in self.files.items()}

    @functools.cached_property
    def lines(self) -> dict[str, int]:
        """Lines of each file."""
        return {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in self.files.items()}

    @functools.cached_property
    def graph(self) -> dict[str, set[str]]:
        """File → the files that it imports, late or not, for type checkers only or not."""
        return {name: self._imports(name) for name in self.files}

    def _imports(self, name: str) -> set[str]:
        modules = {i.module for i in imports(self.trees[name])}
        inside = {m.removeprefix(f"{self.folder.name}.").replace(".", "/") for m in modules}
        return {file for m in inside for file in (m, f"{m}/__init__") if file in self.files} - {name}

    def rooms(self) -> dict[str, set[str]]:
        """Room → rooms that its files import."""
        rooms: dict[str, set[str]] = {room_of(name): set() for name in self.files}
        for name, targets in self.graph.items():
            rooms[room_of(name)] |= {room_of(target) for target in targets} - {room_of(name)}
        return rooms


def room_of(name: str) -> str:
    """The folder of a file, or the file itself where it lies in none."""
    return name.split("/")[0]


def reachable(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Node → everything that can be reached from it; itself only through a circle."""
    reached = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    return reached


def circular(graph: Mapping[str, set[str]]) -> set[str]:
    """The nodes that stand in a circle."""
    return {node for node, targets in reachable(graph).items() if node in targets}


def floors(graph: Mapping[str, set[str]]) -> int:
    """The longest chain from node to node; a circle counts as one node."""
    reached = reachable(graph)
    heights: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in heights:
            below = {t for t in reached[node] if node not in reached[t] and t != node}
            heights[node] = 1 + max((height(t) for t in below), default=0)
        return heights[node]

    return max((height(node) for node in graph), default=0)


def bodies(package: Package) -> list[tuple[int, str]]:
    """Lines of each function's body without its docstring, and where the function stands."""
    sizes = []
    for name, tree in package.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                last = max((b.end_lineno or 0 for b in body), default=node.lineno)
                sizes.append((last - (body[0].lineno if body else last) + 1, f"{name}:{node.name}"))
    return sorted(sizes)


def percentile(sizes: list[tuple[int, str]], share: float) -> int:
    """The number below which this share of the sizes lies."""
    return sizes[min(len(sizes) - 1, int(share * len(sizes)))][0]


def keywords(package: Package) -> dict[str, int]:
    """Options of the main calls, the most where several functions have the name."""
    counts = dict.fromkeys(KEYWORDS, 0)
    for name, tree in package.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in ("attribute", "lasp") and node in tree.body:
                counts[node.name] = max(counts[node.name], _options(node) - 2)
            if isinstance(node, ast.ClassDef) and node.name == "AGREPA":
                init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
                counts["AGREPA"] = _options(init) - 3  # self, flow, teachers
            if isinstance(node, ast.ClassDef) and node.name == "Recipe" and name.startswith("aligning/"):
                counts["recipe"] = sum(isinstance(field, ast.AnnAssign) for field in node.body)
    return counts


def _options(function: ast.FunctionDef) -> int:
    return len(function.args.args) + len(function.args.kwonlyargs)


@dataclass(frozen=True)
class Row:
    """One line of the table; `limit` None: nothing is promised."""

    name: str
    before: int
    now: int
    limit: int | None
    where: str = ""

    @property
    def kept(self) -> bool:
        return self.limit is None or self.now <= self.limit


# The same measures at 2fc0c42, the last commit before the library was rebuilt in rooms.
BEFORE = {
    "files of fog_a/": 92,
    "lines of fog_a/": 13_105,
    "longest file": 352,
    "longest file of the adapters": 233,
    "functions, 90th percentile": 17,
    "longest function": 44,
    "options of attribute": 23,
    "options of lasp": 17,
    "options of AGREPA": 7,
    "options of recipe": 25,
    "rooms": 19,
    "floors of rooms": 10,
    "imports that run back up": 14,
    "files in circles": 5,
    "adapter files in circles": 0,
}


def rows(root: Path = ROOT) -> list[Row]:
    """Everything that is measured."""
    package = Package(root / "fog_a")
    adapters = Package(root / "adapters" / "fog_a_adapters")
    lines, sizes, counts = package.lines, bodies(package), keywords(package)
    longest, adapter = max(lines, key=lambda n: lines[n]), adapters.lines
    longest_adapter = max(adapter, key=lambda n: adapter[n])
    rooms = package.rooms()
    reached = reachable(rooms)
    graph = package.graph
    back = [
        f"{a} → {b}" for a, targets in graph.items() for b in targets
        if room_of(a) != room_of(b) and room_of(a) in reached[room_of(b)]
    ]  # fmt: skip
    face = len((root / "fog_a" / "__init__.py").read_text(encoding="utf-8").splitlines())
    measures: list[tuple[str, int, int | None, str]] = [
        ("files of fog_a/", len(lines) + 1, None, ""),
        ("lines of fog_a/", sum(lines.values()) + face, LINES, ""),
        ("longest file", lines[longest], LONGEST, longest),
        ("longest file of the adapters", adapter[longest_adapter], LONGEST, longest_adapter),
        ("functions, 90th percentile", percentile(sizes, 0.9), P90, ""),
        ("longest function", *_named(sizes[-1], FUNCTION)),
        *((f"options of {call}", counts[call], KEYWORDS[call], "") for call in KEYWORDS),
        ("rooms", len(rooms), None, ""),
        ("floors of rooms", floors(rooms), len(FLOORS), ""),
        ("imports that run back up", len(back), 0, ", ".join(sorted(back)[:2])),
        ("files in circles", len(circular(graph)), 0, ", ".join(sorted(circular(graph))[:3])),
        ("adapter files in circles", len(circular(adapters.graph)), 0, ""),
    ]
    return [Row(name, BEFORE[name], now, limit, where) for name, now, limit, where in measures]


def _named(size: tuple[int, str], limit: int) -> tuple[int, int, str]:
    return size[0], limit, size[1]


def slowest(log: Path, most: int = 10) -> list[str]:
    """The slowest tests of a pytest log written with --durations, and its closing line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    calls = re.findall(r"^([\d.]+)s (call|setup) +(\S.*)$", text, re.MULTILINE)
    order = sorted(calls, key=lambda c: -float(c[0]))[:most]
    closing = re.findall(r"^=* ?(\d+ (?:passed|failed).*?) ?=*$", text, re.MULTILINE)[-1:]
    return [*(f"{seconds:>7} s  {test} ({part})" for seconds, part, test in order), *closing]


def main() -> int:
    """Print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    options.add_argument("--tests", type=Path, help="a pytest log with durations")
    given = options.parse_args()
    table = rows(given.root)
    print(f"{'':32} {'2fc0c42':>8} {'now':>7} {'limit':>7}")
    for row in table:
        limit = "" if row.limit is None else f"{row.limit:,}"
        mark = "" if row.kept else "  over the limit"
        print(f"{row.name:32} {row.before:>8,} {row.now:>7,} {limit:>7}{mark}  {row.where}".rstrip())
    if given.tests is not None:
        print("\nslowest tests:", *slowest(given.tests), sep="\n  ")
    return int(not all(row.kept for row in table))


if __name__ == "__main__":
    sys.exit(main())
