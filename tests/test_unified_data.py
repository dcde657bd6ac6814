"""The application's data: three sources of clips, the cache, balanced batches; and all that can be wrong with them."""

from __future__ import annotations

import json
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from fog_a.errors import BadArgument, BadManifest, NotWritten, NoWeights, Unsupported
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.mel import MELS, frames
from unified_audio.audio_frames import MelFrames, TeacherFrames, frames_from
from unified_audio.batches import FrameBatches, MelBatches, Order, balanced
from unified_audio.cache import Cache
from unified_audio.clips import Clip, Corpus, UnknownEvent, join
from unified_audio.corpora import from_captions, from_librispeech, from_manifest
from unified_audio.items import Item, Reader, collate
from unified_audio.tokens import KMeansCodes


def write(path: Path, seconds: float = 0.4, rate: int = 16_000, hz: float = 440.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate), rate)
    return path


def librispeech(root: Path, lines: str | None = None, rate: int = 16_000) -> Path:
    for subset, speaker in (("train-clean-100", 19), ("test-clean", 61)):
        chapter = root / "LibriSpeech" / subset / str(speaker) / "198"
        for n in range(2):
            write(chapter / f"{speaker}-198-{n:04d}.flac", rate=rate)
        text = f"{speaker}-198-0000 NORTHANGER ABBEY\n{speaker}-198-0001 THIS LITTLE WORK\n"
        (chapter / f"{speaker}-198.trans.txt").write_text(text if lines is None else lines)
    return root


def captioned(folder: Path, rows: list[dict[str, Any]] | None = None, files: int = 6) -> tuple[Path, Path]:
    rows = rows or [
        {"audio_filename": f"{n}.flac", "event": ("Rain", "Dog")[n % 2], "description": f"sound {n}"} for n in range(6)
    ]
    for n in range(files):
        write(folder / f"{n}.flac", hz=300 + 50 * n)
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return folder, folder / "captions.jsonl"


def a_clip(name: str, domain: Any = "sound", **values: Any) -> Clip:
    known = {"text": "a text", "event": "rain" if domain == "sound" else "", **values}
    return Clip(name, domain, Path(name), **known)


# Where clips come from


def test_the_packaged_clips() -> None:
    corpus = from_manifest()
    assert corpus.domains == ("speech", "sound") and len(corpus) == 60
    assert "noise burst" in corpus.events and "anna" in corpus.speakers  # text does not repeat, source does
    assert all(c.event == "" for c in corpus.clips if c.domain == "speech")
    assert all(c.path.is_file() and c.text for c in corpus.clips)
    assert {c.split for c in corpus.clips} == {"train", "test"}
    assert corpus.event(" Noise Burst") == "noise burst"


def test_an_hour_of_audio(audio_path: Path) -> None:
    corpus = from_manifest(audio_path)
    assert len(corpus) == 1000 and len(corpus.events) == 10 and len(corpus.speakers) == 6
    assert corpus.event("dog bark") == "dog bark"  # here text repeats


def test_some_clips_keep_the_events_they_can() -> None:
    corpus = from_manifest()
    small = corpus.some(6)
    assert len(small.of("train", "sound")) == len(small.of("train", "speech")) == 6
    assert len(small.events) == 6 and {c.event for c in small.of("test", "sound")} <= set(small.events)
    assert small == corpus.some(6) != corpus.some(6, seed=1)
    assert corpus.some(None) == corpus


def test_librispeech_by_torchaudio(tmp_path: Path) -> None:
    corpus = from_librispeech(librispeech(tmp_path))
    first = corpus.of("train")[0]
    assert (first.id, first.text, first.speaker, first.rate) == ("19-198-0000", "NORTHANGER ABBEY", "19", 16_000)
    assert len(corpus.of("test")) == 2
    assert len(Reader().audio(first)) == 6400


def test_librispeech_that_is_not_there_or_torn(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"no LibriSpeech subset 'train-clean-100'.*openslr.org/12 and unpack it in"):
        from_librispeech(tmp_path)
    librispeech(tmp_path, lines="19-198-0000\n")
    with pytest.raises(BadManifest, match=r"an empty transcript for or next to 19-198-0000 .*19-198.trans.txt"):
        from_librispeech(tmp_path)
    librispeech(tmp_path, lines="19-198-0000 NORTHANGER ABBEY\n")
    with pytest.raises(BadManifest, match=r"no transcript for or next to 19-198-0001"):
        from_librispeech(tmp_path)


