"""The options that commands of `fog-a` share: their types, names and help."""

from __future__ import annotations

import importlib.metadata
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Level(StrEnum):
    """How fine blocks are found."""

    layer = "layer"
    branch = "branch"


class How(StrEnum):
    """How ablations are run."""

    auto = "auto"
    loop = "loop"
    shared = "shared"
    first_order = "first-order"
    nnsight = "nnsight"


class Until(StrEnum):
    """When to stop drawing batches."""

    settled = "settled"


class Picture(StrEnum):
    """What `fog-a plot` draws."""

    auto = "auto"
    scores = "scores"
    scd = "scd"
    scatter = "scatter"
    time = "time"
    depth = "depth"
    stability = "stability"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fog-a {importlib.metadata.version('fog-a')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show it and exit")]
Model = Annotated[str, typer.Option(help="package.module:factory without arguments; gives an nn.Module or a Flow")]
Batch = Annotated[str, typer.Option(help="a file of tensors (.pt, .safetensors), or module:factory")]
Adapter = Annotated[str | None, typer.Option(help="wrap the model: a registered name, module:Class, or auto")]
Option = Annotated[list[str] | None, typer.Option(help="name=value for the adapter, e.g. x=hidden_states; repeatable")]
Weights = Annotated[Path | None, typer.Option(help="state dict to load into the model (.pt, .safetensors)")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
Times = Annotated[str | None, typer.Option(help="flow times: a number of midpoints (8) or a list (0.2,0.5)")]
Seed = Annotated[int, typer.Option(help="of every random number that is drawn")]
Out = Annotated[Path, typer.Option(help="folder for the files that are written")]
K = Annotated[int, typer.Option("--k", help="how many of the best layers are shown")]
Files = Annotated[list[Path], typer.Argument(help="scores files (JSON)")]
Blocked = Annotated[list[str] | None, typer.Option("--block", help="score only this block; repeatable")]
LevelOption = Annotated[Level, typer.Option(help="whole layers, or their branches (attention, feed-forward, …)")]
HowOption = Annotated[How, typer.Option("--how", help="ablate (all but first-order, which estimates), and how")]
Data = Annotated[Path | None, typer.Option(help="folder with manifest.csv; default: the packaged clips")]
Steps = Annotated[int | None, typer.Option(help="training steps")]
Layers = Annotated[int | None, typer.Option(help="depth of the model")]
Dim = Annotated[int | None, typer.Option(help="width of the model")]
Closed = Annotated[list[str] | None, typer.Option(help="a block that is closed throughout; may be repeated")]
Output = Annotated[str | None, typer.Option(help="module whose output is the velocity, where the model's is not")]
Rows = Annotated[int | None, typer.Option(help="--how shared: most rows (samples × variants) in one forward")]
Memory = Annotated[str | None, typer.Option(help="--how shared: memory beyond the plain forward, e.g. 2GiB")]
Projections = Annotated[int | None, typer.Option(help="--how first-order: how many backward passes")]
UntilOption = Annotated[Until | None, typer.Option("--until", help="draw batches until the best --k layers are sure")]
Confidence = Annotated[float | None, typer.Option(help="--until settled: how sure, e.g. 0.95")]
Looks = Annotated[int | None, typer.Option(help="--until settled: at most so many batches")]
Checkpoint = Annotated[Path | None, typer.Option(help="folder that keeps finished cells, to go on after a stop")]
PictureOut = Annotated[Path | None, typer.Option(help="picture (.png, .svg, .pdf); default: beside the first file")]
Kind = Annotated[Picture, typer.Option("--kind", help="auto: scd for storage + contribution, else scores")]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arms", "--arm", help="with commas: each,each-local,foga,repa-4-8-12,foga-again, … (base is always run)"
    ),
]
CompareOut = Annotated[Path | None, typer.Option(help="folder; a killed run goes on there")]
