"""A comparison's folder: the plan that it holds, JSON, and checkpoints, each in a file that is whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fog_a.errors import BadScores, Unsupported
from fog_a.files import write, write_json


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint to a file, which one process writes. Raises NotWritten."""
    buffer = BytesIO()  # torch.save to a full disk raises its own, wordless RuntimeError
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def claim(out: Path, what: Mapping[str, Any], grown: Collection[str] = ()) -> None:
    """The folder is of this plan, or becomes it; what is in `grown` may be other later. Raises Unsupported."""
    here = json.loads(json.dumps(what))
    there = read_json(out / "plan.json")
    if there is None:
        if any(out.glob("seed*.json")) or any(out.glob("seed*/*.json")):
            raise Unsupported(f"{out} holds results, but no plan.json that says of what. Give another folder (--out)")
        write_json(out / "plan.json", here)
        return
    keys = [key for key in {**there, **here} if key not in grown and there.get(key) != here.get(key)]
    if keys:
        differ = "; ".join(f"{key} was {there.get(key)}, now {here.get(key)}" for key in keys)
        raise Unsupported(
            f"{out} holds results of another plan ({differ}). Give another folder (--out), or the old values to go on "
            "there, or delete it"
        )


def read_json(path: Path) -> Any:
    """A JSON file, or None where there is none. Raises BadScores where it is damaged."""
    if not os.path.exists(path):
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadScores(f"{path} cannot be read ({error}). Delete it: what it held is made again") from error
