"""The only place where hooks are registered: `gate` closes blocks, `tap` reads their outputs, `watch` sees all calls.

A gate stands at module calls. Eq. 7, `h_l = h_{l-1} + g_l · f_l(h_{l-1}, t, c)`: where a module takes the stream in
and gives it out, its output becomes `(1 - g)·h_{l-1} + g·h_l`; where it returns an update f_l that the parent adds, its
output becomes `g·f_l`. 0 and 1 select, so that an inf or NaN in what is removed cannot leak; anything between is a
`torch.lerp` in the output's dtype.

Every context manager here takes its own hooks away on leaving, also after an exception, and touches no other's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fog_a.concepts import Blocks, LeafPath, Passage, ResidualBlock, Site, Spot
from fog_a.errors import NoActivations, NotResidual, ShapeMismatch
from fog_a.leaves import leaf, replaced
from fog_a.state import eager
from fog_a.state import preserved as preserved
from fog_a.state import rng as rng

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
        for handle in _register(module, before, after):
            stack.callback(handle.remove)
        yield


def _register(module: nn.Module, before: Any, after: Any) -> Iterator[RemovableHandle]:
    def ours(m: nn.Module) -> bool:
        """A deep copy (an EMA) carries the hooks along, but is a module of its own; a DataParallel replica is not."""
        return m is module or getattr(m, "_is_replica", False)

    if before is not None:
        yield module.register_forward_pre_hook(
            lambda m, args, kwargs: before(args, kwargs) if ours(m) else None, with_kwargs=True
        )
    if after is not None:
        yield module.register_forward_hook(
            lambda m, args, kwargs, out: after(args, kwargs, out) if ours(m) else None, with_kwargs=True
        )


class gate(contextlib.AbstractContextManager["gate"]):
    """Scale the updates of `blocks` by `value` while the context lasts.

    Args:
        blocks: from `find_blocks`, or one of its blocks through a slice.
        value: 0 removes, 1 changes nothing, between interpolates; a Tensor (B,) is one value per sample.

    Raises:
        NotResidual: a stream's input and output do not fit any more (another batch shape than the one traced).
        ShapeMismatch: a tensor `value` whose length is not the number of samples.

    `fired` counts, by block name, how often a gate acted.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        ...     def forward(self, x):
        ...         return x + self.f(x)
        >>> net, x = nn.Sequential(Residual(), Residual()), torch.randn(2, 4)
        >>> with fog_a.gate(fog_a.find_blocks(net, x), 0):
        ...     bool((net(x) == x).all())
        True
    """

    def __init__(self, blocks: Blocks, value: float | Tensor) -> None:
        self.blocks = blocks
        self.value = value
        self.fired: dict[str, int] = {b.name: 0 for b in blocks}
        self._counters: dict[tuple[str, int], Counter] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> gate:
        modules = named_modules(self.blocks.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(eager())
            if any(site.once and site.times > 1 for block in self.blocks for site in block.sites):
                stack.enter_context(hooked(modules[""], before=self._restart))
            for block in self.blocks:
                for site in block.sites:
                    stack.enter_context(self._site(modules[site.module], block, site))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    def _restart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Executions are counted anew in each forward, also after one that raised half-way."""
        for count in self._counters.values():
            count.now = -1

    @contextlib.contextmanager
    def _site(self, module: nn.Module, block: ResidualBlock, site: Site) -> Iterator[None]:
        count = self._counters.setdefault((site.module, site.call), Counter(site.times))
        kept: dict[LeafPath, Tensor] = {}

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if count.begin() == site.call:
                kept.update(kept_inputs(site, args, kwargs))

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            if count.now != site.call:
                return None
            self.fired[block.name] += 1
            gated = closed(site, block, kept, out, self.value)
            kept.clear()
            return gated

        with hooked(module, before=before, after=after):
            yield


