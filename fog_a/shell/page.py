"""Pieces of one HTML page that needs nothing from outside: styles, tables, pictures as data, all text escaped."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2430; --soft: #5d6675; --line: #e3e6eb; --tint: #f5f7fa;
  --mark: #c25400; --bar: #b4c3d6; --note: #fff6e6; --note-line: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171d; --ink: #e6e9ef; --soft: #9aa4b4; --line: #2b313c;
  --tint: #1b2028; --mark: #ff9a4d; --bar: #41536b; --note: #2a2314; --note-line: #b07a10; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.6rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 0.75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 0.5rem; }
p, ul, .lead { max-width: 44rem; }
.lead { font-size: 1.1rem; color: var(--soft); margin: 0 0 1.5rem; }
code { font: 0.9em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.facts { display: flex; flex-wrap: wrap; gap: 1px; margin: 1.5rem 0; background: var(--line);
  border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.facts div { flex: 1 1 11rem; background: var(--paper); padding: 0.7rem 0.9rem; }
.facts dt { font-size: 0.78rem; color: var(--soft); }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.note { background: var(--note); border-left: 3px solid var(--note-line); padding: 0.6rem 0.9rem; margin: 1rem 0;
  border-radius: 0 6px 6px 0; max-width: 44rem; font-size: 0.93rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: 0.5rem; border-radius: 8px;
  border: 1px solid var(--line); }
summary { cursor: pointer; color: var(--soft); font-size: 0.95rem; padding: 0.3rem 0; }
figcaption, caption { color: var(--soft); font-size: 0.9rem; text-align: left; }
figcaption { margin-top: 0.5rem; max-width: 44rem; }
caption { padding-bottom: 0.5rem; }
.wide { overflow-x: auto; margin: 1rem 0 1.5rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { padding: 0.32rem 0.9rem 0.32rem 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: 0.8rem; }
td.number, th.number { text-align: right; }
tr.top td { font-weight: 650; }
tr.top .rank { color: var(--mark); }
.bar { display: inline-block; height: 0.7em; background: var(--bar); border-radius: 2px; vertical-align: baseline; }
tr.top .bar { background: var(--mark); }
footer { margin-top: 4rem; color: var(--soft); font-size: 0.85rem; }
@media print { h2 { break-after: avoid; } figure, .wide { break-inside: avoid; } }
"""

PNG = b"\x89PNG\r\n\x1a\n"
DENSITY = 1.75
"""Picture dots per CSS pixel: sharp on dense screens, text in pictures about as large as the page's."""


class Table(NamedTuple):
    """A table for a page: numbers are set flush right, rows whose index is in `marked` stand out."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    marked: frozenset[int] = frozenset()


class Html(str):
    """Text that is HTML already and is not escaped again."""


def text(value: Any) -> str:
    """A value as escaped text: numbers to four digits, a missing one as a dash."""
    if isinstance(value, Html):
        return str(value)
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return escape(f"{value:.4g}".replace("-", "−"))
    return escape(str(value))


def folded(summary: str, content: str, unfolded: bool) -> str:
    """Content under a line that opens and closes it, without a script."""
    return f"<details{' open' if unfolded else ''}><summary>{text(summary)}</summary>\n{content}\n</details>"


def _numeric(cell: Any) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def table(content: Table) -> str:
    """One HTML table."""
    columns = list(zip(*content.rows, strict=True)) or [()] * len(content.columns)
    kind = [' class="number"' if cells and all(_numeric(c) for c in cells) else "" for cells in columns]
    head = "".join(f'<th scope="col"{c}>{text(name)}</th>' for name, c in zip(content.columns, kind, strict=True))
    lines = []
    for n, row in enumerate(content.rows):
        cells = "".join(f"<td{c}>{text(cell)}</td>" for cell, c in zip(row, kind, strict=True))
        mark = ' class="top"' if n in content.marked else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    body = "\n".join(lines)
    caption = f"<caption>{text(content.caption)}</caption>" if content.caption else ""
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def picture(image: Figure | bytes | str | os.PathLike[str], caption: str) -> str:
    """A matplotlib Figure, PNG bytes or a PNG file, set into the page itself."""
    if isinstance(image, bytes):
        data = image
    elif isinstance(image, str | os.PathLike):
        data = Path(image).read_bytes()
    else:
        buffer = io.BytesIO()
        image.savefig(buffer, format="png")
        data = buffer.getvalue()
    if not data.startswith(PNG):
        raise ValueError(f"the picture {caption!r} is no PNG: give a matplotlib Figure, PNG bytes or a PNG file")
    code = base64.b64encode(data).decode("ascii")
    width = round(int.from_bytes(data[16:20], "big") / DENSITY)
    return (
        f'<figure><img src="data:image/png;base64,{code}" width="{width}" alt="{escape(caption, quote=True)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def facts(values: Mapping[str, Any]) -> str:
    """Name and value pairs as a grid of cards; nothing for an empty mapping."""
    cards = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{cards}</dl>' if cards else ""


def note(words: str) -> str:
    """A caution the reader should not miss."""
    return f'<p class="note">{text(words)}</p>'


def page(title: str, body: Sequence[str], foot: str) -> str:
    """The whole document. Its policy forbids every request and every script."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n<footer>{text(foot)}</footer>\n</main>\n</body>\n</html>\n"
    )
