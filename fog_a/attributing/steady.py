"""Whether a case gives the same velocity again: state that moves between runs would be measured as a contribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fog_a.attributing.axes import alike
from fog_a.blocks.calls import watch
from fog_a.errors import Unsupported
from fog_a.flows.case import Case, fingerprint


def check_steady(case: Case, v: Tensor) -> None:
    """Run the base once more, after the ablations: it must be v, to the bit (on a GPU: up to the rounding of sums).

    Raises:
        Unsupported: it is not. The message names the first module that gives something else for the same inputs.
    """
    again = case.run()
    if again.shape == v.shape and (torch.equal(again, v) or (v.is_cuda and alike(again, v)) or _both_nan(again, v)):
        return
    raise Unsupported(
        f"the same batch gave another velocity after the ablations: {_moving(case) or 'the model'} keeps state "
        "between runs (a cache, a buffer, a generator of its own). Reset it in the model's forward, or in forward="
    )


def _both_nan(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def _moving(case: Case) -> str | None:
    """The first module, innermost first, whose outputs differ in two runs in which its inputs do not."""
    first, second = _calls(case), _calls(case)
    for (name, inputs, outputs), (_, same, others) in zip(first, second, strict=False):
        if inputs == same and outputs != others:
            return repr(name) if name else None
    return None


def _calls(case: Case) -> list[tuple[str, str, str]]:
    """Name, inputs and outputs of each module call of one run, in the order in which they end."""
    calls: list[tuple[str, str, str]] = []
    inputs: list[str] = []

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append(fingerprint((args, kwargs)))

    def leave(name: str, module: nn.Module, out: Any) -> None:
        calls.append((name, inputs.pop(), fingerprint(out)))

    with watch(case.module, enter, leave):
        case.run()
    return calls
