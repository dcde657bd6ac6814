"""What every kind of Scores carries in `info`: of which model, how, and with which versions it was measured."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
from torch import nn

from fog_a.blocks.block import Blocks
from fog_a.flows.flow import Flow


def provenance(flow: Flow, blocks: Blocks, seed: int, **more: Any) -> dict[str, Any]:
    """What repeats a measurement of these blocks; `more`: what only this kind of scores has."""
    import fog_a

    time = flow.network_time
    return {
        "signature": signature(blocks.model, blocks),
        "seed": seed,
        **({} if time is None else {"network_time": time}),
        "versions": {
            "fog_a": fog_a.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **more,
    }


def signature(model: nn.Module, blocks: Blocks) -> dict[str, Any]:
    """What tells one model's scores from another's: class, block names, number of parameters."""
    kind = type(model)
    if any(base.__name__ == "FSDPModule" for base in kind.__bases__):
        kind = kind.__bases__[-1]  # FSDP2 makes a class FSDPNet of Net: not another model
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "blocks": list(blocks.names),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
