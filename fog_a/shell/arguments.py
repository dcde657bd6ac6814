"""What the command line names: a model, a batch, a teacher, flow times. Reading a file runs nothing in it.

`package.module:name` is imported, with the working directory first on the path; a function or class there is called
without arguments, anything else is taken as it is.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.errors import BadArgument, BadBatch, near
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Inputs
from fog_a.flows.wrapping import wrap

WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def named(spec: str, what: str) -> Any:
    """What `package.module:name` names. Raises BadArgument; an error inside the module is raised as it is."""
    module_name, colon, path = spec.partition(":")
    if not colon or not module_name or not path:
        raise BadArgument(f"{what} {spec!r}: expected package.module:name, e.g. my_model:make")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise BadArgument(
                f"{what} {spec!r}: there is no module {error.name!r} here ({here}) or among the installed packages. "
                "Start fog-a in the folder that holds it, or set PYTHONPATH"
            ) from None
        raise
    value: Any = module
    for part in path.split("."):
        if not hasattr(value, part):
            names = [n for n in dir(value) if not n.startswith("_")]
            raise BadArgument(f"{what} {spec!r}: {module_name} has no {part!r}{near(part, names)}")
        value = getattr(value, part)
    return value


def made(spec: str, what: str) -> Any:
    """What a factory without arguments returns; an object that is a model or a batch already is taken as it is."""
    value = named(spec, what)
    if isinstance(value, nn.Module | Flow | Tensor | Inputs | Mapping | tuple | list) or not callable(value):
        return value
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # built in: the call itself will tell
        return value()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if lacking := [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]:
        name = spec.partition(":")[2].rpartition(".")[2]
        raise BadArgument(
            f"{what} {spec!r} needs arguments ({', '.join(lacking)}), and fog-a calls it without any. Write a function "
            f"that has none, e.g. def tiny(): return {name}({', '.join(f'{n}=…' for n in lacking)})"
        )
    return value()


def model(
    spec: str,
    *,
    adapter: str | None = None,
    options: Iterable[str] = (),
    weights: Path | None = None,
    device: str = "cpu",
) -> nn.Module | Flow:
    """A model from its factory, with weights and an adapter where they are asked for.

    Args:
        adapter: a registered name, `module:Class`, or "auto": the one that knows the model's class.
        options: `name=value` for the adapter, e.g. `x=hidden_states`.
        weights: a state dict (.pt, .safetensors).
    """
    value = made(spec, "--model")
    inner = value.module if isinstance(value, Flow) else value
    if not isinstance(inner, nn.Module) and adapter is None:
        raise BadArgument(
            f"--model {spec!r} gave a {type(value).__name__}: expected an nn.Module or a Flow (fog_a.wrap(model))"
        )
    if weights is not None:
        _load_weights(inner, weights)
    pairs = dict(_pair(o) for o in options)
    if adapter is not None or pairs:
        value = wrap(value, None if adapter in (None, "auto") else adapter, **pairs)
        inner = value.module
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadArgument(f"--device {device!r} cannot be used: {reason}. Try --device cpu") from error
    inner.to(device)
    return value


def _pair(option: str) -> tuple[str, Any]:
    """`sigma=0.5` → ("sigma", 0.5): numbers, true, false and null as in JSON, anything else is text."""
    name, equals, value = option.partition("=")
    if not equals or not name:
        raise BadArgument(f"--option {option!r}: expected name=value, e.g. --option x=hidden_states")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _load_weights(module: nn.Module, path: Path) -> None:
    state = _read(path, "--weights")
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BadArgument(f"--weights {path}: no state dict of {type(module).__name__}: {error}") from error


def _read(path: Path, what: str) -> Any:
    """Tensors from a file; nothing in it is run."""
    if not os.path.isfile(path):  # nor is a path that is too long, a link that loops
        raise BadArgument(f"{what} {path}: there is no such file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise BadArgument(f"{what} {path}: no safetensors file, or a damaged one ({error})") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadArgument(  # torch's message advises to load it unsafely: not quoted
            f"{what} {path}: cannot be read without running code in it, or is damaged ({type(error).__name__}). "
            "Keep plain tensors in it: torch.save({'x': x, 't': t}, path); or give a factory, module:function"
        ) from None


def batch(spec: str, device: str = "cpu") -> Any:
    """A batch from a file of tensors, or from a factory; moved to the device. A list is several batches."""
    path = Path(spec)
    if path.suffix in WEIGHTS or os.path.isfile(path):
        return moved(_read(path, "--batch"), device)
    value = made(spec, "--batch")
    if value is None:
        raise BadBatch(f"--batch {spec!r} gave None: return the tensor, tuple, mapping or fog_a.Inputs the model takes")
    return moved(value, device)


def moved(value: Any, device: str) -> Any:
    """The same nested value with its tensors on the device; iterators stay lazy, other objects use their own `.to`."""
    if device == "cpu" or value is None or isinstance(value, str):
        return value
    if isinstance(value, Inputs):
        return Inputs(*moved(value.args, device), **moved(value.kwargs, device))
    if isinstance(value, Mapping):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(v, device) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(v, device) for v in value)
    if hasattr(value, "to"):
        return value.to(device)
    return (moved(v, device) for v in value) if isinstance(value, Iterable) else value


def times(text: str | None) -> int | list[float] | None:
    """`8` → the number of midpoints; `0.2,0.5` → exactly those times."""
    if text is None:
        return None
    try:
        return int(text) if text.strip().isdigit() else [float(t) for t in text.split(",")]
    except ValueError:
        raise BadArgument(f"--times {text!r}: expected a number of midpoints (8) or a list (0.2,0.5,0.8)") from None


def metric(spec: str | None) -> Any:
    """`metric=` of attribute: `loss`, or a function by `module:name`."""
    return spec if spec in (None, "loss") else named(spec, "--metric")


def how(name: str, **options: Any) -> Any:
    """`how=` of attribute. Raises BadArgument for an option of another way."""
    import fog_a

    takes = {"rows": "shared", "memory": "shared", "projections": "first-order"}
    wanted = {option: value for option, value in options.items() if value is not None}
    if name == "auto" and wanted.keys() & {"rows", "memory"}:
        name = "shared"
    for option in wanted:
        if takes[option] != name:
            raise BadArgument(f"--{option} is an option of --how {takes[option]}, not of --how {name}")
    ways = {"shared": fog_a.Shared, "first-order": fog_a.FirstOrder, "nnsight": fog_a.NNsight}
    return ways[name](**wanted) if name in ways else name


def until(name: str | None, *, k: int, **options: Any) -> Any:
    """`until=` of attribute. Raises BadArgument for its options where it is not asked for."""
    import fog_a

    wanted = {option: value for option, value in options.items() if value is not None}
    if name is None and wanted:
        raise BadArgument(f"--{next(iter(wanted))} is an option of --until settled: type --until settled as well")
    return None if name is None else fog_a.Settled(k=k, **wanted)
