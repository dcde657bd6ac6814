"""`fog-a`: find blocks, attribute, probe, draw, from the shell.

    fog-a blocks    --model package.module:factory --batch batch.pt
    fog-a attribute --model package.module:factory --batch package.module:batch --out out/
    fog-a plot out/foga.json
    fog-a report out/foga.json out/lasp.json

An error of fog_a is one message and exit code 2; an exception of the model itself is shown with its place, exit code 1;
--debug shows tracebacks. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fog_a.errors import FogError, MissingDependency, Unsupported
from fog_a.shell.checking import check
from fog_a.shell.options import (
    Adapter,
    Batch,
    Blocked,
    Checkpoint,
    CompareOut,
    Data,
    Device,
    Dim,
    Files,
    K,
    Kind,
    Layers,
    Level,
    LevelOption,
    MaxRows,
    Memory,
    MethodOption,
    Model,
    Option,
    Out,
    Output,
    Picture,
    PictureOut,
    Seed,
    Steps,
    Times,
    Way,
    Weights,
)

if TYPE_CHECKING:
    from fog_a.scores.scores import Scores

app = typer.Typer(
    name="fog-a", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Which layers of a residual generative network drive its output.",
)  # fmt: skip


app.command()(check)


@app.command()
def blocks(
    model: Model,
    batch: Batch,
    adapter: Adapter = None,
    option: Option = None,
    level: LevelOption = Level.layer,
    include: Annotated[list[str] | None, typer.Option(help="glob over block names; repeatable")] = None,
    device: Device = "cpu",
) -> None:
    """List the residual blocks, a table for each stack."""
    from fog_a.finding.blocks import find_blocks
    from fog_a.shell import arguments
    from fog_a.shell.tree import tree

    net = arguments.model(model, adapter=adapter, options=option or (), device=device)
    found = find_blocks(net, arguments.batch(batch, device), level=level.value, include=include or None)
    typer.echo(tree(found))
    typer.echo(str(found.coverage))


@app.command()
def attribute(
    model: Model,
    batch: Batch,
    adapter: Adapter = None,
    option: Option = None,
    weights: Weights = None,
    device: Device = "cpu",
    times: Times = None,
    level: LevelOption = Level.layer,
    method: MethodOption = Way.exact,
    block: Blocked = None,
    output: Output = None,
    seed: Seed = 0,
    max_rows: MaxRows = None,
    memory: Memory = None,
    checkpoint: Checkpoint = None,
    out: Out = Path("out/foga"),
    k: K = 3,
) -> None:
    """FoG-A: how far the velocity moves without each block. Prints a table; writes foga.json, foga.csv, foga.png."""
    import fog_a
    from fog_a.shell import arguments

    net = arguments.model(model, adapter=adapter, options=option or (), weights=weights, device=device)
    wanted = {
        "times": arguments.times(times), "level": level.value, "blocks": block or None, "seed": seed,
        "forward": None if output is None else fog_a.output_of(output), "checkpoint": checkpoint,
        "how": _way(method, max_rows, memory),
    }  # fmt: skip
    with _ranks(device):
        scores = fog_a.attribute(net, arguments.batch(batch, device), **_given(fog_a.attribute, wanted))
    _finish(scores, out, "foga", k)


@app.command()
def lasp(
    model: Model,
    batch: Batch,
    teacher: Annotated[str, typer.Option(help="module:factory of a teacher, or of a mapping domain → teacher")],
    adapter: Adapter = None,
    option: Option = None,
    weights: Weights = None,
    device: Device = "cpu",
    times: Times = None,
    block: Blocked = None,
    center: Annotated[bool, typer.Option(help="take the mean feature away first")] = False,
    seed: Seed = 0,
    out: Out = Path("out/lasp"),
    k: K = 3,
) -> None:
    """LASP: how much of a teacher's information each block's output holds. Writes lasp.json, lasp.csv, lasp.png."""
    import fog_a
    from fog_a.shell import arguments

    net = arguments.model(model, adapter=adapter, options=option or (), weights=weights, device=device)
    guide = arguments.made(teacher, "--teacher")
    wanted = {"times": arguments.times(times), "blocks": block or None, "center": center, "seed": seed}
    scores = fog_a.lasp(net, arguments.batch(batch, device), guide, **_given(fog_a.lasp, wanted))
    _finish(scores, out, "lasp", k)


def _way(method: Way, rows: int | None, memory: str | None) -> Any:
    """`how=` for `attribute`; None: its own choice."""
    from fog_a.attributing.ways import FirstOrder, Shared

    if method is Way.first_order:
        return FirstOrder()
    return None if rows is None and memory is None else Shared(rows, memory)


def _given(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that were set. Raises Unsupported for one that this function does not have."""
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in chosen.keys() - inspect.signature(function).parameters.keys():
        raise Unsupported(f"--{name.replace('_', '-')}: {function.__name__} has no such option in this version")
    return chosen


