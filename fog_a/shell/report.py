"""One HTML page that shows scores: what they say in words, pictures, every layer's number, how they were measured.

The page is self-contained (report.html): styles and pictures are inside, there is no script and no request; it follows
the reader's light or dark setting and prints. All text is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fog_a.errors import BadArgument
from fog_a.scores import canvas
from fog_a.scores.curves import plot_curves
from fog_a.scores.plots import plot_scatter, plot_scd, plot_scores
from fog_a.scores.ranking import rankings
from fog_a.scores.scores import Scores
from fog_a.scores.statistics import FEW
from fog_a.scores.tables import Table, image_tag, layer_table, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = tuple[str, "Figure | bytes | str | os.PathLike[str]"]
"""A caption, and a Figure, PNG bytes or the path of a PNG."""

FIGURE_1 = (
    "Left: how much of the teacher's information a layer holds. Right: how far the velocity moves without it. "
    "The layer with the largest mean is framed."
)


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
        >>> import numpy as np
        >>> scores = Scores(np.random.default_rng(0).random((16, 1, 2)), ("blocks.0", "blocks.1"))
        >>> report(scores, title="A small net").startswith("<!doctype html>")
        True
    """
    several = [scores] if isinstance(scores, Scores) else list(scores)
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"shown": shown, "percent": lambda share: f"{share:.1%}"}
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


def picture(image: Figure | bytes | str | os.PathLike[str], caption: str) -> Markup:
    """A matplotlib Figure, PNG bytes or a PNG file, set into the page itself above its caption."""
    if isinstance(image, str | os.PathLike):
        image = Path(image).read_bytes()
    data = image if isinstance(image, bytes) else canvas.png(image)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BadArgument(f"the picture {caption!r} is no PNG: give a matplotlib Figure, PNG bytes or a PNG file")
    figure = Markup("<figure>{}<figcaption>{}</figcaption></figure>")
    return figure.format(image_tag(data, caption), caption)


def _section(scores: Scores, k: int, level: float) -> dict[str, Any]:
    """Words, pictures and tables of one Scores."""
    domains = rankings(scores)
    name, timed = canvas.kind_name(domains[0]), domains[0].timed
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
        "tables": {d.domain: layer_table(d, k, level) for d in domains},
        "measured": _measured(scores),
    }


def _pairs(several: Sequence[Scores], k: int, level: float) -> Iterable[Markup]:
    """Storage beside contribution, for each pair over the same layers with a common domain."""
    for storage in (s for s in several if s.kind == "storage"):
        for contribution in (s for s in several if s.kind == "contribution"):
            if storage.layers == contribution.layers and set(storage.domains) & set(contribution.domains):
                scatter = plot_scatter(storage, contribution, k=min(k, len(storage.layers)), level=level)
                yield picture(plot_scd(storage, contribution, level=level), FIGURE_1) + picture(
                    scatter, "A point per layer, with both intervals; colored by depth."
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
