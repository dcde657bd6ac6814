"""Pictures: what they show is what the scores say, and drawing them leaves matplotlib's global state alone."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from fog_a.errors import MissingDependency, ShapeMismatch
from fog_a.scores.curves import plot_curves, plot_stability, plot_training
from fog_a.scores.plots import plot_scatter, plot_scd, plot_scores
from fog_a.scores.scores import Scores

LAYERS = tuple(f"blocks.{i}" for i in range(12))
MEANS = 0.02 + 0.1 * np.exp(-np.arange(12) / 3)


def make(kind: str = "contribution", timed: bool = True, n: int = 20, seed: int = 0, reverse: bool = False) -> Scores:
    means = MEANS[::-1] if reverse else MEANS
    times = (0.125, 0.375, 0.625, 0.875) if timed else None
    values = np.random.default_rng(seed).gamma(25.0, means / 25.0, size=(2 * n, 4 if timed else 1, 12))
    return Scores(values, LAYERS, times=times, domains=("speech", "sound") * n, kind=kind)


def texts(fig: Figure) -> str:
    fig.draw_without_rendering()
    return "\n".join(t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text")))  # type: ignore[attr-defined]


def meshes(fig: Figure) -> list[Any]:
    """The heat maps, color bars apart."""
    return [m for ax in fig.axes if ax.get_label() != "<colorbar>" for m in ax.collections if isinstance(m, QuadMesh)]


def test_heat_map_shows_the_means_at_each_time() -> None:
    scores = make()
    fig = plot_scores(scores, heading="A small net")
    found = meshes(fig)
    assert len(found) == 2
    for mesh, domain in zip(found, ("speech", "sound"), strict=True):
        assert np.allclose(np.ma.getdata(mesh.get_array()).reshape(4, 12), scores.curve(domain))
        assert mesh.get_clim()[0] == 0.0
    assert found[0].get_clim() == found[1].get_clim()
    words = texts(fig)
    assert all(w in words for w in ("speech", "sound", "n = 20", "A small net", "flow time t", "L1 = blocks.0 … L12"))


def test_bars_show_means_and_intervals() -> None:
    scores = make(timed=False)
    fig = plot_scores(scores, domain="speech", k=2)
    (ax,) = fig.axes
    assert np.allclose([p.get_height() for p in ax.patches], scores.mean("speech"))  # type: ignore[attr-defined]
    bars = ax.collections[0].get_segments()  # type: ignore[attr-defined]
    assert np.allclose([[s[0][1], s[1][1]] for s in bars], scores.interval(domain="speech"))
    colors = [p.get_facecolor() for p in ax.patches]
    assert colors[0] == colors[1] != colors[2]  # the best two stand out


def test_noise_floor_and_stack_borders_are_drawn() -> None:
    plain = plot_scores(make(timed=False), domain="speech").axes[0]
    scores = make(timed=False)
    told = Scores(
        scores.values, LAYERS, domains=scores.domains, info={"noise_floor": 0.01, "stacks": ["a"] * 5 + ["b"] * 7}
    )
    marked = plot_scores(told, domain="speech").axes[0]
    assert len(plain.lines) == 0 and len(marked.lines) == 2
    assert {tuple(np.asarray(line.get_ydata()).tolist()) for line in marked.lines} >= {(0.01, 0.01)}
    assert any(list(np.asarray(line.get_xdata())) == [4.5, 4.5] for line in marked.lines)


def test_few_samples_are_marked() -> None:
    assert "n = 8 (< 16: level not held)" in texts(plot_scores(make(n=8)))
    assert "level not held" not in texts(plot_scores(make()))


def test_missing_values_are_drawn_as_missing() -> None:
    values = np.array(make().values)
    values[:, 1, 3], values[:, :, 5] = np.nan, np.nan
    scores = Scores(values, LAYERS, times=(0.1, 0.2, 0.3, 0.4), domains=("speech", "sound") * 20)
    fig = plot_scores(scores)
    cells = np.ma.getmaskarray(meshes(fig)[0].get_array()).reshape(4, 12)
    assert cells[1, 3] and cells[:, 5].all() and cells.sum() == 5
    assert "?" in texts(fig).splitlines()


@pytest.mark.parametrize("layers", [1, 2, 28, 96])
@pytest.mark.parametrize("labels", ["number", "name"])
def test_any_depth_has_readable_labels(layers: int, labels: Any, tmp_path: Path) -> None:
    """Tick labels along the layers do not run into each other."""
    values = np.random.default_rng(0).random((20, 3, layers))
    scores = Scores(values, tuple(f"blocks.{i}" for i in range(layers)), times=(0.2, 0.5, 0.8))
    fig = plot_scores(scores, labels=labels)
    fig.savefig(tmp_path / "x.png")
    shown = [t.get_window_extent() for t in fig.axes[1].get_xticklabels() if t.get_text()]
    spots = [b.x1 if labels == "name" else b.x0 for b in shown]
    widths = [9.0 if labels == "name" else b.width for b in shown]
    best = {int(i) for i in np.argsort(-scores.mean())[:3]}
    for a, b, w, i in zip(spots, spots[1:], widths, fig.axes[1].get_xticks(), strict=False):
        assert b - a > w * 0.95 or int(i) in best


def test_scd_marks_the_peaks() -> None:
    fig = plot_scd(make("storage", reverse=True), make())
    words = texts(fig).splitlines()
    assert words.count("peak L12") == 2 and words.count("peak L1") == 2
    assert len(meshes(fig)) == 4
    for text in ("storage (LASP) · speech", "contribution (FoG-A) · sound", "cosine to the teacher"):
        assert text in words


def test_scd_says_how_far_storage_and_contribution_are_apart() -> None:
    words = texts(plot_scd(make("storage", reverse=True), make())).splitlines()
    found = [line for line in words if line.startswith(("speech: storage peaks", "sound: storage peaks"))]
    assert len(found) == 2 and all("+11 [+11, +11] layers deeper" in line for line in found)
    lone = texts(plot_scd(make("storage", n=1), make(n=1)))
    assert "layers deeper" not in lone  # one clip a domain has no interval


def test_a_narrow_panel_has_its_small_print_below_its_title() -> None:
    fig = plot_scd(make("storage", n=8), make(n=8))
    fig.draw_without_rendering()
    for ax in (a for a in fig.axes if a.get_title("right")):
        both = [t.get_window_extent() for t in (ax._left_title, ax._right_title)]  # pyright: ignore[reportAttributeAccessIssue]
        assert not both[0].overlaps(both[1]) or ax.get_title("left").endswith("\n"), ax.get_title("left")
    assert any(ax.get_title("left").endswith("\n") for ax in fig.axes)


def test_scd_without_time_axis_draws_bars() -> None:
    fig = plot_scd(make("storage", timed=False), make())
    assert len(meshes(fig)) == 2 and len(fig.axes[0].patches) == 12


def test_scatter_says_rho() -> None:
    storage, contribution = make("storage", reverse=True), make()
    fig = plot_scatter(storage, contribution, domain="speech")
    rho = storage.agreement(contribution, 3, "speech").spearman
    assert rho < -0.8 and f"Spearman ρ = −{abs(rho):.2f}" in texts(fig)
    assert {"L1", "L2", "L12"} <= set(texts(fig).splitlines())


def test_pairs_that_do_not_fit() -> None:
    other = Scores(np.ones((20, 1, 3)), ("a", "b", "c"))
    with pytest.raises(
        ShapeMismatch, match=r"the layers differ: 3 and 12 of them, first at place 0: a and .*same blocks"
    ):
        plot_scd(other, make())
    music = Scores(make().values, LAYERS, times=make().times, domains=("music",) * 40)
    with pytest.raises(ShapeMismatch, match="no common domain: storage has music; contribution has speech, sound"):
        plot_scatter(music, make())


def test_curves() -> None:
    scores = make()
    fig = plot_curves(scores, k=2)
    line = fig.axes[0].lines[0]
    assert np.allclose(line.get_ydata(), scores.curve("speech")[:, 0])
    assert {"L1", "L2"} <= set(texts(fig).splitlines())
    fig = plot_curves(scores, layers=["blocks.7"], domain="sound")
    assert np.allclose(fig.axes[0].lines[0].get_ydata(), scores.curve("sound")[:, 7])
    fig = plot_curves(scores, along="depth")
    drawn = [np.asarray(a.get_ydata()) for a in fig.axes[0].lines]
    assert np.allclose(drawn, [scores.mean("speech"), scores.mean("sound")])
    with pytest.raises(ShapeMismatch, match="no time axis: wrap the model as a flow"):
        plot_curves(make(timed=False))
    with pytest.raises(ShapeMismatch, match=r"no scores of blocks\.99"):
        plot_curves(scores, layers=["blocks.99"])
    with pytest.raises(ValueError, match="expected 'time' or 'depth'"):
        plot_curves(scores, along="layers")


def test_stability() -> None:
    history = {100: make(seed=1, reverse=True), 200: make(seed=2), 300: make(seed=3)}
    fig = plot_stability(history, domain="speech")
    overlap = np.asarray(fig.axes[1].lines[0].get_ydata())
    assert list(overlap) == [history[s].agreement(history[300], 3, "speech").overlap for s in (100, 200, 300)]
    assert overlap[0] == 0.0 and overlap[2] == 1.0
    assert "agreement with step 300" in texts(fig)
    with pytest.raises(ShapeMismatch, match=r"1 checkpoint\(s\): stability needs scores at two steps"):
        plot_stability({1: make()})
    with pytest.raises(ShapeMismatch, match="no scores at step 7; there are steps 100, 200, 300"):
        plot_stability(history, against=7)


def test_training_curves() -> None:
    steps = [0, 10, 20]
    seeds = [(steps, [1.0, 0.5 + d, 0.3 + d]) for d in (0.0, 0.1, 0.2)]
    fig = plot_training({"base": (steps, [1.0, 0.6, 0.5]), "AG-REPA": seeds})
    assert np.allclose(fig.axes[0].lines[1].get_ydata(), [1.0, 0.6, 0.4])
    assert "AG-REPA (3 seeds)" in texts(fig) and "95% interval over seeds" in texts(fig)
    same = plot_training({name: seeds for name in ("base", "AG-REPA")})
    assert "95% interval over 3 seeds" in texts(same) and "AG-REPA (3 seeds)" not in texts(same)
    long = plot_training({"base": ([0, 20_000], [1.0, 0.6])})
    assert [t.get_text() for t in long.axes[0].get_xticklabels()][-2] == "20k"
    with pytest.raises(ShapeMismatch, match="the seeds of 'base' have different steps"):
        plot_training({"base": [(steps, [1.0, 0.5, 0.4]), ([0, 10], [1.0, 0.5])]})


def test_labels_at_line_ends_do_not_touch() -> None:
    runs = {name: ([0, 1], [1.0, 0.5 + 1e-4 * i]) for i, name in enumerate(("base", "shallow", "deep", "foga"))}
    fig = plot_training(runs)
    fig.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in fig.axes[0].texts), key=lambda b: b.y0)
    assert len(boxes) == 4 and all(a.y1 <= b.y0 + 1 for a, b in pairwise(boxes))
    below = fig.axes[0].get_window_extent().y0 - boxes[0].height / 2 - 1
    assert boxes[0].y0 >= below, "a label lies over those of the axis"


def test_titles_and_legends_of_narrow_panels_do_not_touch() -> None:
    names = tuple(f"transformer_blocks.{i}" for i in range(4))
    pair = [
        Scores(np.random.default_rng(i).random((8, 2, 4)), names, times=(0.3, 0.7), domains=("speech",) * 8, kind=kind)
        for i, kind in enumerate(("storage", "contribution"))
    ]
    fig = plot_scd(pair[0], pair[1])
    fig.draw_without_rendering()
    left, right = fig.axes[:2]
    assert left.xaxis.label.get_window_extent().x1 < right.xaxis.label.get_window_extent().x0
    for ax in (left, right):  # few samples: the small print is long
        text, beside = ax._left_title, ax._right_title  # pyright: ignore[reportAttributeAccessIssue]
        assert "level not held" in beside.get_text()
        lines = text.get_text().count("\n") + 1
        assert lines == 2 or text.get_window_extent().x1 < beside.get_window_extent().x0


@pytest.mark.parametrize(
    ("times", "borders"),
    [((0.125, 0.375, 0.625, 0.875), [0, 0.25, 0.5, 0.75, 1]), ((0.0, 0.5, 1.0), [0, 0.25, 0.75, 1])],
)
def test_cell_borders(times: tuple[float, ...], borders: list[float]) -> None:
    """Cells end half-way between times, and the picture at 0 and 1."""
    values = np.random.default_rng(0).random((20, len(times), 3))
    fig = plot_scores(Scores(values, LAYERS[:3], times=times))
    low, high = fig.axes[1].get_ylim()
    cells = meshes(fig)[0].get_coordinates()[:, 0, 1]
    assert (low, high) == (0, 1) and np.allclose(np.clip(cells, low, high), borders)


def test_odd_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """A dollar sign begins no formula: matplotlib would fail at drawing."""
    odd = (r"$\frac{$", r"a$b$_{", "line\nbreak", "<&>")
    values = np.random.default_rng(0).random((32, 2, 4))
    scores = Scores(values, odd, times=(0.2, 0.8), domains=(odd[0], odd[1]) * 16)
    storage = Scores(values, odd, times=(0.2, 0.8), domains=(odd[0], odd[1]) * 16, kind="storage")
    figures = [
        plot_scores(scores, labels="name", heading=odd[0]), plot_curves(scores), plot_curves(scores, along="depth"),
        plot_scd(storage, scores, heading=odd[1]), plot_scatter(storage, scores),
        plot_training({odd[0]: ([0, 1], [1.0, 0.5])}, value=odd[1]), plot_stability({1: scores, 2: storage}, k=2),
    ]  # fmt: skip
    for figure in figures:
        figure.savefig(tmp_path / "x.png")


def test_scores_plot_is_plot_scores(tmp_path: Path) -> None:
    make().plot(k=2).savefig(tmp_path / "foga.png")
    assert (tmp_path / "foga.png").read_bytes().startswith(b"\x89PNG")


def test_pyplot_is_not_touched() -> None:
    code = (
        "import sys, numpy as np, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from fog_a.scores.scores import Scores\nfrom fog_a.scores.curves import plot_curves\n"
        "s = Scores(np.random.rand(20, 2, 3), ('a', 'b', 'c'), times=(.2, .8))\n"
        "s.plot(); plot_curves(s)\n"
        "assert 'matplotlib.pyplot' not in sys.modules and dict(matplotlib.rcParams) == before"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"pictures need matplotlib: pip install 'fog-a\[plot\]'"):
        make().plot()