@contextlib.contextmanager
def _ranks(device: str) -> Iterator[None]:
    """Under torchrun, one of several processes while this lasts; a group left open can abort the exit."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _finish(scores: Scores, out: Path, name: str, k: int) -> None:
    """Print the table, write JSON, CSV and PNG; once, under torchrun."""
    if int(os.environ.get("RANK", "0")) > 0:
        return
    typer.echo(scores.table(min(k, len(scores.layers))))
    scores.save(out / f"{name}.json")
    scores.to_csv(out / f"{name}.csv")
    written = [f"{name}.json", f"{name}.csv"]
    try:
        scores.plot(k=k).savefig(out / f"{name}.png")
        written.append(f"{name}.png")
    except MissingDependency as error:
        typer.echo(f"no picture: {error}", err=True)
    typer.echo(f"\nwrote {', '.join(written)} in {out}")


@app.command()
def plot(
    files: Files,
    out: PictureOut = None,
    kind: Kind = Picture.auto,
    k: K = 3,
    names: Annotated[bool, typer.Option("--names", help="block names along the axis instead of L1, L2, …")] = False,
) -> None:
    """Draw saved scores."""
    from fog_a.scores.scores import Scores
    from fog_a.shell.pictures import drawn

    scores = [Scores.load(f) for f in files]
    kinds = {s.kind for s in scores}
    if kind is Picture.auto:
        kind = Picture.scd if {"storage", "contribution"} <= kinds and len(scores) == 2 else Picture.scores
    target = out or files[0].with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn(kind, scores, files, k, "name" if names else "number").savefig(target)
    typer.echo(f"wrote {target}")


@app.command()
def report(
    files: Files,
    out: Annotated[Path, typer.Option(help="page to write")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="heading of the page")] = "Which layers drive the output?",
    lead: Annotated[str, typer.Option(help="first paragraph")] = "",
    k: K = 3,
) -> None:
    """Write one self-contained HTML page of saved scores."""
    from fog_a.files import write
    from fog_a.scores.scores import Scores
    from fog_a.shell.report import report as page

    write(out, page([Scores.load(f) for f in files], title=title, lead=lead, k=k))
    typer.echo(f"wrote {out}")


@app.command()
def demo(
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="folder for everything that is written")] = None,
    steps: Steps = None,
    seed: Seed = 0,
    layers: Layers = None,
    dim: Dim = None,
) -> None:
    """Train a small flow-matching model on audio, attribute its layers, and show it all on a page."""
    wanted = {"data": data, "out": out, "steps": steps, "seed": seed, "layers": layers, "dim": dim}
    run = _bundled("demo")
    run(**_given(run, wanted))


@app.command()
def compare(
    data: Data = None,
    out: CompareOut = None,
    steps: Steps = None,
    warmup: Annotated[int | None, typer.Option(help="steps before the branch, the same for all arms")] = None,
    seeds: Annotated[int | None, typer.Option(help="number of seeds")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="base, fixed, shallow, deep, random, …; repeatable")] = None,
    k: Annotated[int | None, typer.Option("--k", help="how many layers are aligned per domain")] = None,
    layers: Layers = None,
    dim: Dim = None,
    task: Annotated[str | None, typer.Option(help="module:factory of a Task: another flow, its data, teachers")] = None,
) -> None:
    """Train with alignment of layers chosen by FoG-A, by other rules, and without; compare on held-out data."""
    from fog_a.shell import arguments

    wanted = {"data": data, "out": out, "steps": steps, "warmup": warmup, "seeds": seeds, "k": k, "layers": layers}
    run = _bundled("demo.bundled_task")
    other = None if task is None else arguments.made(task, "--task")
    run(**_given(run, {**wanted, "dim": dim, "arms": arm or None, "task": other}))


def _bundled(name: str) -> Callable[..., Any]:
    """`run` of a module of the bundled model, reached by its adapter's entry point: the core imports no model."""
    entries = [e for e in importlib.metadata.entry_points(group="fog_a.adapters", name="dit")]
    if not entries:
        raise MissingDependency("the bundled model is not installed: pip install --force-reinstall fog-a")
    try:
        module = importlib.import_module(f"{entries[0].module}.{name}")
    except FogError:
        raise
    except ImportError as error:
        needs = f"this command needs more packages ({error}): pip install 'fog-a[plot,audio]'"
        raise MissingDependency(needs) from error
    run = getattr(module, "run", None)
    if run is None:
        raise Unsupported(f"{module.__name__} has no run(): reinstall fog-a")
    return run


@app.command()
def adapters() -> None:
    """List the adapters: what each one reads, of which package, at which version, and what is installed."""
    from fog_a.flows.register import adapter_table
    from fog_a.shell.tree import aligned

    columns = ("name", "package", "version", "installed")
    rows = [(*(row[c] or "–" for c in columns), row["problem"] or row["reads"] or "") for row in adapter_table()]
    typer.echo("\n".join(aligned(("name", "package", "read at", "installed", "reads"), rows)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The `fog-a` command. Exits 0; 2: an error of fog_a or of usage; 1: the model's own exception; 130: ^C."""
    # torch's threads spin while they wait for each other, which on a busy machine is many times slower than sleeping.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = lambda message, *_, **__: print(f"fog-a: {message}", file=sys.stderr)
            app(args=words, prog_name="fog-a")
    except FogError as error:
        if debug:
            raise
        print(f"fog-a: {error}", file=sys.stderr)
        if error.__cause__ is not None and str(error.__cause__) not in str(error):
            print(f"  because of {type(error.__cause__).__name__}: {error.__cause__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("fog-a: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print(f"  at {frame.filename}:{frame.lineno}, in {frame.name}  (--debug shows the traceback)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
