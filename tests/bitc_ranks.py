"""What each of two ranks does in test_probing: half of the batch, all sound on one of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from fog_a.probing.bitc import BiTC
from fog_a_adapters import released

ROWS = [[0, 1, 2, 3, 5], [4, 6, 7]]
DOMAINS = ["speech", "sound", "speech", "sound", "speech", "sound", "speech", "speech"]


def gradients(rank: int | None, release: bool) -> dict[str, list[float]]:
    """The gradients of embedding and heads, averaged over ranks as DistributedDataParallel does; None: one process."""
    from test_probing import a_batch, a_flow, rotation

    torch.manual_seed(0)
    flow, batch = a_flow(rotation()), a_batch(8) | {"domains": DOMAINS}
    features = torch.randn(8, 4)
    kind = released.BiTC if release else BiTC
    bitc = kind(flow, {"speech": 4, "sound": 4}, weight={"speech": 0.5, "sound": 1.0}, width=12)
    rows = list(range(8)) if rank is None else ROWS[rank]
    bitc(flow.samples(batch).rows(rows), features=features[rows]).backward()
    net: Any = flow.module
    embedded = net.embed.weight.grad
    if rank is not None:
        dist.all_reduce(embedded)
        embedded /= 2
    heads = {name: p.grad.flatten().tolist() for name, p in bitc.named_parameters() if p.grad is not None}
    return {"embed": embedded.flatten().tolist(), **heads}
