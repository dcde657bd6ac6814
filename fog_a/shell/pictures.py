"""Which picture saved scores make."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from fog_a.errors import BadArgument
from fog_a.files import write
from fog_a.scores.canvas import Labels
from fog_a.scores.curves import plot_curves, plot_stability
from fog_a.scores.plots import plot_scatter, plot_scd, plot_scores
from fog_a.scores.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(picture: Figure, path: Path) -> None:
    """Write a picture, whole or not at all. Raises NotWritten; BadArgument for an unknown kind of file."""
    buffer = io.BytesIO()
    try:
        picture.savefig(buffer, format=path.suffix.removeprefix(".") or "png")
    except ValueError as error:
        raise BadArgument(f"--out {path}: {error}. Name it .png, .svg or .pdf") from error
    write(path, buffer.getvalue())


def drawn(kind: str, files: list[Path], k: int, labels: Labels) -> Figure:
    """The picture of this kind of saved scores. Raises BadArgument where the files do not make one."""
    scores = [Scores.load(f) for f in files]
    pair = {s.kind: s for s in scores}
    if kind == "auto":
        kind = "scd" if {"storage", "contribution"} == pair.keys() and len(scores) == 2 else "scores"
    if kind in ("scd", "scatter"):
        if len(scores) != 2 or "storage" not in pair or len(pair) != 2:
            raise BadArgument(f"--kind {kind} needs two files, one of storage (lasp) and one of contribution")
        storage, other = pair.pop("storage"), next(s for s in scores if s.kind != "storage")
        return plot_scd(storage, other, labels=labels) if kind == "scd" else plot_scatter(storage, other, k=k)
    if kind == "stability":
        history = {_step(s, f, n): s for n, (s, f) in enumerate(zip(scores, files, strict=True))}
        return plot_stability(history, k=k)
    if len(scores) != 1:
        raise BadArgument(f"--kind {kind} draws one file, got {len(scores)}; several: --kind scd, scatter or stability")
    if kind == "scores":
        return plot_scores(scores[0], k=k, labels=labels)
    return plot_curves(scores[0], along=kind, k=k)


def _step(scores: Scores, path: Path, place: int) -> int:
    """The training step of a checkpoint: from its info, the last number in its file name, or its place."""
    if isinstance(scores.info.get("step"), int):
        return int(scores.info["step"])
    digits = "".join(c if c.isdigit() else " " for c in path.stem).split()
    return int(digits[-1]) if digits else place
