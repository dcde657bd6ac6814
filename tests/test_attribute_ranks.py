"""Attribution on two ranks (gloo): the same bits as one process, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import attribute_jobs as jobs
import numpy as np
import pytest
import rank_jobs
import torch.multiprocessing as mp
from small_flow import a_batch, a_flow

import fog_a


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks got."""
    return rank_jobs.start(jobs.everything, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    "job",
    ["loop", "prefix", "fanout", "chunks"],
)
def test_two_ranks_give_the_bits_of_one(ranks: list[dict[str, Any]], job: str) -> None:
    one = jobs.told(jobs.attribute(a_batch(3), job))
    assert [rank[job] for rank in ranks] == [one, one]


def test_cells_of_several_batches(ranks: list[dict[str, Any]]) -> None:
    one = jobs.told(jobs.attribute([a_batch(3), a_batch(2, seed=1)]))
    assert [rank["several"] for rank in ranks] == [one, one]


@pytest.mark.parametrize("job", ["unequal", "other data"])
def test_ranks_must_be_given_the_same_batch(ranks: list[dict[str, Any]], job: str) -> None:
    for i, rank in enumerate(ranks):
        assert rank[job].startswith(f"BadBatch: rank {i}: the processes were given different batches")
        assert "give every process the same batches" in rank[job]


def test_or_each_measures_its_own(ranks: list[dict[str, Any]]) -> None:
    for i, rank in enumerate(ranks):
        assert rank["each its own"] == jobs.told(jobs.alone(a_batch(2 + i)))


def test_the_failure_of_one_rank_is_told_to_the_others(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["a failing rank"] == "ArithmeticError: out of luck"
    assert ranks[0]["a failing rank"].startswith("RankFailed: rank 0: rank 1 failed. See its own error above")
    assert ranks[0]["afterwards"] == ranks[1]["afterwards"] == jobs.told(jobs.attribute(a_batch(3)))


def test_a_sharded_model(ranks: list[dict[str, Any]]) -> None:
    """FSDP2: all ranks run the same ablations, whichever strategy was asked for."""
    one = fog_a.attribute(a_flow(), a_batch(3), times=2, how="loop", progress=False).values
    for rank in ranks:
        for values in rank["sharded"].values():
            np.testing.assert_allclose(np.array(values), one, rtol=1e-5)


def test_inside_accelerate(tmp_path: Path) -> None:
    one = jobs.told(jobs.attribute(a_batch(3), "fanout"))
    for processes, wrapper, *found in rank_jobs.start(jobs.accelerated, tmp_path):
        assert processes == 2 and wrapper == "DistributedDataParallel"
        assert tuple(found) == one


def test_a_killed_rank_ends_the_job_and_the_next_run_goes_on(tmp_path: Path) -> None:
    context, cells = mp.get_context("spawn"), tmp_path / "cells"
    queue: Queue[Any] = context.Queue()
    meet = str(tmp_path / "meet")
    processes = [
        context.Process(target=rank_jobs._rank, args=(jobs.killed, r, 2, meet, queue, (str(cells),))) for r in (0, 1)
    ]
    for p in processes:
        p.start()
    rank, answer = queue.get(timeout=90)
    for p in processes:
        p.join(timeout=30)
    assert [p.exitcode for p in processes] == [0, -9]
    assert rank == 0 and answer.startswith("RankFailed: rank 0: another process ended")
    assert "with checkpoint= the next run goes on from the finished cells" in answer

    kept = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.npy")}
    assert 3 + 1 <= len(kept) < jobs.TIMES  # all of rank 0's, one of rank 1's
    whole = jobs.measured(jobs.Breaks(lambda calls: False, lambda: None))
    before, *found, after = jobs.resumed(0, str(cells))
    assert found[0] == whole.values.tobytes()
    assert {n: t for n, t in ((p.name, p.stat().st_mtime_ns) for p in cells.glob("*.npy")) if n in kept} == kept
    assert before == 0 < after < jobs.TIMES * 5  # the missing cell: a base twice and four ablations; the others' bases


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    import torch

    (tmp_path / "nets.py").write_text(
        "import torch\nfrom small_nets import Net, tokens\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return Net(depth=4)\n\n\ndef batch():\n    return tokens()\n"
    )
    paths = [str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    options = ["attribute", "--model", "nets:net", "--batch", "nets:batch"]
    scores = {}
    for name, start in (("one", ""), ("two", "torch.distributed.run --standalone --nproc-per-node=2 -m")):
        out = tmp_path / name
        command = [sys.executable, "-m", *start.split(), "fog_a.shell.cli", *options, "--out", str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("blocks.3") == 1  # one rank prints
        scores[name] = json.loads((out / "foga.json").read_text())["values"]
    assert scores["one"] == scores["two"]
    assert torch.tensor(scores["one"]).numel() == 12
