"""The calls of a model's modules, and hooks around them: the only file that registers hooks.

Every context manager here takes its own hooks away on leaving, also after an exception, and touches no other's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from fog_a.blocks.block import GatePoint, ResidualBlock

_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """`named_modules()` under the user's own names: without `_orig_mod.`, `module.` and the like of wrappers."""
    table: dict[str, nn.Module] = {}
    _name(model, "", table, set())
    return table


def _name(module: nn.Module, name: str, table: dict[str, nn.Module], seen: set[nn.Module]) -> None:
    seen.add(module)
    table[name] = module  # the innermost of several wrappers of one name wins
    hidden = _WRAPPERS | {"module"} if isinstance(module, _PARALLEL) else _WRAPPERS
    for key, child in module._modules.items():
        if child is not None and child not in seen:
            _name(child, name if key in hidden else f"{name}.{key}" if name else key, table, seen)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside compile, DDP and DataParallel wrappers."""
    keys = [k for k in model._modules if k in _WRAPPERS or (k == "module" and isinstance(model, _PARALLEL))]
    inner = model._modules[keys[-1]] if keys else None
    return model if inner is None else unwrapped(inner)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has spread its parameters over processes: all of them must run the same calls then."""
    return any(type(p).__name__ == "DTensor" for p in model.parameters())


class Counter:
    """Which execution of a module this is, within one forward in which it runs `times` times."""

    def __init__(self, times: int) -> None:
        self.times = max(times, 1)
        self.now = -1

    def begin(self) -> int:
        """The number of the call that begins."""
        self.now = (self.now + 1) % self.times
        return self.now


@contextlib.contextmanager
def hooked(
    module: nn.Module,
    *,
    before: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None,
    after: Callable[[tuple[Any, ...], dict[str, Any], Any], Any] | None = None,
) -> Iterator[None]:
    """`before(args, kwargs)` may give new (args, kwargs), `after(args, kwargs, out)` a new output; None: as it was."""
    handles: list[RemovableHandle] = []
    try:
        handles.extend(_register(module, before, after))
        yield
    finally:
        for handle in handles:
            handle.remove()


class Hook:
    """A hook on one module. A copy of the module, or what is pickled of it, has a hook that does nothing."""

    def __init__(self, module: nn.Module, act: Callable[..., Any]) -> None:
        self.module, self.act = module, act

    def __call__(self, m: nn.Module, *call: Any) -> Any:
        return self.act(*call) if m is self.module or getattr(m, "_is_replica", False) else None  # of a DataParallel

    def __reduce__(self) -> tuple[Any, ...]:
        return NoHook, ()


class NoHook:
    """What is left of a hook in a copy: an average of the weights, a saved model."""

    def __call__(self, *call: Any) -> None:
        return None


def _register(module: nn.Module, before: Any, after: Any) -> Iterator[RemovableHandle]:
    if before is not None:
        yield module.register_forward_pre_hook(Hook(module, before), with_kwargs=True)
    if after is not None:
        yield module.register_forward_hook(Hook(module, after), with_kwargs=True)


@contextlib.contextmanager
def watch(
    model: nn.Module,
    enter: Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None],
    leave: Callable[[str, nn.Module, Any], None],
) -> Iterator[None]:
    """Call `enter` and `leave` around every module call below `model`, with the module's name."""
    handles: list[RemovableHandle] = []
    try:
        for name, module in named_modules(model).items():

            def before(args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name, m: nn.Module = module) -> None:
                enter(name, m, args, kwargs)

            def after(args: Any, kwargs: Any, out: Any, name: str = name, m: nn.Module = module) -> None:
                leave(name, m, out)

            handles.extend(_register(module, before, after))
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


Key = tuple[str, int]
"""A module call: name and which execution."""


def gate_points(blocks: Iterable[ResidualBlock]) -> dict[Key, GatePoint]:
    """All gated calls, in order of execution; where several blocks have their gates at one call, each on outputs of
    its own, one point for all of them."""
    found: dict[Key, GatePoint] = {}
    for point in (s for b in blocks for s in b.gate_points):
        other = found.setdefault((point.module, point.call), point)
        if other is not point:
            found[point.module, point.call] = replace(other, give={**other.give, **point.give})
    return dict(sorted(found.items(), key=lambda item: item[1].order))


@contextlib.contextmanager
def at_calls(
    modules: Mapping[str, nn.Module],
    calls: Mapping[Key, GatePoint],
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
