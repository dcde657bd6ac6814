"""What the ranks of test_alignment_ranks.py do, and how they are started: processes that meet at a file."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_flow import CHANNELS, Net, a_batch, a_flow, two_teachers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fog_a
from fog_a.aligning.alignment import AGREPA
from fog_a.scores.selection import Choice, Selection
from fog_a_adapters import released

CHOSEN = Selection(
    domains={
        "speech": (Choice(layer="blocks.1", depth=1, weight=0.3), Choice(layer="blocks.3", depth=3, weight=0.2)),
        "sound": (Choice(layer="blocks.0", depth=0, weight=0.5),),
    }
)
DOMAINS = ["speech", "sound", "speech", "speech", "speech", "speech", "speech", "speech"]  # sound on rank 0 only


def start(job: Callable[..., Any], where: Path, *args: Any, ranks: int = 2, timeout: float = 240) -> list[Any]:
    """`job(rank, *args)` on every rank; what each returned. A rank that raises or hangs fails the test."""
    context = mp.get_context("spawn")
    queue: Queue[Any] = context.Queue()
    processes = [
        context.Process(target=_rank, args=(job, r, ranks, str(where / "meet"), queue, args)) for r in range(ranks)
    ]
    for p in processes:
        p.start()
    try:
        answers = dict(queue.get(timeout=timeout) for _ in processes)
    finally:
        for p in processes:
            p.join(timeout=5)
            if p.is_alive():
                p.terminate()
    failed = [a for a in answers.values() if isinstance(a, str) and a.startswith("Traceback")]
    assert not failed, failed[0]
    return [answers[r] for r in range(ranks)]


def _rank(job: Callable[..., Any], rank: int, ranks: int, meet: str, queue: Any, args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    try:
        queue.put((rank, job(rank, *args)))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
    finally:
        dist.destroy_process_group()


class Training(nn.Module):
    """A loss without random numbers, as a module for DDP to wrap: mean over samples of ‖net(x, t)‖²."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return (
            self.net(batch["x1"], torch.linspace(0, 1, 8)[[int(i.split("/")[1]) for i in batch["ids"]]]).square().mean()
        )


def joint_batch() -> dict[str, Any]:
    return {**a_batch(8), "domains": DOMAINS}


def part(batch: dict[str, Any], rank: int) -> dict[str, Any]:
    rows = slice(4 * rank, 4 * rank + 4)
    return {key: value[rows] for key, value in batch.items()}


def gradients(
    rank: int | None, wrapped: bool = False, release: bool = False, accumulate: int = 1, local: bool = False
) -> list[list[float]]:
    """Of the model and the heads after one step; rank None: one process with the joint batch."""
    batch = joint_batch()
    here = batch if rank is None else part(batch, rank)
    flow = a_flow()
    reg: Any = (released.AGREPA if release else AGREPA)(flow, two_teachers(), CHOSEN, batch=batch, local=local)
    train: Any = Training(flow.module)
    inner = reg
    if rank is not None:
        train = DistributedDataParallel(train)
        reg = DistributedDataParallel(reg) if wrapped else reg
    for i in range(accumulate):
        if rank is not None and i < accumulate - 1:
            with train.no_sync():
                loss = train(here)
                ((loss + reg(here)) / accumulate).backward()
        else:
            loss = train(here)
            ((loss + reg(here)) / accumulate).backward()
    return [
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten().tolist()
        for p in [*flow.module.parameters(), *inner.parameters()]
    ]


