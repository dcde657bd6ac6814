"""The networks that an object holds, where it is wrapped itself and no adapter knows it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fog_a.flows.network import arguments

CLOCKS = ("t", "time", "times", "timestep", "timesteps", "sigma")
"""Names that networks give to their time."""
DEPTH = 3
"""How many levels of modules are looked through."""


def networks_inside(model: Any) -> str:
    """What to type for the networks that an object holds; "" where it holds none with an argument for the time.

    >>> class Denoiser(nn.Module):
    ...     def forward(self, noisy, t): ...
    >>> class Trainer:
    ...     net = None
    >>> trainer = Trainer()
    >>> trainer.net = Denoiser()
    >>> networks_inside(trainer)[:67]
    ' It holds .net (Denoiser): type fog_a.wrap(model.net, x="noisy", t='
    """
    networks: dict[str, nn.Module] = {}
    for name, part in _parts(model).items():
        outer = any(name.startswith(f"{other}.") for other in networks)  # a network's blocks take the time too
        if not outer and set(CLOCKS) & set(arguments(part)):
            networks[name] = part
    if not networks:
        return ""
    (name, part), *_ = networks.items()
    clock = next(argument for argument in arguments(part) if argument in CLOCKS)
    x = next((argument for argument in arguments(part) if argument not in CLOCKS), "…")
    listed = ", ".join(f".{name} ({type(part).__name__})" for name, part in networks.items())
    text = f' It holds {listed}: type fog_a.wrap(model.{name}, x="{x}", t="{clock}").'
    if not isinstance(model, nn.Module):
        return text
    return text + (
        " To measure it in the model's own forward, with its noise and time: "
        f'fog_a.attribute(model, batch, forward=fog_a.output_of("{name}")).'
    )


def _parts(model: Any, depth: int = DEPTH) -> dict[str, nn.Module]:
    """The modules that an object holds, by dotted name: outer ones first, those inside them so many levels down."""
    if isinstance(model, nn.Module):
        held = dict(model.named_children())
    else:
        components = getattr(model, "components", None)  # of a pipeline
        attributes = components if isinstance(components, dict) else getattr(model, "__dict__", {})
        held = {name: part for name, part in attributes.items() if isinstance(part, nn.Module)}
    inner = [(name, _parts(part, depth - 1)) for name, part in held.items()] if depth > 1 else []
    return {**held, **{f"{name}.{below}": part for name, parts in inner for below, part in parts.items()}}
