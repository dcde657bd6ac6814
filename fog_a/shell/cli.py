"""`fog-a`: find blocks, attribute, probe, draw, from the shell.

    fog-a blocks    --model package.module:factory --batch batch.pt
    fog-a attribute --model package.module:factory --batch package.module:batch --out out/
    fog-a plot out/foga.json
    fog-a report out/foga.json out/lasp.json

An error of fog_a is one message and exit code 2; an exception of the model itself is shown with its place, exit code 1;
--debug shows tracebacks. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fog_a.errors import MissingDependency, Unsupported
from fog_a.shell import options, running
from fog_a.shell.checking import check
from fog_a.shell.running import Once, bundled, chosen, ranks

if TYPE_CHECKING:
    from fog_a.scores.scores import Scores

app = typer.Typer(
    name="fog-a", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.callback()
def fog_a_command(version: options.Version = False) -> None:
    """Which layers of a residual generative network drive its output."""


app.command(cls=Once)(check)


@app.command("blocks", cls=Once)
def blocks_command(
    model: options.Model,
    batch: options.Batch,
    adapter: options.Adapter = None,
    option: options.Option = None,
    level: options.LevelOption = options.Level.layer,
    include: Annotated[list[str] | None, typer.Option(help="glob over block names; repeatable")] = None,
    device: options.Device = "cpu",
) -> None:
    """List the residual blocks, a table for each stack."""
    from fog_a.finding.blocks import find_blocks
    from fog_a.shell import arguments
    from fog_a.shell.tree import tree

    net = arguments.model(model, adapter=adapter, options=option or (), device=device)
    blocks = find_blocks(net, arguments.batch(batch, device), level=level.value, include=include or None)
    typer.echo(f"{tree(blocks)}\n{blocks.coverage}")


@app.command("attribute", cls=Once)
def attribute_command(
    model: options.Model,
    batch: options.Batch,
    adapter: options.Adapter = None,
    option: options.Option = None,
    weights: options.Weights = None,
    device: options.Device = "cpu",
    times: options.Times = None,
    level: options.LevelOption = options.Level.layer,
    block: options.Blocked = None,
    closed: options.Closed = None,
    output: options.Output = None,
    seed: options.Seed = 0,
    how: options.HowOption = options.How.auto,
    rows: options.Rows = None,
    memory: options.Memory = None,
    projections: options.Projections = None,
    until: options.UntilOption = None,
    confidence: options.Confidence = None,
    looks: options.Looks = None,
    checkpoint: options.Checkpoint = None,
    out: options.Out = Path("out/foga"),
    k: options.K = 3,
) -> None:
    """FoG-A: how far the velocity moves without each block. Prints a table; writes foga.json, foga.csv, foga.png."""
    import fog_a
    from fog_a.shell import arguments

    wanted = {
        "times": arguments.times(times), "level": level.value, "blocks": block or None, "closed": closed or None,
        "forward": None if output is None else fog_a.output_of(output), "checkpoint": checkpoint, "seed": seed,
        "how": arguments.how(how.value, rows=rows, memory=memory, projections=projections),
        "until": arguments.until(until, k=k, confidence=confidence, looks=looks),
    }  # fmt: skip
    net = arguments.model(model, adapter=adapter, options=option or (), weights=weights, device=device)
    with ranks(device):
        scores = fog_a.attribute(net, arguments.batch(batch, device), **chosen(fog_a.attribute, wanted))
    _finish(scores, out, "foga", k)


@app.command("lasp", cls=Once)
def lasp_command(
    model: options.Model,
    batch: options.Batch,
    teacher: Annotated[str, typer.Option(help="module:factory of a teacher, or of a mapping domain → teacher")],
    adapter: options.Adapter = None,
    option: options.Option = None,
    weights: options.Weights = None,
    device: options.Device = "cpu",
    times: options.Times = None,
    block: options.Blocked = None,
    center: Annotated[bool, typer.Option(help="take the mean feature away first")] = False,
    seed: options.Seed = 0,
    out: options.Out = Path("out/lasp"),
    k: options.K = 3,
) -> None:
    """LASP: how much of a teacher's information each block's output holds. Writes lasp.json, lasp.csv, lasp.png."""
    import fog_a
    from fog_a.shell import arguments

    net = arguments.model(model, adapter=adapter, options=option or (), weights=weights, device=device)
    guide = arguments.made(teacher, "--teacher")
    wanted = {"times": arguments.times(times), "blocks": block or None, "center": center, "seed": seed}
    scores = fog_a.lasp(net, arguments.batch(batch, device), guide, **chosen(fog_a.lasp, wanted))
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


@app.command("plot", cls=Once)
def plot_command(
    files: options.Files,
    out: options.PictureOut = None,
    kind: options.Kind = options.Picture.auto,
    k: options.K = 3,
    names: Annotated[bool, typer.Option("--names", help="block names along the axis instead of L1, L2, …")] = False,
) -> None:
    """Draw saved scores."""
    from fog_a.scores.scores import Scores
    from fog_a.shell.pictures import drawn, save

    scores = [Scores.load(f) for f in files]
    kinds = {s.kind for s in scores}
    if kind is options.Picture.auto:
        kind = (
            options.Picture.scd if {"storage", "contribution"} <= kinds and len(scores) == 2 else options.Picture.scores
        )
    target = out or files[0].with_suffix(".png")
    save(drawn(kind, scores, files, k, "name" if names else "number"), target)
    typer.echo(f"wrote {target}")


@app.command("report", cls=Once)
def report_command(
    files: options.Files,
    out: Annotated[Path, typer.Option(help="page to write")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="heading of the page")] = "Which layers drive the output?",
    lead: Annotated[str, typer.Option(help="first paragraph")] = "",
    k: options.K = 3,
) -> None:
    """Write one self-contained HTML page of saved scores."""
    from fog_a.files import write
    from fog_a.scores.scores import Scores
    from fog_a.shell.report import report

    write(out, report([Scores.load(f) for f in files], title=title, lead=lead, k=k))
    typer.echo(f"wrote {out}")


@app.command("demo", cls=Once)
def demo_command(
    data: options.Data = None,
    out: Annotated[Path | None, typer.Option(help="folder for everything that is written")] = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    layers: options.Layers = None,
    dim: options.Dim = None,
) -> None:
    """Train a small flow-matching model on audio, attribute its layers, and show it all on a page."""
    wanted = {"data": data, "out": out, "steps": steps, "seed": seed, "layers": layers, "dim": dim}
    run = bundled("demo")
    run(**chosen(run, wanted))


@app.command("compare", cls=Once)
def compare_command(
    data: options.Data = None,
    out: options.CompareOut = None,
    steps: options.Steps = None,
    warmup: Annotated[int | None, typer.Option(help="steps before the branch, the same for all arms")] = None,
    seeds: Annotated[int | None, typer.Option(help="number of seeds")] = None,
    arms: options.Arms = None,
    k: Annotated[int | None, typer.Option("--k", help="how many layers are aligned per domain")] = None,
    layers: options.Layers = None,
    dim: options.Dim = None,
    teacher: Annotated[str | None, typer.Option(help="of the bundled task: whisper:FOLDER; default: log-mel")] = None,
    task: Annotated[str | None, typer.Option(help="module:factory of a Task: another flow, its data, teachers")] = None,
) -> None:
    """Train with alignment of layers chosen by FoG-A, by other rules, and without; compare on held-out data."""
    from fog_a.shell import arguments

    wanted = {"out": out, "steps": steps, "warmup": warmup, "seeds": seeds, "k": k, "arms": arms or None}
    own = {"data": data, "layers": layers, "dim": dim, "teacher": teacher}
    if task is None:
        run = bundled("demo.bundled_task")
        run(**chosen(run, wanted | own))
        return
    if any(value is not None for value in own.values()):
        raise Unsupported("a task has its own data and model: leave out --data, --layers and --dim, and --teacher too")
    run = bundled(".compare.command")
    run(arguments.made(task, "--task"), **chosen(run, wanted))


@app.command("adapters", cls=Once)
def adapters_command() -> None:
    """List the adapters: what each one reads, of which package, at which version, and what is installed."""
    from fog_a.flows.register import adapter_table
    from fog_a.shell.tree import aligned

    columns = ("name", "package", "version", "installed")
    rows = [(*(row[c] or "–" for c in columns), row["problem"] or row["reads"] or "") for row in adapter_table()]
    typer.echo("\n".join(aligned(("name", "package", "read at", "installed", "reads"), rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The `fog-a` command. Exits 0; 2: an error of fog_a or of usage; 1: the model's own exception; 130: ^C."""
    running.main(lambda words: app(args=words, prog_name="fog-a"), arguments)


if __name__ == "__main__":
    main()
