"""What `fog-a compare --task module:factory` runs: a comparison on any flow, without the bundled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fog_a.errors import Unsupported
from fog_a_adapters.compare.comparison import compare
from fog_a_adapters.compare.task import Plan, Task


def run(
    task: Task,
    out: str | Path = "out/compare",
    *,
    arms: Sequence[str] | None = None,
    seeds: int = 3,
    warmup: int = 200,
    steps: int = 300,
    k: int = 3,
    center: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare, and print the report; call it again after a kill. Returns compare.json's.

    Args:
        arms: names, several in one joined by commas; `base` is always among them.
        center: take the teacher's mean away first.

    Raises:
        Unsupported: what is given as a task is none.
    """
    if not isinstance(task, Task):
        raise Unsupported(f"a task is a fog_a_adapters.compare.Task, or a factory of one; got {type(task).__name__}")
    chosen = Plan(seeds=tuple(range(seeds)), warmup=warmup, steps=steps, k=k, center=center)
    named = None if arms is None else [name for words in arms for name in words.split(",") if name]
    plan = chosen if named is None else replace(chosen, arms=tuple(dict.fromkeys(["base", *named])))
    report = compare(task, plan, out, progress=progress)
    print(Path(out, "compare.md").read_text(encoding="utf-8"))
    return report