def test_a_wrong_sample_rate(tmp_path: Path) -> None:
    corpus = from_librispeech(librispeech(tmp_path, rate=8000))
    with pytest.raises(BadManifest, match=r"0000.flac has 8000 samples a second, its corpus has 16000; .*manifest.csv"):
        Reader().audio(corpus.clips[0])
    reader = Reader()
    anywhere = Clip("x", "sound", corpus.clips[0].path, "a tone", "tone")
    assert len(reader.audio(anywhere)) == 6400
    assert reader.notes == {"resampled from 8000 to 16000 Hz": 1}


def test_captions(tmp_path: Path) -> None:
    corpus = from_captions(*captioned(tmp_path)).held_out(0.3)
    assert corpus.events == ("Dog", "Rain")
    assert Counter(c.event for c in corpus.of("test")) == {"Dog": 1, "Rain": 1}
    assert corpus.clips[1].text == "sound 1"
    joined = join(corpus, from_manifest())
    assert joined.domains == ("speech", "sound") and len(joined) == 66


def test_captions_without_files(tmp_path: Path) -> None:
    folder, captions = captioned(tmp_path, files=4)
    with pytest.raises(BadManifest, match=r"2 of 6 captions in .* have no file in .*: 4.flac, 5.flac.*missing='skip'"):
        from_captions(folder, captions)
    corpus = from_captions(folder, captions, missing="skip")
    assert len(corpus) == 4 and corpus.notes == ("2 captions without files left out",)
    with pytest.raises(BadManifest, match=r"6 of 6 captions"):
        from_captions(tmp_path / "elsewhere", captions, missing="skip")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"line 1: expected a JSON object with audio_filename, event, description.*JSONDecodeError"),
        ('{"audio_filename": "0.flac", "event": "Rain"}', r"line 1: expected .*KeyError: 'description'"),
        ('{"audio_filename": "0.flac", "event": 3, "description": "x"}', r"line 1: expected .* must be strings"),
        ('{"audio_filename": "0.flac", "event": "Rain", "description": " "}', r"line 1: description is empty"),
        ("[1, 2]", r"line 1: expected .*TypeError"),
    ],
)
def test_captions_that_are_none(tmp_path: Path, line: str, message: str) -> None:
    folder, captions = captioned(tmp_path)
    captions.write_text(line)
    with pytest.raises(BadManifest, match=message):
        from_captions(folder, captions)


def test_unknown_events(tmp_path: Path) -> None:
    folder, captions = captioned(tmp_path)
    with pytest.raises(BadManifest, match=r"unknown events in .*: Dog; known are Cat, Rain"):
        from_captions(folder, captions, events=["Rain", "Cat"])
    with pytest.raises(BadManifest, match=r"no captions at .*expected one JSON object a line"):
        from_captions(folder, folder / "none.jsonl")
    with pytest.raises(UnknownEvent, match=r"unknown event 'rains': no training clip has it.*2 that are known: Rain"):
        from_captions(folder, captions).event("rains")
    with pytest.raises(BadManifest, match=r"1 of 2 clips have an unknown event: .*\(hail\): b"):
        Corpus((a_clip("a"), a_clip("b", event="hail", split="test")))


def test_corpora_that_cannot_be() -> None:
    with pytest.raises(BadManifest, match="a corpus of no clips"):
        Corpus(())
    with pytest.raises(BadManifest, match="a named more than once"):
        Corpus((a_clip("a"), a_clip("a")))
    with pytest.raises(BadManifest, match=r"1 of 2 clips have an empty transcript or description; .*: b"):
        Corpus((a_clip("a"), a_clip("b", "speech", text=" ")))
    with pytest.raises(BadManifest, match="1 of 1 clips have no event"):
        Corpus((a_clip("a", event=""),))


def test_manifests_that_do_not_say_what_sounds(tmp_path: Path) -> None:
    rows = [f"s{n}.wav,sound,s{n},text {n},{('train', 'test')[n % 2]}" for n in range(4)]
    for n in range(4):
        write(tmp_path / f"s{n}.wav")
    table = tmp_path / "manifest.csv"
    table.write_text("\n".join(["path,domain,source,text,split", *rows]))
    with pytest.raises(BadManifest, match=r"does not say what sounds.*from_manifest\(folder, event='text'\)"):
        from_manifest(tmp_path)
    table.write_text("\n".join(["path,domain,source,text,split,event", *(f"{r},hiss" for r in rows)]))
    assert from_manifest(tmp_path).events == ("hiss",)
    table.write_text("\n".join(["path,domain,source,text,split", *(r.replace("sound", "music") for r in rows)]))
    with pytest.raises(BadManifest, match="has domain music; this application knows speech and sound"):
        from_manifest(tmp_path)
    table.write_text("\n".join(["path,domain,source,text,split", *(r.replace("text 1", "") for r in rows)]))
    with pytest.raises(BadManifest, match=r"1 of 4 clips have an empty transcript or description.*s1.wav"):
        from_manifest(tmp_path, event="source")


