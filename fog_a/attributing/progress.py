"""One progress bar for a whole call: text on a terminal, a widget in a notebook."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from fog_a.flows.batches import count_of


def progress_bar(total: int | None, progress: bool | None) -> Any:
    """A bar over so many cells; without a total it counts. None shows it on a terminal and in a notebook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets a notebook has a bar of text, which needs no word
        from tqdm.auto import tqdm
    shown = sys.stderr.isatty() or _in_notebook() if progress is None else progress
    return tqdm(total=total, disable=not shown, desc="FoG-A", unit="cell", leave=False)


def cells_of(batch: Any, times: int, looks: int | None) -> int | None:
    """How many cells, one batch at one time each, a call has at most; None where that is not known."""
    counts = [count for count in (count_of(batch), looks) if count is not None]
    return min(counts) * times if counts else None


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None
