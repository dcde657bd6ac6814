"""The gate's committed numbers: a run's small report, and the replicates of base beside the confirming run."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fog_a
from alignment_gate import beside, planted, plot_layers, rows_of, small
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import load_corpus

EXPERIMENTS = Path(__file__).parents[1] / "docs/experiments"


def report(arms: tuple[str, ...]) -> dict[str, Any]:
    results = [{"arm": a, "seed": s, "metrics": {"loss": 1.0 + i + s}} for i, a in enumerate(arms) for s in (0, 1)]
    summary = {"metrics": {"loss": {"against base": {}}}}
    facts = {"data": "/home/me/audio: 10 clips"}
    return {"task": "t", "facts": facts, "plan": {}, "benefits": {}, "results": results, "summary": summary}


def test_a_small_report_tells_the_scatter_of_base_and_names_no_folder_of_a_machine() -> None:
    kept = small(report(("base", "base-again", "base-again2", "fixed")))
    assert kept["scatter"] == {"0": 1.0, "1": 1.0} and kept["loss"]["fixed"] == {"0": 4.0, "1": 5.0}
    assert kept["facts"]["data"] == "audio: 10 clips"
    assert small(report(("base", "base-again", "fixed")))["scatter"] == {}


def test_the_replicates_of_base_go_on_from_the_confirming_run() -> None:
    confirmed, again = (
        json.loads((EXPERIMENTS / f"{folder}/confirm-10-0.5-600.json").read_text()) for folder in ("gate", "again")
    )
    assert {**again["plan"], "arms": 0} == {**confirmed["plan"], "arms": 0}
    for arm in ("base", "base-again"):
        assert again["loss"][arm] == confirmed["loss"][arm]
    for seed, sd in again["scatter"].items():
        assert len(again["loss"]) == 6 and sd == statistics.stdev(of[seed] for of in again["loss"].values())


def test_planted_scales_multiply_each_layers_updates_and_nothing_else() -> None:
    torch.manual_seed(0)
    flow = fog_a.wrap(FlowMatching(DiTConfig.tiny(layers=3, dim=16)).eval())
    for p in flow.model.parameters():
        nn.init.normal_(p, std=0.2)
    batch = load_corpus(per_domain=2, held_out=2, audio=False).held_out()[0]
    plain = flow.velocity(batch, 0.3, 0)
    scales = np.random.default_rng(4).permutation(np.geomspace(0.1, 1.0, 3)).tolist()
    branches = fog_a.find_blocks(flow, batch, level="branch")
    with contextlib.ExitStack() as gates:
        for k, scale in enumerate(scales):
            gates.enter_context(fog_a.gate(branches[2 * k : 2 * k + 2], scale))
        expected = flow.velocity(batch, 0.3, 0)
    torch.testing.assert_close(planted(flow, least=0.1, seed=4).velocity(batch, 0.3, 0), expected)
    assert not torch.allclose(expected, plain)


def test_the_pictures_have_the_mean_of_one_layer_alone_and_each_layers_gain() -> None:
    run = json.loads((EXPERIMENTS / "gate/confirm-all-0.5-400-1codes-frames-own.json").read_text())
    alone = [statistics.fmean(run["loss"][f"each-{k}"].values()) for k in range(1, 7)]
    gain = statistics.fmean(run["loss"]["base"].values()) - statistics.fmean(alone)
    assert rows_of(run)["one layer"]["mean"] == pytest.approx(-gain)
    assert list(rows_of(run)) == ["base-again", "fixed", "foga", "one layer", "one layer, locally"]
    depth, by_rank = plot_layers(run["benefits"]).axes
    means = [e["mean"] for e in run["benefits"]["each"]["mean"]]
    np.testing.assert_allclose(depth.lines[0].get_ydata(), means)
    assert sorted(by_rank.lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]


def test_planted_scales_turn_the_ranking_whatever_the_depth() -> None:
    """What part F rests on, of the committed run: FoG-A goes with the scales and not with depth."""
    name = "confirm-all-0.5-400-1codes-frames-own-8layers-least0.1"
    run = json.loads((EXPERIMENTS / f"gate/{name}.json").read_text())
    assert run["benefits"]["each"]["seeds"] == [*range(600, 615)]
    lines = beside(run["benefits"], 0.1)
    assert lines[0] == "ρ of FoG-A with the planted scales: +0.89 [+0.85, +0.93]"
    assert lines[1] == "ρ of FoG-A with depth: +0.07 [-0.11, +0.24]"
    assert lines[-1] == "116 of 120 benefits are above 0, and their means on 15 seeds of 15"
