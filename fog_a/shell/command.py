"""A command of `fog-a`: a function whose parameters are its options."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fog_a.shell.running import Once

app = typer.Typer(
    name="fog-a", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fog-a {importlib.metadata.version('fog-a')}")
        raise typer.Exit


@app.callback()
def fog_a_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show it and exit")
    ] = False,
) -> None:
    """Which layers of a residual generative network drive its output."""


@dataclass(frozen=True)
class Source:
    """The options that name a model and its batch, and what they name."""

    model: Annotated[str, typer.Option(help="package.module:factory without arguments; gives an nn.Module or a Flow")]
    batch: Annotated[str, typer.Option(help="a file of tensors (.pt, .safetensors), or module:factory")]
    adapter: Annotated[str | None, typer.Option(help="wrap the model: a registered name, module:Class, or auto")] = None
    option: Annotated[
        list[str] | None, typer.Option(help="name=value for the adapter, e.g. x=hidden_states; repeatable")
    ] = None
    weights: Annotated[Path | None, typer.Option(help="state dict to load into the model (.pt, .safetensors)")] = None
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu"

    def opened(self) -> tuple[Any, Any]:
        """The model and the batch."""
        from fog_a.shell import arguments

        how = {"adapter": self.adapter, "options": self.option or (), "weights": self.weights}
        return arguments.model(self.model, device=self.device, **how), arguments.batch(self.batch, self.device)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """`x_command` as `fog-a x`, with its parameters as options; those of `Source` in the place of `source`."""
    own = dict(inspect.signature(function, eval_str=True).parameters)
    named = dict(inspect.signature(Source, eval_str=True).parameters) if own.pop("source", None) else {}

    @functools.wraps(function)
    def run(**words: Any) -> None:
        source = {"source": Source(**{name: words.pop(name) for name in named})} if named else {}
        function(**source, **words)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (named | own).values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return app.command(function.__name__.removesuffix("_command"), cls=Once)(run)
