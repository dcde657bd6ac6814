"""Real files: manifest, decoding, log-mel by torchaudio, tokens, batches; and all that can be wrong with them."""

from __future__ import annotations

import builtins
import importlib
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from fog_a.errors import BadManifest, MissingDependency
from fog_a_adapters.dit.audio.data import collate, load_corpus
from fog_a_adapters.dit.audio.manifest import packaged, read_manifest
from fog_a_adapters.dit.audio.mel import MELS, decode, frames, log_mel, magnitudes, optional
from fog_a_adapters.dit.audio.tokens import FrameTokens, pairs


def tone(seconds: float = 0.5, rate: int = 16_000, hz: float = 440.0, channels: int = 1) -> np.ndarray:
    x = 0.3 * np.sin(2 * math.pi * hz * np.arange(int(seconds * rate)) / rate, dtype=np.float32)
    return np.stack([x] * channels, axis=1)


def folder_of(
    tmp_path: Path, clips: dict[str, tuple[np.ndarray, int]] | None = None, manifest: str | None = None
) -> Path:
    clips = clips or {f"{d}{i}.wav": (tone(hz=300 + 100 * i), 16_000) for d in ("a", "b") for i in range(3)}
    for name, (data, rate) in clips.items():
        soundfile.write(tmp_path / name, data, rate)
    lines = [f"{name},{'one' if name[0] == 'a' else 'two'}" for name in clips]
    (tmp_path / "manifest.csv").write_text(manifest or "\n".join(["path,domain", *lines]))
    return tmp_path


# What is right


def test_ten_seconds_are_938_frames() -> None:
    assert frames(160_000) == 938
    assert log_mel(torch.randn(160_000)).shape == (938, MELS)
    for n in (800, 16_001, 33_333):
        assert log_mel(torch.randn(n)).shape[0] == frames(n)


