"""What a notebook shows, in a fresh kernel: pictures and tables without pyplot, one bar, Ctrl-C with the scores."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

Run = Callable[[str], list[Any]]
"""Runs a cell; gives its outputs."""

NET = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, fog_a
from small_flow import a_batch, a_flow

flow, batches = a_flow(), [a_batch(6, seed=s) for s in range(3)]
"""
STOPPED = """
def forward(model, batch):
    global calls
    calls += 1
    if calls == 30:
        os.kill(os.getpid(), signal.SIGINT)  # what a notebook's stop button sends
    return model(**batch)

calls = 0
parts = [{"x_t": b["x1"], "t": torch.full((6,), 0.5)} for b in batches]
fog_a.attribute(flow.module, parts * 9, forward=forward, how="loop")
"""


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One fresh kernel for all tests of this file."""
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3", allow_errors=True, timeout=60)

    def execute(code: str) -> list[Any]:
        client.nb.cells.append(nbformat.v4.new_code_cell(code))
        client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)
        return client.nb.cells[-1].outputs

    with client.setup_kernel():
        outputs = execute(NET)
        assert not outputs, outputs
        yield execute


def shown(outputs: list[Any]) -> dict[str, str]:
    """What the last expression of a cell shows, by its kind."""
    assert not [o for o in outputs if o.output_type == "error"], outputs
    return next(o.data for o in outputs if o.output_type in ("execute_result", "display_data"))


def test_one_bar_over_all_batches(run: Run) -> None:
    bar = "".join(output.text for output in run("scores = fog_a.attribute(flow, batches, times=2)"))
    assert bar.count("| 0/6 ") == 1 and "FoG-A" in bar
    assert not run("fog_a.attribute(flow, batches, times=2, progress=False);")


def test_scores_show_their_picture_and_table(run: Run) -> None:
    data = shown(run("scores"))
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert 'src="data:image/png;base64,' in data["text/html"] and "blocks.3" in data["text/html"]
    assert "best of" in data["text/plain"]


def test_a_figure_shows_without_pyplot(run: Run) -> None:
    data = shown(run("figure = scores.plot()\nassert 'matplotlib.pyplot' not in sys.modules\nfigure"))
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_top_is_rounded(run: Run) -> None:
    text = shown(run("scores.top(2)"))["text/plain"]
    assert text.startswith("1. blocks.") and "np.float64" not in text and "\n2. blocks." in text


def test_the_stop_button_gives_what_was_measured(run: Run) -> None:
    error = next(o for o in run(STOPPED) if o.output_type == "error")
    assert error.ename == "Interrupted" and "sys.last_value.scores" in error.evalue
    assert "with checkpoint=" in error.evalue.lower()
    text = shown(run("rest = sys.last_value.scores\nrest.values.shape[0] % 6, len(rest.ids) // 6, rest.missing"))
    assert text["text/plain"].startswith("(0, ") and text["text/plain"].endswith(", 0)"), text
    assert shown(run("isinstance(sys.last_value, KeyboardInterrupt)"))["text/plain"] == "True"
