"""Word errors, distances, thresholds, opinions; and a recognizer that learns to hear."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fog_a.errors import BadArgument, BadManifest, BadScores, NoWeights
from unified_audio import listening_tests as mos
from unified_audio.evaluation import MelWindows, distance, held_out_errors, steps_to, word_errors, words
from unified_audio.recognizer import WhisperRecognizer, WordRecognizer

pytest.importorskip("jiwer")


def test_word_errors_are_jiwers_over_the_corpus():
    found = word_errors(["One two, three", "four"], ["one three three five", ""])
    assert found.rate == pytest.approx(3 / 4)  # a substitution, an insertion, a deletion
    assert (found.words, found.clips) == (4, 2)
    assert found.low <= found.rate <= found.high
    assert word_errors(["a b"] * 3, ["a b"] * 3).high == 0
    assert words("Don't  STOP_now.") == "don't stop now"


def test_word_errors_refuse_what_has_no_rate():
    for said, heard in (([], []), (["a"], []), (["...", "a"], ["a", "a"])):
        with pytest.raises(BadArgument, match="a transcript with words for each clip"):
            word_errors(said, heard)


def test_distance_is_zero_to_itself_and_grows():
    mels = [torch.randn(96, 100, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    embed = MelWindows(mels, 4)
    assert distance(mels, mels, embed) == pytest.approx(0, abs=1e-6)
    near, far = (distance(mels, [m + by for m in mels], embed) for by in (0.1, 0.5))
    assert 0 < near < far
    with pytest.raises(BadArgument, match="at least 2 embeddings on each side, got 40 real and 0"):
        distance(mels, [m[:10] for m in mels], embed)


def test_steps_to_a_threshold():
    curve = [(100, 2.0), (200, 1.0), (300, 0.5)]
    assert steps_to(curve, 1.25) == 175
    assert steps_to(curve, 3.0) == 100
    assert steps_to(curve, 0.1) is None


def _spoken(text: str, generator: torch.Generator) -> torch.Tensor:
    """Each word a band of its own, ten frames, between pauses."""
    parts = []
    for word in text.split():
        part = torch.zeros(14, 100)
        at = {"one": 10, "two": 50, "three": 80}[word]
        part[2:12, at : at + 12] = 3.0
        parts.append(part)
    mel = torch.cat(parts)
    return mel + 0.2 * torch.randn(mel.shape, generator=generator)


def test_a_recognizer_learns_to_hear(tmp_path):
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(w) for a in (["one"], ["two"], ["three"]) for w in (a * 2, [*a, "one", "two"], ["three", *a])]
    clips = [(_spoken(t, generator), t) for t in texts]
    before = torch.get_rng_state()
    heard = WordRecognizer.fit(clips, steps=90, size=8, width=32, lr=1e-2)
    assert torch.equal(before, torch.get_rng_state())
    new = [(_spoken(t, generator), t) for t in ("two three one", "one three", "three two two")]
    assert held_out_errors(heard, new).rate < 0.3
    silent = WordRecognizer(heard.words, 32)
    assert held_out_errors(silent, new).rate > 0.5
    heard.save(tmp_path / "r.safetensors")
    again = WordRecognizer.load(tmp_path / "r.safetensors")
    assert again([m for m, _ in new]) == heard([m for m, _ in new])
    (tmp_path / "r.safetensors").write_bytes(b"no")
    with pytest.raises(BadScores, match="delete it and it is trained again"):
        WordRecognizer.load(tmp_path / "r.safetensors")


def test_recognizers_refuse():
    with pytest.raises(BadArgument, match="got 0 clips"):
        WordRecognizer.fit([])
    with pytest.raises(BadArgument, match="1 without words"):
        WordRecognizer.fit([(torch.zeros(20, 100), " ")])
    with pytest.raises(NoWeights, match=r"model\.safetensors, preprocessor_config\.json"):
        WhisperRecognizer("./no-such-folder", None)


def _sheet(tmp_path, lines):
    path = tmp_path / "sheet.csv"
    path.write_text("system,sample,rater,score\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_opinions_are_of_samples_and_paired(tmp_path):
    scores = {"base": [3.0, 3.5, 4.0, 2.5], "foga": [3.5, 4.0, 4.0, 3.5]}
    lines = [f"{s},{i},{r},{v + d}" for s, vs in scores.items() for i, v in enumerate(vs) for r, d in (("a", .5), ("b", -.5))]  # noqa: E501  # fmt: skip
    sheet = mos.read_sheet(_sheet(tmp_path, lines))
    assert sheet["foga"] == {"0": 3.5, "1": 4.0, "2": 4.0, "3": 3.5}
    o = mos.opinion(sheet, "base")
    assert o.mean == 3.25 and o.error == pytest.approx(stats.sem(scores["base"]))
    d = mos.compare(sheet, "foga", "base")
    expected = stats.ttest_rel(scores["foga"], scores["base"])
    assert (d.mean, d.p, d.samples) == (0.5, pytest.approx(expected.pvalue), 4)
    assert d.low == pytest.approx(expected.confidence_interval().low)
    assert "| foga | 3.75 ± 0.14 | 4 | +0.50 |" in mos.table(sheet, "base")


def test_opinions_without_scatter(tmp_path):
    sheet = mos.read_sheet(_sheet(tmp_path, [f"{s},{i},a,{v}" for i in range(3) for s, v in (("x", 3), ("y", 4))]))
    assert mos.compare(sheet, "y", "x").p == 0 and mos.compare(sheet, "x", "x").p == 1
    assert math.isinf(mos.compare(sheet, "y", "x").t)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x,1,a,6"], "line 2: score '6', expected a number from 1 to 5"),
        (["x,1,a,good"], "score 'good'"),
        (["x,1,a,3", "x,1,a,4"], "rates .* twice"),
        ([], "has no ratings"),
    ],
)
def test_bad_sheets(tmp_path, lines, message):
    with pytest.raises(BadManifest, match=message):
        mos.read_sheet(_sheet(tmp_path, lines))


def test_sheets_that_are_not_there(tmp_path):
    with pytest.raises(BadManifest, match="no sheet of ratings at"):
        mos.read_sheet(tmp_path / "none.csv")
    (tmp_path / "s.csv").write_text("system,score\nx,3\n")
    with pytest.raises(BadManifest, match="no column sample, rater"):
        mos.read_sheet(tmp_path / "s.csv")
    sheet = {"x": {"1": 3.0}, "y": {"2": 4.0}}
    with pytest.raises(BadArgument, match="0 samples in common"):
        mos.compare(sheet, "x", "y")
    with pytest.raises(BadArgument, match="no ratings of 'z'"):
        mos.opinion(sheet, "z")
