"""A folder of audio with a manifest.csv: path, domain and, if you like, source, text, split, seconds.

Only `path` (relative to the folder, and inside it) and `domain` are required; unknown columns are ignored. `split` is
"test" for held-out clips and "train" or empty for the others; any other word keeps a clip out of both. Where no clip is
marked "test", a fifth of each domain is held out, the same clips every time.

A manifest may have a million lines: each file is looked at once, and nothing is made of a line but its `Clip`.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from itertools import repeat, zip_longest
from pathlib import Path
from typing import NamedTuple

from fog_a.errors import BadManifest

REQUIRED = ("path", "domain")
COLUMNS = (*REQUIRED, "source", "text", "split")
HELD_OUT = 0.2


class Clip(NamedTuple):
    """One line of a manifest. `id` is its path as written there; `file` is where it lies."""

    id: str
    folder: str
    domain: str
    source: str = ""
    text: str = ""
    split: str = ""

    @property
    def file(self) -> Path:
        return Path(self.folder, self.id)


def packaged() -> Path:
    """The clips that come with the package."""
    return Path(__file__).parent / "clips"


def read_manifest(folder: str | Path | None = None, *, outside: bool = False) -> list[Clip]:
    """The clips of a folder (None: the packaged ones), each with split "train", "test" or another word.

    Args:
        folder: holds manifest.csv and the files that it names.
        outside: take paths that lead out of the folder (absolute ones, or with ..) as well. A manifest from somebody
            else could otherwise name any file of this machine.

    Raises:
        BadManifest: no folder, no manifest, columns or lines missing, files missing, outside the folder or named
            twice, or a domain with nothing to train on or to hold out.
    """
    folder = packaged() if folder is None else Path(folder)
    table = folder / "manifest.csv"
    if not os.path.isfile(table):
        raise BadManifest(
            f"expected a folder with manifest.csv, found none at {table}. Write one with the columns path, domain "
            "(and, if you like, source, text, split, seconds)"
        )
    with _no_collection():
        clips = _clips(table)
        if not outside:
            _inside(clips, table)
        _check(clips, table)
        return _split(clips, table)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for circles of garbage while millions of rows are made, which have none: it takes most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _clips(table: Path) -> list[Clip]:
    """The manifest's lines as clips; checks its header."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header, rows = next(reader, []), [row for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadManifest(f"{table} is not CSV in UTF-8 ({error}); save it as such") from error
    missing = [column for column in REQUIRED if column not in header]
    if missing:
        raise BadManifest(f"{table} lacks the column {', '.join(missing)}; it has {', '.join(header) or 'none'}")
    if not rows:
        raise BadManifest(f"{table} has no clips; expected one line per file")
    columns = dict(zip(header, zip_longest(*rows, fillvalue=""), strict=False))  # a row may be longer than the header
    nothing = ("",) * len(rows)
    path, domain, source, text, split = ([cell.strip() for cell in columns.get(c, nothing)] for c in COLUMNS)
    for column, cells in (("path", path), ("domain", domain)):
        if "" in cells:
            line = cells.index("") + 2
            raise BadManifest(f"{table}, line {line}: {column} is empty; fill it or delete the line")
    splits = [word.lower() or "train" for word in split]
    return list(map(Clip._make, zip(path, repeat(str(table.parent)), domain, source, text, splits, strict=False)))


def _inside(clips: Sequence[Clip], table: Path) -> None:
    """No path leads out of the manifest's folder."""
    outside = [c.id for c in clips if os.path.normpath(c.id).startswith((os.sep, os.pardir + os.sep))]
    if outside:
        raise BadManifest(
            f"{len(outside)} of {len(clips)} paths in {table} lead out of its folder: {_few(outside)}. Write paths "
            "relative to the folder; where you trust them: read_manifest(folder, outside=True)"
        )


def _check(clips: Sequence[Clip], table: Path) -> None:
    """No file twice, none missing, none empty."""
    seen: set[tuple[int, int]] = set()
    twice, missing, empty = list[str](), list[str](), list[str]()
    for clip in clips:
        try:
            file = os.stat(os.path.join(clip.folder, clip.id))
        except (OSError, ValueError):  # not there, a name too long, links in a circle, a zero byte
            missing.append(clip.id)
            continue
        if not stat.S_ISREG(file.st_mode):
            missing.append(clip.id)
        elif (file.st_dev, file.st_ino) in seen:
            twice.append(clip.id)
        elif not file.st_size:
            empty.append(clip.id)
        seen.add((file.st_dev, file.st_ino))
    if twice:
        raise BadManifest(f"{table} names {_few(twice)} more than once; delete the duplicates")
    if missing:
        raise BadManifest(
            f"{len(missing)} of {len(clips)} files in {table} are missing: {_few(missing)}. "
            "Paths are relative to the manifest's folder; put them there or delete their lines"
        )
    if empty:
        raise BadManifest(f"{len(empty)} files in {table} are empty: {_few(empty)}; delete their lines")


def _split(clips: list[Clip], table: Path) -> list[Clip]:
    """Hold clips out where the manifest does not, and see that each domain has both kinds."""
    domains: dict[str, list[str]] = {}
    for clip in clips:
        domains.setdefault(clip.domain, []).append(clip.id)
    if not any(c.split == "test" for c in clips):
        for domain, ids in domains.items():
            ids.sort(key=lambda i: (zlib.crc32(i.encode()), i))
            domains[domain] = ids[: max(1, round(HELD_OUT * len(ids)))]
        chosen = {i for ids in domains.values() for i in ids}
        clips = [c._replace(split="test") if c.id in chosen else c for c in clips]
    splits = {(c.domain, c.split) for c in clips}
    for domain in domains:
        have = {split for d, split in splits if d == domain}
        if not {"train", "test"} <= have:
            raise BadManifest(
                f"domain {domain!r} in {table} needs clips to train on and clips to hold out, it has only split "
                f"{', '.join(sorted(have))}; add clips, mark some 'test', or leave the split column out"
            )
    return clips


def _few(names: Sequence[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f", … ({len(names)})" if len(names) > n else "")
