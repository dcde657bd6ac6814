"""A model sharded over two processes (FSDP2, gloo) is measured and guided as the plain one, not pruned. No FSDP1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rank_jobs
import small_nets
import torch
from small_flow import Net, a_batch, a_flow

import fog_a
from fog_a.errors import Unsupported


def sharded_flow() -> fog_a.Flow:
    from torch.distributed.fsdp import fully_shard

    flow = a_flow()
    assert isinstance(flow.module, Net)
    for block in flow.module.blocks:
        fully_shard(block)
    fully_shard(flow.module)
    return flow


def uses(make: Any) -> dict[str, Any]:
    """What each use gives for a flow."""
    batch, flow = a_batch(3), make()
    what = fog_a.remove(make(), batch, keep=2, times=2)
    blocks = fog_a.find_blocks(flow, batch)
    with torch.no_grad(), fog_a.skip_guidance(flow, blocks[1:2], 1.0):
        guided = flow.velocity(batch, 0.5)
    return {
        "removed": what.removed,
        "curve": what.curve,
        "pairs": fog_a.interactions(make(), batch, times=2).scores.values,
        "guided": guided.numpy(),
        "drift": fog_a.drift(make(), batch, steps=3).values,
    }


def on_a_rank(rank: int, small: bool) -> dict[str, Any]:
    from fog_a.attributing import variants

    variants.LAUNCH_BOUND = variants.LAUNCH_BOUND if small else 0
    flow, batch = sharded_flow(), a_batch(3)
    names = [name for name, _ in flow.module.named_modules()]
    try:
        fog_a.prune(flow, ["blocks.1"], batch)
        refusal = "none"
    except Unsupported as error:
        refusal = str(error)
    assert [name for name, _ in flow.module.named_modules()] == names
    return {**uses(sharded_flow), "refusal": refusal}


def in_fsdp1(rank: int) -> list[str]:
    """What each use says of a model in FullyShardedDataParallel, around the whole and around each block."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    device, batch, said = torch.device("cpu"), torch.randn(3, 5, 4), []
    whole, blocks = small_nets.Net(), small_nets.Net()
    for i, block in enumerate(blocks.blocks):
        blocks.blocks[i] = FullyShardedDataParallel(block, device_id=device)
    for net in (FullyShardedDataParallel(whole, device_id=device), blocks):
        for use in (fog_a.attribute, fog_a.find_blocks, lambda n, b: fog_a.remove(n, b, 1)):
            try:
                use(net, batch)
            except Unsupported as error:
                said.append(str(error))
    return said


def test_fsdp1_is_refused_by_every_process(tmp_path: Path) -> None:
    for said in rank_jobs.start(in_fsdp1, tmp_path):
        assert len(said) == 6 and all("got FullyShardedDataParallel (FSDP1)" in words for words in said)


def test_a_sharded_model(tmp_path: Path) -> None:
    plain = uses(a_flow)
    for i, small in enumerate((True, False)):
        where = tmp_path / str(i)
        where.mkdir()
        for rank in rank_jobs.start(on_a_rank, where, small):
            assert rank["removed"] == plain["removed"]
            for key in ("curve", "pairs", "guided", "drift"):
                np.testing.assert_allclose(rank[key], plain[key], rtol=1e-5, atol=1e-6)
            assert rank["refusal"].startswith("the model is sharded, or on the meta device: prune the plain module fi")
