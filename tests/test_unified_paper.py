"""The whole system at a tiny size: every stage, two arms, the page; and again, at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_unified_data import captioned, librispeech
from test_whisper_folder import random_whisper

from fog_a.errors import BadArgument, NoWeights, Unsupported
from fog_a_adapters.compare.arms import KNOWN, OPTIONS, choose, options, teachers_of
from unified_audio.clips import Corpus, join
from unified_audio.corpora import from_captions, from_librispeech, from_manifest
from unified_audio.items import Reader
from unified_audio.paper import Paper, main
from unified_audio.paper_page import verdict
from unified_audio.paper_tables import BY_ARMS
from unified_audio.protocol import Judges, protocol
from unified_audio.scales import Scale
from unified_audio.weights import Weights

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


def _paper(out: Path, scale: Scale | None = None, **options: Any) -> Paper:
    corpus = from_manifest().some(4).some(2, "test")
    options = {"arms": ("base", "foga"), "seeds": 2, "cpu": True, **options}
    return Paper(out, corpus, scale=scale or Scale.tiny(), **options)


def _few(folder: Path) -> Path:
    """Some of the packaged clips, as a folder."""
    folder.mkdir()
    rows = ["path,domain,text,event,split"]
    for clip in from_manifest().some(4).some(2, "test").clips:
        rows.append(f"{Path(shutil.copy(clip.path, folder)).name},{clip.domain},{clip.text},noise,{clip.split}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def test_everything_is_written(done):
    page = (done / "index.html").read_text(encoding="utf-8")
    assert page.count("<audio controls") == 10  # two domains of recording, ceiling, base, foga and all stages
    assert "To listen to; mel made sound by Griffin-Lim" in page and "Table 2. Which layers to align, by place" in page
    assert "Where it is stored" not in page.split("Table 1.")[0] and "adjusted for 1 (Holm" in page
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


def test_the_papers_tables(done):
    """Tables 1 to 3 and 6 to 12, in Markdown and as data; their numbers are those of the comparison."""
    tables = {t["number"]: t for t in json.loads((done / "tables.json").read_text())}
    assert sorted(tables) == [1, 2, 3, *range(6, 13)]
    text = (done / "tables.md").read_text(encoding="utf-8")
    assert all(f"## Table {n}. {t['title']}" in text for n, t in tables.items())
    report = json.loads((done / "compare" / "compare.json").read_text())
    losses = [r["metrics"]["loss"] for r in report["results"] if r["arm"] == "foga"]
    for number, (_, arms) in BY_ARMS.items():
        rows = {r["arm"]: r for r in tables[number]["rows"]}
        assert list(rows) == [a for a in arms if a in ("base", "foga")]
        assert (
            rows["foga"]["flow loss"]["mean"] == pytest.approx(sum(losses) / 2) and rows["foga"]["flow loss"]["n"] == 2
        )
    assert (
        tables[3]["note"].endswith("Not run: random, lasp, gradnorm (`--arms`).")
        and "No word error" in tables[2]["note"]
    )
    assert tables[11]["rows"][0]["head parameters"] > 0 and tables[8]["rows"][0]["time, relative"]["mean"] == 1
    assert {r["probe"] for r in tables[1]["rows"]} == {"contribution (FoG-A)"}
    steps = [r["step"] for r in tables[7]["rows"]]
    assert steps[0] == 6 and steps[-1] == 10 and tables[7]["rows"][0]["of the first choice kept"] == "3.0 of 3"
    base = tables[6]["rows"][0]
    assert base["seeds that reach it"] == "2 of 2" and base["probe, in steps"]["mean"] == 0
    assert tables[6]["rows"][1]["probe, in steps"]["mean"] > 0


def test_the_verdict_names_arms_as_they_are_named():
    sure, unsure = ({"seen": True, "p_adjusted": p, "difference": {"mean": -0.25}} for p in (0.01, 0.2))
    one = {"seen": False, "p_adjusted": None, "difference": {"mean": 1.0}}
    metrics = {"loss": {"against base": {"foga-self": sure, "deep": unsure}}, "wer": {"against base": {"deep": one}}}
    said = verdict({"summary": {"metrics": metrics, "level": 0.95}, "plan": {"arms": ["base", "foga-self", "deep"]}})
    assert "adjusted for 2 (Holm, 5%)" in said
    assert said.endswith("held-out flow loss: foga-self (−0.2500); word error rate: none.")


def test_steps_to_a_loss_are_of_the_curves(tmp_path):
    """Base needs 100 steps to 1.0; foga is there after 50, in one of two seeds."""
    curves = {("base", 0): [[50, 2.0], [100, 1.0]], ("base", 1): [[50, 2.0], [100, 1.0]],
              ("foga", 0): [[50, 1.0], [100, 0.5]], ("foga", 1): [[50, 2.0], [100, 1.5]]}  # fmt: skip
    results = [
        {"arm": a, "seed": s, "curve": c, "seconds": 50.0, "metrics": {"loss": c[-1][1]}, "layers": {}}
        for (a, s), c in curves.items()
    ]
    for s in (0, 1):
        (tmp_path / f"seed{s}").mkdir()
        (tmp_path / f"seed{s}" / "probe-seconds.json").write_text('{"foga": 5.0}')
    from unified_audio.paper_tables import _Run

    plan = {"arms": ["base", "foga"], "seeds": [0, 1], "k": 1, "steps": 50, "warmup": 50}
    report = {"plan": plan, "results": results, "summary": {"metrics": {"loss": {}}}}
    base, foga = _Run(report, tmp_path).convergence().rows
    assert base[1:3] == ["2 of 2", base[2]] and base[2].mean == 100
    assert foga[1] == "1 of 2" and foga[2].mean == 50
    assert foga[3].mean == 5.0 and foga[4].mean == pytest.approx((50 + 5) / 100)  # a probe of 5 s, steps of 1 s


def test_two_streams_in_bf16(tmp_path):
    """Configuration B in both forms goes through all stages, as the GPU's precision does."""
    for dual in ("interleave", "fuse"):
        out = tmp_path / dual
        scale = replace(Scale.tiny(), precision="bf16")
        _paper(out, scale, seeds=1, configuration="B", dual=dual).run()
        state.AcceleratorState._reset_state(reset_partial_state=True)
        found = json.loads((out / "compare" / "compare.json").read_text())
        assert found["facts"]["configuration"] == f"B, {dual}" and found["plan"]["precision"] == "bf16"
        assert "both: kmeans" in found["facts"]["tokens"]
        assert (out / "sounds" / "all-stages-speech.wav").stat().st_size > 1000


