"""AGREPA in the loops that people write: mixed precision, accumulation, checkpointing, compilation."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from small_flow import Net, Statistics, a_batch, a_flow, two_teachers
from test_alignment import CHOSEN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fog_a
from fog_a.aligning import heads
from fog_a.aligning.alignment import AGREPA
from fog_a.errors import NoActivations


def grads(flow: Any, reg: AGREPA) -> list[Tensor]:
    return [
        p.grad if p.grad is not None else torch.zeros_like(p) for p in [*flow.module.parameters(), *reg.parameters()]
    ]


def one_step(**options: Any) -> list[Tensor]:
    flow, batch = a_flow(**options), a_batch()
    reg = AGREPA(flow, two_teachers(), CHOSEN, batch=batch)
    torch.manual_seed(0)
    loss = flow.loss(batch)
    (loss + reg(batch)).backward()
    assert reg._listening._tap is not None and not len(reg._listening._tap), "the recomputation was recorded"
    return grads(flow, reg)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_give_the_same_gradients(reentrant: bool) -> None:
    plain, saved = one_step(), one_step(reentrant=reentrant)
    assert sum(float(g.abs().sum()) for g in plain) > 0
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, saved, strict=True))


class Outer(Net):
    """All blocks inside one re-entrant checkpoint: no output of theirs ever has a graph in the forward."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        e, h = self.time(t[:, None, None]), self.into(x_t)

        def stack(h: Tensor, e: Tensor) -> Tensor:
            for block in self.blocks:
                h = block(h, e)
            return h

        h = checkpoint(stack, h, e, use_reentrant=True) if torch.is_grad_enabled() else stack(h, e)
        assert isinstance(h, Tensor)
        return self.out(h)


def test_blocks_deep_inside_a_reentrant_checkpoint_are_refused() -> None:
    flow, batch = fog_a.wrap(Outer(), x="x_t", t="t"), a_batch()
    reg = AGREPA(flow, two_teachers(), CHOSEN, batch=batch)
    flow.loss(batch)
    with pytest.raises(NoActivations, match=r"use_reentrant=False\), or checkpoint each block alone"):
        reg(batch)


def test_accumulated_gradients_are_those_of_the_sum() -> None:
    """Each micro-batch is a batch of its own, as for the flow loss; steps count once per accumulation."""
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), CHOSEN, batch=a_batch(), accumulation=2)
    expected = [torch.zeros_like(g) for g in grads(flow, reg)]
    for seed in (1, 2):
        torch.manual_seed(seed)
        flow.module.zero_grad()
        reg.zero_grad()
        batch = a_batch(seed=seed)
        loss = flow.loss(batch)
        ((loss + reg(batch)) / 2).backward()
        expected = [a + b for a, b in zip(expected, grads(flow, reg), strict=True)]
    assert reg.step == 1
    flow.module.zero_grad()
    reg.zero_grad()
    for seed in (1, 2):
        torch.manual_seed(seed)
        batch = a_batch(seed=seed)
        loss = flow.loss(batch)
        ((loss + reg(batch)) / 2).backward()
    assert reg.step == 2
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(expected, grads(flow, reg), strict=True))


def test_probes_wait_for_whole_steps() -> None:
    flow = a_flow()
    reg = AGREPA(flow, Statistics(), k=1, warmup=4, every=2, accumulation=3)
    probes = []
    for call in range(12):
        flow.loss(a_batch(seed=call))
        reg(a_batch(seed=call))
        probes.append(reg.metrics()["ag_repa/probes"])
    assert probes == [0.0] * 5 + [1.0] * 6 + [2.0]
    assert reg.selection is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    """Heads and cosines are computed in float32, whatever the autocast; the warm-up's probes run under it."""
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), k=2, warmup=4, every=2, head=partial(heads.mlp, hidden=32))
    optimizer = torch.optim.AdamW([*flow.module.parameters(), *reg.parameters()], lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=2.0**10)
    values = []
    for _ in range(60):
        batch = a_batch()
        with torch.autocast("cpu", dtype=dtype):
            loss = flow.loss(batch)
            term = reg(batch)
        assert term.dtype == torch.float32
        optimizer.zero_grad()
        scaler.scale(loss + term).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(float(term.detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in reg.parameters())
    assert values[-1] < 0.5 * values[4], "the heads learn"


def test_a_model_in_bfloat16() -> None:
    flow = a_flow()
    flow.module.to(torch.bfloat16)
    batch = {**a_batch(), "x1": a_batch()["x1"].bfloat16()}
    reg = AGREPA(flow, two_teachers(), CHOSEN, batch=batch)
    loss = flow.loss(batch)
    (loss + reg(batch)).backward()
    assert all(g.isfinite().all() for g in grads(flow, reg))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["function", "method"])
@pytest.mark.parametrize("given", [True, False], ids=["selection", "warmup"])
def test_a_compiled_model_aligns_as_an_eager_one(how: str, given: bool) -> None:
    """Also when the hooks come after the first compiled call: code compiled without them is dropped."""
    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        flow = a_flow()
        if compiled and how == "method":
            flow.module.compile(backend="aot_eager")
        elif compiled:
            inner = torch.compile(flow.module, backend="aot_eager")
            flow.module = inner
        options: dict[str, Any] = (
            {"selection": CHOSEN, "batch": a_batch()} if given else {"k": 2, "warmup": 2, "every": 1}
        )
        reg = AGREPA(flow, two_teachers(), **options)
        values = []
        for step in range(5):
            torch.manual_seed(step)
            batch = a_batch(seed=step)
            loss = flow.loss(batch)
            term = reg(batch)
            values.append(float(term.detach()))
            flow.model.zero_grad()
            reg.zero_grad()
            (loss + term).backward()
        results.append((values, grads(flow, reg)))
    (eager, g), (fast, h) = results
    assert fast[-1] > 0 and fast == pytest.approx(eager, abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(g, h, strict=True))


def test_names_are_the_users_own_in_data_parallel() -> None:
    flow, batch = a_flow(), a_batch()
    flow.module = nn.DataParallel(flow.module)  # without devices: a wrapper and nothing more
    reg = AGREPA(flow, two_teachers(), CHOSEN, batch=batch)
    flow.loss(batch)
    assert float(reg(batch).detach()) > 0


def test_flow_times_and_masks_pass_through_wrappers() -> None:
    """What a network's forward takes is read from the network, not from the wrapper around it."""

    class Masked(Net):
        def forward(self, x_t: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
            assert mask is not None
            return super().forward(x_t, t)

    flow = fog_a.wrap(nn.DataParallel(Masked()), x="x_t", t="t")
    batch = {**a_batch(), "mask": torch.ones(6, 7, dtype=torch.bool)}
    reg = AGREPA(flow, two_teachers(), CHOSEN, batch=batch, head=partial(heads.by_time, bins=2))
    flow.loss(batch)
    assert float(reg(batch).detach()) > 0
