"""Scores over training: held-out batches attributed every so many steps, in any loop."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from fog_a.attributing.attribute import attribute
from fog_a.errors import BadArgument, BadOutput
from fog_a.flows.flow import Flow
from fog_a.ranks import is_first
from fog_a.scores.scores import Scores


class Watch:
    """Attributes held-out batches every `every` optimizer steps. Training goes on with the same bits as without it.

    Args:
        flow: the flow that is trained, or a bare module.
        batch: held-out batches, the same at each step: one batch, or a list of them.
        every: optimizer steps from one measurement to the next.
        out: a folder for `foga-<step>.json`, or None.
        options: of `attribute`: `times=`, `domains=`, `how=`, ….

    Attributes:
        history: step → Scores, for `fog_a.compare_scores(watch.history)`.

    Raises:
        BadArgument: `every` is no whole number above 0, or the batches can be read only once.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> watch = Watch(net, torch.randn(4, 5, 8), every=100)
        >>> [len(watch(step)) for step in (99, 100, 101)], list(watch.history)
        ([0, 3, 0], [100])
    """

    def __init__(
        self, flow: Flow | Any, batch: Any, every: int = 1000, out: str | os.PathLike[str] | None = None, **options: Any
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise BadArgument(f"every = {every!r}: expected a number of optimizer steps, e.g. every=1000")
        if hasattr(batch, "__next__"):
            raise BadArgument("expected batches that can be read at every step, got an iterator. Type list(batches)")
        self.flow, self.batch, self.every = flow, batch, every
        self.out = None if out is None else Path(out)
        self.options = {"progress": False, **options}
        self.history: dict[int, Scores] = {}

    def __call__(self, step: int) -> dict[str, float]:
        """The scalars of this step for a logger; {} between measurements, and where v or all scores are 0."""
        if step % self.every or step in self.history:
            return {}
        try:
            scores = attribute(self.flow, self.batch, **self.options)
        except BadOutput as error:  # zero-initialised, or NaN: training itself will tell
            warnings.warn(f"step {step} is not attributed: {error}", stacklevel=2)
            return {}
        scores = self.history[step] = replace(scores, info={**scores.info, "step": step})
        if self.out is not None and is_first():
            scores.save(self.out / f"foga-{step}.json")
        return scores.metrics()
