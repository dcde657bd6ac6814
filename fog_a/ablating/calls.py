"""The gated calls of a model, in order of execution, and hooks around just these."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from fog_a.concepts import Blocks, Site
from fog_a.hooks import Counter, hooked

Key = tuple[str, int]
"""A module call: name and which execution."""


def sites(blocks: Blocks) -> dict[Key, Site]:
    """All gated calls, in order of execution."""
    found = {(s.module, s.call): s for b in blocks for s in b.sites}
    return dict(sorted(found.items(), key=lambda item: item[1].order))


@contextlib.contextmanager
def at_calls(
    modules: Mapping[str, nn.Module],
    calls: Mapping[Key, Site],
    before: Callable[[Key, tuple[Any, ...], dict[str, Any]], Any],
    after: Callable[[Key, tuple[Any, ...], dict[str, Any], Any], Any],
    paused: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """`before` and `after` around these calls of `named_modules`, told apart where a module runs several times.
    Calls that are made while `paused()` are left alone."""
    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(module for module, _ in calls):
            times = next(s.times for (module, _), s in calls.items() if module == name)
            count = Counter(times)

            def enter(args: Any, kwargs: Any, name: str = name, count: Counter = count) -> Any:
                if paused():
                    return None
                key = (name, count.begin())
                return before(key, args, kwargs) if key in calls else None

            def leave(args: Any, kwargs: Any, out: Any, name: str = name, count: Counter = count) -> Any:
                if paused():
                    return None
                key = (name, count.now)
                return after(key, args, kwargs, out) if key in calls else None

            stack.enter_context(hooked(modules[name], before=enter, after=leave))
        yield


def tree(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments as one tree, in which `LeafPath`s lead."""
    return {"args": args, "kwargs": kwargs}
