"""What the ranks of test_attribute_ranks.py do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_flow import Net, a_batch, a_flow
from torch import Tensor, nn

import fog_a
from fog_a.attributing.attribute import attribute_alone

TIMES = 5


def way(strategy: str) -> Any:
    """`how=` for batches of at most 3 samples."""
    return {"prefix": fog_a.Shared(rows=3), "fanout": fog_a.Shared(rows=10**9), "chunks": fog_a.Shared(rows=6)}.get(
        strategy, strategy
    )


def attribute(batch: Any, strategy: str = "auto", **options: Any) -> fog_a.Scores:
    return fog_a.attribute(a_flow(), batch, times=TIMES, how=way(strategy), progress=False, **options)


def alone(batch: Any) -> fog_a.Scores:
    """In this process alone."""
    flow = a_flow()
    return attribute_alone(flow, batch, blocks=fog_a.find_blocks(flow, batch).main, t=0.5, seed=0)


def told(scores: fog_a.Scores) -> tuple[Any, ...]:
    """What a test compares, to the bit."""
    return scores.values.tobytes(), scores.values.shape, scores.ids, scores.info["strategy"], scores.info["notes"]


def failure(run: Any) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def everything(rank: int) -> dict[str, Any]:
    """All jobs in one start of the processes."""
    batch = a_batch(3)
    several = [a_batch(3), a_batch(2, seed=1)]
    return {
        **{s: told(attribute(batch, s)) for s in ("loop", "prefix", "fanout")},
        "chunks": told(attribute(batch, "chunks")),
        "several": told(attribute(several)),
        "unequal": failure(lambda: attribute(a_batch(2 + rank))),
        "other data": failure(lambda: attribute(a_batch(3, seed=rank))),
        "each its own": told(alone(a_batch(2 + rank))),
        "a failing rank": failure(lambda: failing(rank)),
        "afterwards": told(attribute(batch)),
        "sharded": sharded(),
    }


class Calls:
    """A count that no probe gives back: what is no attribute of the model's own is not its state."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Breaks(nn.Module):
    """Does something else than run when it is told to."""

    def __init__(self, when: Callable[[int], bool], what: Callable[[], None]) -> None:
        super().__init__()
        self.net, self.when, self.what, self.count = a_flow().module, when, what, Calls()

    @property
    def calls(self) -> int:
        return self.count.number

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.count.number += 1
        if self.when(self.calls):
            self.what()
        return self.net(x_t, t)


def measured(net: nn.Module, **options: Any) -> fog_a.Scores:
    flow = fog_a.wrap(net, x="x_t", t="t")
    return fog_a.attribute(flow, a_batch(3), times=TIMES, how="loop", progress=False, **options)


def failing(rank: int) -> fog_a.Scores:
    """Rank 1 raises, but not in its first calls, in which blocks are found."""

    def out_of_luck() -> None:
        raise ArithmeticError("out of luck")

    return measured(Breaks(lambda calls: rank == 1 and calls > 6, out_of_luck))


def sharded() -> dict[str, tuple[Any, ...]]:
    """FSDP2: every rank holds a half of every parameter, and all run the same ablations."""
    from torch.distributed.fsdp import fully_shard

    found = {}
    for strategy in ("auto", "loop"):
        flow = a_flow()
        net = flow.module
        assert isinstance(net, Net)
        for block in net.blocks:
            fully_shard(block)
        fully_shard(net)
        scores = fog_a.attribute(flow, a_batch(3), times=2, how=way(strategy), progress=False)
        found[strategy] = scores.values.tolist()
    return found


def killed(rank: int, directory: str) -> str:
    """Rank 1 is killed, as by the kernel, once it has finished a cell; the other must say so and end."""

    def finished(calls: int) -> bool:  # cell j is rank j mod 2's
        return any(int(cell.stem[-1]) % 2 == 1 for cell in Path(directory).glob("*.npy"))

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    return failure(lambda: measured(Breaks(lambda calls: rank == 1 and finished(calls), kill), checkpoint=directory))


def resumed(rank: int, directory: str) -> tuple[Any, ...]:
    """How many times the network ran, and the scores."""
    net = Breaks(lambda calls: False, lambda: None)
    return net.calls, *told(measured(net, checkpoint=directory)), net.calls


def accelerated(rank: int) -> tuple[Any, ...]:
    """Inside an Accelerate job, with the prepared (DDP) model."""
    from accelerate import Accelerator

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    accelerator = Accelerator(cpu=True)
    net = accelerator.prepare(a_flow().module)
    flow = fog_a.wrap(net, x="x_t", t="t")
    scores = fog_a.attribute(flow, a_batch(3), times=TIMES, how=way("fanout"), progress=False)
    return accelerator.num_processes, type(net).__name__, *told(scores)
