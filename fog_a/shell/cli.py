"""`fog-a`: find blocks, attribute, probe, draw, from the shell. Each command imports what is heavy when it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from fog_a.errors import MissingDependency, Unsupported
from fog_a.shell import running
from fog_a.shell.command import Source, app, command
from fog_a.shell.running import bundled, ranks

if TYPE_CHECKING:
    from fog_a.scores.scores import Scores

Times = Annotated[str | None, Option(help="flow times: a number of midpoints (8) or a list (0.2,0.5)")]
Blocked = Annotated[list[str] | None, Option("--block", help="score only this block; repeatable")]
Level = Annotated[
    Literal["layer", "branch"], Option(help="whole layers, or their branches (attention, feed-forward, …)")
]
Seed = Annotated[int, Option(help="of every random number that is drawn")]
K = Annotated[int, Option("--k", help="how many of the best layers are shown")]
Out = Annotated[Path, Option(help="folder for the files that are written")]
Files = Annotated[list[Path], typer.Argument(help="scores files (JSON)")]
Data = Annotated[Path | None, Option(help="folder with manifest.csv; default: the packaged clips")]
Steps = Annotated[int | None, Option(help="training steps")]
Layers = Annotated[int | None, Option(help="depth of the model")]
Dim = Annotated[int | None, Option(help="width of the model")]


@command
def check_command(
    source: Source,
    samples: Annotated[int, Option(help="at most so many samples of the batch")] = 16,
    seed: Seed = 0,
) -> None:
    """Which convention a wrapped flow fits, and what may mislead: padding, random numbers, masks."""
    import fog_a

    typer.echo(str(fog_a.check(*source.opened(), samples=samples, seed=seed)))


@command
def blocks_command(
    source: Source,
    level: Level = "layer",
    include: Annotated[list[str] | None, Option(help="glob over block names; repeatable")] = None,
) -> None:
    """List the residual blocks, a table for each stack."""
    import fog_a
    from fog_a.shell.tree import tree

    model, batch = source.opened()
    found = fog_a.find_blocks(model, batch, level=level, include=include or None)
    typer.echo(f"{tree(found)}\n{found.coverage}")


@command
def attribute_command(
    source: Source,
    times: Times = None,
    level: Level = "layer",
    block: Blocked = None,
    closed: Annotated[list[str] | None, Option(help="a block that is closed throughout; repeatable")] = None,
    output: Annotated[str | None, Option(help="module whose output is the velocity, where the model's is not")] = None,
    metric: Annotated[str | None, Option(help="loss, or module:function(v, v_k, batch); default: ‖Δv‖/‖v‖")] = None,
    seed: Seed = 0,
    how: Annotated[
        Literal["auto", "loop", "shared", "first-order", "nnsight"],
        Option(help="ablate (all but first-order, which estimates), and how"),
    ] = "auto",
    rows: Annotated[int | None, Option(help="--how shared: most rows (samples × variants) in one forward")] = None,
    memory: Annotated[str | None, Option(help="--how shared: memory beyond the plain forward, e.g. 2GiB")] = None,
    projections: Annotated[int | None, Option(help="--how first-order: how many backward passes")] = None,
    until: Annotated[Literal["settled"] | None, Option(help="draw batches until the best --k layers are sure")] = None,
    confidence: Annotated[float | None, Option(help="--until settled: how sure, e.g. 0.95")] = None,
    looks: Annotated[int | None, Option(help="--until settled: at most so many batches")] = None,
    checkpoint: Annotated[Path | None, Option(help="folder that keeps finished cells, to go on after a stop")] = None,
    out: Out = Path("out/foga"),
    k: K = 3,
) -> None:
    """FoG-A: how far the velocity moves without each block. Prints a table; writes foga.json, foga.csv, foga.png."""
    import fog_a
    from fog_a.shell import arguments

    wanted = {
        "times": arguments.times(times),
        "level": level,
        "blocks": block or None,
        "closed": closed or None,
        "forward": None if output is None else fog_a.output_of(output),
        "metric": arguments.metric(metric),
        "seed": seed,
        "how": arguments.how(how, rows=rows, memory=memory, projections=projections),
        "until": arguments.until(until, k=k, confidence=confidence, looks=looks),
        "checkpoint": checkpoint,
    }
    model, batch = source.opened()
    with ranks(source.device):
        scores = fog_a.attribute(model, batch, **wanted)
    _finish(scores, out, "foga", k)


@command
def lasp_command(
    source: Source,
    teacher: Annotated[str, Option(help="module:factory of a teacher, or of a mapping domain → teacher")],
    times: Times = None,
    block: Blocked = None,
    center: Annotated[bool, Option(help="take the mean feature away first")] = False,
    seed: Seed = 0,
    out: Out = Path("out/lasp"),
    k: K = 3,
) -> None:
    """LASP: how much of a teacher's information each block's output holds. Writes lasp.json, lasp.csv, lasp.png."""
    import fog_a
    from fog_a.shell import arguments

    wanted = {"times": arguments.times(times), "blocks": block or None, "center": center, "seed": seed}
    model, batch = source.opened()
    scores = fog_a.lasp(model, batch, arguments.made(teacher, "--teacher"), **wanted)
    _finish(scores, out, "lasp", k)


def _finish(scores: Scores, out: Path, name: str, k: int) -> None:
    """Print the table, write JSON, CSV and PNG; once, under torchrun."""
    if int(os.environ.get("RANK", "0")) > 0:
        return
    from fog_a.shell.pictures import save

    typer.echo(scores.table(min(k, len(scores.layers))))
    scores.save(out / f"{name}.json")
    scores.to_csv(out / f"{name}.csv")
    written = [f"{name}.json", f"{name}.csv"]
    try:
        save(scores.plot(k=min(k, len(scores.layers))), out / f"{name}.png")
        written.append(f"{name}.png")
    except MissingDependency as error:
        typer.echo(f"no picture: {error}", err=True)
    typer.echo(f"\nwrote {', '.join(written)} in {out}")


@command
def plot_command(
    files: Files,
    out: Annotated[Path | None, Option(help="picture (.png, .svg, .pdf); default: beside the first file")] = None,
    kind: Annotated[
        Literal["auto", "scores", "scd", "scatter", "time", "depth", "stability"],
        Option(help="auto: scd for storage + contribution, else scores"),
    ] = "auto",
    k: K = 3,
    names: Annotated[bool, Option("--names", help="block names along the axis instead of L1, L2, …")] = False,
) -> None:
    """Draw saved scores."""
    from fog_a.shell.pictures import drawn, save

    target = out or files[0].with_suffix(".png")
    save(drawn(kind, files, k, "name" if names else "number"), target)
    typer.echo(f"wrote {target}")


@command
def report_command(
    files: Files,
    out: Annotated[Path, Option(help="page to write")] = Path("report.html"),
    title: Annotated[str, Option(help="heading of the page")] = "Which layers drive the output?",
    lead: Annotated[str, Option(help="first paragraph")] = "",
    k: K = 3,
) -> None:
    """Write one self-contained HTML page of saved scores."""
    from fog_a.files import write
    from fog_a.scores.scores import Scores
    from fog_a.shell.report import report

    write(out, report([Scores.load(f) for f in files], title=title, lead=lead, k=k))
    typer.echo(f"wrote {out}")


@command
def demo_command(
    data: Data = None,
    out: Annotated[Path | None, Option(help="folder for everything that is written")] = None,
    steps: Steps = None,
    seed: Seed = 0,
    layers: Layers = None,
    dim: Dim = None,
) -> None:
    """Train a small flow-matching model on audio, attribute its layers, and show it all on a page."""
    bundled("demo", data=data, out=out, steps=steps, seed=seed, layers=layers, dim=dim)


@command
def compare_command(
    data: Data = None,
    out: Annotated[Path | None, Option(help="folder; a killed run goes on there")] = None,
    steps: Steps = None,
    warmup: Annotated[int | None, Option(help="steps before the branch, the same for all arms")] = None,
    seeds: Annotated[int | None, Option(help="number of seeds")] = None,
    arms: Annotated[
        list[str] | None, Option("--arms", "--arm", help="each,each-local,foga,repa-4-8-12, … (base is always run)")
    ] = None,
    k: Annotated[int | None, Option("--k", help="how many layers are aligned per domain")] = None,
    layers: Layers = None,
    dim: Dim = None,
    teacher: Annotated[str | None, Option(help="of the bundled task: whisper:FOLDER; default: log-mel")] = None,
    task: Annotated[str | None, Option(help="module:factory of a Task: another flow, its data, teachers")] = None,
) -> None:
    """Train with alignment of layers chosen by FoG-A, by other rules, and without; compare on held-out data."""
    from fog_a.shell import arguments

    wanted = {"out": out, "steps": steps, "warmup": warmup, "seeds": seeds, "k": k, "arms": arms or None}
    own = {"data": data, "layers": layers, "dim": dim, "teacher": teacher}
    if task is None:
        bundled("demo.bundled_task", **wanted, **own)
    elif any(value is not None for value in own.values()):
        raise Unsupported("a task has its own data and model: leave out --data, --layers and --dim, and --teacher too")
    else:
        bundled(".compare.command", arguments.made(task, "--task"), **wanted)


@command
def adapters_command() -> None:
    """List the adapters: what each one reads, of which package, at which version, and what is installed."""
    from fog_a.flows.register import adapter_table
    from fog_a.scores.tables import Table

    rows = [
        [*(row[c] for c in ("name", "package", "version", "installed")), row["problem"] or row["reads"] or ""]
        for row in adapter_table()
    ]
    typer.echo(Table("", ("name", "package", "read at", "installed", "reads"), rows).text())


def main(arguments: Sequence[str] | None = None) -> None:
    """The `fog-a` command. Exits 0; 2: an error of fog_a or of usage; 1: the model's own exception; 130: ^C."""
    running.main(lambda words: app(args=words, prog_name="fog-a"), arguments)


if __name__ == "__main__":
    main()
