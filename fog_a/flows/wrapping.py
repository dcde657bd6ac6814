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
from fog_a.errors import Unsupported
from fog_a.flows.flow import Flow
from fog_a.flows.generic import GenericAdapter
from fog_a.flows.register import adapter_of, get_adapter, installed_version, purpose


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
        adapter = GenericAdapter if {"x", "t", "call"} & set(options) else adapter_of(inner)
    elif isinstance(adapter, str):
        adapter = get_adapter(adapter)
    kind = adapter if isinstance(adapter, type) else type(adapter)
    if not issubclass(kind, Flow):
        raise Unsupported(
            f"{kind.__name__} is no adapter: expected a subclass of fog_a.Flow, with velocity(self, batch, t, seed=0) "
            "and samples(self, batch). See docs/write-an-adapter.md"
        )
    if isinstance(adapter, type):
        flow = _made(kind, model if kind is GenericAdapter else inner, options)
    elif options:
        raise Unsupported(f"options ({', '.join(options)}) are for an adapter's class; an object has its own already")
    else:
        flow = adapter
    installed = installed_version(flow.package)
    if installed and flow.version and installed != flow.version:
        warnings.warn(
            f"{kind.__name__} was read at {flow.package} {flow.version}, and {flow.package} {installed} is installed. "
            f"If results look wrong, compare with: pip install {flow.package}=={flow.version}",
            UserWarning,
            stacklevel=2,
        )
    return flow


def _made(kind: type[Flow], model: Any, options: dict[str, Any]) -> Flow:
    """An adapter of this class that reads the model. Raises Unsupported, for an unknown option with the near names."""
    parameters = inspect.signature(kind).parameters
    names = list(parameters)[1:]  # the first is the model
    unknown = [option for option in options if option not in names]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        near = difflib.get_close_matches(unknown[0], names, n=3, cutoff=0.4) or names
        hint = f"did you mean {' or '.join(near)}?" if near else "it takes no options."
        raise Unsupported(f"{kind.__name__} has no option {unknown[0]!r}: {hint}")
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
