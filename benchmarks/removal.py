"""What `fog_a.remove` costs: to half depth, ÷ a loop of single ablations in which what is closed is left out.

    python benchmarks/removal.py --case 24x64x50x2 --repeats 5

Medians of interleaved pairs in one process, CPU time in one thread, `blocks=` given. The loop is the fastest that the
network's own forward allows: `continue` at every closed block and at the one that is tried.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from attribution import clock, sizes
from nets import Net, case
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
def loop(net: Without, batch: Any, keep: int) -> list[int]:
    """Greedy removal by single ablations."""
    net.gone, v, removed = frozenset(), net(*batch), list[int]()
    while len(net.blocks) - len(removed) > keep:
        tried = {}
        for k in set(range(len(net.blocks))) - set(removed):
            net.gone = frozenset([*removed, k])
            tried[k] = score(net(*batch), v)
        removed.append(min(tried, key=lambda k: tried[k]))
    net.gone = frozenset()
    return removed


def ratio(net: Without, batch: Any, blocks: fog_a.Blocks, first: bool) -> float:
    """One pair; `first`: ours before the loop."""
    keep = len(net.blocks) // 2
    ways = [lambda: loop(net, batch, keep), lambda: fog_a.remove(net, batch, keep=keep, blocks=blocks)]
    times = [clock("cpu", way)[0] for way in (reversed(ways) if first else ways)]
    return times[0] / times[1] if first else times[1] / times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="What greedy removal costs.")
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
        ours = fog_a.remove(net, batch, keep=layers // 2, blocks=blocks)
        theirs = loop(net, batch, layers // 2)
        if [f"blocks.{k}" for k in theirs] != list(ours.removed):
            raise SystemExit(f"other blocks went: {ours.removed} and {theirs}")
        ratios = [ratio(net, batch, blocks, repeat % 2 == 1) for repeat in range(a.repeats)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {a.repeats} pairs, load {os.getloadavg()[0]:.1f}"
        print(f"{name}: median {statistics.median(ratios):.3f}, {spread}")


if __name__ == "__main__":
    main()
