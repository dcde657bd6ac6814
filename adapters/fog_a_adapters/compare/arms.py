"""The arms of a comparison: which layers each aligns, chosen at the branch from probes of the same model.

    base      no alignment                      shallow  the first k layers          lasp      top k by storage (Eq. 6)
    fixed     one layer, a third of the way     deep     k layers around the one     gradnorm  top k by ‖∂L_FM/∂θ‖
              (REPA's 8 of 24)                           that stores most (LASP)     foga      top k by FoG-A (Eq. 9–11)
                                                random   k drawn by the seed

All but base have the same total weight λ. foga weighs its layers by Eq. 11, as the paper does; the others weigh theirs
equally. More arms, to be named, are in no default comparison:

    foga-equal    equal weights (Table 10)        foga-refresh  chosen anew, three times a run (Table 8)
    foga-k2, -k4  another number of layers (10)   foga-times    heads by flow time, four bins (Table 9)
    foga-self     to a deeper layer of its own,   foga-conv1d,  heads over the tokens that are not yet
                  gradient stopped (Table 12)     foga-conv2d   pooled (Table 11)
    fixed-self    the same for fixed: a static    foga-local    the loss reaches each chosen layer's own
                  choice, own features (12)                     update alone
    repa-4-8-12   layers 4, 8 and 12, counted     each          every layer alone, an arm each: each-1, each-2, …
                  from 1; any numbers             each-local    the same, locally: each-local-1, …
    X-again       X once more, with other first values of the heads; base-again: on other clips and noise from the
                  branch on. What they differ by is noise. X-again2, … are further ones
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from fog_a.aligning import heads
from fog_a.attributing.attribute import attribute
from fog_a.errors import ShapeMismatch, Unsupported, near
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
    "foga-local": {"local": True},
}  # fmt: skip
"""Variant → what AGREPA is told besides."""
KNOWN = (*ARMS, *OPTIONS, "fixed-self")
ALONE = ("each", "each-local")
PROBE_OF = {"lasp": "lasp", "deep": "lasp", "gradnorm": "gradnorm", "foga": "foga", **dict.fromkeys(OPTIONS, "foga")}
PLACED = re.compile(r"(repa|each|each-local)((?:-[1-9]\d*)+)")
"""An arm that names its layers by number."""


def parsed(arm: str) -> tuple[str, int]:
    """An arm without its replicate, and which replicate it is.

    >>> parsed("foga"), parsed("foga-again"), parsed("each-local-3-again2")
    (('foga', 0), ('foga', 1), ('each-local-3', 2))
    """
    plain, again, number = re.fullmatch(r"(.*?)(-again([2-9]|[1-9]\d+)?)?", arm).groups()  # type: ignore[union-attr]
    return plain, int(number or 1) if again else 0


def numbers_of(arm: str) -> tuple[int, ...]:
    """The layers, counted from 1, that an arm names.

    >>> numbers_of("repa-4-8-12"), numbers_of("each-local-3"), numbers_of("foga-k2")
    ((4, 8, 12), (3,), ())
    """
    match = PLACED.fullmatch(parsed(arm)[0])
    return tuple(int(n) for n in match[2].split("-")[1:]) if match else ()


def repa_arms(layers: int) -> tuple[str, ...]:
    """The paper's REPA @ 4, 8, 12 and @ {4, 8, 12} of 24, at the same relative depths of another net.

    >>> repa_arms(24), repa_arms(6)
    (('repa-4', 'repa-8', 'repa-12', 'repa-4-8-12'), ('repa-1', 'repa-2', 'repa-3', 'repa-1-2-3'))
    """
    places = sorted({max(1, round(n * layers / 24)) for n in (4, 8, 12)})
    return tuple(dict.fromkeys([*(f"repa-{n}" for n in places), f"repa-{'-'.join(map(str, places))}"]))


def check_arms(arms: Sequence[str]) -> None:
    """Raises Unsupported for an arm that is not known, or none to compare with."""
    unknown = [a for a in arms if parsed(a)[0] not in (*KNOWN, *ALONE) and not numbers_of(a)]
    hint = near(parsed(unknown[0])[0], (*KNOWN, *ALONE)) if unknown else ""
    if unknown or len(set(arms)) < 2 or "base" not in arms:
        raise Unsupported(
            f"arms are 'base' and at least one of {', '.join(KNOWN[1:])}, repa-4-8-12 (any layers), each, each-local, "
            f"or one of these with -again; got {', '.join(arms) or 'none'}{hint}"
        )


def expanded(arms: Sequence[str], layers: int, k: int) -> tuple[str, ...]:
    """The arms of a net of so many layers: `each` becomes one arm for each. Raises Unsupported where it has too few."""
    single: list[str] = []
    for arm in arms:
        name, again = parsed(arm)
        suffix = "" if not again else "-again" if again == 1 else f"-again{again}"
        single += [f"{name}-{n}{suffix}" for n in range(1, layers + 1)] if name in ALONE else [arm]
    for arm in single:
        name = parsed(arm)[0]
        wanted = max(numbers_of(arm), default=0 if name in ("base", "fixed", "fixed-self") else OTHER_K.get(name, k))
        if wanted > layers:
            what, instead = f"aligns {wanted} layers", "Leave the arm out"
            if numbers_of(arm):
                what = f"aligns layer {wanted}"
                instead = f"Type numbers up to {layers}; REPA's depths in this model are {', '.join(repa_arms(layers))}"
            elif name not in OTHER_K:
                instead = f"Type --k {layers}, or leave the arm out"
            raise Unsupported(f"arm {arm!r} {what}, and the model has {layers}. {instead}")
    return tuple(dict.fromkeys(single))


def probes_of(arms: Sequence[str]) -> tuple[str, ...]:
    """The probes that these arms choose by, or whose ranking their benefits are compared with."""
    alone = any(numbers_of(a) and a.startswith("each") for a in arms)
    wanted = {PROBE_OF[name] for a in arms if (name := parsed(a)[0]) in PROBE_OF}
    return tuple(sorted({"foga", *wanted, *(("lasp", "gradnorm") if alone else ())}))


def probe(
    name: str, flow: Flow, batches: Sequence[Any], teachers: Any, bitc: nn.Module | None, seed: int, *,
    center: bool = False,
) -> Scores:  # fmt: skip
    """The scores that an arm chooses from: foga, lasp (through BiT-C's heads where the widths allow) or gradnorm."""
    if name == "foga":
        return attribute(flow, list(batches), seed=seed, progress=False)
    if name == "gradnorm":
        return gradnorm(flow, list(batches), seed=seed)
    if isinstance(bitc, BiTC):
        try:
            return lasp(flow, list(batches), teachers, head=bitc, seed=seed, center=center, beside=())
        except ShapeMismatch:
            pass  # the interface is of another width than the layers: one ridge head is fitted instead
    return lasp(flow, list(batches), teachers, seed=seed, center=center, beside=("probe",))


def choose(
    arm: str, scores: Mapping[str, Scores], *, k: int, total: float, seed: int, fixed: Sequence[str] | None = None
) -> Selection | None:
    """The layers of an arm; None for base. `scores` holds "foga" (also for the names of the layers)."""
    arm = parsed(arm)[0]
    if arm == "base":
        return None
    known = scores["foga"]
    if numbers_of(arm) or arm.startswith("fixed"):
        names = [known.layers[n - 1] for n in numbers_of(arm)]
        names = names or list(fixed or [known.layers[math.ceil(len(known.layers) / 3) - 1]])
        return select(known, len(names), by=names, weighting="equal", total=total)
    if arm == "deep":
        return Selection.fixed(storage_band(scores["lasp"], k), total=total)
    if arm in ("shallow", "random"):
        return select(known, k, by=arm, weighting="equal", total=total, seed=seed)  # pyright: ignore[reportArgumentType]
    k = OTHER_K.get(arm, k)
    weighting = "normalized" if arm.startswith("foga") and arm != "foga-equal" else "equal"
    return select(scores[PROBE_OF[arm]], k, weighting=weighting, total=total)


def storage_band(storage: Scores, k: int) -> dict[str, list[str]]:
    """Domain → the k neighboring layers around the one that stores most, as the paper's deep baseline."""
    band: dict[str, list[str]] = {}
    for domain in storage.domain_names:
        peak = int(np.nanargmax(storage.mean(domain)))
        start = min(max(0, peak - k // 2), len(storage.layers) - k)
        band[domain] = list(storage.layers[start : start + k])
    return band


def options(arm: str, steps: int) -> dict[str, Any]:
    """What AGREPA is told besides the layers, in a run of so many steps after the branch."""
    arm = parsed(arm)[0]
    if arm == "foga-refresh":
        refresh = max(1, steps // 4)
        return {"refresh": refresh, "every": max(1, refresh // 4), "samples": 4}
    return {"local": True} if arm.startswith("each-local") else dict(OPTIONS.get(arm, {}))


def teachers_of(arm: str, teachers: Any) -> Any:
    """The task's teachers, or the model itself."""
    if parsed(arm)[0] not in ("foga-self", "fixed-self"):
        return teachers
    return {d: SelfTeacher() for d in teachers} if isinstance(teachers, Mapping) else SelfTeacher()
