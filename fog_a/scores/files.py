"""Scores on disk: JSON that reads back to the same bits, and CSV for spreadsheets and for the paper's scripts.

Reading runs nothing from the file: it is parsed as JSON and checked field by field. A NaN is `null` in JSON (which has
no NaN) and `nan` in CSV. A CSV cell that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fog_a.errors import BadArgument, BadScores, MissingDependency
from fog_a.files import write

FORMAT = "fog_a.scores"
VERSION = 1

LONG = ("sample", "id", "domain", "time", "layer", "value")

RELEASE = {"speech": "speech_foga", "audio": "audio_foga", "sound": "audio_foga"}
"""Domain → column of the paper's released CSV."""

Fields = Mapping[str, Any]
"""Those of Scores, by name."""


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


def write_scores(path: str | os.PathLike[str], fields: Fields) -> Path:
    """Write scores as JSON, one line per sample. Raises NotWritten."""
    head = {"format": FORMAT, "version": VERSION, **{name: x for name, x in fields.items() if name != "values"}}
    rows = ([[_shortest(x) for x in time] for time in sample] for sample in fields["values"])
    lines = [f"  {json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}," for key, value in head.items()]
    body = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    return write(path, "{\n" + "\n".join(lines) + '\n  "values": [\n' + body + "\n  ]\n}\n")


def read_scores(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a scores file, checked. Raises BadScores."""
    content = read_json(path, "a scores file")
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


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """What a JSON file holds. Raises BadScores where it cannot be read or is no JSON."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise BadScores(f"cannot read {path}: {error.strerror or error}. Give the path of {what} (JSON)") from error
    except (ValueError, RecursionError) as error:  # ValueError: also a null character in the path
        raise BadScores(
            f"{path} is not JSON ({error}): it is damaged, cut off or of another kind. {what.capitalize()} is kept as "
            "JSON, never as pickle; make it again and save(path)"
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
        groups: list[str] = []
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


def long_rows(fields: Fields) -> Iterator[tuple[int, str, str, float | None, str, float]]:
    """One row per sample × time × layer, in the columns of `LONG`."""
    for i, (name, domain) in enumerate(zip(fields["ids"], fields["domains"], strict=True)):
        for j, t in enumerate(fields["times"] or (None,)):
            for k, layer in enumerate(fields["layers"]):
                yield i, name, domain, t, layer, float(str(fields["values"][i, j, k]))


def frame(fields: Fields) -> Any:
    """The rows of `long_rows` as a pandas DataFrame. Raises MissingDependency without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependency(
            "to_pandas needs pandas: pip install 'fog-a[pandas]'; to_csv(path) needs nothing"
        ) from error
    return pandas.DataFrame(list(long_rows(fields)), columns=list(LONG))


def release_rows(fields: Fields, means: Mapping[str, np.ndarray]) -> Iterator[list[Any]]:
    """The released probe's layout: a header, then one row per layer (0-based) with the mean of each domain."""
    columns = {d: RELEASE.get(d, f"{d}_foga") for d in means}
    names = dict.fromkeys(["speech_foga", "audio_foga", *columns.values()])
    column_means = {columns[d]: mean for d, mean in means.items()}
    yield ["step", "epoch", "layer", *names]
    for k in range(len(fields["layers"])):
        cells = [float(column_means[c][k]) if c in column_means else "" for c in names]
        yield [fields["info"].get("step", 0), fields["info"].get("epoch", 0), k, *cells]


def write_csv(path: str | os.PathLike[str], fields: Fields, means: Mapping[str, np.ndarray], layout: str) -> Path:
    """Write scores as CSV: layout "long" or "release". Raises NotWritten."""
    if layout not in ("long", "release"):
        raise BadArgument(f"layout = {layout!r}: expected 'long' or 'release'")
    rows = [LONG, *long_rows(fields)] if layout == "long" else release_rows(fields, means)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return write(path, text.getvalue())


def _harmless(cell: Any) -> Any:
    """Text that a spreadsheet shows instead of running it as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip().startswith(("=", "+", "-", "@")) else cell
