"""A picture as bytes, and as an image that a page holds in itself."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSITY = 1.75
"""Picture dots per CSS pixel: sharp on dense screens, its letters about as large as the page's."""


def png(fig: Figure) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


class Inline(NamedTuple):
    """A PNG file in base64, and how wide a page shows it, in CSS pixels."""

    data: str
    width: int


def inline(data: bytes) -> Inline:
    """A PNG file for a page."""
    return Inline(base64.b64encode(data).decode("ascii"), round(int.from_bytes(data[16:20], "big") / DENSITY))