def test_log_mel_is_the_stft_written_out() -> None:
    """The filter bank by hand: HTK mel triangles over |STFT|, no area norm."""
    x = torch.randn(24_000)
    import torchaudio

    up = torchaudio.functional.resample(
        x, 16_000, 24_000, lowpass_filter_width=6, rolloff=0.99, resampling_method="sinc_interp_kaiser"
    )
    spectrum = torch.stft(
        up, 1024, 256, 1024, torch.hann_window(1024), center=True, pad_mode="reflect", return_complex=True
    ).abs()
    top = 2595 * math.log10(1 + 12_000 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2, dtype=torch.float64) / 2595) - 1)
    f = torch.linspace(0, 12_000, 513, dtype=torch.float64)
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank = torch.minimum((f - low) / (mid - low), (high - f) / (high - mid)).clamp(min=0).float()
    want = ((bank @ spectrum).clamp(min=1e-5).log() + 5.8843) / 2.2615
    torch.testing.assert_close(log_mel(x), want.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(magnitudes(log_mel(x)), (bank @ spectrum).clamp(min=1e-5), rtol=2e-3, atol=1e-4)


def test_a_tone_lies_in_its_mel_bin() -> None:
    mel = log_mel(torch.from_numpy(tone(1.0, hz=1000.0)[:, 0]))
    centre = 2595 * math.log10(1 + 1000 / 700) / (2595 * math.log10(1 + 12_000 / 700)) * (MELS + 1) - 1
    assert abs(int(mel[40].argmax()) - centre) <= 1


def test_what_can_be_converted_is_and_it_is_said(tmp_path: Path) -> None:
    clips = {f"a{i}.wav": (tone(), 16_000) for i in range(2)} | {f"b{i}.wav": (tone(), 16_000) for i in range(2)}
    clips["a2.wav"] = tone(0.5, 44_100, channels=2), 44_100
    clips["b2.flac"] = tone(11.0), 16_000
    clips["b3.wav"] = np.zeros((8000, 1), np.float32), 16_000
    corpus = load_corpus(folder_of(tmp_path, clips), vocab=4, audio=True)
    notes = "; ".join(corpus.notes)
    for said in (
        "1 of 7 clips: 2 channels mixed",
        "1 of 7 clips: resampled from 44100",
        "first 10 s",
        "1 of 7 clips: silent",
    ):
        assert said in notes
    items = {i.id: i for i in [*corpus.train, *corpus.test]}
    a2, plain = items["a2.wav"], items["a0.wav"]
    assert (
        a2.audio is not None and abs(len(a2.audio) - 8000) <= 1 and a2.audio.abs().max() == pytest.approx(1, abs=0.02)
    )
    loud = plain.mel[20] > plain.mel[20].max() - 2  # the tone and its skirts
    torch.testing.assert_close(a2.mel[20][loud], plain.mel[20][loud], rtol=0, atol=0.05)
    assert len(items["b2.flac"].mel) == 938 and bool(items["b3.wav"].mel.isfinite().all())


def test_the_packaged_clips() -> None:
    clips = read_manifest()
    assert {c.domain for c in clips} == {"speech", "sound"} and len(clips) == 60
    assert sum(c.file.stat().st_size for c in clips) < 2_000_000
    assert {c.id for c in clips} == {f"{p.parent.name}/{p.name}" for p in packaged().glob("*/*.flac")}
    infos = [soundfile.info(c.file) for c in clips]
    assert {(i.samplerate, i.channels, i.format) for i in infos} == {(16_000, 1, "FLAC")}
    assert all(0.5 < i.duration < 4 for i in infos) and all(c.text and c.source for c in clips)
    for domain in ("speech", "sound"):
        assert sum(c.split == "test" for c in clips if c.domain == domain) == 16
    assert (packaged() / "LICENSE.md").is_file()


def test_the_hold_out_is_the_same_every_time_and_leaves_each_domain_both_kinds(tmp_path: Path) -> None:
    clips = {f"{d}{i}.wav": (tone(0.06), 16_000) for d in "ab" for i in range(10)}
    folder = folder_of(tmp_path, clips)
    held = {c.id for c in read_manifest(folder) if c.split == "test"}
    assert len(held) == 4 and {n[0] for n in held} == {"a", "b"}
    lines = (folder / "manifest.csv").read_text().splitlines()
    (folder / "manifest.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert {c.id for c in read_manifest(folder) if c.split == "test"} == held


def test_split_column_and_unknown_columns(tmp_path: Path) -> None:
    rows = ["mood,path,domain,split", "x,a0.wav,one,test", "y,a1.wav,one,", "z,a2.wav,one,valid"]
    rows += ["x,b0.wav,two,Test", "y,b1.wav,two,train", "z,b2.wav,two,train"]
    clips = read_manifest(folder_of(tmp_path, manifest="\n".join(rows)))
    assert [c.split for c in clips] == ["test", "train", "valid", "test", "train", "train"]
    corpus = load_corpus(tmp_path, vocab=4)
    assert [i.id for i in corpus.train] == ["a1.wav", "b1.wav", "b2.wav"] and len(corpus.test) == 2


def test_tokens_are_nearest_centres_of_the_domain() -> None:
    mels = {"one": [torch.randn(40, 5), torch.randn(11, 5)], "two": [torch.randn(9, 5)]}
    tokens = FrameTokens.fit(mels, vocab=8, seed=0)
    assert [len(c) for c in tokens.centres] == [8, 5]  # "two" has five pairs of frames
    mel = mels["one"][1]
    x = pairs(mel)
    assert len(x) == 6 and torch.equal(x[5], mel[10])
    torch.testing.assert_close(x[0], mel[:2].mean(0))
    distances = (x[:, None] - tokens.centres[0]).norm(dim=-1)
    assert torch.equal(tokens(mel, 0), distances.argmin(1))
    again = FrameTokens.from_state(FrameTokens.fit(mels, vocab=8, seed=0).state())
    assert all(torch.equal(a, b) for a, b in zip(again.centres, tokens.centres, strict=True))


def test_tokens_are_fitted_on_training_clips_only(tmp_path: Path) -> None:
    clips = {f"{d}{i}.wav": (tone(hz=300 + 100 * i), 16_000) for d in "ab" for i in range(3)}
    rows = ["path,domain,split"] + [f"{n},{n[0]},{'test' if '2' in n else 'train'}" for n in clips]
    before = load_corpus(folder_of(tmp_path, clips, "\n".join(rows)), vocab=4).tokens.centres
    soundfile.write(tmp_path / "a2.wav", np.random.default_rng(0).uniform(-1, 1, 8000), 16_000)
    after = load_corpus(tmp_path, vocab=4).tokens.centres
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_training_batches_are_a_function_of_seed_and_step() -> None:
    corpus = load_corpus(per_domain=3, held_out=2, audio=True)
    a, b = corpus.batch(5, 4, 32, seed=1), corpus.batch(5, 4, 32, seed=1)
    assert all(torch.equal(a[k], b[k]) for k in ("mel", "tokens", "lengths", "domain")) and a["ids"] == b["ids"]
    assert not torch.equal(a["mel"], corpus.batch(6, 4, 32, seed=1)["mel"])
    assert a["domain"].tolist() == [0, 1, 0, 1] and a["mel"].shape == (4, 32, 100)
    assert "audio" in a and a["audio"].shape == (4, round(32 * 256 * 2 / 3))
    clip = next(i for i in corpus.train if i.id == a["ids"][0])
    starts = [s for s in range(0, len(clip.mel) - 31) if torch.equal(clip.mel[s : s + 32], a["mel"][0])]
    assert len(starts) == 1 and torch.equal(a["tokens"][0], clip.tokens[starts[0] // 2 : starts[0] // 2 + 16])


def test_held_out_batches_are_padded_with_zeros() -> None:
    corpus = load_corpus(per_domain=3, held_out=2)
    (batch,) = corpus.held_out()
    assert len(batch["ids"]) == 4 and batch["mel"].shape[1] == batch["lengths"].max()
    for row, n in zip(batch["mel"], batch["lengths"].tolist(), strict=True):
        assert row[n - 1].any() and not row[n:].any()
    assert len(corpus.held_out(1)) == 1 and len(corpus.held_out(1)[0]["ids"]) == 2
    assert "audio" not in collate(corpus.train)


@pytest.mark.slow
def test_an_hour_of_real_audio(audio_path: Path) -> None:
    corpus = load_corpus(audio_path, per_domain=20, held_out=5)
    assert corpus.domains == ("speech", "sound") and len(corpus.train) == 40 and len(corpus.test) == 10


# What is wrong


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("path,domain\na0.wav,one\nnope.wav,one\ngone.wav,two", r"2 of 3 files .* are missing: nope.wav, gone.wav"),
        ("path,domain\na0.wav,one\na1.wav,one\n./a0.wav,two", r"names ./a0.wav more than once; delete"),
        ("path,kind\na0.wav,one", r"lacks the column domain; it has path, kind"),
        ("path,domain\n", r"has no clips; expected one line per file"),
        ("", r"lacks the column path, domain; it has none"),
        ("path,domain\na0.wav,one\n,two", r"line 3: path is empty"),
        ("path,domain\na0.wav,one\na1.wav,one\nb0.wav,two", r"'two' .* needs clips to train on and clips to hold out"),
        (
            "path,domain,split\na0.wav,one,train\na1.wav,one,test\nb0.wav,two,train\nb1.wav,two,train",
            r"'two' .* mark some",
        ),
    ],
)
def test_a_bad_manifest_says_what_to_mend(tmp_path: Path, manifest: str, message: str) -> None:
    folder = folder_of(tmp_path)
    (folder / "manifest.csv").write_text(manifest)
    with pytest.raises(BadManifest, match=message):
        read_manifest(folder)


@pytest.mark.parametrize("path", ["../b0.wav", "x/../../b0.wav", "{parent}/b0.wav"])
def test_a_manifest_names_no_file_outside_its_folder_unless_asked(tmp_path: Path, path: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x").mkdir()
    folder, path = folder_of(tmp_path / "inner"), path.format(parent=tmp_path)
    shutil.copy(folder / "b0.wav", tmp_path / "b0.wav")
    (folder / "manifest.csv").write_text(f"path,domain\na0.wav,one\na1.wav,one\n{path},two\nx/../b1.wav,two")
    with pytest.raises(BadManifest, match=r"1 of 4 paths .* lead out of its folder: .*b0.wav\. .*outside=True"):
        read_manifest(folder)
    clips = read_manifest(folder, outside=True)
    assert len(clips) == 4 and clips[2].file.samefile(tmp_path / "b0.wav")


def test_links_to_one_file_are_one_clip(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "link.wav").symlink_to(folder / "a0.wav")
    (folder / "manifest.csv").write_text("path,domain\na0.wav,one\nlink.wav,one\nb0.wav,two\nb1.wav,two")
    with pytest.raises(BadManifest, match=r"names link.wav more than once"):
        read_manifest(folder)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"expected a folder with manifest.csv, found none at .*\. Write one with"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes(b"path,domain\n\xff\xfe\x80,one")
    with pytest.raises(BadManifest, match="is not CSV in UTF-8"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("data", "rate", "message"),
    [
        (np.zeros((0, 1), np.float32), 16_000, r"is 0.000 s long, the shortest usable clip is 0.05 s; take it out"),
        (tone(0.01), 16_000, r"is 0.010 s long"),
        (tone(0.5, channels=12), 16_000, r"has 12 channels, expected 1 to 8; is it stored channels × time"),
        (tone(10.0, rate=800), 800, r"has 800 samples a second, expected 4000 to 384000; fix its header"),
        (np.full((8000, 1), np.nan, np.float32), 16_000, r"holds NaN or infinite samples"),
    ],
)
def test_a_clip_that_cannot_be_used_is_named(tmp_path: Path, data: np.ndarray, rate: int, message: str) -> None:
    folder = folder_of(tmp_path)
    soundfile.write(folder / "a1.wav", data, rate, subtype="FLOAT")
    with pytest.raises(BadManifest, match="a1.wav " + message):
        load_corpus(folder, vocab=4)


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "a1.wav").write_bytes(b"")
    with pytest.raises(BadManifest, match=r"1 files in .* are empty: a1.wav"):
        load_corpus(folder)
    (folder / "a1.wav").write_text("this is no audio")
    with pytest.raises(BadManifest, match=r"a1.wav cannot be decoded as audio .*; convert it to FLAC or WAV"):
        load_corpus(folder)


def test_absent_and_broken_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "torchaudio":
            raise OSError("Could not load this library: _torchaudio.abi3.so")
        if name == "soundfile":
            raise ModuleNotFoundError("No module named 'soundfile'", name="soundfile")
        if name == "sklearn.cluster":
            raise ImportError("numpy.core.multiarray failed to import")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingDependency, match=r"built for CUDA and this torch .* is not.*  mv '.*torchaudio/lib' '"):
        optional("torchaudio")
    with pytest.raises(MissingDependency, match=r"'soundfile' is not installed; .*: pip install 'fog-a\[audio\]'"):
        optional("soundfile")
    with pytest.raises(MissingDependency, match=r"does not load .*pip install --force-reinstall --no-deps sklearn"):
        optional("sklearn.cluster")
    with pytest.raises(MissingDependency, match="soundfile"):
        decode(packaged() / "speech" / "anna_0.flac")


def test_importing_the_model_imports_no_audio_package(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = builtins.__import__

    def watching(name: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(name.split(".")[0])
        return real(name, *args, **kwargs)

    for module in [m for m in sys.modules if m.startswith("fog_a_adapters.dit")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", watching)
    importlib.import_module("fog_a_adapters.dit.audio.data")
    importlib.import_module("fog_a_adapters.dit")
    assert not {"torchaudio", "soundfile", "sklearn", "matplotlib"} & set(seen)
