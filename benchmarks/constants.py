"""What the ways to ablate cost beside the blocks themselves, and how well a formula of these constants foretells a run.

    loop      T = (L + 1) · F
    prefix    T = (L + 1)/2 · F + L(L − 1)/2 · s         s: a block's call that is skipped
    fan-out   T = (L + 1)/2 · F + L(L + 1) · g           g: rows of one variant cut and put together at one call

L blocks, F the time of a plain forward, all variants at once. s and g are measured on a net so small that its
arithmetic takes no time; the formulas are then held against the nets of `--case`. Memory is counted in streams of
B · T · D numbers.

    python benchmarks/constants.py --case 24x256x200x2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from nets import case
from ways import WAYS, ours

import fog_a
from fog_a.attributing.layout import measure, weigh
from fog_a.blocks.untouched import preserved
from fog_a.flows.bare import BareFlow
from fog_a.flows.case import Case

LAYERS = 24


def median(run: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of one run, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def timed(layers: int, dim: int, frames: int, batch: int, repeats: int) -> dict[str, float]:
    """Seconds of a plain forward and of both ways."""
    net, x = case(layers, dim, frames, batch)
    blocks = fog_a.find_blocks(net, x)
    with torch.no_grad():
        found = {"forward": median(lambda: net(*x), 4 * repeats)}
    for way in ("prefix", "fanout"):
        found[way] = median(lambda way=way: ours(net, x, blocks, how=WAYS[way](batch)), repeats)
    return found


def streams(layers: int, dim: int, frames: int, batch: int) -> float:
    """What each variant adds to the memory of a forward, by the estimate that `memory=` goes by."""
    net, x = case(layers, dim, frames, batch)
    blocks, one = fog_a.find_blocks(net, x), Case(BareFlow(net), x)
    with preserved(net):
        layout, _ = measure(one, blocks)
        weigh(layout, one, blocks)
    assert layout.bytes is not None
    return layout.bytes / (4 * batch * frames * dim)


def main() -> None:
    parser = argparse.ArgumentParser(description="The constants of docs/large-models.md.")
    parser.add_argument("--case", action="append", help="layers x width x frames x batch; several")
    parser.add_argument("--repeats", type=int, default=9)
    a = parser.parse_args()
    torch.set_num_threads(1)
    L = LAYERS
    small = timed(L, 16, 2, 1, a.repeats)
    s = (small["prefix"] - (L + 1) / 2 * small["forward"]) / (L * (L - 1) / 2)
    g = (small["fanout"] - small["forward"]) / (L * (L + 1))
    print(f"a variant of a fan-out needs {streams(24, 256, 200, 2):.0f} streams")
    print(f"a skipped call s = {s * 1e6:.0f} µs, a variant's rows at a call g = {g * 1e6:.0f} µs")
    for name in a.case or ("24x256x200x2",):
        L, *rest = (int(n) for n in name.split("x"))
        found = timed(L, *rest, repeats=max(a.repeats // 3, 1))
        told = {
            "prefix": (L + 1) / 2 * found["forward"] + L * (L - 1) / 2 * s,
            "fanout": (L + 1) / 2 * found["forward"] + L * (L + 1) * g,
        }
        for way, seconds in told.items():
            took = found[way]
            print(f"{name:14s} {way:7s} foretold {seconds:7.3f} s, took {took:7.3f} s: {took / seconds:.2f}")


if __name__ == "__main__":
    main()
