"""Features computed once and kept on disk: keyed by sample id, teacher and pooling.

    folder/<teacher>-<pooling>[-<fingerprint of its weights>]/<writer>-<number>.safetensors

Each call writes what it had to compute as one new file: under a temporary name, synced, then renamed. So a file is
whole or absent, a killed run loses at most the batch it was in, and many processes may write to one folder at once. A
vector is 1280 or 768 floats: 5 KB a clip. Files are mapped, not read: memory holds what is in use.
"""

from __future__ import annotations

import json
import re
import uuid
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fog_a.errors import BadFeatures, Unsupported
from fog_a.files import write
from fog_a.flows.samples import Samples
from fog_a.teachers.routing import checked, take
from fog_a.teachers.self_teacher import SelfTeacher
from fog_a.teachers.teacher import Teacher


class CachedTeacher:
    """A teacher that asks another teacher only about samples that it has not seen before.

    Args:
        teacher: computes the features; None: read only (what `fill` or another run has computed; no audio needed).
        folder: where the features are kept, made if absent. Several teachers may share it.
        name: which teacher's features to read where `teacher` is None and the folder holds several.
        check: warn (once) where an id comes back with other audio than it was cached with: ids that are positions in a
            batch would silently give wrong features. Switch it off where clips are cropped or augmented at random.

    Raises:
        BadFeatures: a file is corrupt (it says which to delete: only its features are computed again), features are
            missing and cannot be computed, or the teacher's output does not fit.
        Unsupported: a SelfTeacher, whose features change as the model trains.

        cached = CachedTeacher(WhisperTeacher("openai/whisper-small"), "features")
        cached.fill(flow.samples(batch) for batch in loader)     # optional: all at once, resumable
        reg = fog_a.AGREPA(flow, teachers={"speech": cached})
    """

    def __init__(
        self, teacher: Teacher | None, folder: str | Path, *, name: str | None = None, check: bool = True
    ) -> None:
        if isinstance(teacher, SelfTeacher):
            raise Unsupported("a SelfTeacher's features change with each training step: pass it without CachedTeacher")
        self.teacher, self.check = teacher, check
        self.folder = Path(folder) / key(teacher) if teacher is not None else _only(Path(folder), name)
        if teacher is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._written = uuid.uuid4().hex[:12], 0
        self._places: dict[str, tuple[Path, int]] = {}
        self._audio: dict[str, str] = {}
        self._files: dict[Path, Tensor | None] = {}  # None: known, not opened yet
        self.dim = 0 if teacher is None else teacher.dim
        self.domain = None if teacher is None else teacher.domain
        self.name = self.folder.name if teacher is None else teacher.name
        self.pool = getattr(teacher, "pool", "mean")
        self.refresh()

    def __len__(self) -> int:
        """How many samples have features here."""
        return len(self._places)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._places

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The features, float32, on the device of the batch's audio (CPU where it has none)."""
        missing = self._missing(samples)
        if missing:
            self.refresh()  # another process may have written them
            missing = self._missing(samples)
        if missing:
            self._compute(take(samples, missing))
        if self.check and samples.audio is not None:
            self._compare(samples)
        rows = torch.stack([self._row(i) for i in samples.ids])
        return rows if samples.audio is None else rows.to(samples.audio.device, non_blocking=True)

    def fill(self, batches: Iterable[Samples]) -> int:
        """Computes what is missing of these samples; returns how many are cached then. Start it again after a kill."""
        for samples in batches:
            self(samples)
        return len(self)

    def refresh(self) -> None:
        """Takes in files that other processes have written since. Raises BadFeatures at a corrupt one."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._files:
                continue
            try:
                with safe_open(path, "pt") as file:
                    notes = file.metadata()
                    count, dim = file.get_slice("features").get_shape()
                expected = notes.pop("checksum")
                if checksum(*(f"{name}={notes[name]}" for name in sorted(notes))) != expected:
                    raise ValueError("the checksum of its ids does not match")
                ids, audio = json.loads(notes["ids"]), json.loads(notes["audio"])
                if not len(ids) == len(audio) == count:
                    raise ValueError(f"{len(ids)} ids for {count} rows")
            except (SafetensorError, OSError, KeyError, ValueError, TypeError) as e:
                raise _corrupt(path, e) from e
            if self.dim and dim != self.dim:
                raise _corrupt(path, f"width {dim}, but {self.name} has {self.dim}")
            self.dim = dim
            self._files[path] = None
            self._places.update({i: (path, row) for row, i in enumerate(ids)})
            self._audio.update(zip(ids, audio, strict=True))

    def compact(self) -> Path | None:
        """Merges all files into one (for hundreds of thousands of clips). Only while nobody else writes here."""
        self.refresh()
        old = list(self._files)
        if len(old) < 2:
            return old[0] if old else None
        ids = list(self._places)
        new = self._write(ids, torch.stack([self._row(i) for i in ids]), [self._audio[i] for i in ids])
        for path in old:  # after the new file is there: a kill in between leaves doubles, never a gap
            path.unlink(missing_ok=True)
            del self._files[path]
        return new

    def _missing(self, samples: Samples) -> list[int]:
        return list({i: row for row, i in enumerate(samples.ids) if i not in self._places}.values())

    def _compute(self, samples: Samples) -> None:
        if self.teacher is None:
            raise BadFeatures(
                f"{self.folder} has no features of {len(samples)} samples: {', '.join(samples.ids[:4])}, … "
                f"({len(self)} are there). Compute them where audio is at hand, under the same ids: "
                f"CachedTeacher(teacher, {str(self.folder.parent)!r}).fill(batches of Samples)"
            )
        features = checked(self.teacher(samples), len(samples), self.teacher.dim, f"teacher {self.name!r}")
        self._write(list(samples.ids), features.cpu(), prints(samples))

    def _write(self, ids: list[str], features: Float[Tensor, "n D"], audio: list[str]) -> Path:
        path = self.folder / f"{self._writer}-{self._written:06d}.safetensors"
        self._written += 1
        features = features.float().contiguous()
        notes = {
            "ids": json.dumps(ids),
            "audio": json.dumps(audio),
            "features": checksum(features),
            "teacher": self.name,
            "pool": self.pool,
        }
        notes["checksum"] = checksum(*(f"{name}={notes[name]}" for name in sorted(notes)))
        write(path, save({"features": features}, notes))
        self._files[path] = features
        self._places.update({i: (path, row) for row, i in enumerate(ids)})
        self._audio.update(zip(ids, audio, strict=True))
        return path

    def _row(self, sample_id: str) -> Float[Tensor, "D"]:
        path, row = self._places[sample_id]
        features = self._files[path]
        if features is None:
            try:
                with safe_open(path, "pt") as file:
                    features, expected = file.get_tensor("features"), file.metadata()["features"]
            except (SafetensorError, OSError, KeyError) as e:
                raise _corrupt(path, e) from e
            if checksum(features) != expected:
                raise _corrupt(path, "its checksum does not match")
            self._files[path] = features
        return features[row]

    def _compare(self, samples: Samples) -> None:
        now = prints(samples)
        changed = [i for i, p in zip(samples.ids, now, strict=True) if self._audio[i] and p != self._audio[i]]
        if changed:
            self.check = False  # said once
            warnings.warn(
                f"sample {changed[0]!r} ({len(changed)} of {len(samples)}) now has other audio than when its features "
                f"were cached in {self.folder}. Ids must name the clip, not its place in the batch. Random crops or "
                "augmentation: CachedTeacher(..., check=False)",
                stacklevel=3,
            )


def key(teacher: Teacher) -> str:
    """The folder of a teacher's features: its name, pooling and, where it has weights, their fingerprint."""
    parts = [teacher.name, str(getattr(teacher, "pool", "mean")), str(getattr(teacher, "fingerprint", ""))]
    return "-".join(re.sub(r"[^\w.+]+", "-", part).strip("-") for part in parts if part)


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


