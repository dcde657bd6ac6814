"""Skip guidance: the velocity pushed away from the one that the network gives without some blocks.

    v̂ = v + s (v − v_skip),    v_skip = v_θ(x_t, t, c; g_k = 0 for k in the skipped blocks)

Both come from one forward: the rows are given twice, and in the second half the gates are closed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import tree
from fog_a.blocks.gate import gate
from fog_a.blocks.tree import LeafPath, leaf, leaves, replaced
from fog_a.errors import BadArgument, is_real
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Inputs
from fog_a.using.calls import BlockOutput, NetworkCalls, When


class skip_guidance(NetworkCalls):
    """Inside, every call of the flow's network gives v + scale (v − v_skip): any sampler that calls it is guided.

    Args:
        flow: a flow from `wrap`, or the network itself.
        blocks: those to skip, from `find_blocks`: `blocks.named(selection.layers)`.
        scale: s; 0 guides nothing.
        when: a function of the call's `Inputs`: whether it is guided, or which rows are (with classifier-free guidance
            the conditional ones). None: all.

    The network runs once a call, on twice the rows, with no second copy of the model. Where its samples depend on each
    other, it runs twice; `doubled` says which it was. `calls` counts guided calls.

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
        if not is_real(scale):
            raise BadArgument(f"expected scale= as a finite number, such as 1.5, got {scale!r}")
        super().__init__(flow, blocks, (lambda inputs: False) if scale == 0 else when)
        self.scale, self.doubled = float(scale), False
        self._inputs, self._rows = Inputs(), torch.tensor(True)

    def begin(self, inputs: Inputs, rows: Bool[Tensor, "*B"]) -> Any:
        """The rows twice, where both halves can share a forward."""
        self._inputs, self._rows = inputs, rows
        self.doubled = self.layout.problem is None and not any(b.alone for b in self.blocks)
        if not self.doubled:
            return None
        given = tree(inputs.args, inputs.kwargs)
        given = replaced(given, {p: axis.join([leaf(given, p)] * 2) for p, axis in self.layout.entrance.items()})
        return given["args"], given["kwargs"]

    def at(self, output: BlockOutput) -> Tensor:
        """Open in the first half of the rows, closed in the second."""
        if not self.doubled:
            return output.y
        n, axis, given = self.layout.samples, self.layout.returned[output.key][output.path], self.layout.given
        second = {p: a.rows(output.inputs[p], n, 2 * n) for p, a in given[output.key].items() if p in output.inputs}
        shut = replace(output, y=axis.rows(output.y, n, 2 * n), inputs={**output.inputs, **second}).closed()
        return axis.join([axis.rows(output.y, 0, n), shut])

    def end(self, out: Any) -> Any:
        """The guided velocity in the place of v; of other outputs the rows of the network as it is."""
        if not self.doubled:
            with self.plain(), gate(self.blocks, 0):
                skipped = self.net.module(*self._inputs.args, **self._inputs.kwargs)
            path = next(p for p, x in leaves(out) if x.is_floating_point())
            return replaced(out, {path: self._pushed(leaf(out, path), leaf(skipped, path))})
        n, path = self.layout.samples, self.layout.velocity or ()
        axis, both = self.layout.exit[path], leaf(out, path)
        new: dict[LeafPath, Any] = {p: a.rows(leaf(out, p), 0, n) for p, a in self.layout.exit.items()}
        return replaced(out, {**new, path: self._pushed(axis.rows(both, 0, n), axis.rows(both, n, 2 * n))})

    def _pushed(self, v: Tensor, skipped: Tensor) -> Tensor:
        rows = self._rows.to(v.device).reshape(-1, *[1] * (v.ndim - 1))
        return torch.where(rows, v + self.scale * (v - skipped), v)
