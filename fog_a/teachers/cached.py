"""Features computed once and kept on disk: keyed by sample id, teacher and pooling."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadFeatures, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.self_teacher import SelfTeacher
from fog_a.teachers.store import Store, key, word
from fog_a.teachers.teacher import Teacher, checked, take


class CachedTeacher:
    """A teacher that asks another teacher only about samples that it has not seen before.

    The folder holds `<teacher>-<pooling>[-<fingerprint of its weights>]/`, 5 KB a clip. A kill loses at most one batch.

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
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = self.folder.name if teacher is None else teacher.name
        self.pool: str = getattr(teacher, "pool", "mean")
        self.store = Store(self.folder, self.name, self.pool, 0 if teacher is None else teacher.dim)
        self.dim = self.store.dim

    def __len__(self) -> int:
        """How many samples have features here."""
        return len(self.store)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self.store

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The features, float32, on the device of the batch's audio (CPU where it has none)."""
        missing = self.store.missing(samples.ids)
        if missing:
            self._compute(take(samples, missing))
        if self.check and samples.audio is not None:
            self._compare(samples)
        rows = torch.cat([self.store[i] for i in samples.ids])
        return rows if samples.audio is None else rows.to(samples.audio.device, non_blocking=True)

    def fill(self, batches: Iterable[Samples]) -> int:
        """Computes what is missing of these samples; returns how many are cached then. Start it again after a kill."""
        for samples in batches:
            self(samples)
        return len(self)

    def compact(self) -> Path | None:
        """Merges all files into one (for hundreds of thousands of clips). Only while nobody else writes here."""
        return self.store.compact()

    def _compute(self, samples: Samples) -> None:
        if self.teacher is None:
            raise BadFeatures(
                f"{self.folder} has no features of {len(samples)} samples: {', '.join(samples.ids[:4])}, … "
                f"({len(self)} are there). Compute them where audio is at hand, under the same ids: "
                f"CachedTeacher(teacher, {str(self.folder.parent)!r}).fill(batches of Samples)"
            )
        features = checked(self.teacher(samples), len(samples), self.teacher.dim, f"teacher {self.name!r}")
        self.store.put(samples.ids, features.split(1), prints(samples))

    def _compare(self, samples: Samples) -> None:
        notes, now = self.store.notes, prints(samples)
        changed = [i for i, p in zip(samples.ids, now, strict=True) if notes[i] and p != notes[i]]
        if changed:
            self.check = False  # said once
            warnings.warn(
                f"sample {changed[0]!r} ({len(changed)} of {len(samples)}) now has other audio than when its features "
                f"were cached in {self.folder}. Ids must name the clip, not its place in the batch. Random crops or "
                "augmentation: CachedTeacher(..., check=False)",
                stacklevel=3,
            )


def prints(samples: Samples) -> list[str]:
    """A short print of each sample's audio, the same with more padding: length and 64 values, to three digits.

    Rounded: another device or library version may differ in the last bits.
    """
    audio, lengths = samples.audio, samples.lengths
    if audio is None:
        return [""] * len(samples)
    n = torch.tensor([audio.shape[1]] * len(samples) if lengths is None else lengths.tolist(), device=audio.device)
    at = (torch.arange(64, device=audio.device) * n[:, None]) // 64
    values = audio.detach().float().gather(1, at).mul(1000).round().to(torch.int32).cpu()
    return [f"{k}:{zlib.crc32(row.numpy().tobytes()):08x}" for k, row in zip(n.tolist(), values, strict=True)]


def _only(folder: Path, name: str | None) -> Path:
    """The one folder of features in a folder. Raises BadFeatures where there is another number."""
    folders = sorted(p.name for p in folder.glob("*") if p.is_dir()) if os.path.isdir(folder) else []
    chosen = [p for p in folders if name is None or p == name or p.startswith(word(name) + "-")]
    if len(chosen) != 1:
        advice = "Type name=... with one of them" if folders else ""
        raise BadFeatures(
            f"CachedTeacher(None, {str(folder)!r}) needs one teacher's features there, got "
            f"{', '.join(map(repr, folders)) or 'nothing'}. "
            f"{advice or 'Compute them: CachedTeacher(teacher, folder).fill(batches)'}"
        )
    return folder / chosen[0]
