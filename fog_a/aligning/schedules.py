"""How the weight of the alignment changes: with the step, when it saturates, and with the flow time t.

A schedule maps the number of aligned steps so far (0 at the first) to a factor of every λ_k:

    constant 1 · linear max(0, 1 − s/N) · cosine ½(1 + cos πs/N) · stop 1 while s < N (HASTE) · saturated: 1 until the
    similarity's moving average no longer grows

A time weight maps t (0 noise, 1 data) to a factor of each sample's term. On the linear path
x_t = (1 − t) x₀ + t x₁ with x₀ ~ N(0, σ²), log SNR = 2 log(t / ((1 − t) σ)), and TARO's sigmoid(log SNR) is
t² / (t² + σ²(1 − t)²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadBatch, ShapeMismatch, Unsupported

Kind = Literal["constant", "linear", "cosine", "stop", "saturated"]


@dataclass(frozen=True)
class Schedule:
    """The factor of every λ_k after `step` aligned steps: in [0, 1], 0 from the end on.

    Args:
        kind: "constant", "linear", "cosine", "stop" or "saturated".
        steps: N above; for "saturated" how many steps without growth end it (patience).
        growth: for "saturated": how much the moving average of the cosine must grow to count.
        decay: for "saturated": of that moving average.

    Example:
        >>> [round(Schedule("cosine", 4)(s), 3) for s in (0, 2, 4, 5)]
        [1.0, 0.5, 0.0, 0.0]
    """

    kind: Kind = "constant"
    steps: int = 0
    growth: float = 1e-3
    decay: float = 0.99

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise Unsupported(
                f"schedule {self.kind!r}: take 'constant', or Schedule(kind, steps) with kind 'linear', 'cosine', "
                "'stop' or 'saturated'"
            )
        if self.kind != "constant" and self.steps < 1:
            raise Unsupported(f"schedule {self.kind!r} needs a length: Schedule({self.kind!r}, steps=10_000)")

    def __call__(self, step: int) -> float:
        if self.kind in ("constant", "saturated"):
            return 1.0
        if step >= self.steps:
            return 0.0
        if self.kind == "linear":
            return 1.0 - step / self.steps
        return 0.5 * (1.0 + math.cos(math.pi * step / self.steps)) if self.kind == "cosine" else 1.0


@dataclass
class Plateau:
    """Whether the alignment has saturated: its similarity's moving average has not grown for `schedule.steps` steps."""

    schedule: Schedule
    average: float | None = None
    best: float = -math.inf
    since: int = 0
    reached: bool = False

    def update(self, similarity: float) -> None:
        """Take the similarity (mean cosine, the same on every rank) of one more aligned step."""
        if self.reached or math.isnan(similarity):
            return
        d = self.schedule.decay
        self.average = similarity if self.average is None else d * self.average + (1 - d) * similarity
        self.since += 1
        if self.average > self.best + self.schedule.growth:
            self.best, self.since = self.average, 0
        self.reached = self.since >= self.schedule.steps

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain numbers."""
        return {name: value for name, value in vars(self).items() if name != "schedule"}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        vars(self).update(state)


def flow_times(t: Tensor | None, count: int) -> Float[Tensor, "B"]:
    """The flow times of `count` samples, in float32.

    Raises BadBatch where there are none or one lies outside [0, 1], ShapeMismatch for another number of times.

    >>> flow_times(torch.tensor(0.5), 2).tolist()
    [0.5, 0.5]
    """
    if t is None:
        raise BadBatch(
            "time_weight=, heads by flow time and SelfTeacher(ema=) need this batch's flow times, and the adapter "
            "names no argument of the network that holds them: type reg(batch, t=t)"
        )
    t = t.detach().float().reshape(-1)
    if t.numel() not in (1, count):
        raise ShapeMismatch(f"t has {t.numel()} values for {count} samples: pass the (B,) that the forward got")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise BadBatch(
            f"flow times must lie in [0, 1], 0 noise and 1 data; got {float(t.min()):g} to {float(t.max()):g}. Where "
            "the network counts otherwise, type fog_a.wrap(..., time=lambda t: 1 - t), or pass them: reg(batch, t=t)"
        )
    return t.expand(count)


@dataclass(frozen=True)
class TimeWeight:
    """The factor of a sample's term at its flow time: "snr" (TARO), "hard" (t ≥ τ) or "soft" (sigmoid(κ(t − τ))).

    Example:
        >>> TimeWeight("snr", sigma=1.0)(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """

    kind: Literal["snr", "hard", "soft"] = "snr"
    sigma: float = 0.5
    tau: float = 0.7
    kappa: float = 20.0

    def __post_init__(self) -> None:
        if self.kind not in ("snr", "hard", "soft"):
            raise Unsupported(f"time weight {self.kind!r}: take 'snr', 'hard' or 'soft'")

    def __call__(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        if self.kind == "snr":
            return t**2 / (t**2 + (self.sigma * (1 - t)) ** 2)
        if self.kind == "hard":
            return (t >= self.tau).to(t.dtype)
        return torch.sigmoid(self.kappa * (t - self.tau))
