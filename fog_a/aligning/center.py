"""The mean of a teacher's features over the training, taken away from its targets.

    T(x) − m,     m = mean of T over all samples so far

A teacher's features share a large common direction: on speech, one constant vector reaches 1 − cos of about .08.
Without that direction, the term can only fall by what tells samples apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from fog_a.aligning.targets import Target
from fog_a.blocks.untouched import with_data
from fog_a.ranks import Group, total


class Center(nn.Module):
    """The running mean of each domain's targets: the same on all ranks, and part of the state dict."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.dims = dict(dims)
        with with_data():
            self.register_buffer("sums", torch.zeros(sum(self.dims.values()), dtype=torch.float64))
            self.register_buffer("counts", torch.zeros(len(self.dims), dtype=torch.float64))
        self.sums: Tensor
        self.counts: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moved with the heads, and still exact where they become bfloat16."""
        device = fn(self.sums.new_empty(0)).device
        self.sums, self.counts = self.sums.to(device), self.counts.to(device)
        return self

    def forward(self, targets: Mapping[str, Target], group: Group = None) -> dict[str, Target]:
        """The targets less the mean of their domain so far, this batch included."""
        new = [self._sum(targets.get(domain), dim) for domain, dim in self.dims.items()]
        sums = torch.cat([x for x, _ in new]).to(self.sums)
        counts = torch.tensor([n for _, n in new], dtype=torch.float64, device=self.counts.device)
        joint = total(torch.cat([sums, counts]), group)
        self.sums += joint[: len(sums)]
        self.counts += joint[len(sums) :]
        parts = dict(zip(self.dims, self.sums.split(list(self.dims.values())), strict=True))
        sizes = dict(zip(self.dims, self.counts, strict=True))
        means = {domain: parts[domain] / sizes[domain].clamp(min=1) for domain in targets}
        return {domain: _less(target, means[domain]) for domain, target in targets.items()}

    def _sum(self, target: Target | None, dim: int) -> tuple[Tensor, int]:
        """Σ over samples, each sample's frames averaged, and how many samples."""
        if target is None:
            return self.sums.new_zeros(dim), 0
        rows = target if isinstance(target, Tensor) else torch.stack([frames.mean(0) for frames in target])
        return rows.double().sum(0).to(self.sums.device), len(rows)


def _less(target: Target, mean: Tensor) -> Target:
    if isinstance(target, Tensor):
        return target - mean.to(target)
    return [frames - mean.to(frames) for frames in target]
