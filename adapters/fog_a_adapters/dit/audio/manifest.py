"""A folder of audio with a manifest.csv: path, domain and, if you like, source, text, split, seconds.

Only `path` (relative to the folder) and `domain` are required; unknown columns are ignored. `split` is "test" for
held-out clips and "train" or empty for the others; any other word keeps a clip out of both. Where no clip is marked
"test", a fifth of each domain is held out, the same clips every time.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fog_a.errors import BadManifest

REQUIRED = ("path", "domain")
HELD_OUT = 0.2


@dataclass(frozen=True)
class Clip:
    """One line of a manifest. `id` is its path as written there; `file` is where it lies."""

    id: str
    file: Path
    domain: str
    source: str = ""
    text: str = ""
    split: str = ""


def packaged() -> Path:
    """The clips that come with the package."""
    return Path(__file__).parent / "clips"


def read_manifest(folder: str | Path | None = None) -> list[Clip]:
    """The clips of a folder (None: the packaged ones), each with split "train", "test" or another word.

    Raises:
        BadManifest: no folder, no manifest, columns or lines missing, files missing, duplicates, or a domain with
            nothing to train on or to hold out.
    """
    folder = packaged() if folder is None else Path(folder)
    table = folder / "manifest.csv"
    if not table.is_file():
        raise BadManifest(
            f"expected a folder with manifest.csv, found none at {table}. Write one with the columns path, domain "
            "(and, if you like, source, text, split, seconds)"
        )
    clips = [_clip(line, row, folder) for line, row in enumerate(_lines(table), start=2)]
    _check(clips, table)
    return _split(clips, table)


def _lines(table: Path) -> list[dict[str, str]]:
    """The manifest's lines; checks its header."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadManifest(f"{table} is not CSV in UTF-8 ({error}); save it as such") from error
    missing = [column for column in REQUIRED if column not in header]
    if missing:
        raise BadManifest(f"{table} lacks the column {', '.join(missing)}; it has {', '.join(header) or 'none'}")
    if not rows:
        raise BadManifest(f"{table} has no clips; expected one line per file")
    return rows


def _clip(line: int, row: dict[str, str], folder: Path) -> Clip:
    """One line as a clip."""
    value = {key: (row.get(key) or "").strip() for key in ("path", "domain", "source", "text", "split")}
    for column in REQUIRED:
        if not value[column]:
            raise BadManifest(f"{folder / 'manifest.csv'}, line {line}: {column} is empty; fill it or delete the line")
    return Clip(
        value["path"], folder / value["path"], value["domain"], value["source"], value["text"], value["split"].lower()
    )


def _check(clips: Sequence[Clip], table: Path) -> None:
    """No file twice, none missing, none empty."""
    seen: set[Path] = set()
    twice = [c.id for c in clips if c.file.resolve() in seen or seen.add(c.file.resolve())]
    if twice:
        raise BadManifest(f"{table} names {_few(twice)} more than once; delete the duplicates")
    missing = [c.id for c in clips if not c.file.is_file()]
    if missing:
        raise BadManifest(
            f"{len(missing)} of {len(clips)} files in {table} are missing: {_few(missing)}. "
            "Paths are relative to the manifest's folder; put them there or delete their lines"
        )
    empty = [c.id for c in clips if c.file.stat().st_size == 0]
    if empty:
        raise BadManifest(f"{len(empty)} files in {table} are empty: {_few(empty)}; delete their lines")


def _split(clips: list[Clip], table: Path) -> list[Clip]:
    """Hold clips out where the manifest does not, and see that each domain has both kinds."""
    if not any(c.split == "test" for c in clips):
        chosen: set[str] = set()
        for domain in dict.fromkeys(c.domain for c in clips):
            ids = sorted((c.id for c in clips if c.domain == domain), key=lambda i: (zlib.crc32(i.encode()), i))
            chosen.update(ids[: max(1, round(HELD_OUT * len(ids)))])
        clips = [replace(c, split="test" if c.id in chosen else c.split) for c in clips]
    clips = [replace(c, split=c.split or "train") for c in clips]
    for domain in dict.fromkeys(c.domain for c in clips):
        have = {c.split for c in clips if c.domain == domain}
        if not {"train", "test"} <= have:
            raise BadManifest(
                f"domain {domain!r} in {table} needs clips to train on and clips to hold out, it has only split "
                f"{', '.join(sorted(have))}; add clips, mark some 'test', or leave the split column out"
            )
    return clips


def _few(names: Sequence[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f", … ({len(names)})" if len(names) > n else "")
