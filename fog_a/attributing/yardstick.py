"""What an ablation is measured by: Eq. 9 itself, the flow loss, or a function of the caller's.

relative   ‖v^{\\k} − v‖ / (‖v‖ + ε)
loss       ℓ(v^{\\k}) − ℓ(v),    ℓ(v) = mean (v − dx_t/dt)² over the entries of a sample that count
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.attributing.ways import FirstOrder, How
from fog_a.errors import BadArgument, BadOutput, ShapeMismatch, Unsupported, misfit
from fog_a.flows.case import Case, per_sample

EPS = 1e-8
"""ε of Eq. 9."""
Metric = Literal["loss"] | Callable[[Tensor, Tensor, Any], Any] | None
Measure = Callable[[Tensor, str], Float[np.ndarray, " B"]]
"""(v_k, the block's name) → one number per sample."""


def checked_metric(metric: Any, how: How) -> None:
    """BadArgument for anything that measures nothing, or that a first order cannot estimate."""
    if metric is not None and metric != "loss" and not callable(metric):
        raise BadArgument(
            f"expected metric=None, 'loss' or a function (v, v_k, batch) -> (B,), got {metric!r}. None is the relative "
            "change of the velocity"
        )
    if callable(metric) and (why := misfit(metric, 3)):
        raise BadArgument(f"expected metric= as a function (v, v_k, batch) -> (B,), got one that does not fit: {why}")
    if metric is not None and isinstance(how, FirstOrder):
        raise BadArgument("FirstOrder estimates the relative change of v alone. Leave metric= out, or how=")


def metric_name(metric: Metric) -> str:
    """How `info` and checkpoints call it."""
    if metric is None or isinstance(metric, str):
        return metric or "relative"
    return f"{getattr(metric, '__module__', '')}.{getattr(metric, '__qualname__', type(metric).__qualname__)}"


def metric_kind(metric: Metric) -> str:
    """The kind of the scores that it gives."""
    return "contribution" if metric is None else "loss" if metric == "loss" else "metric"


def yardstick(metric: Metric, case: Case, v: Tensor) -> Measure:
    """What measures the ablations of a case whose base velocity is v.

    Raises:
        Unsupported: a flow loss is asked for, and the flow tells no target.
    """
    keep = case.keep(v)
    if metric is None:
        return _relative(v, keep)
    if metric == "loss":
        return _loss(case, v, keep)

    def measure(v_k: Tensor, name: str) -> Float[np.ndarray, " B"]:
        check_shape(v_k, v)
        return _numbers(metric(v.clone(), v_k.clone(), case.batch), len(v), name)

    return measure


def _loss(case: Case, v: Tensor, keep: Tensor | None) -> Measure:
    if case.flow.override.forward is not None:
        raise Unsupported("metric='loss' and forward= exclude each other: what your forward is trained towards is not "
                          "known. Pass metric= a function (v, v_k, batch) -> (B,)")  # fmt: skip
    target = case.flow.target(case.batch, case.t, case.seed)
    if target.shape != v.shape:
        raise ShapeMismatch(
            f"expected target() of {type(case.flow).__name__} in the shape of v, {tuple(v.shape)}, got "
            f"{tuple(target.shape)}. Give dx_t/dt in the same axes"
        )
    aim = per_sample(target).to(v.device)
    count = aim.shape[1] if keep is None else keep.sum(1).clamp(min=1)

    def loss(v: Tensor) -> Tensor:
        error = (per_sample(v) - aim).double().square()
        return (error if keep is None else error.where(keep, 0.0)).sum(1) / count

    base = loss(v)

    def measure(v_k: Tensor, name: str) -> Float[np.ndarray, " B"]:
        check_shape(v_k, v)
        return (loss(v_k) - base).cpu().numpy()

    return measure


def _numbers(given: Any, count: int, name: str) -> Float[np.ndarray, " B"]:
    """What a metric gave, as one finite number per sample."""
    try:
        values = torch.as_tensor(given, device="cpu").detach()
        got = f"{tuple(values.shape)} of {values.dtype}"
    except (TypeError, ValueError, RuntimeError):  # no numbers
        values, got = None, repr(given)[:80]
    if values is None or values.is_complex() or values.ndim > 1 or values.numel() != count:
        raise BadArgument(
            f"expected metric= to return one number per sample, ({count},), got {got}. Take the mean over all axes but "
            "the first: .flatten(1).mean(1)"
        )
    values = values.reshape(count).double()
    if not bool(torch.isfinite(values).all()):
        raise BadOutput(
            f"metric= gave NaN or inf without {name}. A metric must be finite for every block: leave that block out "
            "with blocks=, or mend the metric (a division by zero, a logarithm of what is not positive)"
        )
    return values.numpy()


def _relative(v: Tensor, keep: Tensor | None) -> Measure:
    """‖v_k − v‖ / (‖v‖ + ε) over the entries that count; NaN where it is not finite, or v is zero there. It raises
    ShapeMismatch where the ablation changed the velocity's shape."""

    def counted(x: Tensor) -> Tensor:
        return x if keep is None else torch.where(keep, x, torch.zeros_like(x))

    plain = per_sample(v)
    base = norm(counted(plain))

    def measure(v_k: Tensor, name: str) -> Float[np.ndarray, " B"]:
        check_shape(v_k, v)
        return relative(norm(counted(per_sample(v_k) - plain)), base)

    return measure


def check_shape(v_k: Tensor, v: Tensor) -> None:
    """Raises ShapeMismatch where an ablation changed the velocity's shape."""
    if v_k.shape != v.shape:
        raise ShapeMismatch(
            f"an ablation changed the output's shape from {tuple(v.shape)} to {tuple(v_k.shape)}: its length depends "
            "on inner layers (durations, say). Fix the lengths in forward=, or score other blocks with blocks="
        )


def norm(x: Float[Tensor, "B n"]) -> Float[np.ndarray, " B"]:
    """‖x‖ of each row, in double precision: squares of float32 numbers overflow at 2e19 and vanish at 1e-23.

    >>> (norm(torch.tensor([[3e25, 4e25], [3e-25, 4e-25]])) * [1e-25, 1e25]).round(3)
    array([5., 5.])
    """
    largest = x.abs().amax(dim=1, keepdim=True)
    scaled = x / torch.where((largest > 0) & torch.isfinite(largest), largest, torch.ones_like(largest))
    return scaled.norm(dim=1).double().cpu().numpy() * largest[:, 0].double().cpu().numpy()


def relative(change: Float[np.ndarray, "..."], base: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """‖Δv‖ / (‖v‖ + ε); NaN where there is nothing to change, or the change is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        score = np.where(base > 0, change / (base + EPS), np.nan)
    return np.where(np.isfinite(score), score, np.nan)
