"""Stage 2 with its alignment as one module, so that `fit` trains it in one process or under torchrun.

    flow = fog_a.wrap(FlowMatching(config)); batches = MelBatches(…, rank=rank, world=world)
    first = batches(0)
    terms = fog_a.BiTC(flow, teachers, batch=first), fog_a.AGREPA(flow, teachers, warmup=5000, every=200, batch=first)
    fit(Aligned(flow, *terms), lambda m, b: m(b), batches, Recipe(steps=500_000, average=0.999), "runs/aligned")

AGREPA probes through the warm-up (Phase I), chooses, and aligns from then on (Phase II). Without it this is base. To
branch from one checkpoint into many arms: `unified_audio.protocol`.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fog_a.flows.flow import Flow


class Aligned(nn.Module):
    """L_FM + the terms: BiT-C, AG-REPA or others with `term(batch)`."""

    def __init__(self, flow: Flow, *terms: nn.Module) -> None:
        super().__init__()
        self.flow, self.terms = flow, nn.ModuleList(terms)
        # flow.module is the velocity network alone: the tokens' embeddings are outside it.
        self.model = flow.model if isinstance(flow.model, nn.Module) else flow.module

    def forward(self, batch: Any) -> Float[Tensor, ""]:
        loss = self.flow.loss(batch)
        for term in self.terms:
            loss = loss + term(batch)
        return loss
