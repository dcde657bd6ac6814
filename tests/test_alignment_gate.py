"""The gate's committed numbers: a run's small report, and the replicates of base beside the confirming run."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from alignment_gate import small

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
