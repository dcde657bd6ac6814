"""What commands share: how errors become messages and exit codes, which options were set, several processes."""

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
from typing import Any, NoReturn

from typer.core import TyperCommand

from fog_a.errors import BadArgument, FogError, Interrupted, MissingDependency, Unsupported


class Once(TyperCommand):
    """A command that refuses to take an option of a single value twice: the first would be dropped silently.

    Ctrl-C ends it with a message: typer ends without one.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            _stopped(stop)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for option in order:
                if option.param_type_name == "option" and not option.multiple and order.count(option) > 1:
                    raise BadArgument(f"{option.opts[0]} is given {order.count(option)} times: give it once")
        return super().parse_args(ctx, args)


@contextlib.contextmanager
def ranks(device: str) -> Iterator[None]:
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


def bundled(name: str, *values: Any, **options: Any) -> None:
    """Calls `run` of a module of the bundled model, reached by its adapter's entry point: the core imports no model.

    `.compare.command` is beside the bundled model, which is then not imported. Options that are None are left out.
    """
    entries = importlib.metadata.entry_points(group="fog_a.adapters", name="dit")
    if not entries:
        raise MissingDependency("the bundled model is not installed: pip install --force-reinstall fog-a")
    try:
        run = importlib.import_module(f".{name}", next(iter(entries)).module).run
    except FogError:
        raise
    except ImportError as error:
        needs = f"this command needs more packages ({error}): pip install 'fog-a[plot,audio]'"
        raise MissingDependency(needs) from error
    wanted = {option: value for option, value in options.items() if value is not None}
    for option in wanted.keys() - inspect.signature(run).parameters.keys():
        raise Unsupported(f"--{option.replace('_', '-')}: run has no such option in this version")
    run(*values, **wanted)


def main(command: Callable[[list[str]], None], arguments: Sequence[str] | None = None) -> None:
    """A command with exit codes 0; 2: an error of fog_a or of usage; 1: the model's own exception; 130: ^C."""
    # torch's threads spin while they wait for each other, which on a busy machine is many times slower than sleeping.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = lambda message, *_, **__: print(f"fog-a: {message}", file=sys.stderr)
            command(words)
    except FogError as error:
        if debug:
            raise
        print(f"fog-a: {error}", file=sys.stderr)
        if error.__cause__ is not None and str(error.__cause__) not in str(error):
            print(f"  because of {type(error.__cause__).__name__}: {error.__cause__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _stopped(stop)
    except Exception as error:
        if debug:
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print(f"  at {frame.filename}:{frame.lineno}, in {frame.name}  (--debug shows the traceback)", file=sys.stderr)
        sys.exit(1)


def _stopped(stop: KeyboardInterrupt) -> NoReturn:
    """Exit after Ctrl-C, with how to go on."""
    more = ". With --checkpoint FOLDER finished cells are kept, and the same command goes on from them"
    print(f"fog-a: interrupted{more if isinstance(stop, Interrupted) else ''}", file=sys.stderr)
    sys.exit(130)
