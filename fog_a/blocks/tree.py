"""Where tensors sit in nested arguments and outputs, and how to put others in their place.

torch's own pytrees must be told of every dataclass and every user's class beforehand; models hand on whatever they
like, so this walk asks the object itself. Containers are copied, never written into: they belong to the caller.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LeafPath = tuple[Any, ...]
"""Where a tensor sits in nested arguments or outputs: keys, indices and attribute names from the outside in."""

_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, nn.Module)
_DEEPEST = 8


def leaves(tree: Any) -> list[tuple[LeafPath, Tensor]]:
    """All tensors in `tree` with their paths: keys of mappings, indices of sequences, attributes of objects."""
    return list(_leaves(tree, ()))


def _leaves(tree: Any, path: LeafPath) -> Iterator[tuple[LeafPath, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif len(path) < _DEEPEST:
        for key, child in _children(tree):
            yield from _leaves(child, (*path, key))


def _children(tree: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(tree, _PLAIN):
        return []
    if isinstance(tree, (tuple, list)):
        return enumerate(tree)
    if isinstance(tree, Mapping):
        return [(key, tree[key]) for key in tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f.name, getattr(tree, f.name, None)) for f in dataclasses.fields(tree)]
    held = getattr(tree, "__dict__", None)
    # any other object counts as a container only if it holds a tensor itself: caches and configurations stay opaque
    if isinstance(held, dict) and not callable(tree) and any(isinstance(v, Tensor) for v in held.values()):
        return list(held.items())
    return []


def leaf(tree: Any, path: LeafPath) -> Any:
    """What stands at `path`. Raises KeyError, IndexError or AttributeError where there is nothing."""
    for key in path:
        tree = _child(tree, key)
    return tree


def _child(tree: Any, key: Any) -> Any:
    return tree[key] if isinstance(tree, (Mapping, tuple, list)) else getattr(tree, key)


def replaced(tree: Any, new: Mapping[LeafPath, Any]) -> Any:
    """`tree` with the leaves at these paths replaced; containers on the way are copied."""
    if not new:
        return tree
    if () in new:
        return new[()]
    below: dict[Any, dict[LeafPath, Any]] = {}
    for (key, *rest), value in new.items():
        below.setdefault(key, {})[tuple(rest)] = value
    changed = {key: replaced(_child(tree, key), inner) for key, inner in below.items()}
    if isinstance(tree, tuple):
        items = [changed.get(i, child) for i, child in enumerate(tree)]
        return type(tree)(*items) if hasattr(tree, "_fields") else _as_tuple(tree, items)
    twin = copy.copy(tree)
    for key, value in changed.items():
        if isinstance(tree, (Mapping, list)):
            twin[key] = value  # type: ignore[index]
        else:
            object.__setattr__(twin, key, value)  # frozen dataclasses too
    return twin


def _as_tuple(like: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    try:
        return type(like)(items)
    except TypeError:  # a structured return value of torch (e.g. torch.max): its type takes no list of tensors
        return tuple(items)
