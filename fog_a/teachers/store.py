"""Features on disk by id, in files that are whole or absent.

    folder/<writer>-<number>.safetensors

Each `put` makes one new file: written under a temporary name, synced, then renamed. So a killed run loses at most the
batch it was in, and many processes may write to one folder at once. Files are mapped, not read: memory holds what is in
use. A flipped bit is never silent.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fog_a.errors import BadFeatures
from fog_a.files import write


class Store:
    """Of each id some rows of features, and a note.

    Args:
        folder: made with the first file.
        name, pool: of the teacher, written into each file.
        dim: width of the features; 0: that of the files.
    """

    def __init__(self, folder: Path, name: str, pool: str, dim: int) -> None:
        self.folder, self.name, self.pool, self.dim = folder, name, pool, dim
        self.notes: dict[str, str] = {}
        """Id → its note."""
        self._writer, self._written = uuid.uuid4().hex[:12], 0
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._files: dict[Path, Tensor | None] = {}  # None: known, not opened yet
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Float[Tensor, "T D"]:
        path, first, last = self._places[name]
        features = self._files[path]
        if features is None:
            with _reading(path) as file:
                features = file.get_tensor("features")
                if checksum(features) != file.metadata()["features"]:
                    raise ValueError("its checksum does not match")
            self._files[path] = features
        return features[first:last]

    def missing(self, names: Sequence[str]) -> list[int]:
        """Which of these names have no features here, each name once; also looks for files of other processes."""
        if any(name not in self for name in names):
            self.refresh()
        return list({name: i for i, name in enumerate(names) if name not in self}.values())

    def put(self, names: Sequence[str], rows: Sequence[Float[Tensor, "T D"]], notes: Sequence[str]) -> Path:
        """Keep these, as one new file. Raises NotWritten."""
        path = self.folder / f"{self._writer}-{self._written:06d}.safetensors"
        self._written += 1
        features = torch.cat(list(rows)).float().cpu().contiguous()
        counts = [len(x) for x in rows]
        facts = {"ids": json.dumps(names), "counts": json.dumps(counts), "notes": json.dumps(notes)}
        facts |= {"features": checksum(features), "teacher": self.name, "pool": self.pool}
        write(path, save({"features": features}, {**facts, "checksum": _checksum_of(facts)}))
        self._add(path, features, names, counts, notes)
        return path

    def refresh(self) -> None:
        """Take in files that other processes have written since. Raises BadFeatures at a corrupt one."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - set(self._files)):
            with _reading(path) as file:
                facts, (count, dim) = file.metadata(), file.get_slice("features").get_shape()
                if _checksum_of(facts) != facts["checksum"]:
                    raise ValueError("the checksum of its ids does not match")
                names, counts, notes = (json.loads(facts[key]) for key in ("ids", "counts", "notes"))
                if not len(names) == len(notes) == len(counts) or sum(counts) != count:
                    raise ValueError(f"{len(names)} ids for {count} rows")
                if self.dim and dim != self.dim:
                    raise ValueError(f"width {dim}, but {self.name} has {self.dim}")
            self.dim = dim
            self._add(path, None, names, counts, notes)

    def compact(self) -> Path | None:
        """Merge all files into one. Only while nobody else writes here."""
        self.refresh()
        old, names = list(self._files), list(self._places)
        if len(old) < 2:
            return old[0] if old else None
        new = self.put(names, [self[name] for name in names], [self.notes[name] for name in names])
        for path in old:  # after the new file is there: a kill in between leaves doubles, never a gap
            path.unlink(missing_ok=True)
            del self._files[path]
        return new

    def _add(
        self, path: Path, features: Tensor | None, names: Sequence[str], counts: Sequence[int], notes: Sequence[str]
    ) -> None:
        self._files[path], first = features, 0
        for name, count in zip(names, counts, strict=True):
            self._places[name], first = (path, first, first + count), first + count
        self.notes.update(zip(names, notes, strict=True))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A feature file, open. Raises BadFeatures for what is wrong with it, here or inside."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise BadFeatures(
            f"the feature file {path} is corrupt ({error}). Delete this one file (rm '{path}'): its features are "
            "computed again when they are next asked for, those of crops by fill(); all other files are as they were"
        ) from error


def key(teacher: Any) -> str:
    """The folder of a teacher's features: its name, pooling and, where it has weights, their fingerprint."""
    parts = [teacher.name, str(getattr(teacher, "pool", "mean")), str(getattr(teacher, "fingerprint", ""))]
    return "-".join(word(part) for part in parts if part)


def word(text: str) -> str:
    """A text as a part of a folder's name."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-")


def checksum(*contents: str | Tensor) -> str:
    """Of texts, and of tensors with their dtype and shape: one changed bit changes it."""
    code = 0
    for content in contents:
        if isinstance(content, Tensor):
            code = zlib.crc32(f"{content.dtype} {tuple(content.shape)}".encode(), code)
            code = zlib.crc32(content.contiguous().numpy().tobytes(), code)
        else:
            code = zlib.crc32(content.encode(), code)
    return f"{code:08x}"


def _checksum_of(facts: dict[str, str]) -> str:
    return checksum(*(f"{name}={facts[name]}" for name in sorted(facts) if name != "checksum"))
