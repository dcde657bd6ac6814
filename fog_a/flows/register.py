"""The register of adapters: entry points of the group `fog_a.adapters`, imported when a model is wrapped."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
from typing import Any

from torch import nn

from fog_a.blocks.calls import unwrapped
from fog_a.errors import FogError, MissingDependency, UnknownAdapter
from fog_a.flows.generic import GenericAdapter
from fog_a.flows.network import arguments

GROUP = "fog_a.adapters"
CLOCKS = ("t", "time", "times", "timestep", "timesteps", "sigma")
"""Names that networks give to their time."""


def adapter_names() -> list[str]:
    """The registered adapters, and `generic`."""
    return sorted({"generic", *_entries()})


def get_adapter(name: str) -> type:
    """The adapter class of a registered name, or of `"module:Class"`.

    Raises:
        UnknownAdapter: no such name, with the nearest ones.
        MissingDependency: it does not import; the message names it.
    """
    if name == "generic":
        return GenericAdapter
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise MissingDependency(f"adapter {name!r} does not import: {error!r}") from error
    entry = _entries().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, adapter_names(), n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise UnknownAdapter(
            f"no adapter is named {name!r}{hint} Registered: {', '.join(adapter_names())}. "
            'A class that is not registered is given as "module:Class"'
        )
    try:
        return entry.load()
    except Exception as error:
        package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        raise MissingDependency(
            f"adapter {name!r} ({entry.value}{package}) does not import: {error!r}. Mend or uninstall that package"
        ) from error


def adapter_of(model: Any) -> type:
    """The registered class that says it knows this model; third parties are asked first.

    Raises:
        UnknownAdapter: none does, with what to type.
    """
    broken = {}
    table = _entries()
    for name in sorted(table, key=lambda n: (table[n].value.startswith("fog_a_adapters."), n)):
        try:
            kind = get_adapter(name)
            if kind.matches(model):
                return kind
        except Exception as error:  # another's plugin must not keep this model from its own adapter
            broken[name] = error
    raise UnknownAdapter(_unknown(model, broken))


def knows(model: nn.Module) -> bool:
    """Whether a registered adapter reads this model: `wrap(model)` needs no more."""
    try:
        return bool(adapter_of(unwrapped(model)))
    except UnknownAdapter:
        return False


def is_a(model: Any, package: str, *names: str) -> bool:
    """Whether a model's class, or one that it inherits from, has one of these names in this package; imports nothing.

    >>> is_a(nn.Linear(1, 1), "torch", "Module")
    True
    """
    return any(kind.__name__ in names and kind.__module__.split(".")[0] == package for kind in type(model).__mro__)


def adapter_table() -> list[dict[str, str | None]]:
    """What is known of each registered adapter.

    Returns:
        For each: `name`, what it `reads` in a line, `package`, `version` it was read at, `installed`: the package's
        version, "on the path" for a checkout, None for neither; `problem` of one that does not import.

    Nothing here imports a model's package: an adapter does so only when it must.
    """
    table: list[dict[str, str | None]] = []
    for name in adapter_names():
        row: dict[str, str | None] = dict.fromkeys(("name", "reads", "package", "version", "installed", "problem"))
        row["name"] = name
        try:
            kind = get_adapter(name)
        except FogError as error:
            row["problem"] = str(error)
        else:
            package, checkout = getattr(kind, "package", None), getattr(kind, "checkout", None)
            row["package"], row["version"] = package or checkout, getattr(kind, "version", None)
            here = "on the path" if checkout and importlib.util.find_spec(checkout) else None
            row["installed"] = installed_version(package) or here
            row["reads"] = purpose(kind)
        table.append(row)
    return table


def purpose(kind: type) -> str:
    """What an adapter is for: the first line of its module's docstring, or of its own."""
    text = inspect.getdoc(inspect.getmodule(kind)) or inspect.getdoc(kind) or ""
    return text.partition("\n")[0].rstrip(".")


def installed_version(package: str | None) -> str | None:
    try:
        return importlib.metadata.version(package) if package else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _entries() -> dict[str, importlib.metadata.EntryPoint]:
    """Registered adapters by name. Where two packages use one name, a third party's goes before ours."""
    points = importlib.metadata.entry_points(group=GROUP)
    return {e.name: e for e in sorted(points, key=lambda e: not e.value.startswith("fog_a_adapters."))}


def _unknown(model: Any, broken: dict[str, Exception]) -> str:
    """What to type for a model that no adapter knows: the nearest one, its own arguments, the networks it holds."""
    kind = type(model)
    words = {word.lower(): name for name in adapter_names() for word in (name, *name.split("_"))}
    names = [n.lower() for n in (*kind.__module__.split("."), kind.__name__)]
    parts = [part for name in names for part in (name, *name.split("_"))]
    near = next((words[m] for p in parts for m in difflib.get_close_matches(p, words, n=1, cutoff=0.7)), None)
    taken = arguments(model) if isinstance(model, nn.Module) else []
    text = f"no adapter knows {kind.__module__}.{kind.__name__}. Registered: {', '.join(adapter_names())}."
    if near:
        text += f' Nearest: "{near}", type fog_a.wrap(model, "{near}") to force it.'
    text += ' For a network net(x_t, t, **cond) type fog_a.wrap(model, x="…", t="…") with the names of its arguments'
    text += f" ({', '.join(taken)})." if taken else "."
    text += _networks_inside(model)
    text += " To write an adapter: docs/write-an-adapter.md. A bare module is attributed without one, at no time axis."
    return text + "".join(f" Adapter {name!r} is broken: {error}." for name, error in broken.items())


def _networks_inside(model: Any) -> str:
    """What to type for the networks that an object holds; "" where it holds none with an argument for the time."""
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


def _parts(model: Any, depth: int = 3) -> dict[str, nn.Module]:
    """The modules that an object holds, by dotted name: outer ones first, those inside them so many levels down."""
    if isinstance(model, nn.Module):
        held = dict(model.named_children())
    else:
        components = getattr(model, "components", None)  # of a pipeline
        attributes = components if isinstance(components, dict) else getattr(model, "__dict__", {})
        held = {name: part for name, part in attributes.items() if isinstance(part, nn.Module)}
    inner = [(name, _parts(part, depth - 1)) for name, part in held.items()] if depth > 1 else []
    return {**held, **{f"{name}.{below}": part for name, parts in inner for below, part in parts.items()}}
