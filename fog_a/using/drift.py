"""Drift over t: how much each block's update changes from one step of a sampling run to the next.

    d_k(j) = ‖u_k(t_j) − u_k(t_{j−1})‖₂ / (‖u_k(t_j)‖₂ + ε),    u_k = h_k − h_{k−1}

It is the error in a block's update, were it taken from the step before: what caches of diffusion models bet on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.attributing.along import time_of
from fog_a.attributing.yardstick import EPS
from fog_a.blocks.block import Blocks
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import preserved, rng
from fog_a.errors import BadArgument, BadBatch, ShapeMismatch, Unsupported, misfit
from fog_a.finding.blocks import find_blocks
from fog_a.flows.bare import flow_of
from fog_a.flows.flow import Flow
from fog_a.flows.provenance import provenance
from fog_a.flows.samples import Inputs, Samples, names_of
from fog_a.scores.scores import Scores
from fog_a.using.calls import BlockOutput, NetworkCalls, When

Sampler = Callable[[Any, Any], Any]
"""(model, batch) → samples: the user's own, which calls the network once for each step."""


@unbroken()
def drift(
    flow: Flow | nn.Module,
    batch: Any,
    sampler: Sampler | None = None,
    *,
    blocks: Blocks | Sequence[str] | None = None,
    steps: int = 16,
    when: When | None = None,
    seed: int = 0,
) -> Scores:
    """How much each block's update changes between neighboring steps of a sampling run, per sample: one pass.

    Args:
        flow, batch: a flow from `wrap` and what it reads; a bare module with a `sampler`.
        sampler: `sampler(model, batch)`, calling the network once a step, such as `lambda m, batch: m.sample(batch)`.
            None: the `steps` midpoints of [0, 1], at x_t made of the batch's data and the same noise throughout.
        blocks: `Blocks` or names. None: those of `find_blocks` whose update depends on x_t.
        when: which calls of the network count, a function of their `Inputs`; of a sampler with classifier-free guidance
            the conditional ones. None: all.
        seed: of the noise, and of what the sampler draws.

    Returns:
        Scores of kind "drift", samples × (steps − 1) × layers, each ≥ 0 and without a unit: 1, the change is as large
        as the update. The times are those of the later steps.

    Raises:
        Unsupported: the samples have no rows of their own in the network. BadBatch: fewer than two steps.
        ShapeMismatch: the sampler calls the network on other rows than the batch's samples. UnknownBlock.
    """
    flow = flow_of(flow)
    if sampler is not None and (not callable(sampler) or misfit(sampler, 2)):
        raise BadArgument(f"expected sampler as a function (model, batch), got {sampler!r:.60}")
    if sampler is None and flow.grid(None) == (None,):
        raise BadBatch("a bare module has no time axis. Type drift(net, batch, sampler), or fog_a.wrap(net, ...)")
    if not isinstance(blocks, Blocks):
        every = find_blocks(flow, batch)
        blocks = every.main if blocks is None else every.named(blocks)
    modules = dict.fromkeys([blocks.model, *flow.modules])
    with preserved(*modules), _Drift(flow, blocks, flow.samples(batch), when) as run, rng(seed):
        if sampler is not None:
            sampler(flow.model, batch)
        for t in flow.grid(steps) if sampler is None else ():
            flow.velocity(batch, 0.5 if t is None else t, seed)
    if run.calls < 2:
        raise BadBatch(f"expected a run of two steps or more, the network was called {run.calls} times")
    return run.scores(seed)


class _Drift(NetworkCalls):
    """Compares each block's update with that of the call before."""

    def __init__(self, flow: Flow, blocks: Blocks, samples: Samples, when: When | None) -> None:
        super().__init__(flow, blocks, when)
        self.flow, self.samples = flow, samples
        self.times: list[float] = []
        self.columns: list[Float[np.ndarray, "S L"]] = []
        self._now: dict[str, list[Float[Tensor, "S n"]]] = {}
        self._last: dict[str, Float[Tensor, "S N"]] = {}

    def begin(self, inputs: Inputs, rows: Any) -> None:
        """The time of the call."""
        if self.layout.problem is not None:
            raise Unsupported(f"drift is measured for each sample, and here {self.layout.problem}")
        if self.layout.samples != len(self.samples):
            raise ShapeMismatch(
                f"the sampler calls the network on {self.layout.samples} rows, the batch has {len(self.samples)} "
                "samples: expected the same. Sample without guidance, or name the calls that count by when="
            )
        self._now = {}
        self.times.append(time_of(self.flow, inputs, np.nan))

    def at(self, output: BlockOutput) -> Tensor:
        """Notes the update, each sample's frames that are real."""
        update, first = output.update(), output.block.name not in self._now
        axis = self.layout.returned[output.key][output.path]
        plain = (axis.dim, axis.fold) == (0, 1)
        if plain and first:
            tokens, mask = self.flow.tokens(update, output.block, self.samples)
            update = tokens if mask is None else tokens * mask[..., None].to(tokens.dtype)
        rows = [update[i] if plain else axis.rows(update, i, i + 1) for i in range(self.layout.samples)]
        self._now.setdefault(output.block.name, []).append(torch.stack([x.reshape(-1).float() for x in rows]))
        return output.y

    def end(self, out: Any) -> None:
        """One column of scores, from the second call on."""
        now, column = {name: torch.cat(parts, 1) for name, parts in self._now.items()}, []
        for name, before in self._last.items():
            u = now[name]
            if u.shape != before.shape:
                raise ShapeMismatch(f"block {name!r} gave {tuple(u.shape)} after {tuple(before.shape)} a step before")
            column.append((u - before).norm(dim=1) / (u.norm(dim=1) + EPS))
        if column:
            self.columns.append(torch.stack(column, dim=1).cpu().numpy())
        self._last = {name: now[name] for name in self.blocks.names}

    def scores(self, seed: int) -> Scores:
        """All columns."""
        times, notes = tuple(self.times[1:]), []
        if np.isnan(times).any():
            times = tuple(j / len(times) for j in range(1, len(times) + 1))
            notes.append("the network's flow times are not known: times are shares of the run")
        more = {"steps": self.calls, "notes": notes, "stacks": [b.stack for b in self.blocks]}
        info = provenance(self.flow, self.blocks, seed, **more)
        values = np.stack(self.columns, axis=1)
        return Scores(values, self.blocks.names, times, kind="drift", info=info, **names_of([self.samples]))
