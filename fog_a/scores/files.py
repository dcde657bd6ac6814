"""Scores on disk: JSON that reads back to the same bits, and CSV for spreadsheets and for the paper's scripts.

Reading runs nothing from the file: it is parsed as JSON and checked field by field. Writing is atomic: the file is
the old one or the new one, never half of it. A NaN is `null` in JSON (which has no NaN) and `nan` in CSV.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fog_a.errors import BadScores
from fog_a.files import write

if TYPE_CHECKING:
    from fog_a.scores.scores import Scores

FORMAT = "fog_a.scores"
VERSION = 1

LONG = ("sample", "id", "domain", "time", "layer", "value")

RELEASE = {"speech": "speech_foga", "audio": "audio_foga", "sound": "audio_foga"}
"""Domain → column of the paper's released CSV."""


def plain(value: Any) -> Any:
    """The same value in JSON's types: numpy scalars and arrays unwrapped, sets sorted, NaN and inf as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)


def _shortest(x: np.float32) -> float | None:
    """The double with the fewest digits that reads back as this float32."""
    return float(str(x)) if np.isfinite(x) else None


def write_json(scores: Scores, path: str | os.PathLike[str]) -> Path:
    """Write scores as JSON, one line per sample."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "kind": scores.kind,
        "layers": scores.layers,
        "times": scores.times,
        "domains": scores.domains,
        "ids": scores.ids,
        "info": scores.info,
    }
    rows = ([[_shortest(x) for x in time] for time in sample] for sample in scores.values)
    lines = [f"  {json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}," for key, value in head.items()]
    body = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    return write(path, "{\n" + "\n".join(lines) + '\n  "values": [\n' + body + "\n  ]\n}\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a scores file, checked. Raises BadScores."""
    content = _parse(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadScores(
            f'{path} is JSON, but no scores file of fog_a (it has no "format": "{FORMAT}"). '
            "Write one with attribute(model, batch).save(path) or `fog-a attribute --out`"
        )
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise BadScores(
            f"{path} has format version {version}, this fog_a reads up to {VERSION}: it was written by a newer "
            "release. Upgrade: pip install -U fog-a"
        )
    fields = _checked(content, path)
    try:
        values = np.array(fields["values"], dtype=np.float64).astype(np.float32)
        if values.ndim != 3:
            raise ValueError(f"{values.ndim} axes")
    except (ValueError, OverflowError) as error:
        raise BadScores(f"{path}: values are no array samples × times × layers ({error}). Measure again") from error
    return {**{k: v for k, v in fields.items() if k not in ("format", "version")}, "values": values}


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise BadScores(
            f"cannot read {path}: {error.strerror or error}. Give the path of a scores file (JSON)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadScores(
            f"{path} is not JSON ({error}): it is damaged, cut off or of another kind. Scores are kept as JSON, "
            "never as pickle; measure again and save(path)"
        ) from error


def _checked(content: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Field by field, by pydantic (imported here: it costs a fifth of a second)."""
    from pydantic import BaseModel, ConfigDict, ValidationError

    class ScoresFile(BaseModel):
        model_config = ConfigDict(strict=True, extra="forbid")
        format: str
        version: int
        kind: str
        layers: list[str]
        times: list[float] | None
        domains: list[str]
        ids: list[str]
        info: dict[str, Any]
        values: list[list[list[float | None]]]

    try:
        return ScoresFile.model_validate(content).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadScores(
            f"{path} is a damaged scores file: {where}: {first['msg']}. Measure again, or take it from a backup"
        ) from error


def long_rows(scores: Scores) -> Iterator[tuple[int, str, str, float | None, str, float]]:
    """One row per sample × time × layer, in the columns of `LONG`."""
    times = scores.times or (None,)
    for i, (name, domain) in enumerate(zip(scores.ids, scores.domains, strict=True)):
        for j, t in enumerate(times):
            for k, layer in enumerate(scores.layers):
                yield i, name, domain, t, layer, float(str(scores.values[i, j, k]))


def release_rows(scores: Scores) -> Iterator[list[Any]]:
    """The released probe's layout: a header, then one row per layer (0-based) with the mean of each domain."""
    names = dict.fromkeys(["speech_foga", "audio_foga"])
    columns = {d: RELEASE.get(d, f"{d}_foga") for d in dict.fromkeys(scores.domains)}
    names.update(dict.fromkeys(columns.values()))
    means = {columns[d]: scores.mean(d) for d in columns}
    yield ["step", "epoch", "layer", *names]
    for k in range(len(scores.layers)):
        cells = [float(means[c][k]) if c in means else "" for c in names]
        yield [scores.info.get("step", 0), scores.info.get("epoch", 0), k, *cells]


def write_csv(scores: Scores, path: str | os.PathLike[str], layout: str) -> Path:
    """Write scores as CSV: layout "long" or "release"."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    if layout == "long":
        out.writerow(LONG)
        out.writerows(long_rows(scores))
    elif layout == "release":
        out.writerows(release_rows(scores))
    else:
        raise ValueError(f"layout = {layout!r}: expected 'long' or 'release'")
    return write(path, text.getvalue())
