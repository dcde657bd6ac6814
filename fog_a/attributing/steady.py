"""What the base shows: run first and last it gives the same bits, or some module keeps state and is named; samples are
on the axis along which a row alone gives what it gives among the others.
"""

from __future__ import annotations

from torch import Tensor

from fog_a.attributing.axes import alike
from fog_a.blocks.calls import watch
from fog_a.errors import BadOutput, NotResidual, Unsupported
from fog_a.flows.case import Case, fingerprint, narrowed, same_bits

FAILURES = (
    RuntimeError, IndexError, KeyError, TypeError, ValueError, AttributeError, AssertionError, NotResidual,
)  # fmt: skip
"""What a model may raise on a batch of another size than its own; any other exception is the user's."""


def check_steady(case: Case, v: Tensor) -> None:
    """Run the base once more, after the ablations: it must be v, to the bit (on a GPU: up to the rounding of sums).
    Raises Unsupported if not, with the name of the first module that gives something else for the same inputs."""
    again = case.run()
    if same_bits(again, v) or (v.is_cuda and alike(again, v)):
        return
    raise Unsupported(
        f"the same batch gave another velocity after the ablations: {_moving(case) or 'the model'} keeps state "
        "between runs (a cache, a buffer, a generator of its own). Reset it in the model's forward, or in forward="
    )


def _moving(case: Case) -> str | None:
    """The first module, innermost first, whose outputs differ in two runs in which its inputs do not."""
    for (name, inputs, outputs), (_, same, others) in zip(_calls(case), _calls(case), strict=False):
        if inputs == same and outputs != others:
            return repr(name) if name else None
    return None


def _calls(case: Case) -> list[tuple[str, str, str]]:
    """Name, inputs and outputs of each module call of one run, in the order in which they end."""
    calls, inputs = list[tuple[str, str, str]](), list[str]()
    with watch(
        case.module,
        lambda name, module, args, kwargs: inputs.append(fingerprint((args, kwargs))),
        lambda name, module, out: calls.append((name, inputs.pop(), fingerprint(out))),
    ):
        case.run()
    return calls


def check_samples_first(case: Case, v: Tensor) -> None:
    """Raises BadOutput where a bare module's rows depend on each other along the first axis of batch and output, and do
    not along the second: time comes first, then."""
    bare = case.flow.timeless is not None and case.flow.override.forward is None
    if bare and v.ndim > 2 and 1 not in v.shape[:2] and _alone(case, v, 0) is False and _alone(case, v, 1):
        raise BadOutput(
            f"expected the samples on the first axis of the output, got time: of {tuple(v.shape)} a row of the first "
            "axis depends on the others, and one of the second axis does not. Pass forward=lambda model, batch: "
            "model(batch).transpose(0, 1); if the samples do come first, forward=lambda model, batch: model(batch)"
        )


def _alone(case: Case, v: Tensor, axis: int) -> bool | None:
    """Whether the first row gives the same alone; None: the model does not take it alone."""
    try:
        one = Case(case.flow, narrowed(case.batch, axis, v.shape[axis]), case.t, case.seed, closed=case.closed).run()
    except FAILURES:
        return None
    return alike(one.nan_to_num(), v.narrow(axis, 0, 1).nan_to_num())
