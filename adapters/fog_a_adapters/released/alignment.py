"""The warm-up of the paper, and the alignment of the release.

The paper probes one half of the layers and the other in turn, on one sample per domain. The release's probe is

    a_k = sqrt(mean(v_k − v)² + 1e-8) / (sqrt(mean v² + 1e-8) + 1e-8)

at the clean data in the place of x_t, t = 0.8, in train mode, of layers 0, 2, 4, … alone. The 1e-8 inside the root puts
a floor under every score; dropout, drawn anew for every pass, a second one. λ is twice the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fog_a
from fog_a.aligning.heads import mlp
from fog_a.aligning.warmup import Draw, contribution
from fog_a.aligning.width import of_few
from fog_a.blocks.block import Blocks
from fog_a.blocks.gate import gate
from fog_a.blocks.untouched import preserved
from fog_a.flows.flow import Flow
from fog_a.scores.scores import Scores
from fog_a_adapters.released.clean_input import clean_input
from fog_a_adapters.released.storage import TIME, l2


def alternate(flow: Flow, batch: Any, blocks: Blocks, draw: Draw) -> Scores:
    """The paper's probe: Eq. 9 of layers 0, 2, 4, … and of 1, 3, 5, … in turn."""
    return contribution(flow, batch, blocks[draw.number % 2 :: 2], draw)


PAPER: dict[str, Any] = {"samples": 1, "probe": alternate}
"""The paper's warm-up, as options of `AGREPA`."""


@dataclass(frozen=True)
class Probe:
    """The release's probe, as `AGREPA(probe=)` takes it; each of its deviations can be undone.

    Attributes:
        every: measure layers 0, every, 2·every, …
        time: one t for all probes; None: the stratified one that is offered.
        clean: the network is given x_1 in x_t's place.
        train: the network is in train mode; the parts around it, which drop conditions, are not.
        floor: 1e-8 under the root of mean squares; False: Eq. 9's ‖v_k − v‖ / (‖v‖ + 1e-8).
    """

    every: int = 2
    time: float | None = TIME
    clean: bool = True
    train: bool = True
    floor: bool = True

    def __call__(self, flow: Flow, batch: Any, blocks: Blocks, draw: Draw) -> Scores:
        t = draw.t if self.time is None else self.time
        samples, blocks = flow.samples(batch), blocks[:: self.every]
        with preserved(*flow.modules, seed=draw.seed), clean_input(flow, batch, draw.seed, when=self.clean):
            if self.train:
                flow.module.train()
            v = self._velocity(flow, batch, t, draw.seed)
            columns = []
            for i in range(len(blocks)):
                with gate(blocks[i : i + 1], 0):
                    change = self._velocity(flow, batch, t, draw.seed) - v
                columns.append(self._size(change, samples.mask) / (self._size(v, samples.mask) + 1e-8))
        values = torch.stack(columns, dim=1)[:, None].cpu().numpy()
        return Scores(values, blocks.names, (t,), samples.domains, samples.ids, "contribution", {})

    def _velocity(self, flow: Flow, batch: Any, t: float, seed: int) -> Tensor:
        v, mask = flow.velocity(batch, t, seed).float(), flow.samples(batch).mask
        return v if mask is None else v * mask

    def _size(self, v: Tensor, mask: Tensor | None) -> Tensor:
        """sqrt(mean(v²) + 1e-8) of each sample over its valid entries, or ‖v‖₂."""
        square = v.flatten(1).square().sum(1)
        if not self.floor:
            return square.sqrt()
        entries = v[0].numel() if mask is None else mask.expand_as(v).flatten(1).sum(1)
        return (square / entries + 1e-8).sqrt()


class AGREPA(fog_a.AGREPA):
    """The release's alignment: its probe and λ, L2-normalized descriptors, domains weighted by their share.

    It takes what `fog_a.AGREPA` takes, and each of its deviations can be undone by naming that option. It works with
    every adapter whose network is given x_t. With `batch=` that is checked at construction, else at the first call.
    """

    def __init__(
        self, flow: Any, teachers: Any, selection: Any = None, *, probe: Any = Probe(), **options: Any
    ) -> None:
        ways = {"samples": 1, "weighting": "proportional", "total": 2.0, "head": partial(mlp, normalize=l2)}
        self._checked = selection is not None or not (isinstance(probe, Probe) and probe.clean)
        super().__init__(flow, teachers, selection, probe=probe, **{**ways, **options})
        if options.get("batch") is not None:
            self._check(options["batch"])

    def forward(self, batch: Any, **options: Any) -> Tensor:
        """The term of `fog_a.AGREPA`, once the release's probe is known to work."""
        if self.training and torch.is_grad_enabled():
            self._check(batch)
        return super().forward(batch, **options)

    def _check(self, batch: Any) -> None:
        """Run the network on x_1 once. Raises Unsupported where it is given no x_t."""
        if not self._checked:
            of_few(self.flow, batch, self._run)
            self._checked = True

    def _run(self, batch: Any) -> None:
        with preserved(*self.flow.modules), clean_input(self.flow, batch, 0):
            self.flow.velocity(batch, TIME, 0)

    def reduce(self, sums: Mapping[str, Tensor], sizes: Mapping[str, Tensor], count: Tensor) -> Tensor:
        """Summed over the samples of all domains and divided by the batch."""
        return torch.stack(list(sums.values())).sum() / count