def prints(samples: Samples) -> list[str]:
    """A short print of each sample's audio, the same with more padding: length and 64 values, to three digits.

    Rounded: another device or library version may differ in the last bits.
    """
    if samples.audio is None:
        return [""] * len(samples)
    lengths = (
        samples.lengths
        if samples.lengths is not None
        else torch.full((len(samples),), samples.audio.shape[1], device="cpu")
    )
    n = lengths.to(samples.audio.device)[:, None]
    at = (torch.arange(64, device=n.device) * n) // 64
    values = samples.audio.detach().float().gather(1, at).mul(1000).round().to(torch.int32).cpu()
    return [f"{int(k)}:{zlib.crc32(row.numpy().tobytes()):08x}" for k, row in zip(n[:, 0], values, strict=True)]


def _only(folder: Path, name: str | None) -> Path:
    folders = sorted(p.name for p in folder.glob("*") if p.is_dir()) if folder.is_dir() else []
    chosen = [p for p in folders if name is None or p == name or p.startswith(re.sub(r"[^\w.+]+", "-", name) + "-")]
    if len(chosen) != 1:
        names = ", ".join(map(repr, folders)) or "nothing"
        raise BadFeatures(
            f"CachedTeacher(None, {str(folder)!r}) needs one teacher's features there, got {names}. "
            + (
                "Type name=... with one of them"
                if folders
                else "Compute them: CachedTeacher(teacher, folder).fill(batches)"
            )
        )
    return folder / chosen[0]


def _corrupt(path: Path, reason: object) -> BadFeatures:
    return BadFeatures(
        f"the feature file {path} is corrupt ({reason}). Delete this one file (rm '{path}'): its features are computed "
        "again when they are next asked for; all other files are as they were"
    )
