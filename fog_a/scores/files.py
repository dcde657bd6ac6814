"""Scores on disk: JSON that reads back to the same bits, and CSV for spreadsheets and for the paper's scripts.

Reading runs nothing from the file: it is parsed as JSON and checked field by field. A NaN is `null` in JSON (which has
no NaN) and `nan` in CSV. A CSV cell that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64

from fog_a.errors import BadArgument, BadScores, MissingDependency
from fog_a.files import write

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
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def _shortest(values: Float32[np.ndarray, "*axes"]) -> Float64[np.ndarray, "*axes"]:
    """The doubles with the fewest digits that read back as these float32."""
    return values.astype("U16").astype(np.float64)


def write_scores(path: str | os.PathLike[str], fields: Fields) -> Path:
    """Write scores as JSON, one line per sample. Raises NotWritten."""
    head = {"format": "fog_a.scores", "version": 1, **{name: x for name, x in fields.items() if name != "values"}}
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in plain(_shortest(fields["values"])))
    return write(path, f'{json.dumps(plain(head), allow_nan=False)[:-1]}, "values": [\n{rows}\n]}}\n')


def read_scores(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a scores file, checked. Raises BadScores."""
    from pydantic import BaseModel, ConfigDict, Field  # imported here: it costs a fifth of a second

    class ScoresFile(BaseModel):
        model_config = ConfigDict(strict=True, extra="forbid")
        format: Literal["fog_a.scores"]
        version: int = Field(le=1)
        kind: str
        layers: list[str]
        times: list[float] | None
        domains: list[str]
        ids: list[str]
        groups: list[str] = []
        info: dict[str, Any]
        values: list[list[list[float | None]]]

    advice = "Measure again; a newer release's file needs pip install -U fog-a"
    return read_as(ScoresFile, path, "scores file", advice).model_dump(exclude={"format", "version"})


def read_as(model: Any, path: str | os.PathLike[str], what: str, advice: str) -> Any:
    """What a JSON file holds, as a pydantic model of this class. Raises BadScores where it is none."""
    from pydantic import ValidationError

    try:
        return model.model_validate(json.loads(Path(path).read_bytes().decode("utf-8")))
    except OSError as error:
        raise BadScores(f"cannot read {path}: {error.strerror or error}. Give the path of a {what} (JSON)") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadScores(f"{path} is no {what}, or a damaged one: {where}: {first['msg']}. {advice}") from error
    except (ValueError, RecursionError) as error:  # ValueError: also a null character in the path
        raise BadScores(
            f"{path} is not JSON ({error}): it is damaged, cut off or of another kind. A {what} is kept as JSON, never "
            "as pickle; make it again and save(path)"
        ) from error


def long_rows(fields: Fields) -> Iterator[tuple[int, str, str, float | None, str, float]]:
    """One row per sample × time × layer, in the columns of `LONG`."""
    cells: list[tuple[float | None, str]] = list(itertools.product(fields["times"] or (None,), fields["layers"]))
    for i, (name, domain) in enumerate(zip(fields["ids"], fields["domains"], strict=True)):
        for (t, layer), value in zip(cells, _shortest(fields["values"][i]).ravel().tolist(), strict=True):
            yield i, name, domain, t, layer, value


def frame(fields: Fields) -> Any:
    """The rows of `long_rows` as a pandas DataFrame. Raises MissingDependency without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependency(
            "to_pandas needs pandas: pip install 'fog-a[pandas]'; to_csv(path) needs nothing"
        ) from error
    return pandas.DataFrame(list(long_rows(fields)), columns=list(LONG))


def _release_rows(fields: Fields, means: Mapping[str, Float[np.ndarray, " L"]]) -> Iterator[list[Any]]:
    """The released probe's layout: a header, then one row per layer (0-based) with the mean of each domain."""
    columns = {RELEASE.get(domain, f"{domain}_foga"): mean for domain, mean in means.items()}
    names = dict.fromkeys(["speech_foga", "audio_foga", *columns])
    yield ["step", "epoch", "layer", *map(_harmless, names)]
    for k in range(len(fields["layers"])):
        cells = [float(columns[name][k]) if name in columns else "" for name in names]
        yield [fields["info"].get("step", 0), fields["info"].get("epoch", 0), k, *cells]


def write_csv(path: str | os.PathLike[str], fields: Fields, means: Mapping[str, np.ndarray], layout: str) -> Path:
    """Write scores as CSV: layout "long" or "release". Raises NotWritten."""
    if layout not in ("long", "release"):
        raise BadArgument(f"layout = {layout!r}: expected 'long' or 'release'")
    safe = {name: tuple(map(_harmless, fields[name])) for name in ("ids", "domains", "layers")}
    long = itertools.chain([LONG], long_rows({**fields, **safe}))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(long if layout == "long" else _release_rows(fields, means))
    return write(path, text.getvalue())


def _harmless(text: str) -> str:
    """Text that a spreadsheet shows instead of running it as a formula."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
