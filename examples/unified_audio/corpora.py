"""Three sources of clips: LibriSpeech, a folder of sounds with JSONL captions (as AudioSet's), and any manifest.csv.

    from_librispeech(root, train=("train-clean-100",), test=("test-clean",))
    from_captions(folder, captions)                 # rows {"audio_filename", "event", "description"}
    from_manifest("shared/audio")                   # or None: the clips packaged with the bundled model

`join` (unified_audio.clips) makes one corpus of several. Nothing is decoded here, nothing downloaded; each error says
what is missing and where to put it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fog_a.errors import BadManifest
from fog_a_adapters.dit.audio.manifest import packaged, read_manifest
from fog_a_adapters.dit.audio.mel import optional
from unified_audio.clips import DOMAINS, Clip, Corpus, Domain, few


def from_librispeech(
    root: str | Path, train: Sequence[str] = ("train-clean-100",), test: Sequence[str] = ("test-clean",)
) -> Corpus:
    """LibriSpeech as torchaudio's data set class reads it: `root/LibriSpeech/<subset>/<speaker>/<chapter>/…`.

    Files are decoded later, by soundfile, and must have 16 kHz.

    Raises:
        BadManifest: a subset is absent or holds no audio, a transcript is missing or empty.
    """
    datasets = optional("torchaudio.datasets")
    clips: list[Clip] = []
    for split, subsets in (("train", train), ("test", test)):
        for subset in subsets:
            try:
                data = datasets.LIBRISPEECH(root, url=subset)
            except (RuntimeError, ValueError) as error:
                raise BadManifest(
                    f"no LibriSpeech subset {subset!r} at {Path(root) / 'LibriSpeech' / subset} ({error}). Get "
                    f"{subset}.tar.gz from openslr.org/12 and unpack it in {root}"
                ) from error
            if len(data) == 0:
                raise BadManifest(
                    f"{Path(root) / 'LibriSpeech' / subset} has no speaker/chapter/*.flac; unpack it anew"
                )
            clips += [_utterance(data, n, split) for n in range(len(data))]
    return Corpus(tuple(clips))


def _utterance(data: Any, n: int, split: str) -> Clip:
    name = str(data._walker[n])
    try:
        path, rate, text, speaker, _, _ = data.get_metadata(n)
    except (ValueError, OSError) as error:  # what torchaudio raises at an empty line, a missing line, a missing file
        empty = isinstance(error, ValueError)
        raise BadManifest(
            f"{'an empty transcript' if empty else 'no transcript'} for or next to {name} ({error}); each line of "
            f"{name.rsplit('-', 1)[0]}.trans.txt must be an utterance's name and its words: mend it or unpack it anew"
        ) from error
    return Clip(name, "speech", Path(data._archive) / path, text, speaker=str(speaker), split=split, rate=rate)


def from_captions(
    folder: str | Path,
    captions: str | Path,
    *,
    split: str = "train",
    events: Sequence[str] | None = None,
    missing: Literal["error", "skip"] = "error",
) -> Corpus:
    """A folder of sounds with a JSONL file of rows {"audio_filename", "event", "description"}.

    Args:
        folder: where the audio files lie; file names are relative to it.
        split: what these clips are for. All in one folder: `from_captions(...).held_out()`.
        events: the events that are known (an ontology); None: whatever the captions name.
        missing: `"skip"` leaves captions without files out and says how many.

    Raises:
        BadManifest: no such file, a line that is no such row, captions without files, an unknown event.
    """
    folder, captions = Path(folder), Path(captions)
    if not captions.is_file():
        raise BadManifest(
            f"no captions at {captions}; expected one JSON object a line: "
            '{"audio_filename": "a.flac", "event": "Rain", "description": "rain on a roof"}'
        )
    rows = [
        _row(captions, n, line) for n, line in enumerate(captions.read_text("utf-8").splitlines(), 1) if line.strip()
    ]
    absent = [name for name, _, _ in rows if not (folder / name).is_file()]
    if absent and (missing == "error" or len(absent) == len(rows)):
        raise BadManifest(
            f"{len(absent)} of {len(rows)} captions in {captions} have no file in {folder}: {few(absent)}. Put them "
            "there, delete their lines, or leave them out: from_captions(..., missing='skip')"
        )
    if events is not None and (unknown := sorted({e for _, e, _ in rows} - set(events))):
        raise BadManifest(f"unknown events in {captions}: {few(unknown)}; known are {few(sorted(events), 8)}")
    gone = set(absent)
    clips = [Clip(n, "sound", folder / n, text, event=e, split=split) for n, e, text in rows if n not in gone]
    return Corpus(tuple(clips), (f"{len(absent)} captions without files left out",) if absent else ())


def _row(captions: Path, n: int, line: str) -> tuple[str, str, str]:
    keys = ("audio_filename", "event", "description")
    try:
        row = json.loads(line)
        name, event, text = (row[key] for key in keys)
        if not all(isinstance(value, str) for value in (name, event, text)):
            raise TypeError("values must be strings")
    except (ValueError, KeyError, TypeError) as error:
        raise BadManifest(
            f"{captions}, line {n}: expected a JSON object with {', '.join(keys)} as strings, got {line[:80]!r} "
            f"({type(error).__name__}: {error}); mend or delete it"
        ) from error
    for key, value in zip(keys, (name, event, text), strict=True):
        if not value.strip():
            raise BadManifest(f"{captions}, line {n}: {key} is empty; fill it in or delete the line")
    return name.strip(), event.strip(), text.strip()


def from_manifest(
    folder: str | Path | None = None, *, event: Literal["event", "text", "source"] | None = None
) -> Corpus:
    """A folder with a manifest.csv (path, domain, text and, if you like, source, split, event); None: the packaged one.

    The transcript of speech and the description of a sound are `text`; the speaker is `source`.

    Args:
        event: the column that names a sound's event; None: the first of event, text and source whose values repeat.

    Raises:
        BadManifest: as `read_manifest`; a domain other than speech and sound; an empty text; no column of events.
    """
    lines = read_manifest(folder)
    table = (packaged() if folder is None else Path(folder)) / "manifest.csv"
    foreign = sorted({line.domain for line in lines} - set(DOMAINS))
    if foreign:
        raise BadManifest(f"{table} has domain {few(foreign)}; this application knows {' and '.join(DOMAINS)}")
    events = _events(table, [line.id for line in lines if line.domain == "sound"], event)
    clips = []
    for line in lines:
        domain: Domain = "speech" if line.domain == "speech" else "sound"
        speaker = line.source if domain == "speech" else ""
        clips.append(Clip(line.id, domain, line.file, line.text, events.get(line.id, ""), speaker, line.split))
    return Corpus(tuple(clips))


def _events(table: Path, ids: Sequence[str], column: str | None) -> dict[str, str]:
    """The event of each sound, from the column that names it."""
    if not ids:
        return {}
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = {row["path"].strip(): row for row in csv.DictReader(file)}
    for name in (column,) if column else ("event", "text", "source"):
        values = {i: (rows[i].get(name) or "").strip() for i in ids}
        if column or (all(values.values()) and len(set(values.values())) <= max(1, len(ids) / 2)):
            return values
    raise BadManifest(
        f"{table} does not say what sounds: no column event, and neither text nor source repeats over its {len(ids)} "
        "sounds. Add a column event, or name one: from_manifest(folder, event='text')"
    )
