"""The paper's Tables 4 and 5: base, the first layers, and AG-REPA on F5-TTS, Voicebox and CosyVoice.

Theirs are trained models; here each is tiny, trained from scratch on the packaged clips with log-mel statistics as the
teacher, and judged by its own held-out flow loss: its adapter has no sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare_flows
from fog_a_adapters.compare.comparison import compare
from fog_a_adapters.compare.contrasts import Estimate, contrast, estimate
from fog_a_adapters.compare.task import Plan
from light_imports import importable
from unified_audio.paper_tables import PaperTable

SYSTEMS = {"f5_tts": "F5-TTS", "voicebox": "Voicebox", "cosyvoice": "CosyVoice"}
ARMS = ("base", "shallow", "foga")
PLAN = Plan(arms=ARMS, warmup=20, steps=20, k=2, bitc=0.0, looks=0, draws=4, timing=0)

Losses = Mapping[str, Sequence[float]]
"""Arm → held-out flow loss of each seed."""


def other_systems(out: Path, seeds: int, plan: Plan = PLAN) -> tuple[dict[str, Losses], dict[str, str]]:
    """System → its arms' losses; and for a system that could not be run, why."""
    losses: dict[str, Losses] = {}
    absent: dict[str, str] = {}
    for name, said in SYSTEMS.items():
        try:
            importable(name)
            task = compare_flows.task(name)
            task.build(0)
        except Exception as error:  # another project's package: whatever it raises, the tables say so
            absent[said] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            continue
        report = compare(task, replace(plan, seeds=tuple(range(seeds))), out / name)
        losses[said] = losses_of(report)
    return losses, absent


def losses_of(report: Mapping[str, Any]) -> Losses:
    """Arm → loss of each seed, of those arms that the tables show."""
    results = sorted(report["results"], key=lambda r: r["seed"])
    losses = {arm: [r["metrics"]["loss"] for r in results if r["arm"] == arm] for arm in ARMS}
    return {arm: values for arm, values in losses.items() if values}


def other_tables(losses: Mapping[str, Losses], absent: Mapping[str, str]) -> list[PaperTable]:
    """Tables 4 and 5; "this DiT" among the losses is the run's own model."""
    note = (
        "Held-out flow loss; tiny models from scratch on the packaged clips, log-mel teacher; no sampler, so no speech."
    )
    note += "".join(f" {name} was not run ({why})." for name, why in absent.items())
    rows = [[name, *_pair(of)] for name, of in losses.items() if name != "this DiT" and "foga" in of]
    four = PaperTable(4, "AG-REPA on other systems", ("system", "base", "AG-REPA", "AG-REPA − base"), rows, note)
    columns = ("system", *ARMS, "foga − shallow")
    fives = [[name, *(estimate(of[a]) if a in of else None for a in ARMS), _less(of)] for name, of in losses.items()]
    return [four, PaperTable(5, "First layers against chosen layers", columns, fives, note)]


def _pair(of: Losses) -> list[Estimate]:
    return [estimate(of["base"]), estimate(of["foga"]), contrast(of["foga"], of["base"]).difference]


def _less(of: Losses) -> Estimate | None:
    return contrast(of["foga"], of["shallow"]).difference if "foga" in of and "shallow" in of else None
