"""One HTML page that shows scores: what they say in words, pictures, every layer's number, how they were measured.

The page is self-contained (report.html): styles and pictures are inside, there is no script and no request; it follows
the reader's light or dark setting and prints. All text is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fog_a.errors import BadArgument
from fog_a.scores.canvas import UNIT, kind_name
from fog_a.scores.curves import plot_curves
from fog_a.scores.image import inline, png
from fog_a.scores.plots import plot_scatter, plot_scd, plot_scores
from fog_a.scores.ranking import Ranking, rankings
from fog_a.scores.scores import Scores
from fog_a.scores.statistics import FEW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = tuple[str, "Figure | bytes | str | os.PathLike[str]"]
"""A caption, and a Figure, PNG bytes or the path of a PNG."""

PNG = b"\x89PNG\r\n\x1a\n"

FIGURE_1 = (
    "Left: how much of the teacher's information a layer holds. Right: how far the velocity moves without it. "
    "The layer with the largest mean is framed."
)


@dataclass(frozen=True)
class Table:
    """A table for a page: numbers are set flush right, rows whose index is in `marked` stand out. Markup is kept."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    marked: frozenset[int] = frozenset()

    @property
    def alignment(self) -> list[Markup]:
        """The class of each column's cells."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        return [Markup(' class="number"' if cells and all(map(_numeric, cells)) else "") for cells in columns]


class Image(NamedTuple):
    """A picture set into the page itself."""

    caption: str
    data: str
    width: int


def report(
    scores: Scores | Sequence[Scores] = (),
    figures: Iterable[Picture] = (),
    tables: Iterable[Table] = (),
    *,
    title: str = "Which layers drive the output?",
    lead: str = "",
    facts: Mapping[str, Any] | None = None,
    k: int = 3,
    level: float = 0.95,
) -> str:
    """The page as a string; write it with `fog_a.files.write("report.html", page)`.

    Args:
        scores: one or several; each gets a section with pictures and a table per domain. One of kind "storage" and
            one of "contribution" over the same layers also get the paper's Figure 1 and a scatter.
        figures: further pictures, each with its caption.
        tables: further tables.
        title, lead: heading and first paragraph.
        facts: name → value, shown as cards under the heading.
        k: how many layers are marked per domain.
        level: of the intervals.

    Example:
        >>> scores = Scores(np.random.default_rng(0).random((16, 1, 2)), ("blocks.0", "blocks.1"))
        >>> report(scores, title="A small net").startswith("<!doctype html>")
        True
    """
    several = [scores] if isinstance(scores, Scores) else list(scores)
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"shown": _shown, "percent": lambda share: f"{share:.1%}"}
    return environment.get_template("report.html").render(
        title=title,
        lead=lead,
        facts=facts or {},
        pictures=[picture(image, caption) for caption, image in figures],
        tables=list(tables),
        sections=[_section(s, min(k, len(s.layers)), level) for s in several],
        pairs=list(_pairs(several, k, level)),
        few=FEW if any(r.n < FEW for s in several for r in rankings(s)) else None,
    )


def picture(image: Figure | bytes | str | os.PathLike[str], caption: str) -> Image:
    """A matplotlib Figure, PNG bytes or a PNG file, set into the page itself."""
    if isinstance(image, bytes):
        data = image
    elif isinstance(image, str | os.PathLike):
        data = Path(image).read_bytes()
    else:
        data = png(image)
    if not data.startswith(PNG):
        raise BadArgument(f"the picture {caption!r} is no PNG: give a matplotlib Figure, PNG bytes or a PNG file")
    return Image(caption, *inline(data))


def _numeric(cell: Any) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _shown(value: Any) -> str:
    """Numbers to four digits, a missing one as a dash."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return value if isinstance(value, str) else str(value)


