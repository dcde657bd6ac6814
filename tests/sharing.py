"""The ways to run ablations, by the names that `info["strategy"]` gives them."""

from __future__ import annotations

from typing import Any

import torch

import fog_a
from fog_a.blocks.untouched import rng
from fog_a.flows.bare import flow_of
from fog_a.flows.case import Case


def how(strategy: str, model: Any, batch: Any, **options: Any) -> Any:
    """What `how=` must be so that this way is taken: `prefix` has no room for rows beside the batch's own."""
    if strategy in ("auto", "loop"):
        return strategy
    if strategy == "prefix":
        batch = batch[0] if isinstance(batch, list) else batch
        with torch.no_grad(), rng(0):
            return fog_a.Shared(rows=len(Case(flow_of(model), batch).run()))
    return fog_a.Shared(**(options or {"rows": 10**9}))
