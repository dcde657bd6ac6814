"""Rankings in words: a table with intervals for a terminal, the same with the picture for a notebook or a page.

HTML is in the reader's own colors; all text in it is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from fog_a.errors import MissingDependency
from fog_a.scores.canvas import png
from fog_a.scores.ranking import Ranking, count
from fog_a.scores.statistics import FEW

LONG = 16
"""In a notebook a table of more layers is folded away under the picture, which shows them all."""

DENSITY = 1.75
"""Picture dots per CSS pixel: sharp on dense screens, its letters about as large as the page's."""


@dataclass(frozen=True)
class Table:
    """Rows under columns. Those at `right` and those of numbers are set flush right; rows in `marked` stand out."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    marked: frozenset[int] = frozenset()
    right: Collection[int] = ()

    def text(self) -> str:
        """For a terminal."""
        grid = [[str(shown(cell)) for cell in row] for row in (self.columns, *self.rows)]
        widths, right = [max(map(len, column)) for column in zip(*grid, strict=True)], self._right()
        lines = [self.caption] if self.caption else []
        for row in grid:
            cells = [f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)]
            lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join(lines)

    def html(self) -> Markup:
        """For a page; a cell that has `__html__` is taken as it is."""
        right = self._right()

        def line(tag: str, row: Sequence[Any]) -> Markup:
            kind = [Markup(' class="number"') if i in right else "" for i in range(len(row))]
            cell = Markup("<{0}{1}>{2}</{0}>").format
            return Markup("").join(cell(tag, k, shown(value)) for k, value in zip(kind, row, strict=True))

        marks = (Markup(' class="top" style="font-weight:bold"'), "")
        row_of = Markup("<tr{}>{}</tr>").format
        body = [row_of(marks[i not in self.marked], line("td", row)) for i, row in enumerate(self.rows)]
        return Markup(
            '<table><caption style="caption-side:top">{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>'
        ).format(self.caption, line("th", self.columns), Markup("").join(body))

    def _right(self) -> set[int]:
        """The columns that are set flush right."""
        columns = enumerate(zip(*self.rows, strict=True))
        return {*self.right, *(i for i, cells in columns if all(_is_number(cell) for cell in cells))}


class Bar(NamedTuple):
    """How large a score is beside the largest, 0 to 1."""

    share: float

    def __str__(self) -> str:
        return "█" * round(24 * self.share) or "·"

    def __html__(self) -> Markup:
        style = f"display:inline-block;height:.7em;background:var(--bar,#b4c3d6);width:{8 * self.share:.2f}rem"
        return Markup('<span style="{}"></span>').format(style)


def _is_number(cell: Any) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def shown(value: Any) -> Any:
    """Numbers to four digits, a missing one as a dash."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else value


def layer_table(ranking: Ranking, k: int | None = None, level: float = 0.95, *, only_best: bool = False) -> Table:
    """All layers in order of execution, the best k marked; or only these, best first."""
    interval, mean, order = ranking.interval(level), ranking.mean, ranking.order
    largest = max((abs(mean[i]) for i in order), default=0.0) or 1.0
    places = order[:k] if only_best else range(len(ranking.layers))
    sure = ranking.inclusion(k) if k else mean
    rows = []
    for i in places:
        known = i in order
        rank, score, limits = "–", "missing", "–"
        if known:
            rank, score, limits = order.index(i) + 1, f"{mean[i]:.4f}", "{:.4f} … {:.4f}".format(*interval[i])
        chance = [f"{sure[i]:.0%}"] if k else []
        bar = Bar(abs(mean[i]) / largest) if known else ""
        rows.append([rank, f"L{i + 1}", ranking.layers[i], score, limits, *chance, bar])
    columns = ("rank", "", "layer", "mean", f"{level:.0%} interval", *([f"in the top {k}"] if k else []), "")
    times = f" × {count(len(ranking.times), 'time')}" if ranking.times else ""
    caption = " · ".join([ranking.kind, ranking.domain, ranking.size + times])
    best = frozenset(n for n, i in enumerate(places) if i in order[: k or 0])
    return Table(caption, columns, rows, best, right=(0, 1, 3, 5) if k else (0, 1, 3))


def text(domains: Sequence[Ranking], k: int | None = None, level: float = 0.95) -> str:
    """For each domain the best k layers (best first), or all layers in order of execution, and what to doubt."""
    tables = []
    for ranking in domains:
        k = None if k is None else ranking.check_k(k)
        lines = [layer_table(ranking, k, level, only_best=k is not None).text()]
        if k and k < len(ranking.order):
            lines.append(f"this top {k} is the top {k} in {ranking.certainty(k):.0%} of bootstrap resamples")
        if ranking.noise_floor:
            lines.append(f"noise floor {ranking.noise_floor:.2g}: a score near it tells nothing")
        tables.append("\n".join([*lines, *(f"! {note}" for note in ranking.notes)]))
    return "\n\n".join(tables)


def summary(domains: Sequence[Ranking]) -> str:
    """One line: kind, sizes, domains, the best layer of each, and a caution where one is due."""
    first = domains[0]
    sizes = [count(sum(d.samples for d in domains), "sample"), count(len(first.layers), "layer")]
    if first.times is not None:
        sizes.insert(1, count(len(first.times), "time"))
    best = []
    for d in domains:
        lead = f"{first.layers[d.order[0]]} {d.mean[d.order[0]]:.3g}" if d.order else "no finite score"
        best.append(f"{d.domain} ({d.samples}): {lead}")
    missing = sum(d.missing for d in domains)
    cautions = [f"{missing} values missing"] if missing else []
    if any(d.n < FEW for d in domains):
        cautions.append(f"fewer than {FEW} independent samples: intervals cannot promise their level")
    words = [f"{first.kind}, {' × '.join(sizes)}", f"best of {', '.join(best)}", *cautions]
    return f"Scores({'; '.join(words)})"


class Shown:
    """The base of what a notebook shows: what `plot()` draws, and `_tables()` with the notes."""

    def _repr_png_(self: Any) -> bytes | None:
        try:
            return png(self.plot())
        except MissingDependency:
            return None

    def _repr_html_(self: Any) -> str:
        picture, (tables, notes) = self._repr_png_(), self._tables()
        body = Markup("").join(table.html() for table in tables)
        body = Markup('<div style="display:flex;flex-wrap:wrap;gap:2em">{}</div>').format(body)
        if picture is not None and (layers := len(tables[0].rows)) > LONG:
            body = Markup("<details><summary>all {} layers</summary>{}</details>").format(layers, body)
        return str(image_tag(picture) + body + Markup("").join(map(Markup("<p>! {}</p>").format, dict.fromkeys(notes))))


def image_tag(png: bytes | None, caption: str = "") -> Markup:
    """A PNG file set into the page itself; nothing for None."""
    if png is None:
        return Markup("")
    width = round(int.from_bytes(png[16:20], "big") / DENSITY)
    tag = Markup('<img alt="{}" width="{}" style="max-width:100%" src="data:image/png;base64,{}">')
    return tag.format(caption, width, base64.b64encode(png).decode("ascii"))
