"""Selection: Eq. 10–11, the controls of Tables 2–3, files, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fog_a.errors import BadArgument, BadOutput, BadScores, ShapeMismatch, UnknownBlock
from fog_a.scores.scores import Scores
from fog_a.scores.select import select
from fog_a.scores.selection import Selection

NAMES = [f"blocks.{i}" for i in range(4)]
SIGNATURE: dict[str, Any] = {"class": "net.Net", "blocks": NAMES, "parameters": 99}


def scores(rows: list[list[float]], domains: list[str] | None = None, kind: str = "contribution") -> Scores:
    values = np.asarray(rows, dtype=np.float32)[:, None, :]
    layers = tuple(f"blocks.{i}" for i in range(values.shape[-1]))
    names = tuple(domains or ["all"] * len(rows))
    return Scores(values, layers=layers, domains=names, kind=kind, info={"signature": SIGNATURE})


def test_the_papers_weights() -> None:
    a = scores([[0.167, 0.001, 0.0695, 0.0588]])
    release = select(a, 3, weighting="proportional", total=2.0).weights("all")
    assert list(release.values()) == pytest.approx([0.334, 0.139, 0.1176], abs=1e-6)
    assert list(select(a, 3).weights("all").values()) == pytest.approx([0.2828, 0.1177, 0.0996], abs=5e-5)
    assert list(select(a, 3, weighting="equal").weights("all").values()) == pytest.approx([0.5 / 3] * 3)


def test_each_domain_chooses_for_itself() -> None:
    s = select(scores([[0.4, 0.3, 0.1, 0.0], [0.0, 0.1, 0.3, 0.4]], ["speech", "sound"]), 2)
    assert list(s.weights("speech")) == ["blocks.0", "blocks.1"]
    assert list(s.weights("sound")) == ["blocks.3", "blocks.2"]
    assert s.layers == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    with pytest.raises(UnknownBlock, match="no layers were selected for domain 'music', only for speech, sound"):
        s.weights("music")


def test_equal_scores_go_to_the_earlier_layer() -> None:
    assert select(scores([[0.1, 0.3, 0.3, 0.3]]), 2).layers == ("blocks.1", "blocks.2")


def test_controls() -> None:
    a = scores([[0.4, 0.3, 0.2, 0.1]])
    assert select(a, 2, by="shallow").layers == ("blocks.0", "blocks.1")
    assert select(a, 2, by="deep").layers == ("blocks.2", "blocks.3")
    assert select(a, 2, by=["blocks.3", "blocks.1"]).layers == ("blocks.1", "blocks.3")
    drawn = {select(a, 2, by="random", seed=i).layers for i in range(30)}
    assert len(drawn) > 3 and select(a, 2, by="random", seed=1).layers == select(a, 2, by="random", seed=1).layers
    with pytest.raises(UnknownBlock, match="is no selector"):
        select(a, 2, by="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownBlock, match=r"by= names blocks\.9; the scores' layers are .*; near: blocks\."):
        select(a, 1, by=["blocks.9"])
    with pytest.raises(ShapeMismatch, match="k = 5: expected 1 ≤ k ≤ 4"):
        select(a, 5)


def test_the_least_layers() -> None:
    """by="bottom" takes the lowest scores, and says how sure it is of just these."""
    s = select(scores([[0.4, 0.1, 0.2, 0.05], [0.4, 0.1, 0.22, 0.05]]), 2, by="bottom")
    assert [c.layer for c in s.domains["all"]] == ["blocks.3", "blocks.1"] and s.certainty == {"all": 1.0}
    assert [c.rank for c in s.domains["all"]] == [4, 3] and {c.probability for c in s.domains["all"]} == {1.0}
    assert "2 layers by bottom" in str(s) and "just these at the bottom in 100%" in str(s)
    assert "among the bottom in 100%" in str(s)
    lost = select(scores([[0.4, float("nan"), 0.2, 0.1]] * 2), 1, by="bottom")
    assert lost.layers == ("blocks.3",), "a missing score is not a low one"


def test_numbers_in_lists() -> None:
    s = Selection.fixed({"a": ["double.3", "single.10", "double.1"], "b": ["down.0.1.2"]})
    assert s.indices() == {"double": [1, 3], "single": [10], "down.0.1": [2]}
    assert s.indices("a") == {"double": [1, 3], "single": [10]}
    assert select(scores([[0.4, 0.3, 0.2, 0.1]]), 2, by="bottom").indices() == {"blocks": [2, 3]}
    assert Selection.fixed(["2", "0"]).indices() == {"": [0, 2]}, "the model is itself the list"
    with pytest.raises(BadArgument, match=r"got 'blocks\.0\.attn', which is no item of a list"):
        Selection.fixed(["blocks.0.attn"]).indices()
    with pytest.raises(BadArgument, match="one execution of a module that runs several times"):
        Selection.fixed(["blocks.0@1"]).indices()


def test_ranks_in_proportion() -> None:
    table = scores([[0.4, 0.3, 0.1, 0.0]]).ranks(total=32)
    assert list(table) == [rf"blocks\.{i}(\..*)?" for i in range(4)]
    assert list(table.values()) == [15, 12, 4, 1], "32 in all, none below 1"
    assert list(scores([[0.4, 0.3, 0.1, 0.0]]).ranks(total=4).values()) == [1, 1, 1, 1]
    by_domain = scores([[1, 0, 0, 1], [0, 1, 1, 0]], ["a", "b"])
    assert list(by_domain.ranks(10, domain="b").values()) == [1, 4, 4, 1]
    with pytest.raises(ShapeMismatch, match="total = 3: expected a whole number of ranks for all 4 layers"):
        scores([[0.4, 0.3, 0.1, 0.0]]).ranks(total=3)
    for total in ("8", 8.5, True):
        with pytest.raises(ShapeMismatch, match="expected a whole number of ranks for all 4 layers"):
            scores([[0.4, 0.3, 0.1, 0.0]]).ranks(total=total)  # type: ignore[arg-type]
    with pytest.raises(BadOutput, match="expected scores ≥ 0 with a positive sum"):
        scores([[-0.4, 0.3, 0.1, 0.0]], kind="storage").ranks(total=8)
    tied = Scores([[1.0, 2.0]], layers=("blocks.0@0", "blocks.0@1"))
    with pytest.raises(BadArgument, match="has one rank for all of them"):
        tied.ranks(8)


@given(st.lists(st.floats(0, 10, width=16), min_size=4, max_size=4).filter(sum), st.integers(4, 200))
def test_all_ranks_are_given_out(a: list[float], total: int) -> None:
    ranks = list(scores([a]).ranks(total).values())
    assert sum(ranks) == total and min(ranks) >= 1
    order = np.argsort(np.float32(a))
    assert all(ranks[i] <= ranks[j] + 1 for i, j in itertools.pairwise(order))


@given(st.lists(st.floats(1e-3, 10), min_size=4, max_size=4), st.integers(1, 4), st.floats(0.1, 3))
def test_normalized_weights_sum_to_total_and_follow_the_scores(a: list[float], k: int, total: float) -> None:
    w = select(scores([a]), k, total=total).weights("all")
    assert sum(w.values()) == pytest.approx(total)
    mean = dict(zip(NAMES, np.asarray(a, dtype=np.float32).tolist(), strict=True))
    assert all(w[x] / w[y] == pytest.approx(mean[x] / mean[y], rel=1e-4) for x in w for y in w)
    assert min(mean[n] for n in w) >= max([mean[n] for n in mean if n not in w], default=0)


def test_an_untrained_model_is_refused() -> None:
    with pytest.raises(BadOutput, match=r"the model is untrained \(identity-initialised\)"):
        select(scores([[0.0, 0.0, 1e-9, 0.0]]), 1)


def test_a_layer_whose_ablation_is_not_finite_is_left_out_and_said() -> None:
    s = select(scores([[0.4, float("nan"), 0.2, 0.1], [0.4, 0.9, 0.2, 0.1]]), 2)
    assert s.layers == ("blocks.0", "blocks.2")
    assert "left out, because their ablation gave NaN or inf: blocks.1" in s.explain()


def test_cosines_below_zero_are_weighted_equally_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="weighted equally"):
        s = select(scores([[-0.4, -0.2, 0.1, -0.3]], kind="storage"), 2)
    assert set(s.weights("all").values()) == {0.25}


def test_why_each_layer_was_chosen_and_how_sure_that_is() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.gamma(9, 1 / 9, (32, 4)) * [0.9, 0.1, 0.32, 0.3]).tolist()
    s = select(scores(rows), 2)
    text = str(s)
    assert "all: 2 layers by top (contribution of 32 samples), λ normalized; just these on top in" in text
    assert "blocks.0 (layer 1): λ = " in text and "rank 1, among the top in 100% of resamples" in text
    assert "(not settled: measure more samples)" in text
    best = s.domains["all"][0]
    assert best.low is not None and best.score is not None and best.high is not None
    assert best.low < best.score < best.high and 0 < s.certainty["all"] < 1


def test_a_file_gives_the_same_selection(tmp_path: Path) -> None:
    s = select(scores([[0.4, 0.3, 0.1, 0.2], [0.1, 0.2, 0.3, 0.1]], ["a", "b"]), 2)
    s.save(tmp_path / "deep" / "s.json")
    assert Selection.load(tmp_path / "deep" / "s.json") == s
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"values": 3}', '{"domains": {"all": [{"layer": "x"}]}}'])
def test_a_corrupt_or_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(
        BadScores,
        match=r"is no selection, or .* Write one with select\(scores\)\.save\(path\)|is not JSON .*A selection is kept",
    ):
        Selection.load(tmp_path / "s.json")


def test_another_model_is_refused() -> None:
    s = select(scores([[0.4, 0.3, 0.2, 0.1]]), 2)
    assert s.check(SIGNATURE) is s
    assert s.check(json.loads(json.dumps(SIGNATURE))) is s
    assert s.check({**SIGNATURE, "blocks": [*NAMES, "side.0"]}) is s, "blocks that were not scored do not matter"
    for key, value, message in (
        ("class", "other.Net", "its class was net.Net, here it is other.Net"),
        ("parameters", 100, "its parameters was 99, here it is 100"),
        ("blocks", NAMES[:3], r"it names blocks\.3, and this one has blocks\.0, blocks\.1, blocks\.2\."),
        ("blocks", ["layers.0"], r"it names blocks\.0, blocks\.1, blocks\.0, …, and this one has layers\.0"),
    ):
        with pytest.raises(BadScores, match=message):
            s.check({**SIGNATURE, key: value})


def test_layers_named_by_hand() -> None:
    s = Selection.fixed(["blocks.2", "blocks.0"], total=1.0, domains=["a", "b"])
    assert s.weights("a") == s.weights("b") == {"blocks.2": 0.5, "blocks.0": 0.5}
    assert Selection.of({"a": "blocks.1"}, ["a"], 0.5) == Selection.fixed({"a": ["blocks.1"]})
    assert Selection.of(None, ["a"], 0.5) is None and "named by hand" in str(s)
    assert Selection.fixed(["blocks.7"]).weights("whatever") == {"blocks.7": 0.5}


@pytest.mark.parametrize("total", [float("nan"), float("inf"), -1.0, "much"])
def test_weights_are_finite_and_not_negative(total: Any, tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="expected a finite number ≥ 0, the sum of a domain's weights"):
        select(scores([[0.4, 0.3]]), 1, total=total)
    with pytest.raises(BadArgument, match="expected a finite number ≥ 0"):
        Selection.fixed(["a"], total=total)
    for bad in ("NaN", "Infinity", "-0.5"):
        text = Selection.fixed(["a"], total=0.25).model_dump_json().replace('"weight":0.25', f'"weight":{bad}')
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(BadScores, match=r"is no selection, or a damaged one: domains\.all\.0\.weight"):
            Selection.load(tmp_path / "s.json")


def test_an_absent_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(BadScores, match=r"cannot read .* Give the path of a selection"):
            Selection.load(path)
