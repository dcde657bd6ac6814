"""A mkdocs hook: equations in pages become MathML when the page is built.

Browsers draw MathML by themselves, so a page needs no script and no host. Equations stand between dollar signs, one
for inline and two for display, which GitHub understands too.
"""

from __future__ import annotations

import re

from latex2mathml.converter import convert

# A fence or an inline code span is left alone; then a display equation, then an inline one on a single line.
PIECES = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\s](?:[^$\n]*[^$\s])?)\$", re.M | re.S
)


def on_page_markdown(markdown: str, **_: object) -> str:
    return PIECES.sub(_piece, markdown)


def _piece(match: re.Match[str]) -> str:
    if match["code"]:
        return match[0]
    if match["block"]:
        return f"\n<div>{convert(match['block'].strip(), display='block')}</div>\n"
    return f"<span>{convert(match['inline'])}</span>"  # a line that begins with <math> would be a block of its own
