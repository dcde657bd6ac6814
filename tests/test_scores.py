"""Scores: means, intervals, rankings, and files that read back to the same bits or are refused."""

from __future__ import annotations

import builtins
import csv
import json
import os
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fog_a.errors import BadArgument, BadScores, MissingDependency, ShapeMismatch
from fog_a.scores.plots import plot_scores
from fog_a.scores.scores import Doubtful, Scores
from fog_a.scores.select import select

TIMES = (0.125, 0.375, 0.625, 0.875)
LAYERS = tuple(f"blocks.{i}" for i in range(5))
MEANS = np.array([0.17, 0.02, 0.09, 0.03, 0.06])


def make(n: int = 40, times: tuple[float, ...] | None = TIMES, **fields: Any) -> Scores:
    rng = np.random.default_rng(0)
    values = rng.gamma(9.0, MEANS / 9.0, size=(n, len(times) if times else 1, 5))
    domains = tuple("speech" if i % 2 else "sound" for i in range(n))
    return Scores(**{"values": values, "layers": LAYERS, "times": times, "domains": domains, **fields})


# Means


def test_mean_is_over_times_then_samples() -> None:
    scores = make()
    assert np.allclose(scores.mean(), scores.values.astype(np.float64).mean((0, 1)))
    speech = np.asarray(scores.domains) == "speech"
    assert np.allclose(scores.mean("speech"), scores.values[speech].astype(np.float64).mean((0, 1)))
    assert np.allclose(scores.curve("speech"), scores.values[speech].astype(np.float64).mean(0))


def test_not_finite_is_missing_and_never_averaged() -> None:
    values = np.ones((20, 2, 2))
    values[0, 0, 0], values[1, :, 0], values[2, 1, 1] = np.inf, np.nan, -np.inf
    scores = Scores(values, ("a", "b"), times=(0.25, 0.75))
    assert scores.missing == 4 and np.isnan(scores.values).sum() == 4
    assert scores.mean().tolist() == [1.0, 1.0]
    assert "4 values missing" in repr(scores)
    assert "4 of 80 values are missing (not finite, or not measured): a, b" in scores.table()


def test_layer_without_values_is_nan_and_never_on_top() -> None:
    values = np.random.default_rng(0).random((20, 1, 3))
    values[:, :, 0] = np.nan
    scores = Scores(values, ("a", "b", "c"))
    assert np.isnan(scores.mean()[0]) and np.isnan(scores.interval()[0]).all()
    assert "a" not in scores.top(3).names and len(scores.top(3)) == 2
    assert "missing" in scores.table()


def test_defaults_and_two_axes() -> None:
    scores = Scores(np.ones((2, 3)), ("a", "b", "c"))
    assert scores.values.shape == (2, 1, 3) and scores.domains == ("all", "all") and scores.ids == ("0", "1")
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0] = 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": LAYERS[:4]},
        {"times": (0.5,), "values": np.ones((40, 4, 5))},
        {"domains": ("speech",)},
        {"ids": ("a", "b")},
        {"values": np.zeros((0, 4, 5))},
        {"values": np.float32(3.0)},
    ],
)
def test_parts_that_do_not_fit(fields: dict[str, Any]) -> None:
    with pytest.raises(ShapeMismatch, match="expected samples × times × layers"):
        make(**fields)


def test_unknown_domain() -> None:
    with pytest.raises(ShapeMismatch, match="no sample has domain 'music'; there are sound, speech"):
        make().mean("music")


# Error bars


def test_interval_averages_times_first() -> None:
    """Times of one sample are not independent: repeating them must not narrow the interval."""
    once = make(times=None)
    often = Scores(np.repeat(once.values, 4, 1), LAYERS, times=TIMES, domains=once.domains)
    assert np.allclose(once.interval(), often.interval(), rtol=1e-5)
    low, high = once.interval().T
    assert (low < once.mean()).all() and (once.mean() < high).all()


def test_interval_resamples_within_domains() -> None:
    scores = make()
    shifted = scores.values + 5.0 * (np.asarray(scores.domains) == "speech")[:, None, None]
    apart = Scores(shifted, LAYERS, times=TIMES, domains=scores.domains)
    assert np.allclose(np.diff(apart.interval()), np.diff(scores.interval()), rtol=0.05)


