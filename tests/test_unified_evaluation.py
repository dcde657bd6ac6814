"""Word errors, distances, thresholds, opinions; and a recognizer that learns to hear."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fog_a.errors import BadArgument, BadManifest, BadScores, MissingDependency, NoWeights
from fog_a_adapters.dit.audio.data import load_corpus
from fog_a_adapters.dit.audio.manifest import read_manifest
from unified_audio import listening_tests as mos
from unified_audio.evaluation import MelWindows, distance, held_out_errors, steps_to, word_errors, words
from unified_audio.grammar_recognizer import GrammarRecognizer
from unified_audio.recognizer import WhisperRecognizer, WordRecognizer
from unified_audio.vggish import VGGish, log_bands
from unified_audio.vocoder import GriffinLim, Sound

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


class Hum:
    """A vocoder of one tone, as long as the mel."""

    name = "a hum"

    def __call__(self, mel: torch.Tensor) -> Sound:
        t = torch.arange(len(mel) * 256) / 24_000
        return Sound((2 * torch.pi * (300 + 50 * float(mel.mean())) * t).sin(), 24_000, self.name)


def _vggish(path: Path, width: int = 4) -> tuple[Path, dict[str, torch.Tensor]]:
    """Six convolutions and three linear layers under the names of a PyTorch conversion, narrow."""
    torch.manual_seed(0)
    sizes = [(width, 1), *[(width, width)] * 5]
    state = {}
    for place, (out, into) in zip((0, 3, 6, 8, 11, 13), sizes, strict=True):
        state |= {f"features.{place}.weight": torch.randn(out, into, 3, 3), f"features.{place}.bias": torch.randn(out)}
    for place, (out, into) in zip((0, 2, 4), ((9, 24 * width), (8, 9), (7, 8)), strict=True):
        state |= {f"embeddings.{place}.weight": torch.randn(out, into), f"embeddings.{place}.bias": torch.randn(out)}
    state = {k: 0.3 * v for k, v in state.items()}
    torch.save(state, path)
    return path, state


def test_vggish_is_the_network_of_its_weights(tmp_path):
    """Convolutions and pools as modules, flattened time · bands · channels, no activation at the end."""
    path, state = _vggish(tmp_path / "vggish.pth")
    embed = VGGish(path, Hum())
    layers: list[torch.nn.Module] = []
    for place in (0, 3, 6, 8, 11, 13):
        w = state[f"features.{place}.weight"]
        conv = torch.nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1)
        conv.load_state_dict({"weight": w, "bias": state[f"features.{place}.bias"]})
        pool = [torch.nn.MaxPool2d(2)] if place in (0, 3, 8, 13) else []
        layers += [conv, torch.nn.ReLU(), *pool]
    x = torch.randn(3, 96, 64)
    y = torch.nn.Sequential(*layers)(x[:, None])
    y = torch.stack([torch.cat([y[n, :, t, b] for t in range(6) for b in range(4)]) for n in range(3)])
    for place in (0, 2, 4):
        y = y @ state[f"embeddings.{place}.weight"].T + state[f"embeddings.{place}.bias"]
        y = y if place == 4 else y.relu()
    torch.testing.assert_close(embed([], patches=list(x)), y)
    mels = [torch.full((200, 100), float(i)) for i in range(3)]  # 2.1 s: two patches each
    assert embed(mels).shape == (6, 7) and embed.name == "VGGish on a hum"
    assert distance(mels, mels, embed) == pytest.approx(0, abs=1e-3)
    assert distance(mels, [m + 9 for m in mels], embed) > 100 * distance(mels, mels, embed)


def test_vggish_hears_bands_of_mel():
    """By a Fourier sum: a window of 400 samples every 160, magnitudes, triangles over mel, log(x + 0.01)."""
    x = torch.randn(800, generator=torch.Generator().manual_seed(0))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([x[i : i + 400].double().numpy() * window for i in (0, 160, 320)])
    waves = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(257)) / 512)
    mel = 1127 * np.log(1 + np.arange(257) * 16_000 / 512 / 700)
    edges = np.linspace(*(1127 * np.log(1 + f / 700) for f in (125.0, 7500.0)), 66)
    bands = np.stack([np.interp(mel, edges[i : i + 3], [0, 1, 0]) for i in range(64)], axis=1)
    want = np.log(np.abs(frames @ waves) @ bands + 0.01)
    np.testing.assert_allclose(log_bands(x).numpy(), want, atol=1e-4)
    assert log_bands(x[:399]).shape == (0, 64)


def test_vggish_that_is_none(tmp_path):
    with pytest.raises(NoWeights, match=r"no VGGish weights at .*Get vggish-10086976\.pth .*give its path"):
        VGGish(tmp_path / "none.pth", Hum())
    path, state = _vggish(tmp_path / "v.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("features.13")}, path)
    with pytest.raises(NoWeights, match=r"is no VGGish .*5 convolutions and 3 linear layers, expected 6 and 3"):
        VGGish(path, Hum())
    path.write_bytes(b"torn")
    with pytest.raises(NoWeights, match="is no VGGish"):
        VGGish(path, Hum())


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


def test_pocketsphinx_hears_the_words_of_its_grammar():
    """Real clips through Griffin-Lim: many words are wrong, but far fewer than of another clip's transcript."""
    pytest.importorskip("pocketsphinx", reason="the optional wheel pocketsphinx 5.1.1 is not installed")
    texts = {c.id: c.text for c in read_manifest() if c.domain == "speech"}
    clips = [(i.mel, texts[i.id]) for i in load_corpus(domains=["speech"]).test[:6]]
    mels, said = zip(*clips, strict=True)
    heard = GrammarRecognizer(said, GriffinLim())
    of_clips = heard(mels)
    assert word_errors(said, of_clips).high < word_errors([*said[1:], said[0]], of_clips).low
    assert heard.name.startswith("pocketsphinx, ")
    with pytest.raises(BadArgument, match="dictionary has, got xyzzy"):
        GrammarRecognizer(["one", "xyzzy"], GriffinLim())


def test_without_pocketsphinx_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(MissingDependency, match=r"pip install --no-deps pocketsphinx==5\.1\.1, or leave"):
        GrammarRecognizer(["one"], GriffinLim())


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