def kept_inputs(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[LeafPath, Tensor]:
    """Copies of the input leaves that a closed gate gives back: the block, or its successor, may write into them."""
    paths = {path for passage in site.give.values() if passage is not None for path in passage.sources}
    tree = {"args": args, "kwargs": kwargs}
    return {path: leaf(tree, path).clone() for path in paths}


def closed(site: Site, block: ResidualBlock, inputs: Mapping[LeafPath, Tensor], out: Any, value: float | Tensor) -> Any:
    """The output of a call at a gate of this value."""
    new = {}
    for path, passage in site.give.items():
        y = leaf(out, path)
        new[path] = mixed(y, carried(inputs, passage, y, block), value)
    return replaced(out, new)


def carried(inputs: Mapping[LeafPath, Tensor], passage: Passage | None, out: Tensor, block: ResidualBlock) -> Tensor:
    """What stands at an output leaf when the gate is closed: the stream's own elements, or zeros."""
    if passage is None:
        return torch.zeros_like(out)
    x = inputs[passage.sources[0]]
    if x.is_nested:  # has no shape to compare
        return x.to(out.dtype)
    if passage.index is not None:
        flat = torch.cat([inputs[path].reshape(-1) for path in passage.sources])
        x = None if passage.index.shape != out.shape or passage.size != flat.numel() else flat
        if x is not None:
            index = passage.index.to(out.device)
            x = torch.where(index > 0, x[(index - 1).clamp(min=0)].to(out.dtype), out)
    elif passage.dims is not None:
        x = x.permute(passage.dims)
    if x is None or x.shape != out.shape:
        raise NotResidual(
            f"block {block.name!r}: expected its output {tuple(out.shape)} laid out as when the blocks were found. "
            "Find them on a batch of this shape: find_blocks(model, batch)"
        )
    return x.to(out.dtype)


def mixed(out: Tensor, closed: Tensor, value: float | Tensor) -> Tensor:
    """`closed` at 0, `out` at 1, between them the line that joins them; per sample if value is (B,)."""
    if not isinstance(value, Tensor):
        if value in (0, 1):
            return out if value == 1 else closed
        # torch has no lerp of nested tensors
        return closed * (1 - value) + out * value if out.is_nested else torch.lerp(closed, out, value)
    if value.numel() == 1:
        return mixed(out, closed, float(value))
    axes = [d for d, n in enumerate(out.shape) if value.ndim == 1 and n == len(value)]
    if len(axes) != 1:  # the samples' axis need not be the first, and a guess may be wrong without a sound
        raise ShapeMismatch(
            f"expected a gate value per sample, on exactly one axis of {tuple(out.shape)}, got {tuple(value.shape)}. "
            "Give one number, or as many as the batch has samples, where no other axis has that length"
        )
    g = value.to(out.device).reshape([-1 if d == axes[0] else 1 for d in range(out.ndim)])
    between = torch.lerp(closed, out, g.to(out.dtype).expand_as(out))
    chosen = torch.where(g == 0, closed, torch.where(g == 1, out, between))
    # laid out in memory as `out`: the model's next product may round otherwise on another layout
    return chosen if chosen.stride() == out.stride() else torch.empty_like(out).copy_(chosen)


class tap(contextlib.AbstractContextManager["tap"]):
    """Record the outputs h_l of `blocks`: `h[name]`, with their graph if grad is on; the last call wins.

    A block with several streams has its first in `h[name]` and all of them in `h.all[name]`. Where no module emits
    h_l (additions in a parent's forward) it is read where the next module takes it in, or made of its two addends. For
    long-lived use: `open()`, `close()`, both without harm when called twice, and `clear()` to drop what was recorded.
    Calls at which `when()` is False are neither recorded nor counted.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 8)
        >>> with fog_a.tap(fog_a.find_blocks(net, x)) as h:
        ...     y = net(x)
        >>> h["layers.1"].shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, blocks: Blocks, *, when: Callable[[], bool] = lambda: True) -> None:
        self.blocks = blocks
        self.when = when
        self.all: dict[str, tuple[Tensor, ...]] = {}
        self._found: dict[str, dict[int, Tensor]] = {}
        self._addends: dict[tuple[str, int], dict[bool, Tensor]] = {}
        self._stack: contextlib.ExitStack | None = None
        self._eager = contextlib.ExitStack()

    def open(self) -> tap:
        if self._stack is None:
            modules = named_modules(self.blocks.model)
            with contextlib.ExitStack() as stack:
                for block in self.blocks:
                    for i, spot in enumerate(block.outputs):
                        for part in (spot,) if spot.plus is None else (spot, spot.plus):
                            stack.enter_context(self._spot(modules[part.module], block.name, i, part, spot))
                self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def clear(self) -> None:
        self.all.clear()
        self._found.clear()
        self._addends.clear()

    def __enter__(self) -> tap:
        self._eager.enter_context(eager())
        return self.open()

    def __exit__(self, *exc: Any) -> None:
        self.close()
        self._eager.close()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.all:
            self.blocks.named([name])
            raise NoActivations(
                f"nothing was recorded of {name!r}: expected a forward of the model while the tap is open, got none. "
                "Run it inside `with fog_a.tap(blocks)`; code compiled before the tap was opened does not see it"
            )
        return self.all[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self.all

    def __len__(self) -> int:
        return len(self.all)

    def _keep(self, name: str, i: int, h: Tensor, part: Spot, spot: Spot) -> None:
        found = self._found.setdefault(name, {})
        h = h.clone() if part.overwritten else h
        if spot.plus is not None:
            addends = self._addends.setdefault((name, i), {})
            addends[part is spot] = h
            if len(addends) < 2:
                return
            h = addends[True] + addends[False]
            addends.clear()
        found[i] = h
        self.all[name] = tuple(found[j] for j in sorted(found))

    @contextlib.contextmanager
    def _spot(self, module: nn.Module, name: str, i: int, part: Spot, spot: Spot) -> Iterator[None]:
        count = Counter(part.times)

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.when() and count.begin() == part.call:
                self._keep(name, i, leaf({"args": args, "kwargs": kwargs}, part.leaf), part, spot)

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if self.when() and count.begin() == part.call:
                self._keep(name, i, leaf(out, part.leaf), part, spot)

        with hooked(module, before=before) if part.side == "input" else hooked(module, after=after):
            yield


@contextlib.contextmanager
def watch(
    model: nn.Module,
    enter: Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None],
    leave: Callable[[str, nn.Module, Any], None],
) -> Iterator[None]:
    """Call `enter` and `leave` around every module call below `model`, with the module's name."""
    with contextlib.ExitStack() as stack:
        for name, module in named_modules(model).items():

            def before(args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name, m: nn.Module = module) -> None:
                enter(name, m, args, kwargs)

            def after(args: Any, kwargs: Any, out: Any, name: str = name, m: nn.Module = module) -> None:
                leave(name, m, out)

            stack.enter_context(hooked(module, before=before, after=after))
        yield
