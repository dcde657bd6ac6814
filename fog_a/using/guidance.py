"""Skip guidance: the velocity pushed away from the one that the network gives without some blocks.

    v̂ = v + s (v − v_skip),    v_skip = v_θ(x_t, t, c; g_k = 0 for k in the skipped blocks)

Both come from one forward: the rows are given twice, and in the second half the gates are closed. Which arguments have
a row for each sample, and along which axis, is measured at the first call of each shape.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fog_a.attributing.layout import Layout, layout_of
from fog_a.blocks.block import Blocks, GatePoint, ResidualBlock
from fog_a.blocks.calls import Key, at_calls, gate_points, hooked, named_modules, tree
from fog_a.blocks.gate import carried, gate, kept_inputs
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.tree import LeafPath, leaf, leaves, replaced
from fog_a.blocks.untouched import eager, preserved
from fog_a.errors import BadArgument, UnknownBlock
from fog_a.flows.bare import BareFlow, flow_of
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Inputs

When = Callable[[Inputs], bool | Bool[Tensor, "B"]]
"""Whether a call of the network is guided, or which of its rows."""


class skip_guidance(contextlib.AbstractContextManager["skip_guidance"]):
    """Inside, every call of the flow's network gives v + scale (v − v_skip): any sampler that calls it is guided.

    Args:
        flow: a flow from `wrap`, or the network itself.
        blocks: those to skip, from `find_blocks`: `blocks.named(selection.layers)`.
        scale: s; 0 guides nothing. Of the tools in use, 0.5 to 3 are usual.
        when: a function of the call's `Inputs` that says whether it is guided, or which rows are: of a sampler with
            classifier-free guidance, the conditional ones; of a range of times, those in it. None: all.

    The network runs once a call, on twice the rows, with no second copy of the model. Where its samples depend on each
    other, it runs twice. `calls` counts the guided calls; `doubled` says whether the last one was one forward.

    Raises:
        UnknownBlock: names, or blocks of another model. BadArgument: a scale that is no finite number.

    Example:
        >>> import fog_a, torch
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net, x = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval(), torch.randn(4, 5, 8)
        >>> blocks = fog_a.find_blocks(net, x)
        >>> with torch.no_grad(), fog_a.skip_guidance(net, blocks.named("layers.1"), scale=2.0) as guided:
        ...     v = net(x)
        >>> guided.calls, v.shape
        (1, torch.Size([4, 5, 8]))
    """

    def __init__(self, flow: Flow | nn.Module, blocks: Blocks, scale: float, *, when: When | None = None) -> None:
        net = BareFlow(flow_of(flow).module)
        if not isinstance(blocks, Blocks) or not blocks or blocks.model is not net.module:
            raise UnknownBlock(
                "expected blocks of this flow's network, at least one. Type find_blocks(flow, batch).named([...])"
            )
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not math.isfinite(scale):
            raise BadArgument(f"expected scale= as a finite number, such as 1.5, got {scale!r}")
        self.blocks, self.scale, self.when = blocks, float(scale), when
        self.calls, self.doubled = 0, False
        self._net, self._layouts = net, dict[Hashable, Layout]()
        self._paused = False
        self._now: _Call | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> skip_guidance:
        owner = {(p.module, p.call): b for b in self.blocks for p in b.gate_points}
        points = gate_points(self.blocks)
        kept: dict[Key, dict[LeafPath, Tensor]] = {}

        def before(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[key] = kept_inputs(points[key], args, kwargs)

        def after(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            assert self._now is not None and self._now.layout is not None
            return _half_closed(self._now.layout, key, owner[key], points[key], kept.pop(key), out)

        def idle() -> bool:
            return self._paused or self._now is None or self._now.layout is None

        with contextlib.ExitStack() as stack:
            stack.enter_context(unbroken())
            stack.enter_context(eager())
            stack.enter_context(at_calls(named_modules(self.blocks.model), points, before, after, idle))
            stack.enter_context(hooked(self._net.module, before=self._enter, after=self._leave))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The rows twice, where the call is guided."""
        if self._paused:
            return None
        inputs, self._now = Inputs(*args, **kwargs), None
        rows = True if self.when is None else self.when(inputs)
        if self.scale == 0 or not bool(torch.as_tensor(rows).any()):
            return None
        self.calls += 1
        layout = self._layout(inputs)
        self._now, self.doubled = _Call(inputs, rows, layout), layout is not None
        if layout is None:
            return None
        given = tree(args, kwargs)
        given = replaced(given, {p: axis.join([leaf(given, p)] * 2) for p, axis in layout.entrance.items()})
        return given["args"], given["kwargs"]

    def _layout(self, inputs: Inputs) -> Layout | None:
        """Where the rows are; None where both halves cannot share a forward."""
        case = Case(self._net, inputs)
        if case.layout not in self._layouts:
            with self._pause(), preserved(*case.modules):
                self._layouts[case.layout] = layout_of(case, self.blocks)[0]
        layout = self._layouts[case.layout]
        return None if layout.problem is not None or any(b.alone for b in self.blocks) else layout

    def _leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """The guided velocity in the place of v; of the other outputs the rows of the network as it is."""
        now, self._now = self._now, None
        if self._paused or now is None:
            return None
        if now.layout is None:
            with self._pause(), gate(self.blocks, 0):
                skipped = self._net.module(*now.inputs.args, **now.inputs.kwargs)
            path = next(p for p, x in leaves(out) if x.is_floating_point())
            return replaced(out, {path: self._pushed(leaf(out, path), leaf(skipped, path), now.rows)})
        n, path = now.layout.samples, now.layout.velocity or ()
        axis = now.layout.exit[path]
        both = leaf(out, path)
        new: dict[LeafPath, Any] = {p: a.rows(leaf(out, p), 0, n) for p, a in now.layout.exit.items()}
        return replaced(out, {**new, path: self._pushed(axis.rows(both, 0, n), axis.rows(both, n, 2 * n), now.rows)})

    def _pushed(self, v: Tensor, skipped: Tensor, rows: Any) -> Tensor:
        pushed = v + self.scale * (v - skipped)
        if not isinstance(rows, Tensor) or rows.ndim == 0:
            return pushed
        return torch.where(rows.to(v.device).reshape(-1, *[1] * (v.ndim - 1)), pushed, v)

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """Calls of the network in here are the plain ones."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


@dataclass(frozen=True)
class _Call:
    """A guided call of the network: as the sampler made it, which rows are guided, and where the rows are."""

    inputs: Inputs
    rows: Any
    layout: Layout | None


def _half_closed(
    layout: Layout, key: Key, block: ResidualBlock, point: GatePoint, inputs: dict[LeafPath, Tensor], out: Any
) -> Any:
    """The output of a gated call: open in the first half of the rows, closed in the second."""
    n, given = layout.samples, layout.given[key]
    second = {p: given[p].rows(x, n, 2 * n) if p in given else x for p, x in inputs.items()}
    new = {}
    for path, source in point.give.items():
        y, axis = leaf(out, path), layout.returned[key][path]
        shut = carried(second, source, axis.rows(y, n, 2 * n), block)
        new[path] = axis.join([axis.rows(y, 0, n), shut])
    return replaced(out, new)