def warmup(rank: int, wrapped: bool = False) -> tuple[str, list[list[float]]]:
    """The choice and the parameters after some steps; rank 1 never sees a sound."""
    flow = a_flow()
    reg: Any = AGREPA(flow, two_teachers(), k=2, warmup=4, every=2)
    inner = reg
    train = DistributedDataParallel(Training(flow.module))
    reg = DistributedDataParallel(reg) if wrapped else reg
    optimizer = torch.optim.AdamW([*flow.module.parameters(), *inner.parameters()], lr=1e-2)
    for step in range(8):
        torch.manual_seed(step)
        batch = part({**a_batch(8, seed=step), "domains": DOMAINS}, rank)
        loss = train(batch)
        loss = loss + reg(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert inner.selection is not None
    return inner.selection.model_dump_json(), [
        p.flatten().tolist() for p in [*flow.module.parameters(), *inner.parameters()]
    ]


class Buffered(Net):
    """With a buffer, which DDP broadcasts at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 1, CHANNELS))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().forward(x_t + self.shift, t)


def around(rank: int) -> tuple[str, list[list[float]]]:
    """The choice and the gradients where the flow was wrapped around DDP, not inside it."""
    torch.manual_seed(0)
    ddp = DistributedDataParallel(Buffered())
    flow = fog_a.wrap(ddp, x="x_t", t="t")
    reg = AGREPA(flow, two_teachers(), k=1, warmup=2, every=1)
    for step in range(3):
        torch.manual_seed(step)
        batch = part({**a_batch(8, seed=step), "domains": DOMAINS}, rank)
        ddp.zero_grad()
        reg.zero_grad()
        loss = flow.loss(batch)
        (loss + reg(batch)).backward()
    assert reg.selection is not None
    gradients = [p.grad for p in [*ddp.parameters(), *reg.parameters()]]
    return reg.selection.model_dump_json(), [[] if g is None else g.flatten().tolist() for g in gradients]


class Whole(nn.Module):
    """Model and regularizer in one module, for one DDP around both (as Lightning does)."""

    def __init__(self, flow: Any, reg: AGREPA) -> None:
        super().__init__()
        self.train_loss, self.reg = Training(flow.module), reg

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.train_loss(batch) + self.reg(batch)


def joined(rank: int) -> list[list[float]]:
    """Parameters after a warm-up and some aligned steps inside one DDP, which wants all parameters in every loss."""
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), k=2, warmup=2, every=1)
    whole = DistributedDataParallel(Whole(flow, reg))
    optimizer = torch.optim.SGD(whole.parameters(), lr=1e-2)
    for step in range(5):
        batch = part({**a_batch(8, seed=step), "domains": DOMAINS}, rank)
        optimizer.zero_grad()
        whole(batch).backward()
        optimizer.step()
    assert reg.selection is not None
    return [p.flatten().tolist() for p in whole.parameters()]


def failing(rank: int) -> str:
    """The error that each rank sees when the first rank's probe fails."""
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), k=1, warmup=4, every=1)
    batch = part(joint_batch(), rank)
    if rank == 0:
        reg._warmup.measure = lambda *_: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    try:
        Training(flow.module)(batch)
        reg(batch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def sharded(rank: int, given: str) -> Any:
    """FSDP2: gradients with a selection that is given before sharding, after it, or looked up at the first step."""
    from torch.distributed.fsdp import fully_shard

    batch, flow = joint_batch(), a_flow()
    here = part(batch, rank)
    net = flow.module
    assert isinstance(net, Net)
    before, local = given in ("before", "local"), given == "local"
    reg = AGREPA(flow, two_teachers(), CHOSEN, batch=batch, local=local) if before else None
    for block in net.blocks:
        fully_shard(block)
    fully_shard(net)
    if given == "probing":
        reg = AGREPA(flow, two_teachers(), k=1, warmup=1, every=1)
    elif given == "late":
        slots = {"speech": ["blocks.1", "blocks.3"], "sound": ["blocks.0", "blocks.2"]}
        reg = AGREPA(flow, two_teachers(), slots)
        Training(net)(here)
        assert reg(here) == 0
    elif given == "after":
        reg = AGREPA(flow, two_teachers(), CHOSEN, batch=batch)
    assert reg is not None
    try:
        loss = Training(net)(here)
        (loss + reg(here)).backward()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in net.parameters()]  # pyright: ignore
    grads = [*whole, *(p.grad for p in reg.parameters())]
    return [([] if g is None else g.flatten().tolist()) for g in grads]


def everything(rank: int) -> dict[str, Any]:
    """All jobs in one start of the processes, which takes longer than they do."""
    return {
        "plain": gradients(rank),
        "wrapped": gradients(rank, wrapped=True),
        "release": gradients(rank, release=True),
        "accumulated": gradients(rank, accumulate=2),
        "local": gradients(rank, local=True),
        "warmup": warmup(rank),
        "warmup, wrapped": warmup(rank, wrapped=True),
        "around": around(rank),
        "failing": failing(rank),
        "joined": joined(rank),
        "sharded": sharded(rank, "before"),
        "sharded before": sharded(rank, "after"),
        "sharded, looking": sharded(rank, "late"),
        "sharded, probing": sharded(rank, "probing"),
        "sharded, local": sharded(rank, "local"),
    }
