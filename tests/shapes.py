"""The type checker behind `pytest --jaxtyping-packages=fog_a,fog_a_adapters,shapes.checked` (`make test` asks for it).

jaxtyping wraps every function of those packages, binds the letters of `Float[Tensor, "B T D"]` for the length of one
call, and asks this checker to hold arguments and results to them. Other annotations are pyright's to check; here they
are left out, since many are imported for type checkers only.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable
from typing import Any

from beartype import beartype

checking = True
"""Off in tests that give wrong types on purpose, to see what fog_a itself says: see `forgiving` in conftest.py."""

SHAPED = re.compile(r"\b(Float|Float32|Int|Integer|Bool|Shaped|Num)\[")
RAGGED = re.compile(r"\b(Sequence|list|Iterable|Iterator|Mapping|dict)\[")
"""A list of `Float[Tensor, "N"]` is of tensors each with its own N, which one letter per call cannot say."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its shaped arguments and result checked at each call."""
    if not isinstance(function, types.FunctionType) or function.__name__ == "__init__":  # dataclasses tidy their fields
        return function
    hints = function.__annotations__.items()
    shaped = {name: hint for name, hint in hints if SHAPED.search(str(hint)) and not RAGGED.search(str(hint))}
    if not shaped:
        return function
    twin = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__, twin.__annotations__ = function.__kwdefaults__, shaped
    twin.__module__, twin.__qualname__, twin.__doc__ = function.__module__, function.__qualname__, function.__doc__
    strict = beartype(twin)

    @functools.wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        return strict(*args, **kwargs) if checking else function(*args, **kwargs)

    return either
