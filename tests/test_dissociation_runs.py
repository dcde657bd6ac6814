"""The plan's part C at tiny size: both measures see one x_t, a killed run goes on, planted endpoints are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fog_a
from fog_a.errors import Unsupported
from fog_a_adapters.compare.leg import Progress
from fog_a_adapters.dit.audio.data import collate, load_corpus
from fog_a_adapters.dit.demo.bundled_task import teachers_for
from fog_a_adapters.dit.demo.dissociation import Setting, Trainings, told

SETTING = Setting(layers=3, dim=16, size=4, frames=16, clips=2, times=2, looks=(2, 4))


@pytest.fixture(scope="module")
def corpus() -> Any:
    return load_corpus(audio=True, held_out=6, per_domain=3)


def test_a_killed_run_goes_on_and_both_measures_see_one_x_t(corpus: Any, tmp_path: Path) -> None:
    taught = teachers_for(None, corpus)
    whole = Trainings(SETTING, corpus, taught, tmp_path / "whole").seed(0)
    killed = Trainings(SETTING, corpus, taught, tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainings, "look", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            killed.seed(0)
    assert killed.seed(0) == whole and json.loads((tmp_path / "killed/seed0.json").read_text()) == whole
    with pytest.raises(
        Unsupported, match=r"results of another plan \(head was bitc, now ridge\)\. Give another folder"
    ):
        Trainings(replace(SETTING, head="ridge"), corpus, taught, tmp_path / "whole")
    leg, bitc = killed._leg(0)
    leg.run(killed.batch, 0, 2, Progress(0), tmp_path / "two.pt")
    leg.model.eval()
    where: dict[str, Any] = {"times": 2, "seed": 0}
    runs = {
        "flow": lambda: [leg.flow.velocity(killed.probed, 0.25 + 0.5 * j, seed=j) for j in (0, 1)],
        "foga": lambda: fog_a.attribute(leg.flow, killed.probed, how="loop", progress=False, **where),
        "lasp": lambda: fog_a.lasp(leg.flow, killed.probed, head=bitc, beside=(), **where),
    }
    seen = {name: inputs_of(leg.flow.module, run) for name, run in runs.items()}
    assert len(seen["flow"]) == 2 and seen["flow"] <= seen["foga"] and seen["flow"] <= seen["lasp"]


def test_a_ridge_head_is_fitted_on_the_clips_that_are_not_measured(corpus: Any, tmp_path: Path) -> None:
    trainings = Trainings(replace(SETTING, head="ridge", looks=(2,)), corpus, teachers_for(None, corpus), tmp_path)
    measured, fitted = set(trainings.probed["ids"]), {i.id for i in trainings.fitted}
    assert len(measured) == 4 and len(fitted) == 8 and not measured & fitted
    look = trainings.seed(0)["2"]
    assert set(look["explained"]) == {"speech", "sound"} and len(look["probe"]["speech"]["all"]) == SETTING.layers
    leg, _ = trainings._leg(0)
    leg.run(trainings.batch, 0, 2, Progress(0), tmp_path / "again.pt")
    leg.model.eval()
    where: dict[str, Any] = {"times": 2, "seed": 0, "center": True, "beside": (), "fit": collate(trainings.fitted)}
    scores = fog_a.lasp(leg.flow, trainings.probed, trainings.teachers, **where)
    of_speech = scores.values[[d == "speech" for d in scores.domains]]
    assert look["lasp"]["speech"]["all"] == pytest.approx(of_speech.mean((0, 1)), rel=1e-4)


def inputs_of(net: torch.nn.Module, run: Callable[[], Any]) -> set[bytes]:
    """Every x_t that the network is given meanwhile; finding the layers gives it some of its own."""
    seen: set[bytes] = set()
    hook = net.register_forward_pre_hook(lambda _, args: seen.add(args[0].detach().numpy().tobytes()))
    run()
    hook.remove()
    return seen


def test_planted_endpoints_are_told() -> None:
    def look(foga: list[float], lasp: list[float]) -> dict[str, Any]:
        return {k: {"speech": dict.fromkeys(("all", "even", "odd"), v)} for k, v in (("foga", foga), ("lasp", lasp))}

    rise, fall = list(np.arange(1.0, 5)), list(np.arange(4.0, 0, -1))
    found = told([{"100": look(fall, rise), "2000": look(fall, rise)} for _ in range(3)])["speech"]
    assert found["depth of LASP's peak - of FoG-A's"]["mean"] == 3
    assert found["1 - tau, LASP and FoG-A"]["mean"] == 2 and found["floor of lasp"]["mean"] == 0
    assert found["rho of FoG-A with depth"]["mean"] == -1 and found["the first layer is the top one"]["mean"] == 1
    assert found["top 3 at 100 steps kept"]["mean"] == 3 and found["top 3 at 100 steps kept"]["p"] == 0
