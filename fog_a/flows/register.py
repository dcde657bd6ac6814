"""The register of adapters: entry points of the group `fog_a.adapters`, imported when a model is wrapped."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect

from fog_a.errors import FogError, MissingDependency, UnknownAdapter
from fog_a.flows.generic import GenericAdapter

GROUP = "fog_a.adapters"


def adapter_names() -> list[str]:
    """The registered adapters, and `generic`."""
    return sorted({"generic", *entries()})


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
    entry = entries().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, adapter_names(), n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UnknownAdapter(
            f"no adapter is named {name!r}{hint} Registered: {', '.join(adapter_names())}. "
            'A class that is not registered is given as "module:Class"'
        )
    try:
        return entry.load()
    except Exception as error:
        raise MissingDependency(
            f"adapter {name!r} ({entry.value}{package_of(entry)}) does not import: {error!r}. "
            "Mend or uninstall that package"
        ) from error


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


def entries() -> dict[str, importlib.metadata.EntryPoint]:
    """Registered adapters by name. Where two packages use one name, a third party's goes before ours."""
    found = sorted(
        importlib.metadata.entry_points(group=GROUP), key=lambda e: not e.value.startswith("fog_a_adapters.")
    )
    return {entry.name: entry for entry in found}


def package_of(entry: importlib.metadata.EntryPoint) -> str:
    return f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""


def purpose(kind: type) -> str:
    """What an adapter is for: the first line of its module's docstring, or of its own."""
    told = inspect.getdoc(inspect.getmodule(kind)) or inspect.getdoc(kind) or ""
    return told.partition("\n")[0].rstrip(".")


def installed_version(package: str | None) -> str | None:
    try:
        return importlib.metadata.version(package) if package else None
    except importlib.metadata.PackageNotFoundError:
        return None
