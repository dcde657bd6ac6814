"""Choosing the adapter that reads a model.

    flow = fog_a.wrap(model)                                   # by the model's class
    flow = fog_a.wrap(model, "f5_tts")                         # by name
    flow = fog_a.wrap(model, "my_package.file:MyAdapter")      # a class by its path; or a class; or an object
    flow = fog_a.wrap(net, x="x_t", t="t")                     # any net(x_t, t, **cond)

A package registers its adapters under the entry points `fog_a.adapters`, as fog_a does its own; they are imported when
a model is wrapped, never by `import fog_a`. An adapter is a subclass of `Flow`. See docs/write-an-adapter.md.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any

from torch import nn

from fog_a.blocks.calls import unwrapped
from fog_a.errors import UnknownAdapter, Unsupported
from fog_a.flows.flow import Flow
from fog_a.flows.generic import GenericAdapter
from fog_a.flows.inside import networks_inside
from fog_a.flows.network import arguments
from fog_a.flows.register import adapter_names, entries, get_adapter, installed_version, purpose


def wrap(model: Any, adapter: Any = None, **options: Any) -> Flow:
    """A third party's flow-matching model as a flow: the adapter that reads it.

    Args:
        model: the model object as its own code made it. Of DistributedDataParallel or torch.compile the adapter gets
            what is inside, so `flow.loss` goes past the wrapper: train through its forward. Only the generic adapter's
            loss goes through it.
        adapter: None (chosen by the model's class), a registered name, `"module:Class"`, a subclass of `Flow`, or an
            object of one.
        options: for the adapter. With `x=` and `t=`, or `call=`, and no adapter: the generic one, for any
            `net(x_t, t, **cond)`; its options say what the network has otherwise (`fog_a.flows.generic`).

    Raises:
        UnknownAdapter: no adapter for this class or of this name.
        MissingDependency: the adapter does not import.
        Unsupported: the class is no subclass of `Flow`, lacks a method, or cannot read this model.

    Warns:
        UserWarning: the model's package is of another version than the adapter was read at.

    >>> flow = wrap(nn.Linear(3, 3), x="input", t=None)
    >>> flow
    GenericAdapter(Linear)
    """
    if isinstance(model, Flow):
        return model if adapter is None and not options else wrap(model.model, adapter, **options)
    inner = unwrapped(model) if isinstance(model, nn.Module) else model
    if adapter is None:
        adapter = GenericAdapter if {"x", "t", "call"} & set(options) else _matching(inner)
    elif isinstance(adapter, str):
        adapter = get_adapter(adapter)
    if isinstance(adapter, type):
        flow = _made(adapter, model if adapter is GenericAdapter else inner, options)
    elif options:
        raise Unsupported(f"options ({', '.join(options)}) are for an adapter's class; an object has its own already")
    else:
        flow = _checked(adapter, type(adapter))
    _check_version(flow)
    return flow


def _made(kind: type, model: Any, options: dict[str, Any]) -> Flow:
    """An adapter of this class that reads the model."""
    _checked(None, kind)
    _check_options(kind, options)
    if kind is GenericAdapter and not isinstance(model, nn.Module):
        raise Unsupported(
            f"expected a network, an nn.Module, got a {type(model).__name__}. Give the module itself, and say by call= "
            "how it is called: fog_a.wrap(net, call=lambda net, x_t, t, cond: net(...))"
        )
    try:
        return kind(model, **options)
    except AttributeError as error:
        raise Unsupported(
            f"{kind.__name__} cannot read a {type(model).__name__}: {error}. It is for {purpose(kind)}"
        ) from error


def _check_options(kind: type, options: dict[str, Any]) -> None:
    """Raises Unsupported for an option that the adapter's class does not take, with the near names."""
    parameters = inspect.signature(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    names = list(parameters)[1:]  # the first is the model
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, names, n=3, cutoff=0.4) or names
            hint = f"did you mean {' or '.join(near)}?" if near else "it takes no options."
            raise Unsupported(f"{kind.__name__} has no option {option!r}: {hint}")


def _checked(adapter: Any, kind: type) -> Any:
    """The adapter, if its class is a flow."""
    if not issubclass(kind, Flow):
        raise Unsupported(
            f"{kind.__name__} is no adapter: expected a subclass of fog_a.Flow, with velocity(self, batch, t, seed=0) "
            "and samples(self, batch). See docs/write-an-adapter.md"
        )
    return adapter


def is_a(model: Any, package: str, *names: str) -> bool:
    """Whether a model's class, or one that it inherits from, has one of these names in this package; imports nothing.

    >>> is_a(nn.Linear(1, 1), "torch", "Module")
    True
    """
    return any(kind.__name__ in names and kind.__module__.split(".")[0] == package for kind in type(model).__mro__)


def knows(model: nn.Module) -> bool:
    """Whether a registered adapter reads this model: `wrap(model)` needs no more."""
    try:
        return bool(_matching(unwrapped(model)))
    except UnknownAdapter:
        return False


def _matching(model: Any) -> type:
    """The registered class that says it knows this model; third parties are asked first."""
    broken = {}
    table = entries()
    for name in sorted(table, key=lambda n: (table[n].value.startswith("fog_a_adapters."), n)):
        try:
            kind = get_adapter(name)
            if kind.matches(model):
                return kind
        except Exception as error:  # another's plugin must not keep this model from its own adapter
            broken[name] = error
    raise UnknownAdapter(_unknown(model, broken))


def _unknown(model: Any, broken: dict[str, Exception]) -> str:
    kind = type(model)
    words = {word.lower(): name for name in adapter_names() for word in (name, *name.split("_"))}
    parts = [
        p for part in (*kind.__module__.split("."), kind.__name__) for p in (part.lower(), *part.lower().split("_"))
    ]
    near = next((words[m] for p in parts for m in difflib.get_close_matches(p, words, n=1, cutoff=0.7)), None)
    names = arguments(model) if isinstance(model, nn.Module) else []
    text = f"no adapter knows {kind.__module__}.{kind.__name__}. Registered: {', '.join(adapter_names())}."
    if near:
        text += f' Nearest: "{near}", type fog_a.wrap(model, "{near}") to force it.'
    text += ' For a network net(x_t, t, **cond) type fog_a.wrap(model, x="…", t="…") with the names of its arguments'
    text += f" ({', '.join(names)})." if names else "."
    text += networks_inside(model)
    text += " To write an adapter: docs/write-an-adapter.md. A bare module is attributed without one, at no time axis."
    return text + "".join(f" Adapter {name!r} is broken: {error}." for name, error in broken.items())


def _check_version(adapter: Flow) -> None:
    package, read = adapter.package, adapter.version
    installed = installed_version(package)
    if installed and read and installed != read:
        warnings.warn(
            f"{type(adapter).__name__} was read at {package} {read}, and {package} {installed} is installed. "
            f"If results look wrong, compare with: pip install {package}=={read}",
            UserWarning,
            stacklevel=3,
        )
