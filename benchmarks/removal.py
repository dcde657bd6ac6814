"""What closing several blocks costs: `fog_a.remove` to half depth and `fog_a.interactions`, ÷ a loop by hand.

    python benchmarks/removal.py --case 24x64x50x2 --repeats 5

Medians of interleaved pairs in one process, CPU time in one thread, `blocks=` given; and the blocks that run ÷ the
loop's. The loop is the fastest that the
network's own forward allows: `continue` at every block that is closed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
from attribution import clock, sizes
from nets import Net, case
from row_counter import rows
from torch import Tensor
from ways import score

import fog_a


class Without(Net):
    """The benchmarks' net, without a set of its blocks."""

    gone: frozenset[int] = frozenset()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, c = self.into(x), self.time(t[:, None])
        for i, block in enumerate(self.blocks):
            if i in self.gone:
                continue
            h = block(h, c)
        return self.out(h)


@torch.no_grad()
def closed(net: Without, batch: Any, gone: Sequence[int]) -> Tensor:
    """v without these blocks."""
    net.gone = frozenset(gone)
    v = net(*batch)
    net.gone = frozenset()
    return v


def removed_by_hand(net: Without, batch: Any) -> list[str]:
    """Greedy removal to half depth by single ablations."""
    v, removed, left = closed(net, batch, []), list[int](), set(range(len(net.blocks)))
    while len(left) > len(net.blocks) // 2:
        tried = {k: score(closed(net, batch, [*removed, k]), v) for k in left}
        removed.append(min(tried, key=lambda k: tried[k]))
        left.remove(removed[-1])
    return [f"blocks.{k}" for k in removed]


def pairs_by_hand(net: Without, batch: Any) -> list[float]:
    """Joint minus sum of each pair."""
    v, layers = closed(net, batch, []), range(len(net.blocks))
    alone = [score(closed(net, batch, [k]), v) for k in layers]
    return [score(closed(net, batch, p), v) - sum(alone[k] for k in p) for p in itertools.combinations(layers, 2)]


def ratio(theirs: Callable[[], Any], ours: Callable[[], Any], first: bool) -> float:
    """One pair; `first`: ours before the loop."""
    ways = [theirs, ours]
    times = [clock("cpu", way)[0] for way in (reversed(ways) if first else ways)]
    return times[0] / times[1] if first else times[1] / times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="What closing several blocks costs.")
    parser.add_argument("--case", action="append", help="layers x width x frames x batch; several")
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    for name in a.case or ["24x64x50x2", "24x256x200x2"]:
        layers, dim, *_ = sizes(name)
        plain, batch = case(*sizes(name))
        net = Without(layers, dim).eval()
        net.load_state_dict(plain.state_dict())
        blocks = fog_a.find_blocks(net, batch)
        uses: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "remove": (
                lambda: removed_by_hand(net, batch),  # noqa: B023
                lambda: list(fog_a.remove(net, batch, keep=layers // 2, blocks=blocks).removed),  # noqa: B023
            ),
            "interactions": (
                lambda: pairs_by_hand(net, batch),  # noqa: B023
                lambda: fog_a.interactions(net, batch, blocks).scores.mean().tolist(),  # noqa: B023
            ),
        }
        for use, (theirs, ours) in uses.items():
            want, got = theirs(), ours()
            if got != want and (use == "remove" or not np.allclose(got, want, atol=1e-5)):
                raise SystemExit(f"{use} gave {got}, the loop {want}")
            ratios = [ratio(theirs, ours, repeat % 2 == 1) for repeat in range(a.repeats)]
            run, loop = (rows(way, [[*net.blocks]])[0] for way in (ours, theirs))
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {a.repeats} pairs, load {os.getloadavg()[0]:.1f}"
            print(
                f"{name} {use}: median {statistics.median(ratios):.3f}, {spread}, blocks run {run / loop:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
