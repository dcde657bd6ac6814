"""The examples for other trainers run on the real packages, change three lines, and lower the alignment loss."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import random
import shutil
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import flow_cases
import pytest
import torch
from torch.utils.data import Dataset

import fog_a
from fog_a.shell.cli import main
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.compare import Plan, command
from fog_a_adapters.dit.audio.data import load_corpus

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = ("f5_tts", "voicebox", "cosyvoice")
MEL = 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore:.*LoRACompatible.*", "ignore:.*torch.cuda.amp.*"),
]


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, its package imported past what it needs for training on a cluster."""
    pytest.importorskip("soundfile")
    if name == "f5_tts":
        flow_cases.import_f5()
        for other in ("wandb", "datasets"):
            flow_cases.stub(other)
        flow_cases.stub("datasets", Dataset=object, load_from_disk=None)
        package = sys.modules["f5_tts.model"]
        cfm, dit = sys.modules["f5_tts.model.cfm"], sys.modules["f5_tts.model.backbones.dit"]
        for key, value in {"CFM": cfm.CFM, "DiT": dit.DiT}.items():
            monkeypatch.setattr(package, key, value, raising=False)
    elif name == "voicebox":
        flow_cases.import_voicebox()
    else:
        flow_cases.import_matcha()
        if os.environ.get("FOG_A_COSYVOICE"):
            flow_cases.real_cosyvoice(3)
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(f"{name}_ag_repa")


def builder(name: str) -> dict[str, Any]:
    """CosyVoice's flow is the stand-in where there is no checkout."""
    if name != "cosyvoice" or os.environ.get("FOG_A_COSYVOICE"):
        return {}
    from stand_ins.cosyvoice import CausalMaskedDiffWithDiT

    return {"build": lambda: CausalMaskedDiffWithDiT(mel=100, vocab=128, speaker=192)}


@pytest.mark.parametrize("name", NAMES)
def test_three_lines_train(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = example(name, monkeypatch).train(24, 10, **builder(name))
    align = [a for _, a in losses]
    assert all(a == 0 for a in align[:10]), "before the choice nothing is added"
    assert sum(align[-3:]) < 0.9 * sum(align[10:13])
    assert losses[-1][0] < losses[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_the_marked_lines_are_three(name: str) -> None:
    lines = (EXAMPLES / f"{name}_ag_repa.py").read_text().splitlines()
    assert [line.split("# AG-REPA ")[1] for line in lines if "# AG-REPA " in line] == [f"{i} of 3" for i in (1, 2, 3)]


@pytest.mark.parametrize("name", NAMES)
def test_compare_runs_end_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user types it; the tables' numbers are of clips that were not trained on."""
    example(name, monkeypatch)
    tasks: Any = importlib.import_module("compare_flows")
    made = tasks.task(name, **builder(name))
    seen = {clip for step in range(4) for clip in made.batch(0, step).get("ids") or made.batch(0, step)["utts"]}
    assert not seen & {clip for batch in made.held_out for clip in batch.get("ids") or batch["utts"]}
    monkeypatch.setattr(tasks, name, lambda: made)
    monkeypatch.setattr(command, "Plan", partial(Plan, looks=2, draws=2, timing=2))  # measured, but less often
    words = f"compare --task compare_flows:{name} --arm base --arm shallow --arm foga --k 2 --seeds 2 --warmup 4"
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*words.split(), "--steps", "3", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "compare.json").read_text())
    arms = ("base", "shallow", "foga")
    assert {(r["arm"], r["seed"]) for r in report["results"]} == {(a, s) for a in arms for s in (0, 1)}
    assert all(0 < r["metrics"]["loss"] < 100 for r in report["results"])
    layers = {r["arm"]: r["layers"] for r in report["results"]}
    assert layers["base"] == {} and set(layers["foga"]) == {"speech", "sound"}
    assert "foga" in (tmp_path / "compare.md").read_text()


# ---------------------------------------------------------------- their own trainers, three lines changed


