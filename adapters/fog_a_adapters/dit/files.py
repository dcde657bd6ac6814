"""Files that are whole or absent: written under another name, synced, renamed. A kill or a full disk leaves no half."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fog_a.errors import FogError


class DiskFull(FogError, OSError):
    """A file that could not be written: a full disk, a quota, a folder without permission."""


def write(path: Path, data: bytes) -> None:
    """Bytes to a file. Raises DiskFull, and then leaves no part behind."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DiskFull(
            f"{path} ({len(data) / 2**20:.1f} MiB) could not be written: {error.strerror or error}. Free some space or "
            "give another folder; all that was written before is whole: start again and it goes on from there"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """JSON to a file. Raises DiskFull."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False).encode())


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint to a file, which one process writes. Raises DiskFull."""
    buffer = BytesIO()  # torch.save to a full disk raises its own, wordless RuntimeError
    torch.save(state, buffer)
    for left in path.parent.glob(f".{path.name}.*.part"):  # of a kill while writing: checkpoints are large
        left.unlink(missing_ok=True)
    write(path, buffer.getvalue())
