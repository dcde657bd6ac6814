"""Scores compared pair by pair: what is common cancels, the sign is that of the change, and strangers are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fog_a
from fog_a.errors import BadArgument, ShapeMismatch

LAYERS = ("a", "b", "c")
BASE = np.random.default_rng(0).gamma(2.0, 0.1, size=(40, 2, 3))  # samples differ far more than checkpoints do
STEP = np.array([0.0, 0.02, -0.01])


def make(values: Any = BASE, **fields: Any) -> fog_a.Scores:
    return fog_a.Scores(values, **{"layers": LAYERS, "times": (0.25, 0.75), **fields})


def moved(steps: float = 1.0) -> Any:
    return np.maximum(BASE + steps * STEP + np.random.default_rng(1).normal(0, 0.002, BASE.shape), 0)


def test_differences_are_paired() -> None:
    made = fog_a.compare_scores({"before": make(), "after": make(moved())})
    assert made.reference == "before" and made.n == 40 and not made.difference[0].any()
    assert np.allclose(made.difference[1], STEP, atol=2e-3)
    assert np.allclose(made.difference[1], made.mean[1] - made.mean[0])
    assert set(made.changed("after")) == {"b", "c"} and made.changed("before") == ()
    width = np.diff(made.interval[1], axis=-1)
    assert (width < 0.05 * np.diff(make().interval())).all()
    assert "* " not in made.table().splitlines()[2] and "+0.02" in made.table() and "before" in repr(made)


def test_samples_are_found_by_their_ids_in_any_order() -> None:
    names = tuple(f"clip{i}" for i in range(40))
    order = np.random.default_rng(3).permutation(40)
    other = make(moved()[order], ids=tuple(names[i] for i in order))
    made = fog_a.compare_scores({"before": make(ids=names), "after": other})
    plain = fog_a.compare_scores({"before": make(), "after": make(moved())})
    assert np.allclose(made.difference, plain.difference)
    some = fog_a.compare_scores({"before": make(ids=names), "after": make(moved()[:20], ids=names[:20])})
    assert some.n == 20 and "20 of up to 40 samples are in all" in some.table()


def test_steps_are_in_order_and_against_any_of_them() -> None:
    history = {2000: make(moved(2)), 0: make(), 1000: make(moved())}
    made = fog_a.compare_scores(history, against=2000, k=1)
    assert made.names == (0, 1000, 2000) and (made.difference[0, 1] < 0) and made.agreement[2].overlap == 1
    assert made.rank.shape == (3, 3) and sorted(made.rank[0]) == [1, 2, 3]


def test_domains_and_seeds() -> None:
    domains = ("speech", "sound") * 20
    pair = {"a": make(domains=domains, info={"seed": 0}), "b": make(moved(), domains=domains, info={"seed": 1})}
    made = fog_a.compare_scores(pair, domain="speech")
    assert made.n == 20 and made.domain == "speech" and any("different seeds" in note for note in made.notes)
    few = fog_a.compare_scores({"a": make(BASE[:4]), "b": make(BASE[:4])})
    assert "4 samples: intervals cannot promise their level below 16" in few.table()


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        ({"a": make()}, {}, BadArgument, "takes two Scores or more by name, got 1 of them"),
        ([make(), make()], {}, BadArgument, r"got a list\. Type fog_a.compare_scores"),
        ({"a": make(), "b": 3}, {}, BadArgument, "expected Scores, got a int"),
        ({"a": make(), "b": make()}, {"against": "c"}, BadArgument, "against = 'c': expected one of 'a', 'b'"),
        ({"a": make(), "b": make()}, {"k": 4}, ShapeMismatch, "k = 4"),
        ({"a": make(), "b": make(layers=("a", "b", "d"))}, {}, ShapeMismatch, "the layers differ"),
        ({"a": make(), "b": make(kind="storage")}, {}, ShapeMismatch, "whose kind differ: contribution and storage"),
        ({"a": make(), "b": make(times=(0.1, 0.9))}, {}, ShapeMismatch, "whose times differ"),
        (
            {"a": make(), "b": make(ids=[f"x{i}" for i in range(40)])},
            {},
            ShapeMismatch,
            "begins with '0', another with 'x0'",
        ),
    ],
)
def test_bad_input(scores: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fog_a.compare_scores(scores, **options)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BadArgument, match="no scores are named 'c'; there are 'a', 'b'"):
        fog_a.compare_scores({"a": make(), "b": make()}).changed("c")


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    over = fog_a.compare_scores({0: make(), 1000: make(moved())}, k=1)
    named = fog_a.compare_scores({"base": make(), "x": make(moved()), "y": make(moved(2))})
    for made, words in ((over, {"training step", "difference to step 0"}), (named, {"x", "y", "difference to base"})):
        fig = made.plot()
        fig.draw_without_rendering()
        texts = {t.get_text() for t in fig.findobj(lambda artist: hasattr(artist, "get_text"))}  # type: ignore[attr-defined]
        assert words <= texts
        assert "data:image/png" in made._repr_html_()
