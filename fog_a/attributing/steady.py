"""What the base shows: run first and last it gives the same bits, or some module keeps state and is named; samples are
on the axis along which a row alone gives what it gives among the others.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable

from torch import Tensor, nn

from fog_a.attributing.axes import alike
from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import watch
from fog_a.blocks.tap import tap
from fog_a.errors import BadOutput, NotResidual, Unsupported
from fog_a.flows.case import Case, fingerprint, picked, same_bits

FAILURES = (
    RuntimeError, IndexError, KeyError, TypeError, ValueError, AttributeError, AssertionError, NotResidual,
)  # fmt: skip
"""What a model may raise on a batch of another size than its own; any other exception is the user's."""


SAMPLES_FIRST: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()
"""The ways to run a model on which time was looked for and samples were found."""


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


def check_samples_first(case: Case, blocks: Blocks, v: Tensor) -> None:
    """Raises BadOutput where time comes first: rows of a bare module depend on each other along the first axis of batch
    and output, and not along the second. Where its blocks do not mix them, it is statistics of the batch instead."""
    bare = case.flow.timeless is not None and case.flow.override.forward is None
    seen = SAMPLES_FIRST.setdefault(case.module, set())
    if not bare or v.ndim < 3 or len(v) == 1 or case.key in seen:
        return
    time_first = _alone(case, v, 0) is False and _alone(case, v, 1) and _mixing(case, blocks, len(v))
    if time_first and _alone(case, v, 0, len(v)) is False:  # as many rows: what is drawn for each is the same
        raise BadOutput(
            f"expected the samples on the first axis of the output, got time: of {tuple(v.shape)} a row of the first "
            "axis depends on the others, and one of the second axis does not. Pass forward=lambda model, batch: "
            "model(batch).transpose(0, 1); if the samples do come first, forward=lambda model, batch: model(batch)"
        )
    seen.add(case.key)


def _alone(case: Case, v: Tensor, axis: int, times: int = 1) -> bool | None:
    """Whether the first row gives the same alone, once or several times; None: the model does not take it alone, or
    something else that has all rows was not cut."""
    try:
        row = _first_row(case, axis, v.shape[axis], times).run()
    except FAILURES:
        return None
    return _same_row(row, v, axis) if row.shape[axis] == times else None


def _mixing(case: Case, blocks: Blocks, size: int) -> bool:
    """Whether what a block gives out for the first row depends on the other rows, or a block cannot be read."""
    outputs = []
    for part in (_first_row(case, 0, size), case):
        with tap(blocks) as h:
            part.run()
        outputs.append({b.name: h[b.name] for b in blocks if b.outputs})
    row, whole = outputs
    return len(row) < len(blocks) or not all(_same_row(h, whole[name], 0) for name, h in row.items())


def _first_row(case: Case, axis: int, size: int, times: int = 1) -> Case:
    return Case(case.flow, picked(case.batch, axis, size, [0] * times), case.t, case.seed, closed=case.closed)


def _same_row(row: Tensor, whole: Tensor, axis: int) -> bool:
    return alike(row.narrow(axis, 0, 1).nan_to_num(), whole.narrow(axis, 0, 1).nan_to_num())
