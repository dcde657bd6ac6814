"""Tensors computed once and kept on disk: log-mel, frame features, tokens.

    folder/<kind>/<hash of the clip's id>.safetensors

A file is written under a temporary name, synced and renamed, so it is whole or absent: a kill, or a full disk, loses
the clip in hand and nothing else, and the next start goes on from what is there. Each file carries the id and a stamp
of the audio it was computed from (size and time of change); where that no longer fits, or the file is corrupt, the
tensors are computed again. The kind names what computed them (with a fingerprint of weights), so features never mix.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fog_a.files import write
from unified_audio.clips import Clip


class Cache:
    """A folder of tensors by clip and kind.

        mel = cache.get(clip, "mel", lambda: {"mel": log_mel(wave)})["mel"]

    Raises:
        NotWritten: the folder cannot be written; what was cached before stays and is used at the next start.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, clip: Clip, kind: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a clip: read, or computed and written."""
        path, stamp = self.path(clip, kind), _stamp(clip.path)
        found = _read(path, clip, stamp)
        if found is None:
            found = {name: value.contiguous() for name, value in compute().items()}
            write(path, save(found, {"id": clip.id, "stamp": stamp}))
        return found

    def has(self, clip: Clip, kind: str) -> bool:
        """Whether a clip's tensors are here (and not whether its audio is still the same)."""
        return self.path(clip, kind).is_file()

    def path(self, clip: Clip, kind: str) -> Path:
        """Where a clip's tensors are kept."""
        return self.folder / kind / f"{hashlib.sha256(clip.id.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path, clip: Clip, stamp: str) -> dict[str, Tensor] | None:
    """What is in a file; None where there is none, or where it is of other audio or corrupt."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            if notes.get("id") != clip.id or notes.get("stamp") != stamp:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        warnings.warn(f"{path} is corrupt ({error}): {clip.id!r} is computed again", stacklevel=3)
        return None


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "absent"  # decoding says so
    return f"{stat.st_size}:{stat.st_mtime_ns}"