class Clips(Dataset[Any]):
    """The packaged clips as a dataset of theirs."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def patched(trainer: Any, method: str, before: str, after: str, **names: Any) -> Any:
    """A method of their trainer with one line of its source replaced."""
    source = textwrap.dedent(inspect.getsource(getattr(trainer, method)))
    assert source.count(before) == 1
    space = {**vars(sys.modules[trainer.__module__]), **names}
    exec(compile(source.replace(before, after), f"{trainer.__name__}.{method}", "exec"), space)
    return space[method]


def falls(log: list[Any]) -> None:
    """Nothing before the choice, then a term that gets smaller."""
    terms = [m["ag_repa/loss"] for m in log if "ag_repa/loss" in m]
    assert len(terms) >= 4 and len(terms) < len(log) and terms[-1] < terms[0]


def test_f5_ttss_own_trainer_unedited_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of the two lines adds the term in the model's forward; their checkpoint holds the alignment."""
    for package in ("accelerate", "ema_pytorch"):
        pytest.importorskip(package)
    shown = example("f5_tts", monkeypatch)
    monkeypatch.setattr(flow_cases.stub("wandb"), "api", type("api", (), {"api_key": None}), raising=False)
    trainer: Any = importlib.import_module("f5_tts.model.trainer").Trainer
    clip = load_corpus(audio=True).train[0]  # alone: their trainer resumes another order of the data
    items = [{"mel_spec": clip.mel[:64].T[None], "text": "".join(chr(48 + int(k)) for k in clip.tokens[:32])}] * 16

    def train(folder: Path) -> tuple[Any, Any, list[Any]]:
        torch.manual_seed(0)
        model, log = shown.new_model(), []
        reg = fog_a.AGREPA(model, MEL, k=2, warmup=4, every=2, features=lambda b: b["mel"].mean(2)[:, :MEL])  # 1
        reg.attach(model)  # 2
        its = trainer(
            model, epochs=5, learning_rate=1e-3, num_warmup_updates=1, checkpoint_path=str(folder), save_per_updates=3,
            batch_size_per_gpu=8, logger=None, last_per_updates=100,
        )  # fmt: skip

        def begin(*_: Any) -> None:  # their trainer does not resume random numbers
            torch.manual_seed(reg.step)
            random.seed(reg.step)

        model.register_forward_pre_hook(begin)
        model.register_forward_hook(lambda *_: log.append(reg.metrics()))
        its.train(Clips(items), num_workers=1, resumable_with_seed=0)
        return model, reg, log

    whole, reg, log = train(tmp_path / "whole")
    falls(log)
    for cut in ("3", "6"):  # in the warm-up, and after it
        (tmp_path / cut).mkdir()
        shutil.copy(tmp_path / "whole" / f"model_{cut}.pt", tmp_path / cut)
        again, resumed, rest = train(tmp_path / cut)
        assert resumed.step == reg.step == 10 and len(rest) == 10 - int(cut)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    keys = torch.load(tmp_path / "whole" / "model_6.pt", weights_only=True)["model_state_dict"].keys()
    assert [key for key in keys if "ag_repa" in key] == ["ag_repa.state"]


def test_voiceboxs_own_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    shown = example("voicebox", monkeypatch)
    trainer: Any = importlib.import_module("voicebox_pytorch.trainer").VoiceBoxTrainer
    items = [i.audio[:16_000] for i in load_corpus(audio=True).train[:16]]
    model, log = shown.new_model(), []
    its = trainer(
        model, batch_size=8, dataset=Clips(items), num_train_steps=10, lr=1e-3, initial_lr=1e-3, valid_frac=0,
        results_folder=str(tmp_path / "results"), force_clear_prev_results=False, save_results_every=1000,
        save_model_every=1000, log_every=1000,
    )  # fmt: skip
    teacher = SpectralTeacher()
    reg = fog_a.AGREPA(model, teacher, k=2, warmup=4, every=2)  # 1
    its.optim.add_param_group({"params": list(reg.parameters())})  # 2
    line = "loss = self.cfm_wrapper(wave)"
    step = patched(trainer, "train_step", line, f"{line} + reg(wave); log.append(reg.metrics())", reg=reg, log=log)
    its.steps += 1  # at step 0 it validates and saves
    for _ in range(10):
        step(its)
    falls(log)
