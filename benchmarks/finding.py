"""What finding the blocks costs, against plain forwards: at most four of them and 0.2 s.

python benchmarks/finding.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from nets import case

import fog_a

CASES = ("6x64x50x2", "24x64x50x2", "96x64x50x2", "24x256x200x2", "48x256x200x2", "12x512x400x2")


def fastest(run: Callable[[], Any], repeats: int) -> float:
    """CPU seconds, of the fastest repeat."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="What finding the blocks costs.")
    parser.add_argument("--case", action="append", help="layers x width x frames x batch; several. Default: all")
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':16s} {'forward, ms':>12s} {'first, ms':>10s} {'find, ms':>9s} {'allowed, ms':>12s}")
    for name in a.case or CASES:
        layers, dim, frames, batch = (int(n) for n in name.split("x"))
        net, x = case(layers, dim, frames, batch)
        first = fastest(lambda: fog_a.find_blocks(net, x), 1)  # noqa: B023
        find = fastest(lambda: fog_a.find_blocks(net, x), a.repeats)  # noqa: B023
        with torch.no_grad():
            forward = fastest(lambda: net(*x), 2 * a.repeats)  # noqa: B023
        allowed = 4 * forward + 0.2
        numbers = (1e3 * n for n in (forward, first, find, allowed))
        print("{:16s} {:12.1f} {:10.1f} {:9.1f} {:12.1f}".format(name, *numbers), "" if find <= allowed else "  MISSED")


if __name__ == "__main__":
    main()
