"""What a first call of `attribute` is made of: the CPU time of each stage ÷ that of the skip-loop.

    python benchmarks/first_call.py --case 24x64x50x2

Medians over repeats, one thread, a new network each time. Stages hold each other: `discover` holds `record` and
`passing`, `_difference` holds `once`. A stage that is not run is left out.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from attribution import sizes
from nets import case
from ways import skip_loop

import fog_a
from fog_a.attributing import choice, layout, variants
from fog_a.finding import blocks as finding

STAGES: dict[str, tuple[ModuleType, str]] = {
    "finding, whole": (choice, "discover"),
    "  its forward": (finding, "record"),
    "  closed blocks are deaf": (finding, "passing"),
    "layout": (layout, "look"),
    "comparisons": (variants, "_difference"),
    "time first": (variants, "check_samples_first"),
}


def timed(module: ModuleType, name: str, spent: dict[str, float], stage: str) -> None:
    """From now on the function's CPU time is added to its stage."""
    inner = getattr(module, name)

    @functools.wraps(inner)
    def run(*args: object, **kwargs: object) -> object:
        start = time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[stage] += time.process_time() - start

    setattr(module, name, run)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a first call is made of.")
    parser.add_argument("--case", default="24x64x50x2", help="layers x width x frames x batch")
    parser.add_argument("--repeats", type=int, default=9)
    a = parser.parse_args()
    torch.set_num_threads(1)
    spent, shares = defaultdict[str, float](float), defaultdict[str, list[float]](list)
    for stage, (module, name) in STAGES.items():
        timed(module, name, spent, stage)
    for repeat in range(a.repeats + 1):  # the first one warms up
        net, batch = case(*sizes(a.case))
        blocks = fog_a.find_blocks(net, batch)
        start = time.process_time()
        skip_loop(net, batch, blocks)
        loop = time.process_time() - start
        layout.forget(net)
        spent.clear()
        start = time.process_time()
        fog_a.attribute(net, batch, progress=False)
        spent["whole"] = time.process_time() - start
        for stage, seconds in spent.items() if repeat else ():
            shares[stage].append(seconds / loop)
    for stage in ("whole", *STAGES):
        if stage in shares:
            print(f"{stage:26s} {statistics.median(shares[stage]):.3f}")


if __name__ == "__main__":
    main()
