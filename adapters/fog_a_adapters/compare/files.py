"""A training run's checkpoint in a file that is whole or absent."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fog_a.files import write


def write_state(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint to a file, which one process writes. Raises NotWritten."""
    buffer = BytesIO()  # torch.save to a full disk raises its own, wordless RuntimeError
    torch.save(state, buffer)
    write(path, buffer.getvalue())
