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
    """Why the items of the list at `path` cannot be these alone, renumbered; None where nothing forbids it.

    Args:
        kept: the numbers that stay, ascending.
        run: runs the model once, to see what its calls are given.
    """
    items = list(named_modules(model)[path].children())
    if reason := _shapes(items, kept):
        return reason
    if list(kept) == list(range(len(kept))):
        return None  # no item changes its number
    return _numbers(items) or _entries(model, path, len(items)) or _handed(items, run)


def _shapes(items: Sequence[nn.Module], kept: Sequence[int]) -> str | None:
    """A model of fewer layers has the parameters of the first ones at its beginning, of the last ones at its end."""
    old = [{name: tuple(p.shape) for name, p in item.named_parameters()} for item in items]
    end, last = len(old) - len(kept), len(kept) - 1
    first = next((i for i, k in enumerate(kept) if old[k] != old[i]), last)
    odd = 0 if first == 0 != last else next((i for i in range(first, last + 1) if old[kept[i]] != old[end + i]), None)
    if odd is None:
        return None
    return (
        f"its layers have parameters of different names or shapes: layer {kept[odd]} would be layer {odd} of "
        f"{len(kept)}, where a model of {len(kept)} layers has others"
    )


def _numbers(items: Sequence[nn.Module]) -> str | None:
    """An attribute that holds each layer's number: a key cache is written by it."""
    tables = [dict(_integers(item)) for item in items]
    names = [name for name in tables[0] if [table.get(name) for table in tables] == list(range(len(items)))]
    return (
        f"each layer keeps its number in {names[0]}, and what goes by it (a cache) would have gaps" if names else None
    )


def _integers(item: nn.Module) -> Iterator[tuple[str, int]]:
    for name, module in item.named_modules():
        for key, value in vars(module).items():
            if type(value) is int:
                yield f"{name}.{key}" if name else key, value


def _entries(model: nn.Module, path: str, length: int) -> str | None:
    """A list with an entry for each layer, not all the same, in a module around the list or its configuration."""
    for name, module in named_modules(model).items():
        if name and not path.startswith(f"{name}."):
            continue
        held = {**vars(module), **{f"config.{k}": v for k, v in _mapping(getattr(module, "config", None)).items()}}
        for key, value in held.items():
            if type(value) in (list, tuple) and len(value) == length and _for_layers(key, value):
                return f"{f'{name}.' if name else ''}{key} has an entry for each layer, by its number"
    return None


def _for_layers(key: str, values: Sequence[Any]) -> bool:
    """Whether entries, not all the same, are of layers: words, or numbers under a name that says so."""
    if key.split(".")[-1].startswith("_"):
        return False
    words = all(isinstance(v, (str, bool)) for v in values) or "layer" in key or "block" in key
    return words and any(v != values[0] for v in values[1:])


def _mapping(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else getattr(config, "__dict__", {})


def _handed(items: Sequence[nn.Module], run: Callable[[], Any]) -> str | None:
    """An integer among the arguments of each layer's call that is its number."""
    seen: dict[int, dict[tuple[Any, ...], int]] = {}
    with contextlib.ExitStack() as stack:
        for i, item in enumerate(items):

            def before(args: Any, kwargs: Any, i: int = i) -> None:
                seen[i] = dict(_whole(tree(args, kwargs)))

            stack.enter_context(hooked(item, before=before))
        run()
    if len(seen) < 2:
        return None
    names = [path for path in seen[min(seen)] if all(given.get(path) == i for i, given in seen.items())]
    return f"the model hands each layer its number ({'.'.join(map(str, names[0]))})" if names else None


def _whole(x: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    if type(x) is int:
        yield path, x
    elif isinstance(x, (Mapping, list, tuple)) and len(path) < 3:
        for key, child in x.items() if isinstance(x, Mapping) else enumerate(x):
            yield from _whole(child, (*path, key))
