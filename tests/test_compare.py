"""Probe, then intervene, small: every arm, paired by seed, resumable to the bit, on any flow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadScores, Unsupported
from fog_a.teachers.teacher import FrameTeacher
from fog_a_adapters.compare import Plan, Task, compare, leg
from fog_a_adapters.compare.arms import ARMS
from fog_a_adapters.compare.leg import Leg, Schedule
from fog_a_adapters.compare.measures import flow_losses
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.demo.bundled_task import bundled_task
from fog_a_adapters.dit.demo.train import Recipe

PLAN = Plan(seeds=(0, 1), warmup=4, steps=4, k=2, looks=2, draws=2, lr=5e-3, timing=2)


@pytest.fixture(scope="module")
def task() -> Task:
    config = DiTConfig.tiny(layers=4, dim=16, heads=2)
    task = bundled_task(config=config, recipe=Recipe(size=4, frames=48), held_out=2)
    return replace(task, probe=[task.batch(9, 9)], distance=None)


@pytest.fixture(scope="module")
def done(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("compare")
    return compare(task, PLAN, out, progress=False), out


def values(report: dict[str, Any], metric: str = "loss") -> dict[tuple[str, int], float]:
    return {(r["arm"], r["seed"]): r["metrics"][metric] for r in report["results"]}


def test_every_arm_is_run_and_reported(done: tuple[dict[str, Any], Path]) -> None:
    report, out = done
    assert set(values(report)) == {(arm, seed) for arm in ARMS for seed in (0, 1)}
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(report))
    text = (out / "compare.md").read_text()
    for said in (
        "## Held-out flow loss",
        "## Time of a step, relative to base",
        "detectable",
        "foga − arm",
        "| gradnorm |",
        "80 % power",
    ):
        assert said in text
    table = report["summary"]["metrics"]["loss"]
    assert set(table["arms"]) == set(ARMS) and set(table["against base"]) == set(ARMS) - {"base"}
    costs = values(report, "cost")
    assert costs["base", 0] == 1.0 and all(0.2 < c < 20 for c in costs.values())
    assert set(table["foga against"]) == set(ARMS) - {"base", "foga"}
    assert not list(out.glob("*/*.part")) and not list(out.glob("*/foga.pt"))


def test_the_arms_align_what_they_say(done: tuple[dict[str, Any], Path]) -> None:
    report, out = done
    scores: dict[str, fog_a.Scores] = {}
    for r in report["results"]:
        layers = {d: list(w) for d, w in r["layers"].items()}
        scores = {
            n: fog_a.Scores.load(out / f"seed{r['seed']}" / f"scores-{n}.json") for n in ("foga", "lasp", "gradnorm")
        }
        if r["arm"] == "base":
            assert layers == {}
            continue
        assert set(layers) == {"speech", "sound"}
        for domain, names in layers.items():
            assert sum(r["layers"][domain].values()) == pytest.approx(0.5)
            if r["arm"] in scores:
                assert set(names) == set(scores[r["arm"]].top(2, domain).names)
            elif r["arm"] == "deep":  # next to the layer that stores most
                peak = int(scores["lasp"].mean(domain).argmax())
                assert names == [f"blocks.{i}" for i in ((peak - 1, peak) if peak else (0, 1))]
            elif r["arm"] != "random":
                assert names == {"shallow": ["blocks.0", "blocks.1"], "fixed": ["blocks.1"]}[r["arm"]]
            if r["arm"] not in ("foga", "random"):
                assert len(set(r["layers"][domain].values())) == 1  # equally weighted
    assert scores["foga"].kind == "contribution" and scores["lasp"].kind == "storage"


def test_arms_and_seeds_differ(done: tuple[dict[str, Any], Path]) -> None:
    losses = values(done[0])
    assert len({losses[arm, 0] for arm in ARMS}) > 4 and losses["base", 0] != losses["base", 1]


@pytest.mark.parametrize("total", [30, 100, 500])
def test_the_learning_rate_is_one_cycle(total: int) -> None:
    """torch's own, with the settings of SPEC §5."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=total + 1, pct_start=0.1, div_factor=10, final_div_factor=100
    )
    for step in range(total):
        assert Schedule(0.3, total)(step) == pytest.approx(cycle.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        cycle.step()
    assert Schedule(0.3, 5)(0) == pytest.approx(0.03) and Schedule(0.3, 5)(1) == pytest.approx(0.3)


def test_base_is_training_without_a_branch(task: Task, tmp_path: Path) -> None:
    """Warm-up, checkpoint, new objects, four more steps: the same bits as eight steps in one go."""
    plan = replace(PLAN, arms=("base", "shallow"), seeds=(0,), bitc=0.0)
    report = compare(task, plan, tmp_path, progress=False)
    straight = Leg(task.build(0), {}, Schedule(PLAN.lr, 8), PLAN.weight_decay)
    for step in range(8):
        straight.step(task.batch(0, step), 0, step)
    losses = flow_losses(straight.flow, task.held_out, 2)
    assert values(report)["base", 0] == sum(losses.values()) / len(losses)


def test_what_is_done_with_an_arm_is_done_with_the_model_that_was_measured(task: Task, tmp_path: Path) -> None:
    """Timing steps train further: an arm must not be judged after them."""

    def judge(arm: str, seed: int, flow: fog_a.Flow) -> dict[str, float]:
        losses = flow_losses(flow, task.held_out, PLAN.draws)
        return {"again": sum(losses.values()) / len(losses)}

    plan = replace(PLAN, arms=("base", "shallow"), seeds=(0,))
    report = compare(replace(task, done=judge), plan, tmp_path, progress=False)
    assert values(report, "again") == values(report)


class Frames(FrameTeacher):
    """Four frames a clip, which differ over time but not in their mean."""

    name, dim = "frames", 2

    def frames(self, samples: fog_a.Samples) -> list[Tensor]:
        return [torch.tensor([[1.0, 0.1], [-1.0, 0.1], [1.0, 0.1], [-1.0, 0.1]]) for _ in range(len(samples))]


def test_a_plan_with_frames_compares_each_token_with_the_teacher_s_frame(task: Task, tmp_path: Path) -> None:
    plan = replace(PLAN, arms=("base", "fixed"), seeds=(0,), bitc=0.0, timing=0)
    taught = replace(task, teachers=dict.fromkeys(("speech", "sound"), Frames()))
    pooled, frames = (
        values(compare(taught, replace(plan, frames=f), tmp_path / str(f), progress=False)) for f in (False, True)
    )
    assert frames["base", 0] == pooled["base", 0] and frames["fixed", 0] != pooled["fixed", 0]


def test_a_code_book_of_one_tells_nothing_and_the_seed_draws_the_clips() -> None:
    config = DiTConfig.tiny(layers=1, dim=8, heads=2, vocab=1)
    tasks = [bundled_task(config=config, recipe=Recipe(size=4, frames=16), clips=2, data_seed=s) for s in (0, 1)]
    ids = [{i for step in range(8) for i in task.batch(0, step)["ids"]} for task in tasks]
    assert not tasks[0].batch(0, 0)["tokens"].any() and ids[0] != ids[1] and all(len(i) == 4 for i in ids)


class Killed(BaseException):
    """What a kill is to Python code."""


@pytest.mark.parametrize("at", [2, 5, 13])
def test_a_killed_run_goes_on_where_it_was(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    plan = replace(PLAN, arms=("base", "foga"), seeds=(0,))
    whole: list[int] = []
    want = compare(replace(task, batch=lambda s, i: (whole.append(i), task.batch(s, i))[1]), plan, tmp_path / "whole")
    monkeypatch.setattr(leg, "SAVE_SECONDS", -1.0)  # a checkpoint after every step
    calls: list[int] = []

    def dying(seed: int, step: int) -> Any:
        calls.append(step)
        if len(calls) == at + 1:
            raise Killed
        return task.batch(seed, step)

    with pytest.raises(Killed):
        compare(replace(task, batch=dying), plan, tmp_path / "killed", progress=False)
    rest: list[int] = []
    got = compare(replace(task, batch=lambda s, i: (rest.append(i), task.batch(s, i))[1]), plan, tmp_path / "killed")
    assert len(rest) < len(whole), "what was done before the kill is not done again"
    assert values(got) == values(want)
    assert [r["curve"] for r in got["results"]] == [r["curve"] for r in want["results"]]
    again: list[int] = []
    compare(replace(task, batch=lambda s, i: again.append(i)), plan, tmp_path / "killed", progress=False)
    assert not again, "a finished comparison trains nothing"


def test_a_folder_keeps_to_its_plan(task: Task, done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, out = done
    with pytest.raises(
        Unsupported, match=r"holds results of another plan \(steps was \d+, now \d+\). Give another folder"
    ):
        compare(task, replace(PLAN, steps=5), out, progress=False)
    plan = replace(PLAN, arms=("base", "deep"), seeds=(0,))
    (tmp_path / "lost/seed0").mkdir(parents=True)
    (tmp_path / "lost/seed0/base.json").write_text("{}")
    with pytest.raises(Unsupported, match=r"holds results, but no plan.json that says of what. Give another folder"):
        compare(task, plan, tmp_path / "lost", progress=False)
    (tmp_path / "lost/plan.json").write_text("{")
    with pytest.raises(BadScores, match=r"plan.json cannot be read .* Delete it"):
        compare(task, plan, tmp_path / "lost", progress=False)
    first = compare(task, plan, tmp_path, progress=False)
    more = compare(task, replace(plan, arms=("base", "deep", "shallow"), seeds=(0, 1)), tmp_path, progress=False)
    assert values(more)["deep", 0] == values(first)["deep", 0] and ("shallow", 1) in values(more)


def test_a_damaged_checkpoint_is_named(task: Task, tmp_path: Path) -> None:
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed0" / "warmup.pt").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(BadScores, match=r"checkpoint .*warmup.pt cannot be read .* Delete it"):
        compare(task, replace(PLAN, arms=("base", "deep"), seeds=(0,)), tmp_path, progress=False)


@pytest.mark.parametrize(("name", "number"), [("seeds", ()), ("steps", 0), ("warmup", -1), ("k", 0)])
def test_a_plan_that_trains_or_compares_nothing_is_refused(name: str, number: Any) -> None:
    with pytest.raises(Unsupported, match=rf"{name} is at least \d, got -?\d: type --{name} with another number"):
        replace(PLAN, **{name: number})


@pytest.mark.parametrize("arms", [("foga",), ("base",), ("base", "fogah")])
def test_arms_that_compare_nothing_are_refused(task: Task, tmp_path: Path, arms: tuple[str, ...]) -> None:
    near = "; near: foga" if "fogah" in arms else ""
    with pytest.raises(Unsupported, match=f"arms are 'base' and at least one of fixed, shallow.*{near}"):
        compare(task, replace(PLAN, arms=arms), tmp_path, progress=False)


class Perfect(nn.Module):
    """In place of the network: the velocity that leads to the data."""

    def __init__(self, model: FlowMatching, batch: Any) -> None:
        super().__init__()
        self.v = batch["mel"] - model.draws(batch, 0)[0]

    def forward(self, x_t: Tensor, *rest: Tensor) -> Tensor:
        return self.v


def test_samples_of_a_perfect_model_have_no_distance() -> None:
    task = bundled_task(config=DiTConfig.tiny(layers=2, dim=16, heads=2), held_out=3)
    assert task.distance is not None
    flow = task.build(0)
    untrained = task.distance(flow)
    (batch,) = task.held_out
    flow.model.net = Perfect(flow.model, batch)
    perfect = task.distance(flow)
    assert set(perfect) == {"speech", "sound"}
    assert all(perfect[d] < 1e-3 < 1.0 < untrained[d] for d in perfect)


class Net(nn.Module):
    """Somebody's velocity network over vectors of 6 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(3))
        self.inlet, self.outlet = nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.inlet(x) + t[:, None, None]
        for block in self.blocks:
            h = h + block(h)
        return self.outlet(h)


def test_any_wrapped_flow_can_be_compared(tmp_path: Path) -> None:
    def build(seed: int) -> fog_a.Flow:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return fog_a.wrap(Net(), x="x", t="t")

    def batch(seed: int, step: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(1000 * seed + step)
        x = torch.randn(6, 6, 5, generator=g)
        return {"x1": x, "ids": [f"{seed}.{step}.{i}" for i in range(6)]}

    class Mean:
        name, dim = "mean", 5

        def __call__(self, samples: fog_a.Samples) -> Tensor:
            g = torch.Generator().manual_seed(len(samples))
            return torch.randn(len(samples), 5, generator=g)

    made: Callable[[], dict[str, Any]] = lambda: compare(  # noqa: E731
        Task("somebody's net", build, batch, [batch(7, 0)], [batch(8, i) for i in range(4)], Mean()),
        replace(PLAN, arms=("base", "shallow", "foga"), k=1),
        tmp_path,
        progress=False,
    )
    report = made()
    assert set(report["summary"]["metrics"]) == {"loss/all", "loss", "cost"}
    assert all(r["layers"].keys() <= {"all"} for r in report["results"])
