"""Training through Accelerate: goes on where it was to the bit, and refuses what is not its own."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fog_a
from fog_a.errors import BadArgument, BadOutput, BadScores, NotWritten, Unsupported
from fog_a.teachers.weightless import SpectralTeacher
from fog_a_adapters.compare.files import write_state
from fog_a_adapters.dit import DiTConfig, FlowMatching
from unified_audio.aligned import Aligned
from unified_audio.ast_tokenizer import ASTConfig, ASTTokenizer
from unified_audio.language_model import LanguageStage
from unified_audio.prompts import Example, Prompt
from unified_audio.training import Recipe, fit

state = pytest.importorskip("accelerate.state")


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate keeps one precision per process."""
    yield
    state.AcceleratorState._reset_state(reset_partial_state=True)


def _net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Dropout(0.3), nn.Linear(width, 1))


def _batch(number: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(number))


def _loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x)[:, 0] - x.sum(1)).square().mean()


RECIPE = Recipe(steps=12, lr=1e-2, average=0.9)


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole, killed = _net(), _net()
    straight = fit(whole, _loss, _batch, RECIPE, tmp_path / "a", cpu=True)
    fit(killed, _loss, _batch, RECIPE, tmp_path / "b", cpu=True, stop=5)
    torch.manual_seed(99)  # what happened in between does not matter
    again = _net()
    resumed = fit(again, _loss, _batch, RECIPE, tmp_path / "b", cpu=True)
    assert resumed.losses == straight.losses and len(straight.losses) == 12
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for k, v in straight.average.values.items():
        assert torch.equal(v, resumed.average.values[k])
    assert fit(_net(), _loss, _batch, RECIPE, tmp_path / "b", cpu=True).losses == straight.losses
    assert list((tmp_path / "a" / "tensorboard").iterdir())


Stage = tuple[nn.Module, Callable[[nn.Module, Any], torch.Tensor], Callable[[int], Any]]


def _tokenizer() -> Stage:
    """The codebook starts by k-means, moves, and loses and revives codes by random draws."""
    tokenizer = ASTTokenizer(ASTConfig.tiny(input_dim=6, vocab=8, hidden_dim=8, dead=0.3))
    mask = torch.arange(9) < torch.tensor([9, 9, 5, 2])[:, None]
    draw = lambda n: torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(n))  # noqa: E731
    return tokenizer, lambda m, b: m(*b).loss, lambda n: (draw(n), mask)


def _language() -> Stage:
    """Style drops by chance."""
    stage = LanguageStage.build(tiny=True, families={"S3": 8}, targets={"speech": ("S3",)}, style_dim=4)

    def batch(n: int) -> Any:
        codes = torch.randint(8, (5,), generator=torch.Generator().manual_seed(n))
        return stage.collate([Example(Prompt.speech(f"number {n}"), [codes], torch.ones(16, 4) * n)])

    return stage, lambda m, b: m(b).loss, batch


def _flow() -> Stage:
    """Noise, times, prefixes and both dropouts are drawn."""
    flow = FlowMatching(DiTConfig.tiny(layers=2, dim=16, heads=2, token_dim=16, vocab=8, dropout=0.1), drop=0.5)

    def batch(n: int) -> Any:
        g = torch.Generator().manual_seed(n)
        return {
            "mel": torch.randn(2, 12, 100, generator=g), "lengths": torch.tensor([12, 7]), "ids": ["a", "b"],
            "tokens": torch.randint(8, (2, 6), generator=g), "token_lengths": torch.tensor([6, 4]),
            "domain": torch.tensor([0, 1]),
        }  # fmt: skip

    return flow, lambda m, b: m(b), batch


STAGES = {"tokenizer": _tokenizer, "language": _language, "flow": _flow}


def run_stage(name: str, folder: Path, stop: int | None = None, pause: float = 0.0) -> tuple[Any, nn.Module]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss, batch = STAGES[name]()

    def slow(n: int) -> Any:
        time.sleep(pause)
        return batch(n)

    recipe = Recipe(steps=8, lr=1e-2, average=0.9, save_seconds=0.0)
    return fit(model, loss, slow, recipe, folder, cpu=True, stop=stop), model


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STAGES))
def test_each_stage_ends_with_the_same_bits_after_kill_9(name, tmp_path):
    """The operating system's kill, in the middle of a step, twice; then on to the end."""
    straight, whole = run_stage(name, tmp_path / "whole")
    folder = tmp_path / "killed"
    # One process imports everything once and forks those that are killed.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for _ in range(2):
        seen = (folder / "checkpoint.pt").stat().st_mtime_ns if (folder / "checkpoint.pt").exists() else 0
        process = context.Process(target=run_stage, args=(name, folder, None, 0.2))
        process.start()
        for _ in range(600):
            if (folder / "checkpoint.pt").exists() and (folder / "checkpoint.pt").stat().st_mtime_ns != seen:
                break
            time.sleep(0.1)
        process.kill()
        process.join()
        assert process.exitcode == -9
    torch.manual_seed(99)
    resumed, again = run_stage(name, folder)
    assert resumed.losses == straight.losses and len(resumed.losses) == 8
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
        assert torch.equal(straight.average.values[key], resumed.average.values[key]), key


def _aligned() -> Aligned:
    """L_FM + L_BiT + AG-REPA, which probes for six steps and then chooses."""
    torch.manual_seed(0)
    flow = fog_a.wrap(FlowMatching(DiTConfig.tiny(layers=4, dim=16, heads=2, token_dim=16, vocab=8)))
    taught = {d: SpectralTeacher() for d in ("speech", "sound")}
    first = _audio(0)
    reg = fog_a.AGREPA(flow, taught, warmup=6, every=2, k=2, batch=first)
    return Aligned(flow, fog_a.BiTC(flow, taught, batch=first), reg)


