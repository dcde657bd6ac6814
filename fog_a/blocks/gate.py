"""Closing blocks.

A gate stands at module calls. Eq. 7, `h_l = h_{l-1} + g_l · f_l(h_{l-1}, t, c)`: where a module takes the stream in
and gives it out, its output becomes `(1 - g)·h_{l-1} + g·h_l`; where it returns an update f_l that the parent adds, its
output becomes `g·f_l`. 0 and 1 select, so that an inf or NaN in what is removed cannot leak; anything between is a
`torch.lerp` in the output's dtype.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock, Source, TapPoint, checked_blocks
from fog_a.blocks.calls import Key, at_calls, gate_points, named_modules, tree
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.tree import LeafPath, leaf, replaced
from fog_a.blocks.untouched import eager
from fog_a.errors import NotResidual, ShapeMismatch


class gate(contextlib.AbstractContextManager["gate"]):
    """Scale the updates of `blocks` by `value` while the context lasts.

    Args:
        blocks: from `find_blocks`, or one of its blocks through a slice.
        value: 0 removes, 1 changes nothing, between interpolates; a Tensor (B,) is one value per sample. A tensor that
            requires grad gets its gradient.

    Raises:
        NotResidual: a stream's input and output do not fit any more (another batch shape than the one traced).
        ShapeMismatch: a tensor `value` whose length is not the number of samples. UnknownBlock: names, one block, or a
            model that has lost blocks since.

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
        self.blocks = checked_blocks(blocks)
        self.value = value
        self.fired: dict[str, int] = {b.name: 0 for b in blocks}
        self._calls = gate_points(blocks)
        self._gates = [(block, point) for block in blocks for point in block.gate_points]
        self._inputs: dict[Key, dict[LeafPath, Tensor]] = {}
        self._shortcuts: dict[LeafPath, Tensor] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> gate:
        modules = named_modules(self.blocks.model)
        self._replays = Replays()
        with contextlib.ExitStack() as stack:
            stack.enter_context(unbroken())
            stack.enter_context(eager())
            for source in (s for point in self._calls.values() for s in point.give.values()):
                if source is not None and source.inside is not None:
                    keep, key = functools.partial(self._keep, source.inside), (source.inside.module, source.inside.call)
                    stack.enter_context(at_calls(modules, {key: source.inside}, after=keep))
            stack.enter_context(at_calls(modules, self._calls, self._before, self._after))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()
        self._inputs.clear()
        self._shortcuts.clear()
        if exc[0] is None:
            self._replays.warn()

    def _keep(self, shortcut: TapPoint, key: Key, args: Any, kwargs: Any, out: Any) -> None:
        """Keep what a module inside a gated call gives out."""
        self._shortcuts["inside", shortcut.module, shortcut.leaf] = leaf(out, shortcut.leaf).clone()

    def _before(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs[key] = kept_inputs(self._calls[key], args, kwargs)

    def _after(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        inputs = {**self._inputs.pop(key), **self._shortcuts}
        for block, point in self._gates:
            if (point.module, point.call) == key:
                self.fired[block.name] += 1
                self._replays.see(block.name)
                out = closed(point, block, inputs, out, self.value)
        return out


def kept_inputs(point: GatePoint, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[LeafPath, Tensor]:
    """Copies of the input leaves that a closed gate gives back: the block, or its successor, may write into them."""
    paths = {path for passage in point.give.values() if passage is not None for path in passage.sources}
    return {path: leaf(tree(args, kwargs), path).clone() for path in paths}


def closed(
    point: GatePoint, block: ResidualBlock, inputs: Mapping[LeafPath, Tensor], out: Any, value: float | Tensor
) -> Any:
    """The output of a call at a gate of this value.

    Raises:
        NotResidual: a value between 0 and 1 where the model norms what is given out before it adds it.
    """
    if not point.scales and not _selects(value):
        raise NotResidual(
            f"block {block.name!r}: expected a gate of 0 or 1, since the model norms what {point.module!r} gives out "
            "before it adds it, and half of it normed is the whole. Give 0 or 1, or gate its layer"
        )
    new = {}
    for path, passage in point.give.items():
        y = leaf(out, path)
        new[path] = mixed(y, carried(inputs, passage, y, block), value)
    return replaced(out, new)


def check_acted(block: ResidualBlock, times: int) -> None:
    """Raises NotResidual where a gate did not act once at each of its points in a forward."""
    if times != len(block.gate_points):
        raise NotResidual(
            f"block {block.name!r}: its gate acted {times} times in a forward, expected {len(block.gate_points)}. "
            "The model runs other modules on this batch than when its blocks were found: call find_blocks on it"
        )


def _selects(value: float | Tensor) -> bool:
    return bool(((value == 0) | (value == 1)).all()) if isinstance(value, Tensor) else value in (0, 1)


def carried(inputs: Mapping[LeafPath, Tensor], passage: Source | None, out: Tensor, block: ResidualBlock) -> Tensor:
    """What stands at an output leaf when the gate is closed: the stream's own elements, or zeros."""
    if passage is None:
        return torch.zeros_like(out)
    if passage.inside is not None:
        return inputs[("inside", passage.inside.module, passage.inside.leaf)].to(out.dtype)
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
        x = x.permute(passage.dims) if len(passage.dims) == x.ndim else None
    elif passage.broadcast and broadcasts(x.shape, out.shape):
        x = x.expand(out.shape).contiguous()
    if x is None or x.shape != out.shape:
        raise NotResidual(
            f"block {block.name!r}: expected its output {tuple(out.shape)} laid out as when the blocks were found. "
            "Find them on a batch of this shape: find_blocks(model, batch)"
        )
    return x.to(out.dtype)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Can a tensor of this shape be expanded to the other one?"""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


def mixed(out: Tensor, closed: Tensor, value: float | Tensor) -> Tensor:
    """`closed` at 0, `out` at 1, between them the line that joins them; per sample if value is (B,)."""
    learned = isinstance(value, Tensor) and value.requires_grad
    if isinstance(value, Tensor) and value.numel() == 1 and not learned:
        value = float(value)
    if not isinstance(value, Tensor):
        if value in (0, 1):
            return out if value == 1 else closed
        # torch has no lerp of nested tensors
        return closed * (1 - value) + out * value if out.is_nested else torch.lerp(closed, out, value)
    g = _over(value, out)
    between = torch.lerp(closed, out, g.to(out.dtype).expand_as(out))
    if learned:  # `where` has no slope at 0 and 1
        return between
    chosen = torch.where(g == 0, closed, torch.where(g == 1, out, between))
    # laid out in memory as `out`: the model's next product may round otherwise on another layout
    return chosen if chosen.stride() == out.stride() else torch.empty_like(out).copy_(chosen)


def _over(value: Tensor, out: Tensor) -> Tensor:
    """A value, or one for each sample, with the axes of `out`."""
    axes = [d for d, n in enumerate(out.shape) if value.ndim == 1 and n == len(value)]
    if value.numel() == 1:
        axes = [0]
    if len(axes) != 1:  # the samples' axis need not be the first, and a guess may be wrong without a sound
        raise ShapeMismatch(
            f"expected a gate value per sample, on exactly one axis of {tuple(out.shape)}, got {tuple(value.shape)}. "
            "Give one number, or as many as the batch has samples, where no other axis has that length"
        )
    return value.to(out.device).reshape([-1 if d == axes[0] else 1 for d in range(out.ndim)])


class Replays:
    """The calls of gated blocks that a later backward will run again.

    Re-entrant checkpointing calls a block in the forward of a torch.autograd.Function, and backward runs it again. What
    runs again after a gate has gone is the ungated block, and its gradients are those of another network.
    """

    def __init__(self) -> None:
        self.possible = torch.is_grad_enabled()  # outside the forward of a Function, which runs without gradients
        self.awaited: dict[str, int] = {}

    def see(self, block: str) -> None:
        """One gated call of a block."""
        if torch._C._current_graph_task_id() >= 0:  # autograd is at work: this is a replay
            self.awaited[block] = max(0, self.awaited.get(block, 0) - 1)
        elif self.possible and not torch.is_grad_enabled() and _in_function():
            self.awaited[block] = self.awaited.get(block, 0) + 1

    def warn(self) -> None:
        """Says which gated calls a backward from now on would run without their gate."""
        names = [name for name, count in self.awaited.items() if count]
        if names:
            warnings.warn(
                f"the gate of {', '.join(map(repr, names[:3]))} acted under re-entrant checkpointing, whose backward "
                "runs the block again: after the gate it gives the ungated network's gradients. Call backward() inside "
                "`with fog_a.gate(...)`, or use checkpoint(..., use_reentrant=False)",
                stacklevel=3,
            )


def _in_function() -> bool:
    """Whether the caller is run by a Function's forward: its first argument is the context that backward gets."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and isinstance(frame.f_locals.get((*code.co_varnames, "")[0]), FunctionCtx):
            return True
        frame = frame.f_back
    return False
