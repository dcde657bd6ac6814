"""Which tensor of a bare module's output is measured, where the output is no single tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fog_a.errors import BadOutput
from fog_a.flows.batches import velocity_of


def measured(output: Any, rows: int | None) -> Tensor:
    """The tensor to measure, (B, …), of a batch of `rows` samples.

    A list with one tensor per sample is laid in one, padded with zeros; of a list of layers' outputs, all of as many
    samples, the last, which all layers reach, is taken; of anything else the first floating tensor.

    Raises:
        BadOutput: no floating tensor, or one whose samples are on another axis than the first.

    Example:
        >>> measured([torch.ones(3, 2), torch.ones(4, 2)], rows=2).shape
        torch.Size([2, 4, 2])
    """
    if isinstance(output, list) and len(output) > 1 and all(_floats(x) for x in output):
        shapes = {tuple(x.shape) for x in output}
        if len(output) == rows and any(shape[0] != rows for shape in shapes):
            return torch.nn.utils.rnn.pad_sequence(output, batch_first=True)
        if len(shapes) == 1 or {shape[0] for shape in shapes} == {rows}:
            return output[-1]
    v = velocity_of(output)
    if rows is not None and rows > 1 and v.ndim > 1 and v.shape[0] != rows and rows in v.shape[1:]:
        raise BadOutput(
            f"expected the samples on the first axis of the output, got {tuple(v.shape)} for a batch of {rows}. Pass "
            f"forward=lambda model, batch: model(batch).transpose(0, {list(v.shape).index(rows)})"
        )
    return v


def _floats(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0
