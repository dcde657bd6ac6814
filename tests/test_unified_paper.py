"""The whole system at a tiny size: every stage, two arms, the page; and again, at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fog_a.errors import BadArgument
from fog_a_adapters.dit.arms import KNOWN, OPTIONS, choose, options, teachers_of
from unified_audio.clips import Corpus
from unified_audio.corpora import from_manifest
from unified_audio.items import Reader
from unified_audio.paper import Paper, Scale
from unified_audio.protocol import Judges, protocol

state = pytest.importorskip("accelerate.state")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("paper")
    paper = _paper(out)
    paper.run()
    state.AcceleratorState._reset_state(reset_partial_state=True)
    return out


def _paper(out: Path) -> Paper:
    paper = Paper(out, scale=Scale.tiny(), arms=("base", "foga"), seeds=2, cpu=True)
    paper.corpus = paper.corpus.some(4).some(2, "test")
    return paper


def test_everything_is_written(done):
    page = (done / "index.html").read_text(encoding="utf-8")
    assert page.count("<audio controls") == 6  # two domains of base, foga and all stages
    assert "To listen to" in page and "frechet: mean over seeds" in page
    found = json.loads((done / "compare" / "compare.json").read_text())
    assert found["facts"]["embedder"].startswith("mel windows")
    assert {r["arm"] for r in found["results"]} == {"base", "foga"}
    assert all(r["metrics"]["frechet/speech"] > 0 for r in found["results"])
    assert json.loads((done / "real.json").read_text())["frechet"] == pytest.approx(0, abs=1e-6)
    for stage in ("tokenizer", "language"):
        assert (done / stage / "checkpoint.pt").exists()


def test_started_again_it_is_done(done):
    before = {p: p.stat().st_mtime_ns for p in (done / "compare").rglob("*.json") if p.parent.name.startswith("seed")}
    _paper(done).run()
    state.AcceleratorState._reset_state(reset_partial_state=True)
    assert before == {p: p.stat().st_mtime_ns for p in before} and before


def test_the_protocol_wants_both_domains_and_held_out_clips(tmp_path):
    corpus = Corpus(tuple(c for c in from_manifest().clips if c.domain == "speech"))
    with pytest.raises(BadArgument, match=r"test clips of speech and sound; the corpus has .*sound: 0 and 0"):
        protocol(corpus, Reader(), Judges(None, None), tmp_path)


@pytest.mark.parametrize("arm", sorted(OPTIONS))
def test_variants_are_foga_with_one_thing_changed(arm, done):
    import fog_a

    scores = {"foga": fog_a.Scores.load(done / "compare" / "seed0" / "scores-foga.json")}
    own, plain = (choose(a, scores, k=1, total=0.5, seed=0) for a in (arm, "foga"))
    told = fog_a.aligning.recipe.recipe(k=1, **options(arm, 100))
    changed = told != fog_a.aligning.recipe.recipe(k=1) or teachers_of(arm, {"speech": 1}) != {"speech": 1}
    assert arm in KNOWN
    if arm == "foga-equal":  # with one layer the weights are the same
        assert own.weights("speech") == plain.weights("speech")
    elif arm == "foga-k2":
        assert len(own.weights("speech")) == 2 and not changed
    elif arm != "foga-k4":
        assert own.weights("speech") == plain.weights("speech") and changed
