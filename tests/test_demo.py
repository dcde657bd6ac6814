"""The demo end to end, small: real clips, real training, every file read back."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_whisper_folder import random_whisper

import fog_a
from fog_a.errors import BadManifest, NoWeights, Unsupported
from fog_a_adapters.dit import DiTConfig, FlowMatching, demo
from fog_a_adapters.dit.audio.data import load_corpus
from fog_a_adapters.dit.audio.manifest import packaged, read_manifest
from fog_a_adapters.dit.audio.whisper_folder import teacher_from
from fog_a_adapters.dit.demo.train import Recipe, held_out_losses, mean_frame_loss, new_model, train


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training clips and two held-out clips of each domain."""
    folder = tmp_path_factory.mktemp("few")
    lines = ["path,domain,split"]
    for domain in ("speech", "sound"):
        for split, n in (("train", 3), ("test", 2)):
            for clip in [c for c in read_manifest() if (c.domain, c.split) == (domain, split)][:n]:
                shutil.copy(clip.file, folder / Path(clip.id).name)
                lines.append(f"{Path(clip.id).name},{domain},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def made(few: Path, tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    return demo.run(few, tmp_path_factory.mktemp("demo"), steps=20, layers=3, dim=32)


@pytest.fixture(scope="module")
def small(few: Path, tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    """The shortest that runs."""
    return demo.run(few, tmp_path_factory.mktemp("small"), steps=1, layers=1, dim=16)


def test_the_loss_falls_on_the_same_draws(made: demo.Demo) -> None:
    assert made.before.shape == made.after.shape == (4, 8) and len(made.losses) == 20
    assert made.fall > 0.05 and bool((made.after < made.before).all())


def test_scores_are_of_held_out_clips_per_domain_over_t(made: demo.Demo, few: Path) -> None:
    s = made.scores
    assert s.values.shape == (4, 8, 3) and s.kind == "contribution" and s.layers == ("blocks.0", "blocks.1", "blocks.2")
    assert set(s.ids) == {c.id for c in read_manifest(few) if c.split == "test"}
    assert s.domain_names == ("speech", "sound") and s.times == demo.TIMES
    assert bool((s.values > 0).all())


def test_the_ranking_and_the_loss_are_followed_through_training(made: demo.Demo) -> None:
    assert sorted(made.history) == [5, 10, 15, 20]
    assert all(s.layers == made.scores.layers and s.domain_names == ("speech", "sound") for s in made.history.values())
    (steps, without), (same, aligned) = made.runs["without"], made.runs["with AG-REPA"]
    assert list(steps) == list(same) == [6, 7, 8, 9, 10, 11]  # after 20 // 4 steps of warm-up
    assert list(without) != list(aligned)


def test_every_file_can_be_read_back(made: demo.Demo) -> None:
    assert fog_a.Scores.load(made.files["foga.json"]) == made.scores
    assert fog_a.Scores.load(made.files["lasp.json"]) == made.storage
    assert made.storage.kind == "storage" and made.storage.layers == made.scores.layers
    assert made.files["scd.png"].read_bytes().startswith(b"\x89PNG")
    with open(made.files["foga.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 8 * 3 and {r["domain"] for r in rows} == {"speech", "sound"}
    assert made.files["foga.png"].read_bytes().startswith(b"\x89PNG") and made.files["foga.png"].stat().st_size > 20_000


def test_the_page_is_one_file_that_says_what_was_measured(made: demo.Demo) -> None:
    page = made.files["index.html"].read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert "The ranking during training, on 4 held-out clips" in page and "without and with AG-REPA" in page
    assert "Where it is stored, and where it acts" in page and "neither words nor events" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#|https://arxiv\.org)""", page), (
        "something outside the page is needed"
    )
    assert "<script" not in page
    assert f"{made.fall:.0%}" in page and f"{made.floor:.3f}" in page
    for ranked in made.scores.top(3, "sound"):
        assert f"{ranked.mean:.4f}" in page and f"{ranked.interval[0]:.4f}" in page


def test_the_model_can_be_attributed_again(made: demo.Demo, few: Path) -> None:
    model = demo.load_model(made.files["model.safetensors"].parent)
    again = fog_a.attribute(fog_a.wrap(model), demo.load_batch(few), times=demo.TIMES, seed=0)
    torch.testing.assert_close(torch.tensor(again.values), torch.tensor(made.scores.values), rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_numbers(small: demo.Demo, few: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever state the process is in
    again = demo.run(few, tmp_path, steps=1, layers=1, dim=16)
    assert again.losses == small.losses and again.scores == small.scores and again.storage == small.storage


def test_another_seed_trains_otherwise(made: demo.Demo, few: Path) -> None:
    """The demo's training at its own seed, step by step, and at another."""
    sizes = DiTConfig.tiny(layers=3, dim=32, domains=("speech", "sound"))
    losses = {}
    for seed in (0, 1):
        corpus = load_corpus(few, seed=seed)
        model = new_model(lambda: FlowMatching(sizes), seed)
        model.start_at(corpus.mean_frame())
        losses[seed] = train(model, corpus, Recipe(steps=20, seed=seed))
    assert losses[0] == made.losses and losses[1] != made.losses


def test_the_whisper_that_a_variable_names_is_the_teacher_of_speech(
    few: Path, small: demo.Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOG_A_WHISPER", str(random_whisper(tmp_path / "heard")))
    made = demo.run(few, tmp_path / "demo", steps=1, layers=1, dim=16)
    said = re.search(r"speech: (\S+), sound: log-mel-statistics", made.files["index.html"].read_text())
    assert said is not None and said[1] == teacher_from().name and said[1].startswith("whisper:heard@")
    assert len([*tmp_path.glob("heard/frames/*/*")]) >= 3 and np.isfinite(made.storage.mean("speech")).all()
    np.testing.assert_allclose(made.storage.mean("sound"), small.storage.mean("sound"))
    assert not np.allclose(made.storage.mean("speech"), small.storage.mean("speech"))


def test_nothing_is_written_when_the_data_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"expected a folder with manifest.csv"):
        demo.run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_whisper_is_refused_before_any_work(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOG_A_WHISPER", str(tmp_path / "nowhere"))
    monkeypatch.setattr(demo, "train", None)
    with pytest.raises(NoWeights, match=r"no Whisper folder at .*nowhere'.*then name it: FOG_A_WHISPER=FOLDER"):
        demo.run(few, tmp_path / "out", steps=1, layers=1, dim=16)
    assert not (tmp_path / "out").exists()


def test_sizes_that_make_no_model_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"at least one step, got steps=0"):
        demo.run(out=tmp_path / "out", steps=0)
    with pytest.raises(Unsupported, match=r"take dim=48"):
        demo.run(out=tmp_path / "out", dim=50)


def test_one_layer_and_one_step_make_a_page(small: demo.Demo) -> None:
    assert small.scores.values.shape == (4, 8, 1) and small.files["index.html"].is_file()


@pytest.mark.slow
def test_the_packaged_clips_teach_it_more_than_the_mean() -> None:
    assert packaged().is_dir()
    corpus = load_corpus(None, held_out=16)
    batches = corpus.held_out()
    model = new_model(lambda: FlowMatching(DiTConfig.tiny(layers=3, dim=64, domains=corpus.domains)), 0)
    model.start_at(corpus.mean_frame())
    before = held_out_losses(model, batches, demo.TIMES)
    train(model, corpus, Recipe(steps=150, frames=64))
    after = float(held_out_losses(model, batches, demo.TIMES).mean())
    assert after < 0.5 * float(before.mean()) and after < mean_frame_loss(corpus, batches, model.sigma)
