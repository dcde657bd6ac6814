"""Memory and rows: what was asked for is kept to, and used; what cannot be done is said."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from row_counter import rows
from sharing import how
from small_nets import Net, tokens
from torch import Tensor

import fog_a
from fog_a.attributing.sighting import Footprint
from fog_a.attributing.ways import parse_bytes
from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import hooked
from fog_a.errors import FogError, Unsupported

ROUNDING = 2e-5
KIB = 1024


def attribute(net: Any, x: Any, strategy: str = "fanout", **options: Any) -> fog_a.Scores:
    budget = {name: options.pop(name) for name in ("rows", "memory") if name in options}
    way = fog_a.Shared(**budget) if budget and strategy == "auto" else how(strategy, net, x, **budget)
    return fog_a.attribute(net, x, how=way, progress=False, **options)


def beyond(run: Any, plain: Any) -> int:
    """Bytes that `run` needs beyond a plain forward."""
    peaks = []
    for each in (plain, run):
        with torch.no_grad(), Footprint() as used:
            each()
        peaks.append(used.peak)
    return peaks[1] - peaks[0]


@pytest.fixture
def wide() -> tuple[Net, Tensor, Blocks]:
    """12 blocks whose stream takes 24 KiB."""
    torch.manual_seed(0)
    net, x = Net(depth=12, width=48), tokens(samples=4, length=32)
    blocks = fog_a.find_blocks(net, x)
    attribute(net, x, blocks=blocks)  # where the samples are is measured once
    return net, x, blocks


@pytest.mark.parametrize("kib", [210, 300, 600])
@pytest.mark.parametrize("strategy", ["fanout", "auto"])
def test_a_budget_is_kept_and_used(wide: Any, kib: int, strategy: str) -> None:
    net, x, blocks = wide
    memory = f"{kib}KiB"
    whole = attribute(net, x, "loop", blocks=blocks)
    scores = attribute(net, x, strategy, blocks=blocks, memory=memory)
    np.testing.assert_allclose(scores.values, whole.values, rtol=ROUNDING)
    assert scores.info["strategy"] == "fanout" and scores.info["how"] == f"Shared(rows=None, memory='{memory}')"
    used = beyond(lambda: attribute(net, x, strategy, blocks=blocks, memory=memory), lambda: net(x))
    free = beyond(lambda: attribute(net, x, strategy, blocks=blocks), lambda: net(x))
    assert used <= kib * KIB
    assert used > kib * KIB / 4 or used == free


@pytest.mark.parametrize(("memory", "strategy"), [("8MiB", "prefix"), ("2500KiB", "fanout")])
def test_large_blocks_go_by_prefix_where_that_fits(memory: str, strategy: str) -> None:
    """On a CPU more rows save no time there; twelve kept outputs of 256 KiB fit into the larger budget."""
    net, x = Net(depth=12, width=64), tokens(samples=4, length=256)
    scores = attribute(net, x, "auto", memory=memory)
    assert scores.info["strategy"] == strategy
    np.testing.assert_allclose(scores.values, attribute(net, x, "loop").values, rtol=ROUNDING)


@pytest.mark.parametrize("memory", [1000, "1KiB"])
def test_a_budget_smaller_than_one_variant(wide: Any, memory: Any) -> None:
    net, x, blocks = wide
    message = (
        r"one ablation beside the clean rows takes \d+ bytes, more than memory=10\d\d; .* take \d+ bytes, "
        r"more than memory=10\d\d\. Use how='auto' or 'loop', or give smaller batches"
    )
    with pytest.raises(Unsupported, match=message) as caught:
        attribute(net, x, blocks=blocks, memory=memory)
    needed = min(map(int, re.findall(r"takes? (\d+) bytes", str(caught.value))))
    attribute(net, x, blocks=blocks, memory=needed)  # the smallest that is told does do


def test_no_memory_at_all() -> None:
    with pytest.raises(FogError, match=r"expected Shared\(memory=\) of 1 byte or more, got 0"):
        fog_a.Shared(memory=0)


def test_prefix_over_its_budget_is_refused(wide: Any) -> None:
    net, x, blocks = wide
    enough = attribute(net, x, "auto", blocks=blocks, memory="1MiB", rows=4)
    assert enough.info["strategy"] == "prefix" and not enough.info["notes"]
    assert enough.values.tobytes() == attribute(net, x, "loop", blocks=blocks).values.tobytes()
    with pytest.raises(Unsupported, match=r"prefix cannot be used: .*take \d+ bytes, more than memory=51200"):
        attribute(net, x, "auto", blocks=blocks, memory="50KiB", rows=4)


def test_prefix_keeps_what_it_says(wide: Any) -> None:
    """One output per block, 12 · 24 KiB, and little else."""
    net, x, blocks = wide
    used = beyond(lambda: attribute(net, x, "prefix", blocks=blocks), lambda: net(x))
    assert 11 * 24 * KIB < used < 16 * 24 * KIB


@pytest.mark.parametrize("most", [8, 11, 20, 1000])
def test_no_forward_has_more_rows_than_asked_for(wide: Any, most: int) -> None:
    net, x, blocks = wide
    seen = []
    with (
        hooked(net, before=lambda args, kwargs: seen.append(0)),
        hooked(net.stem, before=lambda args, kwargs: seen.append(len(args[0]))),
    ):
        attribute(net, x, blocks=blocks, rows=most)
    per_run = min(most // 4 - 1, 12)
    assert max(seen) == 4 * (per_run + 1) <= most or most == 1000
    assert seen.count(0) == -(-12 // per_run)


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_no_block_runs_on_a_row_twice(wide: Any, gate: float) -> None:
    net, x, blocks = wide
    loop = attribute(net, x, "loop", blocks=blocks, gate=gate)
    shared = attribute(net, x, blocks=blocks, gate=gate)
    np.testing.assert_allclose(shared.values, loop.values, rtol=ROUNDING)
    clean = rows(lambda: net(x), [[b] for b in net.blocks])
    counted = rows(lambda: attribute(net, x, blocks=blocks, gate=gate), [[b] for b in net.blocks])
    assert counted == [n * (i + 1) for i, n in enumerate(clean)]


def test_noise_floor() -> None:
    """How far v moves when nothing is ablated, under the same arithmetic."""
    net, x = Net(depth=6, width=64), tokens(samples=5, length=9)
    floors = {s: attribute(net, x, s).info["noise_floor"] for s in ("loop", "prefix", "fanout")}
    assert floors["loop"] == floors["prefix"] == 0
    assert 0 <= floors["fanout"] < 1e-5
    assert attribute(net, x).info["noise_floor"] == floors["fanout"]  # also where the layout was measured before


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("64MiB", 2**26), ("2GiB", 2**31), ("500MB", 5 * 10**8), ("1.5 KiB", 1536), ("7B", 7), ("1tib", 2**40), (12, 12)],
)
def test_sizes_are_read(text: Any, bytes: int) -> None:
    assert parse_bytes(text) == bytes


@pytest.mark.parametrize("text", ["much", "64", "MiB", "-1MiB", "1XiB", "1..5MiB"])
def test_sizes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(FogError, match=r'memory= like "2GiB", "64MiB" or a number of bytes'):
        fog_a.Shared(memory=text)