def test_few_samples_warn_and_say_so() -> None:
    few = make(15)
    with pytest.warns(Doubtful, match="15 samples: intervals cannot promise their level below 16"):
        few.interval()
    assert (
        "cannot promise" in repr(few) and "cannot promise" in few.table() and "cannot promise" in str(few.top(2).hint)
    )
    enough = make(32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        enough.interval()
        enough.interval(domain="speech")
    assert "cannot promise" not in repr(enough)


def test_an_interval_of_changes_does_not_reach_below_0() -> None:
    """A relative change is never negative, so its mean is not either; a cosine may be."""
    for kind in ("contribution", "gradnorm", "storage"):
        scores = Scores(np.array([[[0.1]], [[0.3]]]), ("a",), kind=kind)
        low = scores.interval(warn=False)[0, 0]
        assert low < -1 if kind == "storage" else low == 0
        assert np.array_equal(scores.curve_interval()[0], scores.interval(warn=False))


def test_curve_interval() -> None:
    scores = make()
    interval = scores.curve_interval(domain="sound")
    assert interval.shape == (4, 5, 2)
    assert (interval[..., 0] < scores.curve("sound")).all() and (scores.curve("sound") < interval[..., 1]).all()


# Rankings


def test_top_is_ordered_and_hints_only_in_doubt() -> None:
    top = make().top(3)
    assert top.names == ("blocks.0", "blocks.2", "blocks.4") and top.hint is None
    assert top[0].mean == pytest.approx(0.17, rel=0.1) and top[0].interval[0] < top[0].mean < top[0].interval[1]
    close = Scores(np.random.default_rng(0).normal([1.0, 1.0, 0.0], 0.3, size=(32, 3)), ("a", "b", "c"))
    assert "have overlapping 95% intervals" in str(close.top(1).hint)
    assert close.top(2).hint is None


def test_ties_go_to_the_earlier_layer() -> None:
    values = np.random.default_rng(0).random((20, 1)) * np.ones((1, 4))
    scores = Scores(values, ("a", "b", "c", "d"))
    assert scores.top(2).names == ("a", "b")
    assert scores.top_probability(2) == 1.0
    assert scores.inclusion_probability(2).tolist() == [1, 1, 0, 0]
    assert scores.top(2).hint is not None


def test_top_probability() -> None:
    assert make().top_probability(3) == 1.0
    close = Scores(np.random.default_rng(1).normal([1.0, 1.0, 0.0], 0.3, size=(32, 3)), ("a", "b", "c"))
    assert 0.3 < close.top_probability(1) < 1.0
    inclusion = close.inclusion_probability(1)
    assert inclusion.sum() == pytest.approx(1.0) and inclusion.max() == close.top_probability(1)


@pytest.mark.parametrize("k", [0, 6])
def test_bad_k(k: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"k = {k}: expected 1 ≤ k ≤ 5"):
        make().top(k)


def test_verdicts_share_the_error_between_domains() -> None:
    verdicts = make(600).verdicts(2, confidence=0.95, look=1, max_looks=5)
    assert list(verdicts) == ["sound", "speech"] and all(verdicts.values())
    assert verdicts["speech"].threshold == pytest.approx(0.05 / 2 / (2 * 5))


def test_agreement() -> None:
    scores = make()
    assert scores.agreement(scores, 3) == pytest.approx((1.0, 1.0, 1.0))
    other = Scores(scores.values[..., ::-1], LAYERS, times=TIMES, domains=scores.domains)
    assert scores.agreement(other, 1).overlap == 0.0
    renamed = Scores(scores.values, ("x", *LAYERS[1:]), times=TIMES)
    with pytest.raises(ShapeMismatch, match=r"first at place 0: blocks.0 and x.*pass blocks= to attribute"):
        scores.agreement(renamed)


def test_concat_keeps_domains_and_refuses_strangers() -> None:
    a = make(info={"signature": {"class": "Net"}, "notes": ["w1"], "seed": 0})
    b = make(20, info={"signature": {"class": "Net"}, "notes": ["w1", "w2"]})
    both = a.concat(b)
    assert both.values.shape[0] == 60 and both.domains == a.domains + b.domains and both.ids == a.ids + b.ids
    assert both.info["notes"] == ["w1", "w2"] and both.info["seed"] == 0
    assert Scores.concat(a, b, b).values.shape[0] == 80
    with pytest.raises(ShapeMismatch, match="times differ"):
        a.concat(make(times=(0.1, 0.2, 0.3, 0.4)))
    with pytest.raises(ShapeMismatch, match="kind differ: contribution and storage"):
        a.concat(make(kind="storage"))
    with pytest.raises(ShapeMismatch, match=r"5 and 4 of them, first at place 4: blocks.4 and nothing"):
        a.concat(Scores(np.ones((2, 4, 4)), LAYERS[:4], times=TIMES))
    with pytest.raises(ShapeMismatch, match="two different models"):
        a.concat(make(info={"signature": {"class": "Other"}}))


# The same clip twice is one clip


def test_the_same_clip_twice_counts_once() -> None:
    names = tuple(f"clip{i}" for i in range(40))
    once = make(ids=names)
    for twice in (once.concat(once), once.concat(once, once)):
        assert twice.ranking().n == 40 and np.allclose(twice.mean(), once.mean())
        assert np.allclose(twice.interval(), once.interval()) and twice.top_probability(3) == once.top_probability(3)
    cycled = Scores(
        np.concatenate([once.values, once.values[:8]]), LAYERS, times=TIMES, domains=once.domains + once.domains[:8],
        ids=names + names[:8],
    )  # fmt: skip
    assert np.allclose(cycled.mean(), once.mean()) and "48 samples × 4 times" in repr(cycled)
    assert "24 samples of 20 groups" in cycled.table()
    verdict = once.concat(*[once] * 20).verdicts(2)["speech"]
    assert not verdict and "20 complete samples" in verdict.reason


def test_crops_of_a_clip_are_resampled_together() -> None:
    """Sixteen crops of each of 20 clips that differ: the crops say nothing more of other clips."""
    rng = np.random.default_rng(0)
    clips = rng.gamma(9.0, MEANS / 9.0, size=(20, 1, 5))
    crops = np.repeat(clips, 16, 0) + rng.normal(0.0, 1e-4, size=(320, 1, 5))
    groups = tuple(f"clip{i // 16}" for i in range(320))
    by_group, naive = Scores(crops, LAYERS, groups=groups), Scores(crops, LAYERS)
    assert np.allclose(by_group.interval(), Scores(clips, LAYERS).interval(), rtol=0.05)
    assert (np.diff(by_group.interval()) > 2 * np.diff(naive.interval())).all()
    with pytest.warns(Doubtful, match="2 independent groups: intervals cannot promise their level below 16"):
        Scores(crops[:32], LAYERS, groups=groups[:32]).interval()


def test_groups_are_kept(tmp_path: Path) -> None:
    scores = make(groups=[f"clip{i // 4}" for i in range(40)])
    scores.save(tmp_path / "s.json")
    back = Scores.load(tmp_path / "s.json")
    assert back == scores and back.groups[4] == "clip1" and back != make()
    assert scores.only("speech").groups == scores.groups[1::2]
    with pytest.raises(ShapeMismatch, match="2 groups"):
        make(groups=("a", "b"))


def test_samples_without_names_are_others_unless_they_are_the_same() -> None:
    a, b = make(), Scores(make().values + 0.01, LAYERS, times=TIMES, domains=make().domains)
    assert a.concat(b).ranking().n == 80 and a.concat(b).ids[40] == "40"
    assert a.concat(a).ranking().n == 40


def test_another_checkpoint_is_refused() -> None:
    a, b = (make(info={"signature": {"class": "Net", "weights": mark}}) for mark in ("a", "b"))
    with pytest.raises(ShapeMismatch, match=r"two checkpoints of a model .* Compare them: a.agreement\(b\)"):
        a.concat(b)
    assert a.agreement(b, 3).overlap == 1.0


def test_values_missing_for_their_size_are_said() -> None:
    """Where large values overflow, what is left covers the true mean in a quarter of cases: it must be said."""
    values = np.array(make().values)
    values[values > 0.2] = np.inf
    scores = Scores(values, LAYERS, times=TIMES)
    with pytest.warns(Doubtful, match=r"are missing .* If they were too large to measure, these means are too low"):
        scores.interval()
    assert "too large to measure" in str(scores.top(1).hint) and "too large to measure" in scores.table()
    apart = Scores(values, LAYERS, times=TIMES, info={"unmeasured": True})  # not measured by design
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apart.interval()


@pytest.mark.parametrize("k", ["3", 2.5, None])
def test_k_must_be_whole(k: Any) -> None:
    with pytest.raises(BadArgument, match="expected a whole number of layers"):
        make().top(k)
    assert make().top(np.int64(2)).names == make().top(2).names


@pytest.mark.parametrize("use", [select, plot_scores, lambda x: make().agreement(x, 1)])
@pytest.mark.parametrize("odd", [[0.1, 0.2], {"a": 1}])
def test_a_list_is_no_scores(use: Any, odd: Any) -> None:
    with pytest.raises(BadArgument, match=r"expected Scores, got a (list|dict). Type attribute\(model, batch\)"):
        use(odd)


def test_times_that_are_no_numbers() -> None:
    with pytest.raises(ShapeMismatch, match="expected finite numbers"):
        make(times=(0.1, float("nan"), 0.3, 0.4))


def test_table_and_repr_read_well() -> None:
    text = make().table(2)
    assert text.count("\n\n") == 1 and "contribution · sound · 20 samples × 4 times" in text
    assert "  L1  blocks.0" in text and "this top 2 is the top 2 in 100% of bootstrap resamples" in text
    assert "blocks.1" not in text and "blocks.1" in make().table()
    assert repr(make()).startswith("Scores(contribution, 40 samples × 4 times × 5 layers; best of sound (20): blocks.0")


def test_noise_floor_is_told() -> None:
    assert "noise floor 2e-07: a score near it tells nothing" in make(info={"noise_floor": 2e-7}).table()
    assert "noise floor 3e-07" in make(info={"noise_floor": [1e-7, 3e-7, None]}).table()
    assert "noise floor" not in make().table() + make(info={"noise_floor": [None]}).table()


# Files


@given(
    values=arrays(np.float32, (3, 2, 2), elements=st.floats(width=32, allow_nan=True, allow_infinity=False)),
    names=st.lists(st.text(max_size=8), min_size=3, max_size=3),
)
def test_json_gives_the_same_bits_back(tmp_path_factory: pytest.TempPathFactory, values: Any, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("scores") / "s.json"
    scores = Scores(values, ("a", "ü"), times=(0.1, 1 / 3), ids=tuple(names), domains=tuple(names))
    scores.save(path)
    back = Scores.load(path)
    assert back == scores
    finite = ~np.isnan(scores.values)
    assert np.array_equal(scores.values[finite].view(np.int32), back.values[finite].view(np.int32))
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_info_is_made_plain(tmp_path: Path) -> None:
    info = {"seed": np.int64(3), "eps": float("nan"), "blocks": ("a", "b"), "where": Path("x"), "n": np.arange(2)}
    make(info={**info, "inputs": {"b", "a"}}).save(tmp_path / "deep" / "s.json")
    back = Scores.load(tmp_path / "deep" / "s.json")
    expected = {"seed": 3, "eps": None, "blocks": ["a", "b"], "where": "x", "n": [0, 1], "inputs": ["a", "b"]}
    assert back.info == expected


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.json"
    make().save(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        make(20).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["s.json"]


def damaged(change: dict[str, Any]) -> str:
    good: dict[str, Any] = {
        "format": "fog_a.scores", "version": 1, "kind": "contribution", "layers": ["a"], "times": None,
        "domains": ["all"], "ids": ["0"], "info": {}, "values": [[[1.0]]],
    }  # fmt: skip
    return json.dumps({k: v for k, v in {**good, **change}.items() if v != "absent"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON .* damaged, cut off or of another kind"),
        (damaged({})[:-5], "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (b"\x80\x04\x95", "is not JSON"),
        ("[1, 2]", "is no scores file, or a damaged one: the file: Input should be a valid dictionary"),
        (damaged({"format": "other"}), "no scores file.*: format: Input should be 'fog_a.scores'"),
        (
            damaged({"version": 2}),
            "version: Input should be less than or equal to 1.*newer release.*pip install -U fog-a",
        ),
        (damaged({"layers": "absent"}), "damaged one: layers: Field required"),
        (damaged({"layers": [1]}), r"damaged one: layers.0: Input should be a valid string"),
        (damaged({"extra": 1}), "damaged one: extra"),
        (damaged({"values": [[["x"]]]}), r"damaged one: values.0.0.0"),
        (damaged({"values": [[[1.0], [2.0, 3.0]]]}), "damaged one: values are no array"),
        (damaged({"values": []}), "damaged one: values have shape"),
        (damaged({"ids": ["0", "1"]}), "damaged one: values have shape"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadScores, match=message):
        Scores.load(path)
    assert path.exists()


def test_good_content_is_accepted(tmp_path: Path) -> None:
    """The content that the cases above damage is whole."""
    (tmp_path / "s.json").write_text(damaged({}))
    assert Scores.load(tmp_path / "s.json").values.tolist() == [[[1.0]]]


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadScores, match=r"cannot read .*No such file.*path of a scores file"):
        Scores.load(tmp_path / "none.json")
    with pytest.raises(BadScores, match="cannot read"):
        Scores.load(tmp_path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "s.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(BadScores, match="never as pickle"):
        Scores.load(tmp_path / "s.json")
    assert not (tmp_path / "ran").exists()


def test_csv_long(tmp_path: Path) -> None:
    scores = make(20)
    scores.to_csv(tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert list(rows[0]) == ["sample", "id", "domain", "time", "layer", "value"] and len(rows) == 20 * 4 * 5
    values = np.array([float(r["value"]) for r in rows], dtype=np.float32).reshape(20, 4, 5)
    assert np.array_equal(values, scores.values)
    assert rows[5]["time"] == "0.375" and rows[6]["layer"] == "blocks.1" and rows[20]["domain"] == "speech"


def test_csv_cells_are_no_formulas(tmp_path: Path) -> None:
    names = ("=1+1", "+a", "-b", "@c", " =d", "e=f")
    Scores(np.ones((6, 1)), ("=cmd|' /C calc'!A0",), ids=names).to_csv(tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [r["id"] for r in rows] == ["'=1+1", "'+a", "'-b", "'@c", "' =d", "e=f"]
    assert rows[0]["layer"].startswith("'=") and rows[0]["value"] == "1.0"


def test_a_million_rows_in_ten_seconds(tmp_path: Path) -> None:
    scores = Scores(np.random.default_rng(0).random((10_000, 10, 10)), tuple("abcdefghij"), times=tuple(range(10)))
    start = time.process_time()
    scores.to_csv(tmp_path / "s.csv")
    scores.table(3)
    assert time.process_time() - start < 10


def test_csv_release(tmp_path: Path) -> None:
    make(20, info={"step": 5000, "epoch": 2}).to_csv(tmp_path / "s.csv", "release")
    rows = list(csv.reader((tmp_path / "s.csv").read_text().splitlines()))
    assert rows[0] == ["step", "epoch", "layer", "speech_foga", "audio_foga"] and len(rows) == 6
    assert rows[1][:3] == ["5000", "2", "0"]
    assert float(rows[1][3]) == pytest.approx(make(20).mean("speech")[0])
    assert float(rows[1][4]) == pytest.approx(make(20).mean("sound")[0])
    make(20, domains=()).to_csv(tmp_path / "all.csv", "release")
    assert (
        (tmp_path / "all.csv").read_text().startswith("step,epoch,layer,speech_foga,audio_foga,all_foga\n0,0,0,,,0.1")
    )
    with pytest.raises(ValueError, match="expected 'long' or 'release'"):
        make().to_csv(tmp_path / "x.csv", "wide")  # pyright: ignore[reportArgumentType]


def test_pandas() -> None:
    pytest.importorskip("pandas")
    frame: Any = make(20).to_pandas()
    assert list(frame.columns) == ["sample", "id", "domain", "time", "layer", "value"] and len(frame) == 400
    assert frame.groupby("layer")["value"].mean()["blocks.0"] == pytest.approx(make(20).mean()[0])


def test_pandas_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError("No module named 'pandas'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"pip install 'fog-a\[pandas\]'; to_csv\(path\) needs nothing"):
        make().to_pandas()


def test_metrics_are_scalars_for_a_logger() -> None:
    scores = Scores([[[0.2, 0.1]], [[0.4, 0.3]]], LAYERS[:2], domains=("speech", "sound"), kind="contribution")
    got = scores.metrics(k=1)
    assert (
        got[f"contribution/speech/{LAYERS[0]}"] == pytest.approx(0.2) and got["contribution/sound/top1_certainty"] == 1
    )
    assert all(type(value) is float for value in got.values())
    lone = Scores([[[0.2, np.nan]]], LAYERS[:2]).metrics()
    assert list(lone) == [f"contribution/{LAYERS[0]}", "contribution/top2_certainty"]  # no NaN for a logger


def test_top_prints_rounded() -> None:
    scores = Scores(np.tile([[[1 / 3, 2 / 3]]], (16, 1, 1)), LAYERS[:2])
    assert repr(scores.top(2)) == f"1. {LAYERS[1]} 0.667 [0.667, 0.667]\n2. {LAYERS[0]} 0.333 [0.333, 0.333]"


def test_a_notebook_shows_text_as_text() -> None:
    html = Scores(np.ones((16, 1, 1)), ("<b>",), info={"notes": ["<i>"]})._repr_html_()
    assert "&lt;b&gt;" in html and "! &lt;i&gt;" in html and "<b>" not in html
    long = Scores(np.random.default_rng(0).random((16, 1, 20)), tuple(map(str, range(20))))._repr_html_()
    assert "<details><summary>all 20 layers" in long
