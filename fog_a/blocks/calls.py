"""The calls of a model's modules, and hooks around them: the only file that registers hooks.

Every context manager here takes its own hooks away on leaving, also after an exception, and touches no other's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fog_a.blocks.block import GatePoint, ResidualBlock, TapPoint
from fog_a.errors import UnknownBlock

_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
Scripted = torch.jit.RecursiveScriptModule  # pyright: ignore[reportPrivateImportUsage]
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """`named_modules()` under the user's own names: without `_orig_mod.`, `module.` and the like of wrappers. Scripted
    modules, which take no hooks, have none."""
    table: dict[str, nn.Module] = {}
    _name(model, "", table, set())
    return table


def _name(module: nn.Module, name: str, table: dict[str, nn.Module], seen: set[nn.Module]) -> None:
    seen.add(module)
    table[name] = module  # the innermost of several wrappers of one name wins
    hidden = _WRAPPERS | {"module"} if isinstance(module, _PARALLEL) else _WRAPPERS
    for key, child in module._modules.items():
        if child is not None and child not in seen and not isinstance(child, Scripted):
            _name(child, name if key in hidden else f"{name}.{key}" if name else key, table, seen)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside compile, DDP and DataParallel wrappers."""
    keys = [k for k, _ in model._modules.items() if k in _WRAPPERS or (k == "module" and isinstance(model, _PARALLEL))]
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
    with contextlib.ExitStack() as stack:
        _hook(stack, module, before, after)
        yield


def _hook(stack: contextlib.ExitStack, module: nn.Module, before: Any, after: Any) -> None:
    if before is not None:
        stack.enter_context(module.register_forward_pre_hook(Hook(module, before), with_kwargs=True))
    if after is not None:
        stack.enter_context(module.register_forward_hook(Hook(module, after), with_kwargs=True))


def before_loading(optimizer: torch.optim.Optimizer, change: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> None:
    """From now on the optimizer loads change(optimizer, state)."""
    optimizer.register_load_state_dict_pre_hook(change)


class Hook:
    """A hook on one module. A copy of the module, or what is pickled of it, has a hook that does nothing."""

    def __init__(self, module: nn.Module, act: Callable[..., Any]) -> None:
        self.module, self.act = module, act

    def __call__(self, m: nn.Module, *call: Any) -> Any:
        return self.act(*call) if m is self.module or getattr(m, "_is_replica", False) else None  # of a DataParallel

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (_nothing,)


def _nothing(*call: Any) -> None:
    """What is left of a hook in a copy: an average of the weights, a saved model."""


@contextlib.contextmanager
def watch(
    model: nn.Module,
    enter: Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None],
    leave: Callable[[str, nn.Module, Any], None],
) -> Iterator[None]:
    """Call `enter` and `leave` around every module call below `model`, with the module's name."""
    with contextlib.ExitStack() as stack:
        for name, module in named_modules(model).items():

            def after(args: Any, kwargs: Any, out: Any, name: str = name, m: nn.Module = module) -> None:
                leave(name, m, out)

            _hook(stack, module, functools.partial(enter, name, module), after)
        yield


Key = tuple[str, int]
"""A module call: name and which execution."""


def gate_points(blocks: Iterable[ResidualBlock]) -> dict[Key, GatePoint]:
    """All gated calls, in order of execution; where several blocks have their gates at one call, each on outputs of
    its own, one point for all of them."""
    return merged(point for block in blocks for point in block.gate_points)


def merged(every: Iterable[GatePoint]) -> dict[Key, GatePoint]:
    """One point for each call, in order of execution."""
    points: dict[Key, GatePoint] = {}
    for point in every:
        other = points.setdefault((point.module, point.call), point)
        if other is not point:
            points[point.module, point.call] = replace(other, give={**other.give, **point.give})
    return dict(sorted(points.items(), key=lambda item: item[1].order))


@contextlib.contextmanager
def at_calls(
    modules: Mapping[str, nn.Module],
    calls: Mapping[Key, GatePoint | TapPoint],
    before: Callable[[Key, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    after: Callable[[Key, tuple[Any, ...], dict[str, Any], Any], Any] | None = None,
    paused: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """`before` and `after` around these calls of `named_modules`, told apart where a module runs several times.

    Calls that are made while `paused()` are left alone. Executions are counted anew in each forward, also after one
    that raised half-way.
    """
    counts = {name: Counter(point.times) for (name, _), point in calls.items()}
    if gone := [name for name in counts if name not in modules]:
        raise UnknownBlock(
            f"expected the modules that the blocks were found in, got a model without {', '.join(gone)}. "
            "It was changed since: type find_blocks(model, batch) again"
        )

    def enter(name: str, args: Any, kwargs: Any) -> Any:
        if paused():
            return None
        key = (name, counts[name].begin())
        return before(key, args, kwargs) if key in calls and before is not None else None

    def leave(name: str, args: Any, kwargs: Any, out: Any) -> Any:
        key = (name, counts[name].now)
        return after(key, args, kwargs, out) if after is not None and not paused() and key in calls else None

    def restart(args: Any, kwargs: Any) -> None:
        for count in counts.values():
            count.now = -1

    with contextlib.ExitStack() as stack:
        if any(isinstance(point, GatePoint) and point.once and point.times > 1 for point in calls.values()):
            _hook(stack, modules[""], restart, None)
        for name in counts:
            _hook(stack, modules[name], functools.partial(enter, name), functools.partial(leave, name))
        yield


def tree(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments as one tree, in which `LeafPath`s lead."""
    return {"args": args, "kwargs": kwargs}
