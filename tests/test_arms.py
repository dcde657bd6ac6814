"""The arms of a comparison: each layer alone, REPA's depths, replicates; what predicts a layer's benefit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_compare import PLAN, Killed, task, values

import fog_a
from fog_a.errors import Unsupported
from fog_a_adapters.compare import Plan, Task, compare, leg
from fog_a_adapters.compare.arms import choose, expanded, storage_band
from fog_a_adapters.compare.benefits import benefits, correlations
from fog_a_adapters.compare.leg import Leg, Schedule

__all__ = ["task"]
pytestmark = pytest.mark.filterwarnings("ignore:the head of")  # so few clips tell nothing
ALONE = replace(PLAN, arms=("base", "each", "each-local"), seeds=(0, 1), warmup=3, steps=3, looks=0, timing=0, bitc=0.0)


@pytest.fixture(scope="module")
def probed(task: Task) -> Task:
    """With clips enough for a ridge head."""
    return replace(task, probe=[task.batch(9, i) for i in range(4)])


@pytest.fixture(scope="module")
def alone(probed: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("alone")
    return compare(probed, ALONE, out, progress=False), out


def test_each_is_an_arm_for_each_layer_alone(alone: tuple[dict[str, Any], Path]) -> None:
    report, out = alone
    arms = ["base", *(f"each-{n}" for n in range(1, 5)), *(f"each-local-{n}" for n in range(1, 5))]
    assert report["plan"]["arms"] == tuple(arms) and len(set(values(report).values())) == 2 * len(arms)
    for r in report["results"][1:9]:
        assert list(r["layers"]["speech"]) == [f"blocks.{int(r['arm'][-1]) - 1}"]
    text = (out / "compare.md").read_text()
    assert "## Each layer alone" in text and "| each-local | own probe |" in text and "| mean | " in text


def test_benefits_are_base_less_aligned_and_are_correlated_within_seeds(alone: tuple[dict[str, Any], Path]) -> None:
    report, out = alone
    loss, made = values(report), json.loads((out / "compare.json").read_text())["benefits"]
    assert set(made) == {"each", "each-local"} and made["each"]["layers"] == [1, 2, 3, 4]
    for way, m in made.items():
        assert m["benefit"] == [[loss["base", s] - loss[f"{way}-{n}", s] for n in range(1, 5)] for s in (0, 1)]
        assert set(m["rank correlation"]) == {"foga", "lasp", "probe", "gradnorm", "depth"}
        assert "given depth" in m["rank correlation"]["foga"] and "given depth" not in m["rank correlation"]["depth"]
    scores = fog_a.Scores.load(out / "seed1" / "scores-foga.json")
    want = (scores.mean("speech") + scores.mean("sound")) / 2
    assert made["each"]["scores"]["foga"][1] == pytest.approx(want.tolist())


def test_rank_correlations_see_what_is_planted() -> None:
    draw = np.random.default_rng(0)
    score, depth = draw.normal(size=(40, 8)), np.arange(8.0)
    made = correlations(
        score + 0.1 * depth + 0.5 * draw.normal(size=score.shape), {"foga": score, "noise": -(score**2)}
    )
    assert made["foga"]["low"] > 0.6 and made["depth"]["low"] > 0 and made["foga"]["n"] == 40
    assert made["noise"]["low"] < 0 < made["noise"]["high"]
    follows = correlations(np.broadcast_to(depth, (3, 8)), {"foga": np.broadcast_to(depth, (3, 8))})
    assert follows["foga"]["mean"] == 1.0 and np.isnan(follows["foga"]["given depth"]["mean"])
    assert benefits([{"arm": "base", "seed": 0, "metrics": {"loss": 1.0}}], Path("nowhere")) == {}


def test_a_killed_run_of_such_arms_has_the_same_bits(
    probed: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again: in the warm-up, at the branch, in each arm."""
    monkeypatch.setattr(leg, "SAVE_SECONDS", -1.0)
    arms = ("base", "each-2", "each-local-2", "base-again")
    plan = replace(ALONE, arms=arms, seeds=(0,), warmup=2, steps=2, average=0.5)
    want = values(compare(probed, plan, tmp_path / "whole", progress=False))
    left = [2]

    def dying(seed: int, step: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return probed.batch(seed, step)

    kills = 0
    while True:
        left[0] = 2
        try:
            got = compare(replace(probed, batch=dying), plan, tmp_path / "killed", progress=False)
            break
        except Killed:
            kills += 1
    assert values(got) == want and kills >= 4


def test_replicates_differ_in_what_they_draw_anew(probed: Task, tmp_path: Path) -> None:
    """base-again sees other batches after the branch; each-2-again only starts other heads; each-2 is repa-2."""
    seen: dict[int, set[int]] = {}

    def batch(seed: int, step: int) -> Any:
        seen.setdefault(seed, set()).add(step)
        return probed.batch(seed, step)

    arms = ("base", "base-again", "each-2", "each-2-again", "repa-2")
    report = compare(replace(probed, batch=batch), replace(ALONE, arms=arms, seeds=(0,)), tmp_path, progress=False)
    loss = {arm: values(report)[arm, 0] for arm in arms}
    assert loss["each-2"] == loss["repa-2"] and len(set(loss.values())) == 4
    assert seen == {0: {0, 1, 2, 3, 4, 5}, 1_000_003: {3, 4, 5}}


def test_arms_that_need_more_layers_than_there_are(task: Task, tmp_path: Path) -> None:
    for arm, words in {
        "repa-4-8-12": r"aligns layer 12, and the model has 4. Type numbers up to 4; REPA's depths.* are repa-1,",
        "each-5": r"arm 'each-5' aligns layer 5, and the model has 4",
        "foga-k4": None,
    }.items():
        plan = replace(ALONE, arms=("base", arm), seeds=(0,))
        if words is not None:
            with pytest.raises(Unsupported, match=words):
                compare(task, plan, tmp_path / arm, progress=False)
            assert not (tmp_path / arm / "plan.json").exists()
    with pytest.raises(Unsupported, match=r"'shallow' aligns 5 layers, and the model has 4. Type --k 4, or leave"):
        expanded(("base", "shallow"), 4, 5)
    with pytest.raises(Unsupported, match=r"'foga-k4' aligns 4 layers, and the model has 3. Leave the arm out"):
        expanded(("base", "foga-k4"), 3, 2)
    assert expanded(("base", "each-again2", "foga-k4"), 4, 2)[1:] == (
        *(f"each-{n}-again2" for n in range(1, 5)),
        "foga-k4",
    )
    with pytest.raises(Unsupported, match="or one of these with -again; got base, each-0"):
        compare(task, replace(ALONE, arms=("base", "each-0")), tmp_path, progress=False)


def test_deep_is_a_band_around_the_layer_that_stores_most() -> None:
    values = np.array([[[0.1, 0.2, 0.3, 0.9, 0.5, 0.4]], [[0.9, 0.2, 0.3, 0.1, 0.5, 0.4]]], dtype=np.float32)
    names = tuple(f"b{i}" for i in range(6))
    storage = fog_a.Scores(values, names, None, ("speech", "sound"), ("a", "b"), "storage", {})
    assert storage_band(storage, 3) == {"speech": ["b2", "b3", "b4"], "sound": ["b0", "b1", "b2"]}
    chosen = choose("deep", {"foga": storage, "lasp": storage}, k=2, total=0.5, seed=0)
    assert chosen is not None and chosen.weights("speech") == {"b2": 0.25, "b3": 0.25}


def test_averaged_weights_are_the_exponential_average(task: Task) -> None:
    made = Leg(task.build(0), {}, Schedule(1e-2, 9), 0.0, average=0.75)
    want = [p.detach().clone() for p in made.model.parameters()]
    for step in range(3):
        made.step(task.batch(0, step), 0, step)
        want = [0.75 * w + 0.25 * p.detach() for w, p in zip(want, made.model.parameters(), strict=True)]
    last = [p.detach().clone() for p in made.model.parameters()]
    with made.averaged():
        inside = [p.detach().clone() for p in made.model.parameters()]
    for w, i in zip(want, inside, strict=True):
        torch.testing.assert_close(i, w)
    assert all(torch.equal(a, b) for a, b in zip(last, made.model.parameters(), strict=True))
    assert Plan().average == 0.0
