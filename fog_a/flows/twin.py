"""The same flow around a copy of its model, such as an average of its weights."""

from __future__ import annotations

import copy

from torch import nn
from torch.optim.swa_utils import AveragedModel

from fog_a.blocks.calls import named_modules, unwrapped
from fog_a.errors import Unsupported
from fog_a.flows.flow import Flow


def twin(flow: Flow, model: nn.Module) -> Flow:
    """This flow with all that it reads of its model, or of its network, taken from a copy.

    Args:
        model: a deep copy of `flow.model` or `flow.module`, or torch's AveragedModel of either.

    Raises:
        Unsupported: its modules are others.
    """
    inner = unwrapped(model)
    inner = unwrapped(inner.module) if isinstance(inner, AveragedModel) else inner
    copies = named_modules(inner)
    for original in (flow.model, flow.module):
        if isinstance(original, nn.Module) and named_modules(original).keys() == copies.keys():
            memo = {id(module): copies[name] for name, module in named_modules(original).items()}
            return copy.deepcopy(flow, {**memo, id(original): inner})
    raise Unsupported(
        f"expected a copy of {type(flow.model).__name__} or of its network {type(flow.module).__name__}, got "
        f"{type(inner).__name__} with other modules. Type ema=copy.deepcopy(model), and average its weights in training"
    )
