"""Files that are whole or absent: written under another name, synced, renamed.

A kill, a full disk or a power cut leaves the old file or the new one, never half of one. The other name cannot be
guessed and is never a link. Its file stays locked while it is written: what a killed writer left is unlocked, and the
first write into that folder by a later process removes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from pathlib import Path

from fog_a.errors import NotWritten

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None

PREFIX, SUFFIX = ".fog-a-", ".part"

ADVICE = {
    errno.EACCES: "Give a folder that you may write to",
    errno.EPERM: "Give a folder that you may write to",
    errno.EROFS: "Give a folder that can be written to",
    errno.ENAMETOOLONG: "Give a shorter path",
    errno.ELOOP: "A link in the path leads back to itself: give another path",
    errno.ENOTDIR: "A folder in the path is a file: give another folder",
    errno.EEXIST: "A folder in the path is a file: give another folder",
    errno.EISDIR: "This is a folder: give the name of a file in it",
}
SPACE = "Free some space or give another folder"

_swept: set[Path] = set()
"""Folders from which this process has removed what killed writers left."""


def write(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a file whole or not at all, making its folder where that is missing; text is UTF-8.

    Raises: NotWritten for a full disk, a folder that cannot be written to, a bad path. The old file then stays.

    Example:
        >>> write("notes/a.txt", "whole").read_text()
        'whole'
    """
    content = data if isinstance(data, bytes) else data.encode("utf-8", errors="backslashreplace")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        _write(path, content)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        advice = ADVICE.get(getattr(error, "errno", None) or 0, SPACE)
        raise NotWritten(
            f"{path} ({len(content) / 2**20:.1f} MiB) could not be written: {getattr(error, 'strerror', 0) or error}. "
            f"{advice}; all that was written before is whole"
        ) from error
    return path


def write_json(path: str | os.PathLike[str], value: object) -> Path:
    """Write a value as JSON, whole or not at all. Raises NotWritten."""
    return write(path, json.dumps(value, indent=1, ensure_ascii=False))


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        part = path.parent / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        try:
            with os.fdopen(os.open(part, flags, 0o666), "wb") as file:
                _lock(file.fileno())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):  # swept by another process while it was not locked
                return os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder, once per process."""
    if (folder := folder.resolve()) in _swept:
        return
    for part in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # locked: it is being written
            handle = os.open(part, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                _lock(handle, wait=False)
                part.unlink()
            finally:
                os.close(handle)
    _swept.add(folder)


def _lock(handle: int, *, wait: bool = True) -> None:
    """Lock an open file until it is closed. Raises OSError where another process holds it and one does not wait."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
