"""What a caller says in the adapter's place."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Forward = Callable[[Any, Any], Tensor]
"""`forward(model, batch) -> Tensor`: the user's own way to run a model."""


@dataclass(frozen=True)
class Override:
    """What the caller says in the adapter's place: how the model runs, the samples' domains, where v counts."""

    forward: Forward | None = None
    domains: tuple[str, ...] | None = None
    mask: Tensor | None = None


def reference(x: Any) -> Hashable:
    """What equals itself while x lives, and nothing afterwards."""
    try:
        hash(x)
        return weakref.ref(x)
    except TypeError:
        return object()
