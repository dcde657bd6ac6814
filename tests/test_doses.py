"""Dose and response: gates between 0 and 1, at no more block calls than what comes after each block needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from row_counter import rows
from sharing import how
from small_flow import a_batch, a_flow
from small_nets import Net, tokens

import fog_a
from fog_a.errors import FogError

GATES = [0, 0.25, 0.5, 0.75]
EXACT = {"loop": 0.0, "prefix": 0.0, "fanout": 2e-5}


def by_hand(net: Net, x: torch.Tensor, k: int, g: float) -> np.ndarray:
    """Eq. 9 with block k's update scaled by g."""
    with torch.no_grad():
        v, h = net(x), net.stem(x)
        for i, block in enumerate(net.blocks):
            h = torch.lerp(h, block(h), g) if i == k else block(h)
        d = net.head(h) - v
    return (d.flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)).numpy()


@pytest.mark.parametrize("strategy", EXACT)
def test_doses_are_the_loop_with_that_gate(strategy: str) -> None:
    net, x = Net(depth=4), tokens()
    for g in GATES:
        scores = fog_a.attribute(net, x, gate=g, how=how(strategy, net, x), progress=False)
        loop = fog_a.attribute(net, x, gate=g, how="loop", progress=False)
        assert scores.info["gate"] == g and scores.layers == loop.layers
        np.testing.assert_allclose(scores.values, loop.values, rtol=EXACT[strategy])
        want = np.stack([by_hand(net, x, k, g) for k in range(4)], axis=1)
        np.testing.assert_allclose(scores.values[:, 0], want, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["prefix", "fanout", "auto"])
@pytest.mark.parametrize("L", [4, 12])
def test_doses_run_what_comes_after_their_blocks(strategy: str, L: int) -> None:
    """For each gate value a clean run, and the L − k − 1 blocks after block k: (L + 1)/2 forwards."""
    net, x = Net(depth=L), tokens(samples=2)
    blocks = fog_a.find_blocks(net, x)
    ways = {strategy: how(strategy, net, x)}

    def run() -> Any:
        way = ways[strategy]
        return [fog_a.attribute(net, x, gate=g, blocks=blocks, how=way, progress=False) for g in GATES]

    run()
    clean = rows(lambda: net(x), [[b] for b in net.blocks])
    assert rows(run, [[b] for b in net.blocks]) == [n * len(GATES) * (1 + i) for i, n in enumerate(clean)]


@pytest.mark.parametrize("strategy", EXACT)
def test_doses_of_branches_and_over_time(strategy: str) -> None:
    flow, batch = a_flow(), a_batch(3)
    options: dict[str, Any] = {"times": 2, "level": "branch", "progress": False}
    for g in GATES:
        scores = fog_a.attribute(flow, batch, gate=g, how=how(strategy, flow, batch), **options)
        loop = fog_a.attribute(flow, batch, gate=g, how="loop", **options)
        np.testing.assert_allclose(scores.values, loop.values, rtol=EXACT[strategy])
        assert scores.values.shape == (3, 2, 4)


@pytest.mark.parametrize("strategy", EXACT)
def test_nothing_is_ablated_by_an_open_gate(strategy: str) -> None:
    net, x = Net(), tokens()
    doses = {g: fog_a.attribute(net, x, gate=g, how=how(strategy, net, x), progress=False) for g in (0, 1)}
    floor = doses[1].values.max()
    assert floor <= EXACT[strategy] / 10
    assert doses[0].values.min() > 100 * floor


def test_fewer_gates_cut_in_chunks_change_nothing() -> None:
    net, x = Net(depth=4), tokens()
    for g in GATES:
        whole = fog_a.attribute(net, x, gate=g, how=how("fanout", net, x), progress=False)
        for rows_at_once in (6, 9, 15):
            parts = fog_a.attribute(net, x, gate=g, how=fog_a.Shared(rows=rows_at_once), progress=False)
            np.testing.assert_allclose(parts.values, whole.values, rtol=2e-5)


@pytest.mark.parametrize("gate", [-0.1, 1.5, [0, 0.5], [], float("nan"), True, None])
def test_gates_are_between_0_and_1(gate: Any) -> None:
    with pytest.raises(FogError, match=r"gate= as one number in \[0, 1\], got .*0 removes a block, 1 changes nothing"):
        fog_a.attribute(Net(), tokens(), gate=gate)
