"""What skip guidance costs: one forward on twice the rows, ÷ two forwards by hand, the second without the block.

python benchmarks/guidance.py

Medians of interleaved pairs in one process, CPU time in one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

import torch
from attribution import clock, sizes
from nets import Net, case
from removal import ratio

import fog_a
from fog_a.attributing.sighting import Footprint

CASES = ("6x64x50x2", "24x64x50x1", "24x256x200x2", "12x512x400x2")


def two(net: Net, x: Any, skip: int) -> None:
    """A plain forward, and one that leaves a block out by `continue`."""
    net(*x)
    net.skip = skip
    net(*x)
    net.skip = None


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="What skip guidance costs.")
    parser.add_argument("--case", action="append", help="layers x width x frames x batch; several. Default: all")
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    for name in a.case or CASES:
        middle = sizes(name)[0] // 2
        (net, x), (guided, _) = case(*sizes(name)), case(*sizes(name))
        blocks = fog_a.find_blocks(guided, x)
        plain = clock("cpu", lambda: net(*x))[0]  # noqa: B023
        with Footprint() as one:
            net(*x)
        with fog_a.skip_guidance(guided, blocks[middle : middle + 1], 1.0):
            first = clock("cpu", lambda: guided(*x))[0] / plain  # noqa: B023
            pairs = [(lambda: two(net, x, middle), lambda: guided(*x), i % 2 == 1) for i in range(a.repeats)]  # noqa: B023
            ratios = [ratio(*pair) for pair in pairs]
            with Footprint() as both:
                guided(*x)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {a.repeats} pairs, load {os.getloadavg()[0]:.1f}"
        print(
            f"{name}: median {statistics.median(ratios):.2f} of two forwards, {spread}; first call {first:.1f} plain "
            f"forwards; memory {both.peak / one.peak:.2f} of a plain forward's",
            flush=True,
        )


if __name__ == "__main__":
    main()