# The cache


@pytest.fixture
def a_file(tmp_path: Path) -> Clip:
    return Clip("some/clip.wav", "sound", write(tmp_path / "clip.wav"), "a tone", "tone")


def once(value: torch.Tensor) -> tuple[Callable[[], dict[str, torch.Tensor]], list[int]]:
    calls: list[int] = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": value}

    return compute, calls


def test_computed_once_and_again_when_the_audio_changes(tmp_path: Path, a_file: Clip) -> None:
    compute, calls = once(torch.randn(3, 4).T)  # not contiguous
    for _ in range(3):
        torch.testing.assert_close(Cache(tmp_path / "c").get(a_file, "kind", compute)["x"], compute()["x"])
    assert len(calls) == 1 + 3  # three by this test's own comparison
    Cache(tmp_path / "c").get(a_file, "another kind", compute)
    write(a_file.path, seconds=0.5)
    Cache(tmp_path / "c").get(a_file, "kind", compute)
    assert len(calls) == 4 + 2


def test_a_corrupt_file_is_computed_again(tmp_path: Path, a_file: Clip) -> None:
    cache, (compute, calls) = Cache(tmp_path / "c"), once(torch.ones(2))
    cache.get(a_file, "kind", compute)
    cache.path(a_file, "kind").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"is corrupt .*'some/clip.wav' is computed again"):
        assert cache.get(a_file, "kind", compute)["x"].tolist() == [1, 1]
    cache.get(a_file, "kind", compute)
    assert len(calls) == 2


def test_a_full_disk_loses_nothing(tmp_path: Path, a_file: Clip) -> None:
    """The operating system refuses the bytes: a limit on file size stands in for the disk's."""
    cache = Cache(tmp_path / "c")
    cache.get(a_file, "small", once(torch.ones(2))[0])
    compute, calls = once(torch.ones(100_000))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(NotWritten, match=r"\(0.4 MiB\) could not be written: File too large. Free some space or"):
            cache.get(a_file, "large", compute)
        assert cache.get(a_file, "small", once(torch.zeros(2))[0])["x"].tolist() == [1, 1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [p.name for p in (tmp_path / "c").rglob("*.part")] == []
    assert not cache.has(a_file, "large")
    cache.get(a_file, "large", compute)  # there is room again
    cache.get(a_file, "large", compute)
    assert len(calls) == 2 and cache.has(a_file, "large")


def test_a_folder_that_cannot_be_made(tmp_path: Path, a_file: Clip) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NotWritten, match=r"could not be written: Not a directory"):
        Cache(tmp_path / "file" / "c").get(a_file, "kind", once(torch.ones(1))[0])