def _section(scores: Scores, k: int, level: float) -> dict[str, Any]:
    """Words, pictures and tables of one Scores."""
    domains = rankings(scores)
    name, timed = kind_name(domains[0]), domains[0].timed
    tops = [d.top(k, level=level) for d in domains]
    caption = f"Mean per layer with {level:.0%} intervals; the best {k} of each domain in color"
    caption += ", and over flow time below." if timed else "."
    pictures = [picture(plot_scores(scores, k=k, level=level), caption)]
    if timed:
        caption = f"The best {k} layers over flow time, with {level:.0%} bands."
        pictures.append(picture(plot_curves(scores, k=k, level=level), caption))
    return {
        "heading": name[0].upper() + name[1:],
        "words": [
            (d, top, d.certainty(len(top)) if 0 < len(top) < len(d.layers) else None)
            for d, top in zip(domains, tops, strict=True)
        ],
        "notes": dict.fromkeys(note for d in domains for note in d.notes),
        "pictures": pictures,
        "layers": [_layers(d, k, level) for d in domains],
        "measured": _measured(scores),
    }


def _layers(ranking: Ranking, k: int, level: float) -> tuple[str, Table]:
    """All layers in order of execution."""
    mean, interval, sure = ranking.mean, ranking.interval(level), ranking.inclusion(k)
    largest = max((abs(mean[i]) for i in ranking.order), default=0.0) or 1.0
    rows = []
    for i, name in enumerate(ranking.layers):
        finite = i in ranking.order
        low, high = interval[i]
        rank = ranking.order.index(i) + 1 if finite else "–"
        width = f"{12 * abs(mean[i]) / largest if finite else 0:.2f}rem"
        rows.append(
            [
                Markup('<span class="rank">{}</span>').format(rank),
                f"L{i + 1}",
                Markup("<code>{}</code>").format(name),
                f"{mean[i]:.4f}" if finite else "missing",
                f"{low:.4f} … {high:.4f}" if np.isfinite(low) else "–",
                f"{sure[i]:.0%}",
                Markup('<span class="bar" style="width:{}"></span>').format(width),
            ]
        )
    whose = "" if ranking.domain == "all" else ranking.domain
    caption = f"{whose}{': ' if whose else ''}{ranking.size}; mean is {UNIT.get(ranking.kind, '')}"
    columns = ("rank", "", "layer", "mean", f"{level:.0%} interval", f"in the top {k}", "")
    summary = f"All {len(ranking.layers)} layers{', ' if whose else ''}{whose}"
    return summary, Table(caption, columns, rows, frozenset(ranking.order[:k]))


def _pairs(several: Sequence[Scores], k: int, level: float) -> Iterable[tuple[Image, Image]]:
    """Storage beside contribution, for each pair over the same layers with a common domain."""
    for storage in (s for s in several if s.kind == "storage"):
        for contribution in (s for s in several if s.kind == "contribution"):
            if storage.layers == contribution.layers and set(storage.domains) & set(contribution.domains):
                scatter = plot_scatter(storage, contribution, k=min(k, len(storage.layers)), level=level)
                yield (
                    picture(plot_scd(storage, contribution, level=level), FIGURE_1),
                    picture(scatter, "A point per layer, with both intervals; colored by depth."),
                )


def _measured(scores: Scores) -> dict[str, Any]:
    """How it was measured: the options and versions that repeat it."""
    info = scores.info
    signature = info.get("signature") or {}
    count = signature.get("parameters")
    shown: dict[str, Any] = {
        "samples": rankings(scores)[0].size if len(scores.domain_names) == 1 else len(scores.ids),
        "layers": len(scores.layers),
        "flow times": None if scores.times is None else ", ".join(f"{t:.3g}" for t in scores.times),
        "model": signature.get("class"),
        "parameters": f"{count:,}" if isinstance(count, int) else None,
    }
    shown |= {name: info.get(name) for name in ("strategy", "seed", "level", "teacher", "step")}
    shown |= {f"{name} version": number for name, number in dict(info.get("versions") or {}).items()}
    return {name: value for name, value in shown.items() if value is not None}
