"""A comparison's folder: the plan that it holds, JSON, and checkpoints, each in a file that is whole or absent."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fog_a.errors import Unsupported
from fog_a.files import write, write_json
from fog_a_adapters.compare.task import Plan, Task


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint to a file, which one process writes. Raises NotWritten."""
    buffer = BytesIO()  # torch.save to a full disk raises its own, wordless RuntimeError
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def claim(out: Path, task: Task, plan: Plan) -> None:
    """The folder is this comparison's, or becomes it. Raises Unsupported where it holds another."""
    here = json.loads(json.dumps({"task": task.name, "facts": dict(task.facts), "plan": asdict(plan)}))
    there = read_json(out / "plan.json")
    if there is None:
        write_json(out / "plan.json", here)
        return
    grown = {"seeds", "arms"}  # more of these may be asked for later
    old, new = ({k: v for k, v in x["plan"].items() if k not in grown} for x in (there, here))
    differ = [k for k in new if old.get(k) != new[k]]
    differ += [k for k in ("task", "facts") if there[k] != here[k]]
    if differ:
        raise Unsupported(
            f"{out} holds another comparison: {', '.join(differ)} differ. Give another folder, or delete this one"
        )


def read_json(path: Path) -> Any:
    """A JSON file, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
