"""What the model is given: the names of its inputs, and which of them may be x_t."""

from __future__ import annotations

import inspect

from fog_a.finding.trace import Call, Trace


def model_inputs(trace: Trace) -> tuple[list[str], dict[int, int], int]:
    """The names of the model's inputs, for each of their values the bit of its name, and the bits of those that may be
    x_t: floating ones with the velocity's shape.

    Where a `forward` calls modules of the model one after the other, what it makes of the first ones' outputs is no
    input. What it reads itself in the velocity's shape is one, called `x_t` (`decoder(cat([x_t, text(c)]))`).
    """
    roots = [c for c in trace.calls[1:] if c.name == ""]
    modules = roots or [trace.calls[c] for c in trace.calls[0].children]
    computed = set[int]() if roots else {v for c in modules for v in c.outputs.values()}
    velocities = {v for v, value in enumerate(trace.values) if value.floating and value.shape == _shape(trace)}
    read, made = set[int](), set[int]()
    for op in () if roots else trace.ops:
        if not computed.isdisjoint(op.reads):
            computed.update(op.makes)
        read |= velocities.intersection(op.reads) - computed if op.call == 0 else set()
        made.update(op.makes if not (read | made).isdisjoint(op.reads) else ())
    bits: dict[int, int] = {}
    names: dict[str, int] = {}
    for c in modules:
        for name, v in _named(trace, c):
            if v not in computed:
                bits.setdefault(v, names.setdefault(name, 1 << len(names)))
    if x := read - bits.keys():
        bit = names.setdefault("x_t", 1 << len(names))
        bits |= {v: bits[v] | bit for v in made & bits.keys() - velocities} | dict.fromkeys(x, bit)
    target = 0
    for v in velocities & bits.keys():
        target |= bits[v]
    return list(names), bits, target


def _shape(trace: Trace) -> tuple[int, ...] | None:
    return None if trace.output is None else trace.values[trace.output].shape


def _named(trace: Trace, call: Call) -> list[tuple[str, int]]:
    """The inputs of a call, by the names that its module's `forward` gives them."""
    try:
        signature = inspect.signature(trace.modules[call.name].forward)
        order = [
            p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (ValueError, TypeError):
        order = []
    found = []
    for path, v in call.inputs.items():
        key = path[1] if path[0] == "kwargs" or path[1] >= len(order) else order[path[1]]
        found.append((".".join(filter(None, [call.name, f"arg{key}" if isinstance(key, int) else str(key)])), v))
    return found