def _audio(n: int) -> Any:
    g = torch.Generator().manual_seed(n)
    return {
        "mel": torch.randn(4, 40, 100, generator=g), "lengths": torch.tensor([40, 40, 30, 30]),
        "ids": [f"{n}/{i}" for i in range(4)], "tokens": torch.randint(8, (4, 20), generator=g),
        "token_lengths": torch.tensor([20, 20, 15, 15]), "domain": torch.tensor([0, 1, 0, 1]), "rate": 16_000,
        "audio": torch.randn(4, 7000, generator=g), "audio_lengths": torch.tensor([7000] * 4),
    }  # fmt: skip


def train_aligned(folder: Path, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Straight, and killed in either phase: losses, weights, choice."""
    recipe, found = Recipe(steps=10, lr=3e-3, average=0.9), {}
    for name, stops in {"straight": (None,), "killed": (3, 8, None)}.items():
        for stop in stops:
            model = _aligned()
            made = fit(
                model, lambda m, b: m(b), lambda n: _audio(world * n + rank), recipe, folder / name, cpu=True, stop=stop
            )
            reg: Any = model.terms[1]
            weights = [v.flatten().tolist() for v in [*model.model.state_dict().values(), *reg.parameters()]]
            found[name] = {"losses": made.losses, "weights": weights, "choice": str(reg.selection)}
    return found


def test_stage_2_trains_with_its_alignment(tmp_path):
    """Phase I, choice and Phase II in one `fit`; a kill in either phase changes no bit; the token tables learn."""
    before = _aligned()
    found = train_aligned(tmp_path)
    assert found["straight"] == found["killed"] and "λ" in found["straight"]["choice"]
    names = list(before.model.state_dict())
    moved = [n for n, w in zip(names, found["straight"]["weights"], strict=False)
             if before.model.state_dict()[n].flatten().tolist() != w]  # fmt: skip
    assert {n for n in names if n.startswith("interface.")} <= set(moved), "trap 4: frozen in the release"


@pytest.mark.slow
def test_stage_2_trains_under_torchrun(tmp_path):
    """Two ranks with different clips have one model and one choice; killed or not."""
    script = tmp_path / "run.py"
    script.write_text(
        "import json, os, torch, test_unified_training as t\ntorch.set_num_threads(1)\n"
        "rank = int(os.environ['RANK'])\nfolder = t.Path(__file__).parent\n"
        "(folder / f'{rank}.json').write_text(json.dumps(t.train_aligned(folder, rank, 2)))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        launch, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, timeout=500
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    one, two = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    for name in ("straight", "killed"):
        assert one[name]["weights"] == two[name]["weights"] and one[name]["choice"] == two[name]["choice"]
    assert one["straight"] == one["killed"]
    assert one["straight"]["losses"] != two["straight"]["losses"]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    (tmp_path / ".fog-a-00.part").write_bytes(b"what a kill left")
    write_state(path, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            NotWritten, match=r"could not be written: No space left on device. Free some space or give another"
        ):
            write_state(path, {"step": 2})
    assert torch.load(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_accumulated_batches_are_one_large_batch(tmp_path):
    def still() -> nn.Module:
        return _net().eval()

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = still()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net.eval()(x)

    small, large = Still(), Still()
    fit(small, _loss, _batch, Recipe(steps=3, accumulation=2), tmp_path / "a", cpu=True)
    both = lambda n: torch.cat([_batch(2 * n), _batch(2 * n + 1)])  # noqa: E731
    fit(large, _loss, both, Recipe(steps=3), tmp_path / "b", cpu=True)
    for a, b in zip(small.state_dict().values(), large.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_training_learns_in_bf16_too(tmp_path):
    made = fit(_net(32), _loss, _batch, Recipe(steps=60, lr=3e-2, precision="bf16"), tmp_path, cpu=True)
    assert sum(made.losses[-10:]) < 0.7 * sum(made.losses[:10])


def test_the_tokenizer_trains(tmp_path):
    torch.manual_seed(0)
    tokenizer = ASTTokenizer(ASTConfig.tiny(input_dim=12, vocab=8, hidden_dim=16))
    x = torch.randn(4, 10, 12)
    mask = torch.ones(4, 10, dtype=torch.bool)
    made = fit(tokenizer, lambda m, b: m(*b).loss, lambda n: (x, mask), Recipe(steps=25, lr=3e-3), tmp_path, cpu=True)
    assert min(made.losses[-5:]) < made.losses[0] and len(made.losses) == 25


def test_training_refuses(tmp_path):
    fit(_net(), _loss, _batch, RECIPE, tmp_path, cpu=True, stop=2)
    with pytest.raises(Unsupported, match="another configuration: weights"):
        fit(_net(9), _loss, _batch, RECIPE, tmp_path, cpu=True)
    with pytest.raises(Unsupported, match=r"lr \(there 0.01, here 0.1\)"):
        fit(_net(), _loss, _batch, Recipe(steps=12, lr=0.1, average=0.9), tmp_path, cpu=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a fi")
    with pytest.raises(BadScores, match="delete it to train anew"):
        fit(_net(), _loss, _batch, RECIPE, tmp_path, cpu=True)
    with pytest.raises(BadOutput, match="the loss is nan at step 0"):
        fit(_net(), lambda m, b: _loss(m, b) * torch.nan, _batch, RECIPE, tmp_path / "nan", cpu=True)
    with pytest.raises(BadArgument, match="at least one step"):
        Recipe(steps=0)
