"""What is compared, and how: a `Task` (any flow, its data, its teachers) and a `Plan` (arms, seeds, steps)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fog_a.errors import Unsupported
from fog_a.flows.flow import Flow
from fog_a_adapters.compare.arms import ARMS


@dataclass(frozen=True)
class Task:
    """What is compared on: any wrapped flow, its data and its teachers.

    Attributes:
        name: for the report.
        build: seed → a new wrapped model; its weights are a function of the seed.
        batch: (seed, step) → training batch; the same for all arms.
        held_out: batches for measuring.
        probe: batches of training clips for choosing layers.
        teachers: domain → teacher, or one, as `AGREPA` takes them.
        distance: flow → Fréchet distance per domain, or None: not measured (an adapter has no sampler).
        losses: (flow, draws) → held-out loss per domain; None: the model's own loss on `draws` noises and times of each
            held-out batch.
        done: (arm, seed, trained flow) → further metrics, or None. It may write what it likes: samples, weights.
        facts: what the report tells of data and model.
    """

    name: str
    build: Callable[[int], Flow]
    batch: Callable[[int, int], Any]
    held_out: Sequence[Any]
    probe: Sequence[Any]
    teachers: Any
    distance: Callable[[Flow], dict[str, float]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    losses: Callable[[Flow, int], dict[str, float]] | None = None
    done: Callable[[str, int, Flow], dict[str, float]] | None = None


@dataclass(frozen=True)
class Plan:
    """How they are compared; what an `out` folder was begun with, it must go on with.

    Raises Unsupported for numbers with which nothing is trained or compared.

    Attributes:
        arms: "base" and others; `fog_a_adapters.compare.arms` lists them.
        seeds: at least two for any interval, at least three to be taken seriously.
        warmup, steps: before and after the branch.
        k, total: layers per domain, and the sum λ of their weights.
        lr, weight_decay: of AdamW; peak of the schedule over warmup + steps.
        bitc: add L_BiT throughout, with this weight; 0 leaves it out.
        looks: how often the held-out loss is measured after the branch.
        draws: noises and times per held-out batch.
        timing: pairs of steps for the time of a step; 0 leaves it out.
        precision: "bf16": forwards in training run under torch.autocast; weights stay in single precision.
        reprobe: measure FoG-A again at every look of the base arm: does the choice hold (Table 7)?
        average: decay of an exponential average of the weights, on which the held-out loss is measured; 0: the last
            weights.
        frames: compare each token with the teacher's frame, as REPA does, not their means; arms that name a head of
            their own keep it.
        center: take the teachers' mean features away, in alignment and in LASP.
        fixed: layer names for the arm "fixed"; None: the one a third of the way.
    """

    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    warmup: int = 200
    steps: int = 300
    k: int = 3
    total: float = 0.5
    lr: float = 2e-3
    weight_decay: float = 0.1
    bitc: float = 0.5
    looks: int = 5
    draws: int = 8
    timing: int = 12
    precision: Literal["no", "bf16"] = "no"
    reprobe: bool = False
    average: float = 0.0
    frames: bool = False
    center: bool = False
    fixed: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        least = {"seeds": (len(self.seeds), 1), "warmup": (self.warmup, 0), "steps": (self.steps, 1), "k": (self.k, 1)}
        for name, (number, least_number) in least.items():
            if number < least_number:
                raise Unsupported(f"{name} is at least {least_number}, got {number}: type --{name} with another number")
