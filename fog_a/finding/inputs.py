"""The inputs of a model, as one forward gave them."""

from __future__ import annotations

import inspect

from torch import nn

from fog_a.blocks.calls import named_modules
from fog_a.finding.trace import Trace


def model_inputs(module: nn.Module, trace: Trace) -> tuple[list[str], dict[int, int]]:
    """The names of the model's inputs, and for each of their values the bit of its name."""
    roots = [c for c in trace.calls[1:] if c.name == ""] or [trace.calls[c] for c in trace.calls[0].children]
    names: list[str] = []
    bits: dict[int, int] = {}
    for c in roots:
        order = _parameters(module, c.name)
        for path, v in c.inputs.items():
            name = str(path[1]) if path[0] == "kwargs" else order[path[1]] if path[1] < len(order) else f"arg{path[1]}"
            name = f"{c.name}.{name}" if c.name else name
            if name not in names:
                names.append(name)
            bits.setdefault(v, 1 << names.index(name))
    return names, bits


def _parameters(module: nn.Module, name: str) -> list[str]:
    try:
        signature = inspect.signature(named_modules(module)[name].forward)
    except (ValueError, TypeError):
        return []
    return [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
