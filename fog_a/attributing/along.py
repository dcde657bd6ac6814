"""Attribution along a sampled trajectory: at the x_t that the user's own sampler comes to, guided or not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fog_a.blocks.calls import hooked
from fog_a.blocks.tree import leaves, replaced
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadArgument, BadBatch, is_whole, misfit
from fog_a.flows.batches import velocity_of
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow
from fog_a.flows.network import argument, arguments
from fog_a.flows.samples import Inputs, Samples


@dataclass(frozen=True)
class Along:
    """`times=` of `attribute`: the steps of a sampled trajectory, in place of x_t that is made of data.

    The sampler runs once for each batch, as it is. What it calls the velocity network with is noted, and v is what the
    network gives out there: its own output, or what `combine` makes of the outputs of one step.

    Args:
        sampler: `sampler(model, batch)` or `sampler(model, batch, steps)`: your sampling loop, with guidance or
            without. What it returns is not used.
        steps: how many steps it takes; each becomes a time of the scores.
        combine: `combine(*outputs) -> v` of the network's calls in one step, (B, ...): guidance that runs the network
            twice, or on a doubled batch. None: one call a step, on the batch's samples.

    Raises:
        BadArgument: a sampler that is no function, less than one step.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        ...     def forward(self, x):
        ...         return x + self.f(x)
        >>> net = nn.Sequential(Residual(), Residual())
        >>> def euler(net, x, steps):
        ...     for _ in range(steps):
        ...         x = x + net(x) / steps
        >>> fog_a.attribute(net, torch.randn(2, 4), times=fog_a.Along(euler, 3)).times
        (0.0, 0.3333333333333333, 0.6666666666666666)
    """

    sampler: Callable[..., Any]
    steps: int
    combine: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        why = misfit(self.sampler, 2 + _takes_steps(self.sampler)) if callable(self.sampler) else "no function"
        if why or not (self.combine is None or callable(self.combine)):
            raise BadArgument(
                f"expected Along(sampler, steps) with a function sampler(model, batch) or (model, batch, steps), got "
                f"{self.sampler!r:.60} ({why or f'combine={self.combine!r:.60}'})"
            )
        if not is_whole(self.steps) or self.steps < 1:
            raise BadArgument(f"expected Along(steps=) as a number of steps, 1 or more, got {self.steps!r}")

    def cases(self, flow: Flow, batch: Any, seed: int, start: int) -> tuple[list[Case], tuple[float, ...]]:
        """One case for each step, and their times."""
        if flow.override.forward is not None:
            raise BadArgument("times=Along(...) runs your own sampler: leave forward= out")
        per_step = self._steps(flow, batch, seed)
        twin = _Trajectory(flow, self, batch)
        times = tuple(time_of(flow, calls[0], j / self.steps) for j, calls in enumerate(per_step))
        calls = [Inputs(*((c.args, c.kwargs) for c in step)) for step in per_step]
        return [Case(twin, c, t, seed, start) for c, t in zip(calls, times, strict=True)], times

    def _steps(self, flow: Flow, batch: Any, seed: int) -> list[list[Inputs]]:
        """What the network was called with in each step."""
        calls: list[Inputs] = []

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            both = {"args": args, "kwargs": kwargs}
            copies = replaced(both, {path: x.detach().clone() for path, x in leaves(both)})
            calls.append(Inputs(*copies["args"], **copies["kwargs"]))

        with preserved(*flow.modules, seed=seed), hooked(flow.module, before=before):
            self.sampler(*(flow.model, batch, int(self.steps))[: 3 if _takes_steps(self.sampler) else 2])
        each, rest = divmod(len(calls), self.steps)
        if rest or not each:
            raise BadBatch(
                f"expected the sampler to call the network as often in each of {self.steps} steps, got {len(calls)} "
                "calls. Give steps= as many as it takes, and leave corrections at its end out"
            )
        if misfit(self.combine or (lambda v: v), each):
            raise BadArgument(
                f"the sampler calls the network {each} times in a step, and combine= must make v of as many outputs. "
                "For two type Along(sampler, steps, combine=lambda cond, uncond: uncond + scale * (cond - uncond))"
            )
        return [calls[i : i + each] for i in range(0, len(calls), each)]


class _Trajectory(Flow):
    """A flow whose batches are calls of its network."""

    def __init__(self, flow: Flow, along: Along, batch: Any) -> None:
        self.flow, self.along, self.whole = flow, along, batch
        self.model, self.module, self.t, self.override = flow.model, flow.module, flow.t, flow.override

    def velocity(self, batch: Any, t: Any, seed: int = 0) -> Tensor:
        outs = [velocity_of(self.module(*args, **kwargs)) for args, kwargs in batch.args]
        v = outs[0] if self.along.combine is None else self.along.combine(*outs)
        if isinstance(v, Tensor):
            return v
        raise BadArgument(f"expected combine= to return v, a tensor (B, ...), got {type(v).__name__}")

    def target(self, batch: Any, t: Any, seed: int = 0) -> Tensor:
        raise BadArgument(
            "metric='loss' needs x_t made of data, and times=Along(...) takes what the sampler comes to. Leave one out"
        )

    def samples(self, batch: Any) -> Samples:
        return self.flow.samples(self.whole)

    def _samples_of(self, batch: Any, shape: Sequence[int], start: int) -> Samples:
        count = len(self.flow.samples(self.whole))
        if count != shape[0]:
            raise BadBatch(
                f"the sampler runs the network on {shape[0]} rows for {count} samples: guidance on a doubled "
                "batch? Say how it makes v: Along(sampler, steps, combine=lambda v: ...)"
            )
        return self.flow._samples_of(self.whole, shape, start)


def _takes_steps(sampler: Any) -> bool:
    """Whether its third argument is the number of steps: one without a default, or of such a name; not a seed."""
    try:
        third = [p for p in inspect.signature(sampler).parameters.values() if p.kind is not p.KEYWORD_ONLY][2:3]
    except (TypeError, ValueError):  # built in: it has no signature
        return False
    return any(p.kind is not p.VAR_KEYWORD and (p.default is p.empty or "step" in p.name) for p in third)


def time_of(flow: Flow, call: Inputs, otherwise: float) -> float:
    """The flow's t of a call, from the network's own argument where that is known."""
    tau = None if flow.t is None else argument(arguments(flow.module), call.args, call.kwargs, flow.t)
    return otherwise if tau is None else float(flow.flow_time(torch.as_tensor(tau).reshape(-1)[:1].double())[0])


Times = int | Sequence[float] | Along | None


def count(flow: Flow, times: Times) -> int:
    """How many times are measured. Raises BadBatch for times that the flow does not have, BadArgument for a sampler."""
    if callable(times):
        raise BadArgument(f"expected times= as numbers, got {times!r:.60}. Type times=fog_a.Along(sampler, steps)")
    return times.steps if isinstance(times, Along) else len(flow.grid(times))


def cases_of(
    flow: Flow, batch: Any, times: Times, seed: int, start: int = 0
) -> tuple[list[Case], tuple[float | None, ...]]:
    """One case at each time, with the times.

    Args:
        seed: of the first case; the others have the next ones. A sampler's noise has it too.
        start: the number of samples before this batch.
    """
    if isinstance(times, Along):
        return times.cases(flow, batch, seed, start)
    grid = flow.grid(times)
    return [Case(flow, batch, t, seed + j, start) for j, t in enumerate(grid)], grid
