"""Rankings as HTML for a notebook: the picture, a table for each domain, and what to doubt. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from fog_a.scores.image import inline
from fog_a.scores.ranking import Ranking

LONG = 16
"""A table of more layers is folded away under the picture, which shows them all."""


def html(rankings: Sequence[Ranking], picture: bytes | None, k: int = 3, level: float = 0.95) -> str:
    """Picture and tables; the k best layers of each domain stand out."""
    folded = picture is not None and len(rankings[0].layers) > LONG
    tables = "".join(_table(ranking, k, level) for ranking in rankings)
    tables = f'<div style="display:flex;flex-wrap:wrap;gap:2em">{tables}</div>'
    if folded:
        tables = f"<details><summary>all {len(rankings[0].layers)} layers</summary>{tables}</details>"
    notes = dict.fromkeys(note for ranking in rankings for note in ranking.notes)
    return image(picture) + tables + remarks(notes)


def remarks(notes: Iterable[str]) -> str:
    """What the reader should doubt, a paragraph each."""
    return "".join(f"<p>! {escape(note)}</p>" for note in notes)


def image(picture: bytes | None) -> str:
    """A PNG file set into the page itself."""
    if picture is None:
        return ""
    data, width = inline(picture)
    return f'<img alt="" style="max-width:100%;width:{width}px" src="data:image/png;base64,{data}">'


def _table(ranking: Ranking, k: int, level: float) -> str:
    interval, mean, order = ranking.interval(level), ranking.mean, ranking.order
    rows = []
    for i, name in enumerate(ranking.layers):
        known = i in order
        cells = (
            str(order.index(i) + 1) if known else "–",
            f"L{i + 1}",
            name,
            f"{mean[i]:.4f}" if known else "missing",
            "{:.4f} … {:.4f}".format(*interval[i]) if known else "–",
        )
        rows.append((cells, i in order[:k]))
    whose = "" if ranking.domain == "all" else f"{ranking.domain} · "
    return table(
        f"{ranking.kind} · {whose}{ranking.size}", ("rank", "", "layer", "mean", f"{level:.0%} interval"), rows
    )


def table(caption: str, head: Iterable[str], rows: Iterable[tuple[Iterable[str], bool]]) -> str:
    """An HTML table in the notebook's own colors; rows that are marked are bold."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for cells, marked in rows:
        style = ' style="font-weight:bold"' if marked else ""
        lines.append(f"<tr{style}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    body = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<table><caption style="caption-side:top">{escape(caption)}</caption>{body}</table>'