def test_librispeech_and_captioned_sounds_go_through_all_stages(tmp_path):
    speech = from_librispeech(librispeech(tmp_path / "speech"))
    sound = from_captions(*captioned(tmp_path / "sound")).held_out()
    Paper(tmp_path / "out", join(speech, sound), scale=Scale.tiny(), arms=("base", "foga"), seeds=1, cpu=True).run()
    state.AcceleratorState._reset_state(reset_partial_state=True)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "speech: NORTHANGER ABBEY" in page and "sound: sound" in page and "on a corpus" in page


def test_the_whisper_that_a_variable_names_teaches_speech(tmp_path, monkeypatch):
    monkeypatch.setenv("FOG_A_WHISPER", str(random_whisper(tmp_path / "heard")))
    small = ["--scale", "tiny", "--arms", "base,foga", "--seeds", "1", "--cpu", "--alone"]
    main(["--out", str(tmp_path / "out"), "--data", str(_few(tmp_path / "few")), *small])
    state.AcceleratorState._reset_state(reset_partial_state=True)
    facts = json.loads((tmp_path / "out" / "compare" / "compare.json").read_text())["facts"]
    assert facts["teachers"].startswith("speech: whisper:heard, sound: log-mel")
    assert facts["second embedder"].startswith("whisper:heard on")


def test_the_gpu_configuration_is_the_papers():
    s = Scale.gpu()
    assert (s.model.layers, s.model.dim, s.precision, s.warmup, s.clips) == (24, 1024, "bf16", 5_000, 16)
    assert s.rates == (1e-4, 5e-5, 1e-4) and s.frames == 938 and (s.points, s.cfg) == (32, 3.0)  # SPEC §5, §9, §10
    assert s.tokenizer(768).hidden_dim == 1024 and Scale.small().tokenizer(100).hidden_dim == 64


def test_weights_that_are_not_there(tmp_path):
    for part, said in {"vocos": "charactr", "beats": "BEATs_iter3", "s3": "speech_tokenizer_v1.onnx"}.items():
        with pytest.raises(NoWeights, match=said):
            weights = Weights(**{part: tmp_path / "none"})
            assert weights.vocoder() and weights.frames() and weights.speech_codes()
    with pytest.raises(NoWeights, match=r"vggish-10086976\.pth"):
        Weights(vggish=tmp_path / "none").embedder(Weights().vocoder())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "base,best"], "arms are 'base' and at least one of"),
        (["--data", "nowhere"], "expected a folder with manifest.csv, found none at nowhere"),
        (["--vocos", "nowhere"], "no Vocos weights at nowhere"),
        (["--seeds", "0"], "expected numbers above 0, got --seeds 0"),
        (["--hours", "-1"], "--hours -1"),
        (["--steps", "0"], "--steps 0"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "out"), *arguments])
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "out").exists()


