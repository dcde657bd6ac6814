"""The networks that an object holds, where it is wrapped itself and no adapter knows it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fog_a.flows.network import arguments

CLOCKS = ("t", "time", "times", "timestep", "timesteps", "sigma")
"""Names that networks give to their time."""


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
    networks = {name: part for name, part in _parts(model).items() if set(CLOCKS) & set(arguments(part))}
    if not networks:
        return ""
    (name, part), *_ = networks.items()
    clock = next(argument for argument in arguments(part) if argument in CLOCKS)
    x = next((argument for argument in arguments(part) if argument not in CLOCKS), "…")
    listed = ", ".join(f".{name} ({type(part).__name__})" for name, part in networks.items())
    return (
        f' It holds {listed}: type fog_a.wrap(model.{name}, x="{x}", t="{clock}"). To measure it in the model\'s own '
        f'forward, with its noise and time: fog_a.attribute(model, batch, forward=fog_a.output_of("{name}")).'
    )


def _parts(model: Any) -> dict[str, nn.Module]:
    """The modules that an object holds as attributes; of a pipeline, its components."""
    if isinstance(model, nn.Module):
        return dict(model.named_children())
    components = getattr(model, "components", None)
    attributes = components if isinstance(components, dict) else getattr(model, "__dict__", {})
    return {name: part for name, part in attributes.items() if isinstance(part, nn.Module)}
