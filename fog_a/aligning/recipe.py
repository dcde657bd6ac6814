"""Recipe: every choice that AG-REPA leaves open, with the default of each."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fog_a.aligning.heads import HeadFactory, mlp
from fog_a.aligning.schedules import Schedule, TimeWeight
from fog_a.errors import Unsupported
from fog_a.scores.selection import Weighting

By = Literal["top", "bottom", "random", "shallow", "deep"]


class RecipeOptions(TypedDict, total=False):
    """The recipe as keywords of `AGREPA`, for editors and type checkers; `Recipe` says what each one means."""

    k: int
    by: By
    weighting: Weighting
    total: float
    warmup: int
    every: int
    samples: int
    refresh: int | None
    seed: int
    accumulation: int
    head: HeadFactory
    schedule: Schedule
    time_weight: TimeWeight | None
    center: bool


class Recipe(BaseModel):
    """The options of `AGREPA`, checked.

    Example:
        >>> Recipe(k=2).warmup
        5000
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    k: Annotated[int, Field(ge=1)] = 3
    """Layers per domain (K)."""
    by: By = "top"
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

    head: HeadFactory = mlp
    """Makes a head φ_k: see `fog_a.aligning.heads`."""
    schedule: Schedule = Schedule("constant")
    """How λ changes with the step."""
    time_weight: TimeWeight | None = None
    """How a sample's term is weighted by its flow time."""
    center: bool = False
    """Take the mean of a teacher's features over the training away from them: what is left tells samples apart."""

    @field_validator("head", mode="before")
    @classmethod
    def _is_factory(cls, head: Any) -> Any:
        if not callable(head):
            raise ValueError("expected a factory (width, dim) -> nn.Module. Type head=fog_a.aligning.heads.mlp")
        return head


def recipe(**options: Any) -> Recipe:
    """The defaults, changed by options. Raises Unsupported naming what does not fit.

    Example:
        >>> recipe(k=2).k, recipe().k
        (2, 3)
    """
    unknown = [name for name in options if name not in Recipe.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], Recipe.model_fields, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(Recipe.model_fields)}"
        raise Unsupported(f"AGREPA has no option {unknown[0]!r}{hint}")
    try:
        return Recipe(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Unsupported(f"AGREPA option {name}={first.get('input')!r}: {first['msg']}") from None
