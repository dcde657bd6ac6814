"""AGREPA on two ranks (gloo): as one process on the joint batch, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
import rank_jobs


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks got."""
    return rank_jobs.start(rank_jobs.everything, tmp_path_factory.mktemp("ranks"))


def close(a: list[list[float]], b: list[list[float]]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=2e-7, rel=2e-5)


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("plain", {}),
        ("wrapped", {}),
        ("release", {"release": True}),
        ("accumulated", {"accumulate": 2}),
        ("local", {"local": True}),
        ("sharded", {}),
        ("sharded before", {}),
    ],
)
def test_gradients_are_those_of_one_process_on_the_joint_batch(
    ranks: list[dict[str, Any]], job: str, options: dict[str, Any]
) -> None:
    """Rank 1 has no sample of one domain, and the domains' shares differ between the ranks. Sharded: FSDP2."""
    one = rank_jobs.gradients(None, **options)
    assert sum(abs(x) for g in one[-4:] for x in g) > 0
    for rank in ranks:
        close(rank[job], one)


@pytest.mark.parametrize("job", ["warmup", "warmup, wrapped"])
def test_all_ranks_choose_the_same_and_stay_in_sync(ranks: list[dict[str, Any]], job: str) -> None:
    (choice, mine), (other, theirs) = (rank[job] for rank in ranks)
    assert choice == other and '"blocks.3"' in choice
    assert mine == theirs


def test_a_flow_around_ddp(ranks: list[dict[str, Any]]) -> None:
    """The first rank probes alone, without waiting in DDP's forward for the others."""
    assert ranks[0]["around"] == ranks[1]["around"]


def test_model_and_regularizer_in_one_ddp(ranks: list[dict[str, Any]]) -> None:
    """In the warm-up no head is in the loss, which DDP would not forgive."""
    assert ranks[0]["joined"] == ranks[1]["joined"]


def test_a_failure_of_the_first_rank_is_everyones(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["failing"] == "ZeroDivisionError: division by zero"
    assert ranks[1]["failing"] == ("FogError: the first rank failed: ZeroDivisionError: division by zero")


def test_a_sharded_model_finds_its_blocks_at_the_first_step(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert isinstance(rank["sharded, looking"], list), rank["sharded, looking"]
        assert any(any(g) for g in rank["sharded, looking"])


def test_a_sharded_model_is_not_probed_while_it_trains(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["sharded, probing"].startswith("Unsupported: probing during training runs on one rank")
        assert "AGREPA(..., selection=Selection.load(path))" in rank["sharded, probing"]


def test_a_sharded_model_is_not_aligned_locally(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["sharded, local"].startswith("Unsupported: local alignment of a sharded model (FSDP2)")
