"""The training examples run, choose layers, and go on from what they left."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHORT = ["--warmup", "8", "--every", "4", "--batch", "4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "resume"),
    [
        ("train_with_ag_repa", [], None),
        ("train_with_accelerate", ["--cpu"], "runs/accelerate"),
        ("train_with_lightning", ["--accelerator", "cpu"], "runs/lightning/last.ckpt"),
        ("train_with_hf_trainer", ["--cpu"], "runs/trainer/checkpoint-12"),
    ],
)
def test_it_runs(
    name: str,
    options: list[str],
    resume: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torchaudio")
    monkeypatch.chdir(tmp_path)
    for steps, more in ((12, []), (14, ["--resume", resume])) if resume else ((12, []),):
        monkeypatch.setattr(sys, "argv", [name, "--steps", str(steps), *SHORT, *options, *map(str, more)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert "speech: 2 layers by top (contribution of " in capsys.readouterr().out
    if resume is None:
        assert (tmp_path / "ag_repa.pt").is_file()
    else:
        assert (tmp_path / resume).exists()


@pytest.mark.slow
def test_digits_in_another_convention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ε-prediction in [0, 1000] on images: checked, attributed and aligned, without a shim."""
    pytest.importorskip("sklearn")
    run = runpy.run_path(str(EXAMPLES / "train_digits.py"))
    picture = tmp_path / "out" / "digits.png"  # as after a checkout: there is no such folder yet
    scores = run["main"](["--steps", "60", "--out", str(picture)])
    text = capsys.readouterr().out
    assert scores.layers == tuple(f"blocks.{i}" for i in range(6)) and scores.values.shape[:2] == (64, 8)
    assert 'declared: path="ddpm", target="eps"' in text and "blocks   6 (blocks 6)" in text
    assert "ag_repa/loss" in text and "shuffled" in text and picture.is_file()
