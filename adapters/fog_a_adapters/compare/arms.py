"""The arms of a comparison: which layers each aligns, chosen at the branch from probes of the same model.

    base      no alignment                     shallow  the first k layers      lasp      top k by storage (Eq. 6)
    fixed     one layer, a third of the way    deep     the last k              gradnorm  top k by ‖∂L_FM/∂θ‖
              (REPA's 8 of 24)                 random   k drawn by the seed     foga      top k by FoG-A (Eq. 9–11)

All but base have the same total weight λ. foga weighs its layers by Eq. 11, as the paper does; the others weigh theirs
equally. Variants of foga, to be named, are in no default comparison:

    foga-equal    equal weights (Table 10)        foga-refresh  chosen anew, three times a run (Table 8)
    foga-k2, -k4  another number of layers (10)   foga-times    heads by flow time, four bins (Table 9)
    foga-self     to a deeper layer of its own,   foga-conv1d,  heads over the tokens that are not yet
                  gradient stopped (Table 12)     foga-conv2d   pooled (Table 11)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fog_a.aligning import heads
from fog_a.attributing.attribute import attribute
from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.flows.flow import Flow
from fog_a.probing.bitc import BiTC
from fog_a.probing.gradnorm import gradnorm
from fog_a.probing.lasp import lasp
from fog_a.scores.scores import Scores
from fog_a.scores.select import select
from fog_a.scores.selection import Selection
from fog_a.teachers.self_teacher import SelfTeacher

ARMS = ("base", "fixed", "shallow", "deep", "random", "lasp", "gradnorm", "foga")
OTHER_K = {"foga-k2": 2, "foga-k4": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "foga-equal": {}, "foga-k2": {}, "foga-k4": {}, "foga-self": {}, "foga-refresh": {},
    "foga-times": {"head": heads.by_time}, "foga-conv1d": {"head": heads.conv1d}, "foga-conv2d": {"head": heads.conv2d},
}  # fmt: skip
"""Variant → what AGREPA is told besides."""
KNOWN = (*ARMS, *OPTIONS)
PROBE_OF = {"lasp": "lasp", "gradnorm": "gradnorm", "foga": "foga", **dict.fromkeys(OPTIONS, "foga")}


def check_arms(arms: Sequence[str]) -> None:
    """Raises Unsupported for an arm that is not known, or none to compare with."""
    unknown = [a for a in arms if a not in KNOWN]
    if unknown or len(set(arms)) < 2 or "base" not in arms:
        raise Unsupported(
            f"arms are 'base' and at least one of {', '.join(KNOWN[1:])}; got {', '.join(arms) or 'none'}"
        )


def probe(name: str, flow: Flow, batches: Sequence[Any], teachers: Any, bitc: nn.Module | None, seed: int) -> Scores:
    """The scores that an arm chooses from: foga, lasp (through BiT-C's heads where the widths allow) or gradnorm."""
    if name == "foga":
        return attribute(flow, list(batches), seed=seed, progress=False)
    if name == "gradnorm":
        return gradnorm(flow, list(batches), seed=seed)
    if isinstance(bitc, BiTC):
        try:
            return lasp(flow, list(batches), teachers, head=bitc, seed=seed, beside=())
        except ShapeMismatch:
            pass  # the interface is of another width than the layers: one ridge head is fitted instead
    return lasp(flow, list(batches), teachers, seed=seed, beside=())


def choose(
    arm: str, scores: Mapping[str, Scores], *, k: int, total: float, seed: int, fixed: Sequence[str] | None = None
) -> Selection | None:
    """The layers of an arm; None for base. `scores` holds "foga" (also for the names of the layers)."""
    if arm == "base":
        return None
    known = scores["foga"]
    if arm == "fixed":
        names = list(fixed or [known.layers[math.ceil(len(known.layers) / 3) - 1]])
        return select(known, len(names), by=names, weighting="equal", total=total)
    if arm in ("shallow", "deep", "random"):
        return select(known, k, by=arm, weighting="equal", total=total, seed=seed)  # pyright: ignore[reportArgumentType]
    k = OTHER_K.get(arm, k)
    weighting = "normalized" if arm.startswith("foga") and arm != "foga-equal" else "equal"
    return select(scores[PROBE_OF[arm]], k, weighting=weighting, total=total)


def options(arm: str, steps: int) -> dict[str, Any]:
    """What AGREPA is told besides the layers, in a run of so many steps after the branch."""
    if arm == "foga-refresh":
        refresh = max(1, steps // 4)
        return {"refresh": refresh, "every": max(1, refresh // 4), "samples": 4}
    return OPTIONS.get(arm, {})


def teachers_of(arm: str, teachers: Any) -> Any:
    """The task's teachers, or the model itself."""
    if arm != "foga-self":
        return teachers
    return {d: SelfTeacher(domain=d) for d in teachers} if isinstance(teachers, Mapping) else SelfTeacher()
