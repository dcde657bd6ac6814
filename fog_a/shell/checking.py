"""`fog-a check`: was the flow wrapped rightly?"""

from __future__ import annotations

from typing import Annotated

import typer

from fog_a.shell.options import Adapter, Batch, Device, Model, Option, Seed, Weights


def check(
    model: Model,
    batch: Batch,
    adapter: Adapter = None,
    option: Option = None,
    weights: Weights = None,
    device: Device = "cpu",
    samples: Annotated[int, typer.Option(help="at most so many samples of the batch")] = 16,
    seed: Seed = 0,
) -> None:
    """Which convention a wrapped flow fits, and what may mislead: padding, random numbers, masks."""
    import fog_a
    from fog_a.shell import arguments

    flow = arguments.model(model, adapter=adapter, options=option or (), weights=weights, device=device)
    typer.echo(str(fog_a.check(flow, arguments.batch(batch, device), samples=samples, seed=seed)))
