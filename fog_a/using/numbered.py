"""Lists of layers in which a layer's number matters: where a layer cannot move up without becoming another one.

The traps were met in models of the field: a cache by `layer_idx` (transformers), an entry for each layer in the
configuration (Gemma 2), a first block that owns what all others use (T5, RWKV), a last one without its second stream
(SD3), an index handed to each call (Chroma).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from fog_a.blocks.calls import hooked, named_modules, tree


def why_not(model: nn.Module, path: str, kept: Sequence[int], run: Callable[[], Any]) -> str | None:
    """Why the items of the list at `path` cannot be those `kept` alone, renumbered; None where nothing forbids it.

    `run` runs the model once, to see what its calls are given.
    """
    items = list(named_modules(model)[path].children())
    if reason := _shapes(items, kept):
        return reason
    if list(kept) == list(range(len(kept))):
        return None  # no item changes its number
    if name := _number([dict(_held(item)) for item in items]):
        return f"each layer keeps its number in {name}, and what goes by it (a cache) would have gaps"
    if name := _entries(model, path, len(items)):
        return f"{name} has an entry for each layer, by its number"
    name = _number(_given(items, run))
    return f"the model hands each layer its number ({name})" if name else None


def _shapes(items: Sequence[nn.Module], kept: Sequence[int]) -> str | None:
    """A model of fewer layers has the parameters of the first ones at its beginning, of the last ones at its end."""
    old = [{name: tuple(p.shape) for name, p in item.named_parameters()} for item in items]
    new, end, last = [old[k] for k in kept], old[len(old) - len(kept) :], len(kept) - 1
    first = next((i for i in range(last) if new[i] != old[i]), last)
    odd = 0 if first == 0 != last else next((i for i in range(first, last + 1) if new[i] != end[i]), None)
    if odd is None:
        return None
    return (
        f"its layers have parameters of different names or shapes: layer {kept[odd]} would be layer {odd} of "
        f"{len(kept)}, where a model of {len(kept)} layers has others"
    )


def _number(tables: Sequence[Mapping[str, int]]) -> str | None:
    """A name under which each layer has its number."""
    names = tables[0] if len(tables) > 1 else ()
    return next((n for n in names if [table.get(n) for table in tables] == list(range(len(tables)))), None)


def _held(item: nn.Module) -> Iterator[tuple[str, int]]:
    """Attributes that are whole numbers."""
    for name, module in item.named_modules():
        yield from ((f"{name}.{key}".lstrip("."), value) for key, value in vars(module).items() if type(value) is int)


def _given(items: Sequence[nn.Module], run: Callable[[], Any]) -> list[dict[str, int]]:
    """Whole numbers among the arguments of each layer's last call."""
    calls: list[dict[str, int]] = [{} for _ in items]
    with contextlib.ExitStack() as stack:
        for call, item in zip(calls, items, strict=True):
            note = lambda args, kwargs, call=call: call.update(_whole(tree(args, kwargs)))  # noqa: E731
            stack.enter_context(hooked(item, before=note))
        run()
    return calls


def _whole(x: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    if type(x) is int:
        yield path, x
    elif isinstance(x, (Mapping, list, tuple)) and depth < 3:
        for key, child in x.items() if isinstance(x, Mapping) else enumerate(x):
            yield from _whole(child, f"{path}.{key}".lstrip("."), depth + 1)


def _entries(model: nn.Module, path: str, length: int) -> str | None:
    """A list with an entry for each layer, not all the same, in a module around the list or its configuration."""
    for name, module in named_modules(model).items():
        if name and not path.startswith(f"{name}."):
            continue
        config = getattr(module, "config", None)
        config = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
        for key, value in {**vars(module), **{f"config.{k}": v for k, v in config.items()}}.items():
            if type(value) in (list, tuple) and len(value) == length and _for_layers(key, value):
                return f"{name}.{key}".lstrip(".")
    return None


def _for_layers(key: str, values: Sequence[Any]) -> bool:
    """Whether entries, not all the same, are of layers: words, or numbers under a name that says so."""
    told = all(isinstance(v, (str, bool)) for v in values) or "layer" in key or "block" in key
    return told and not key.split(".")[-1].startswith("_") and any(v != values[0] for v in values[1:])