def test_a_kill_between_writing_and_naming(tmp_path: Path, a_file: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, (compute, calls) = Cache(tmp_path / "c"), once(torch.ones(2))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.get(a_file, "kind", compute)
    assert not cache.has(a_file, "kind")
    assert cache.get(a_file, "kind", compute)["x"].tolist() == [1, 1] and len(calls) == 2


# Items and batches


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    source, bare = MelFrames(), Reader(Cache(tmp_path_factory.mktemp("cache")))
    fit = {d: [bare.frames(c, source) for c in corpus().of("train", d)] for d in corpus().domains}
    codes: Any = {d: KMeansCodes.fit(f, source, 16) for d, f in fit.items()}
    return Reader(bare.cache, codes)


def corpus() -> Corpus:
    return from_manifest().some(5)


def test_a_crop_keeps_tokens_and_audio_at_their_time() -> None:
    mel = torch.arange(101.0)[:, None].expand(-1, MELS)
    item = Item(a_clip("a"), mel, torch.arange(51), torch.arange(17_067.0))
    for start, length in ((0, 101), (10, 40), (61, 40), (99, 7), (100, 1)):
        part = item.crop(start, length)
        stop = min(start + length, 101)
        assert part.mel[0, 0] == start and len(part.mel) == stop - start
        assert abs(float(part.tokens[0]) - start / 2) <= 1 and abs(float(part.tokens[-1]) - stop / 2) <= 1
        assert abs(float(part.audio[0]) - start * 256 / 1.5) <= 1
    dual = Item(a_clip("a"), mel, torch.arange(102), torch.arange(17_067.0), width=2).crop(31, 20)
    assert len(dual.tokens) % 2 == 0 and int(dual.tokens[0]) % 2 == 0


def test_padding_is_zero_and_lengths_say_so(reader: Reader) -> None:
    items = [reader.item(c) for c in corpus().of("train")]
    batch: Any = collate(items)
    for i, item in enumerate(items):
        n, k, m = len(item.mel), len(item.tokens), len(item.audio)
        assert (batch["lengths"][i], batch["token_lengths"][i], batch["audio_lengths"][i]) == (n, k, m)
        assert n == frames(m) and k == -(-n // 2)
        assert not batch["mel"][i, n:].any() and not batch["audio"][i, m:].any() and not batch["tokens"][i, k:].any()
        assert batch["domain"][i] == (0, 1)[item.clip.domain == "sound"]
    assert "audio" not in collate(items, audio=False)


def test_batches_are_balanced_and_a_function_of_their_number(reader: Reader) -> None:
    clips = corpus().of("train")[:7]  # 5 and 2
    assert Counter(c.domain for c in clips) == {"speech": 5, "sound": 2}
    batches = MelBatches(reader, clips, size=4, frames=60, seed=3)
    for step in (0, 5, 2):
        batch: Any = batches(step)
        assert batch["domain"].tolist() == [0, 1, 0, 1] and int(batch["lengths"].max()) <= 60
        again: Any = MelBatches(reader, clips, size=4, frames=60, seed=3, keep=0)(step)
        assert all(torch.equal(batch[k], again[k]) for k in ("mel", "tokens", "audio", "lengths"))
    assert not torch.equal(batches(0)["mel"], MelBatches(reader, clips, size=4, frames=60, seed=4)(0)["mel"])
    loss = FlowMatching(DiTConfig.tiny())(batches(1))
    loss.backward()
    assert loss.isfinite()


def test_an_epoch_sees_the_larger_domain_once_on_all_ranks() -> None:
    clips = [a_clip(f"s{i}", "speech") for i in range(12)] + [a_clip(f"n{i}") for i in range(5)]
    orders = [Order(clips, 4, seed=1, rank=r, world=3) for r in range(3)]
    assert orders[0].per_epoch == 2
    seen = Counter(c.id for o in orders for step in range(2) for c in o(step))
    assert all(seen[f"s{i}"] == 1 for i in range(12))
    assert sum(seen[f"n{i}"] for i in range(5)) == 12 and all(seen[f"n{i}"] >= 1 for i in range(5))
    assert [c.id for c in orders[0](2)] != [c.id for c in orders[0](0)]  # another epoch, another order
    assert balanced(clips[:12], 0, 0) != sorted(balanced(clips[:12], 0, 0)) and len(balanced(clips[:12], 0, 0)) == 12
    with pytest.raises(BadArgument, match="batches of 4 out of 0 clips"):
        Order([], 4)


def test_frames_of_a_batch_and_their_mask(reader: Reader) -> None:
    features, mask = FrameBatches(reader, corpus().of("train", "sound"), 3, MelFrames())(0)
    assert features.shape[:2] == mask.shape and features.shape[2] == MELS
    assert not features[~mask].any() and mask[:, 0].all()


def test_filling_is_resumable(tmp_path: Path, reader: Reader) -> None:
    clips = corpus().of("test")
    filled = Reader(Cache(tmp_path), reader.codes)
    assert filled.fill(clips) == len(clips)
    assert filled.cache and all(filled.cache.has(c, "log-mel") for c in clips)
    for c in clips:  # nothing is decoded any more
        assert torch.equal(filled.mel(c), reader.mel(c)) and torch.equal(filled.streams(c)[0], reader.streams(c)[0])
    with pytest.raises(BadArgument, match=r"no tokenizer for 'speech': Reader"):
        Reader().streams(clips[0])


# Frame features


def test_frames_of_teachers() -> None:
    pytest.importorskip("transformers")
    from transformers import WhisperConfig, WhisperModel

    from fog_a.teachers import WhisperTeacher

    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1, num_mel_bins=80, **heads)
    source = TeacherFrames(WhisperTeacher(WhisperModel(config)))
    assert source(torch.randn(16_000)).shape == (50, 16)
    with pytest.raises(Unsupported, match=r"object has no frames\(samples\).*MelFrames\(\)"):
        TeacherFrames(object())


def test_beats_patches(tmp_path: Path) -> None:
    from test_teachers import tiny_beats

    source = frames_from(tiny_beats(tmp_path))
    assert source(torch.randn(160_000)).shape == (496, 32)  # SPEC: 998 fbank frames → 62 · 8 patches
    assert source(torch.randn(1000)).shape == (8, 32)
    assert source.name.startswith("beats-bare.pt")
    assert isinstance(frames_from(None), MelFrames)
    with pytest.raises(NoWeights, match=r"no BEATs checkpoint at .*download BEATs_iter3_plus_AS2M.pt"):
        frames_from(tmp_path / "absent.pt")