def test_another_configuration_does_not_go_on_in_this_folder(done):
    with pytest.raises(Unsupported, match="holds a checkpoint of another configuration: weights"):
        _paper(done, configuration="B").run()
    state.AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(Unsupported, match=r"holds results of another plan \(.*steps was \d+, now \d+"):
        _paper(done, replace(Scale.tiny(), steps=5)).run()
    state.AcceleratorState._reset_state(reset_partial_state=True)


def test_the_protocol_wants_both_domains_and_held_out_clips(tmp_path):
    corpus = Corpus(tuple(c for c in from_manifest().clips if c.domain == "speech"))
    with pytest.raises(BadArgument, match=r"test clips of speech and sound; the corpus has .*sound: 0 and 0"):
        protocol(corpus, Reader(), Judges(None, None), tmp_path)


@pytest.mark.parametrize("arm", sorted(OPTIONS))
def test_variants_are_foga_with_one_thing_changed(arm, done):
    import fog_a

    scores = {"foga": fog_a.Scores.load(done / "compare" / "seed0" / "scores-foga.json")}
    own, plain = (choose(a, scores, k=1, total=0.5, seed=0) for a in (arm, "foga"))
    more = options(arm, 100)
    local = more.pop("local", False)
    told = fog_a.aligning.recipe.recipe(k=1, **more)
    changed = local or told != fog_a.aligning.recipe.recipe(k=1) or teachers_of(arm, {"speech": 1}) != {"speech": 1}
    assert arm in KNOWN
    if arm == "foga-equal":  # with one layer the weights are the same
        assert own.weights("speech") == plain.weights("speech")
    elif arm == "foga-k2":
        assert len(own.weights("speech")) == 2 and not changed
    elif arm != "foga-k4":
        assert own.weights("speech") == plain.weights("speech") and changed


def test_tables_4_and_5_are_of_other_systems(tmp_path, monkeypatch):
    """Each system's arms, paired by seed; a system whose package is absent has no row but a reason."""
    from unified_audio import other_systems as others

    flow = SimpleNamespace(build=lambda seed: None)

    def task(name):
        if name == "cosyvoice":
            raise ImportError("No module named 'cosyvoice'")
        return flow

    losses = {"base": [2.0, 3.0], "shallow": [1.5, 2.5], "foga": [1.0, 2.5]}
    results = [{"arm": a, "seed": s, "metrics": {"loss": x}} for a, xs in losses.items() for s, x in enumerate(xs)]
    monkeypatch.setattr(others.compare_flows, "task", task)
    monkeypatch.setattr(others, "importable", lambda name: None)
    monkeypatch.setattr(others, "compare", lambda task, plan, out: {"results": results[::-1]})
    found, absent = others.other_systems(tmp_path, 2)
    assert found == {"F5-TTS": losses, "Voicebox": losses} and list(absent) == ["CosyVoice"]
    four, five = others.other_tables({"this DiT": {"base": [1.0, 1.0]}, **found}, absent)
    assert [row[0] for row in four.rows] == ["F5-TTS", "Voicebox"] and four.rows[0][3].mean == -0.75
    assert [row[0] for row in five.rows] == ["this DiT", "F5-TTS", "Voicebox"] and five.rows[0][2:] == [None] * 3
    assert five.rows[1][4].mean == -0.25 and "CosyVoice was not run (ImportError: No module named" in five.note


def test_digits_are_spelled_before_words_are_compared():
    from unified_audio.evaluation import word_errors

    assert word_errors(["eight zero five"], ["8, 05."]).rate == 0


def test_a_second_embedder_stands_beside_the_first():
    from unified_audio.protocol import judged

    class Means:
        name = "means"

        def __call__(self, mels):
            return torch.stack([m.mean(0)[:2] for m in mels])

    corpus = from_manifest().some(2, "test")
    clips = [c for d in ("speech", "sound") for c in corpus.of("test", d)[:2]]
    mels = [torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    batch = {"mel": torch.stack(mels), "lengths": torch.tensor([8] * 4)}
    same = judged(Judges(None, None, second=Means()), clips, [batch], mels)
    far = judged(Judges(None, Means(), second=Means()), clips, [batch], [m + 1 for m in mels])
    assert set(same) == {"frechet2", "frechet2/speech", "frechet2/sound"} and same["frechet2"] < 1e-4
    assert far["frechet2"] == far["frechet"] == pytest.approx(2.0, abs=1e-4)
