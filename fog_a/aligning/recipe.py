"""Recipe: every choice that AG-REPA leaves open, with the default of each, and the two published settings by name.

`preset="paper"` is what the paper states, `preset="release"` what its authors' code does; each deviation from the
default is one option, so that it can be undone or taken alone.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fog_a.aligning.schedules import Schedule, TimeWeight
from fog_a.errors import Unsupported
from fog_a.scores.selection import Weighting
from fog_a.teachers.descriptors import Norm

PRESETS: dict[str, dict[str, Any]] = {
    # 25 probes of 12 of 24 layers in turn, on one sample per domain (SPEC §5); λ_k ∝ FoG-A_k.
    "paper": {"samples": 1, "probe_layers": "alternate"},
    # As coded: every second layer only, the clean mel as x_t at t = 0.8, in train mode, RMS norms, λ = 2·FoG-A,
    # L2-normalised descriptors, and every domain weighted by its share of the batch.
    "release": {
        "samples": 1,
        "probe_layers": "even",
        "probe_input": "clean",
        "probe_time": 0.8,
        "probe_mode": "train",
        "probe_norm": "rms",
        "weighting": "proportional",
        "total": 2.0,
        "descriptor": "l2",
        "reduction": "release",
    },
}


class Recipe(BaseModel):
    """The options of `AGREPA`, validated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: Annotated[int, Field(ge=1)] = 3
    """Layers per domain (K)."""
    by: Literal["top", "random", "shallow", "deep"] = "top"
    """How they are chosen from the probes' scores."""
    weighting: Weighting = "normalized"
    total: Annotated[float, Field(ge=0)] = 0.5
    """λ of Eq. 11: `total` is their sum ("normalized", "equal") or the factor of the score ("proportional")."""

    warmup: Annotated[int, Field(ge=1)] = 5000
    """Optimizer steps before the choice."""
    every: Annotated[int, Field(ge=1)] = 200
    """Steps from probe to probe."""
    samples: Annotated[int, Field(ge=1)] = 2
    """Samples per domain and probe, each at its own stratified t."""
    refresh: Annotated[int | None, Field(ge=1)] = None
    """Choose anew every so many steps, from the probes since the last choice; None: once."""
    seed: int = 0
    """Of the probes' noise and times and of the heads' first values; apart from the training's random numbers."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """How many calls make one optimizer step."""

    probe_layers: Literal["all", "alternate", "even"] = "all"
    """Which layers a probe measures: all; one half and the other in turn; or 0, 2, 4, … only."""
    probe_input: Literal["noisy", "clean"] = "noisy"
    """x_t, or the clean data in its place (needs an adapter whose `velocity` takes `clean=True`)."""
    probe_time: Annotated[float | None, Field(ge=0, le=1)] = None
    """One t for every probe; None: stratified over [0, 1]."""
    probe_mode: Literal["eval", "train"] = "eval"
    probe_norm: Literal["l2", "rms"] = "l2"
    """‖v_k − v‖/(‖v‖ + 1e-8); "rms": root mean squares, each with 1e-8 under the root."""

    head: Literal["mlp", "linear", "conv1d", "conv2d"] = "mlp"
    hidden: Annotated[int | None, Field(ge=1)] = None
    """Width inside a head; None: the stream's (0.18 M parameters, as in Table 11, take about 96)."""
    grid: Annotated[int, Field(ge=1)] = 1
    """Columns of the token grid for conv2d heads."""
    descriptor: Norm = "layer"
    targets: Literal["pooled", "tokens"] = "pooled"
    """Compare one vector per sample, or token by token with the teacher's frames resampled to the layer's."""
    loss: Literal["cosine", "negative_cosine"] = "cosine"
    """1 − cos, or −cos: the same gradients."""
    reduction: Literal["domain", "release"] = "domain"
    """Mean over each domain's samples, domains summed; "release": sum over samples / batch size."""

    schedule: Schedule = Schedule("constant")
    time_weight: TimeWeight | None = None
    time_bins: Annotated[int, Field(ge=1)] = 1
    """Heads per slot, one for each of so many equal parts of [0, 1] in t (Table 9)."""

    @property
    def needs_time(self) -> bool:
        return self.time_weight is not None or self.time_bins > 1


def recipe(preset: str | None = None, **options: Any) -> Recipe:
    """The defaults, changed by a preset, changed by options. Raises Unsupported naming what does not fit.

    Example:
        >>> recipe("paper", k=2).samples, recipe(k=2).samples
        (1, 2)
    """
    if preset is not None and preset not in PRESETS:
        raise Unsupported(f"preset {preset!r}: take one of {', '.join(PRESETS)}, or None")
    if isinstance(options.get("schedule"), str):
        options["schedule"] = Schedule(options["schedule"])
    if isinstance(options.get("time_weight"), str):
        options["time_weight"] = TimeWeight(options["time_weight"])
    unknown = [name for name in options if name not in Recipe.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], Recipe.model_fields, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(Recipe.model_fields)}"
        raise Unsupported(f"AGREPA has no option {unknown[0]!r}{hint}")
    try:
        return Recipe(**{**PRESETS.get(preset or "", {}), **options})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Unsupported(f"AGREPA option {name}={first.get('input')!r}: {first['msg']}") from None
