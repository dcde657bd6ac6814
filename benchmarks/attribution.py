"""What all L scores cost: the time of each way ÷ the time of the release's skip-loop, in the same process.

    python benchmarks/attribution.py                          # all cases, an hour or so on one core
    python benchmarks/attribution.py --case 24x64x50x2 --repeats 5
    python benchmarks/attribution.py --case 24x256x100x2 --device cuda

A case is layers × width × frames × batch. In every repeat each way runs once, next to one skip-loop of its own; the
ratio is taken in the pair, and the median over repeats is printed, with the ratio of the fastest of each. On a CPU the
clock is the process's own CPU time in one thread, which other processes disturb least; where the two figures differ by
much, repeat. Every way's scores are compared with the skip-loop's. Peak memory is taken in a process per way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from nets import case
from row_counter import rows
from ways import BY_HAND, OURS, WAYS, Way, others, ours, skip_loop

import fog_a
from fog_a.attributing.sighting import Footprint

REPEATS = {
    "24x64x50x2": 15,
    "24x256x200x2": 7,
    "12x512x100x2": 7,
    "48x256x100x2": 3,
    "48x256x200x2": 3,
    "12x512x400x2": 3,
    "24x1024x200x2": 1,
}
OTHERS_AT = ("24x64x50x2", "24x256x200x2")
"""Where other packages are measured too: elsewhere they take what they take here, for longer."""
GROWTH = (6, 12, 24, 48, 96)
BUDGET = 64 * 2**20
TOLERANCE = 1e-4


def sizes(text: str) -> tuple[int, int, int, int]:
    layers, dim, frames, batch = (int(n) for n in text.split("x"))
    return layers, dim, frames, batch


def clock(device: str, run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `run` takes, and what it gave: CPU time on a CPU, wall time around a synchronisation on a GPU."""
    if device == "cpu":
        start = time.process_time()
        found = run()
        return time.process_time() - start, found
    torch.cuda.synchronize()
    start = time.perf_counter()
    found = run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, found


def measured(name: str, ways: dict[str, Way], repeats: int, device: str) -> dict[str, Any]:
    """Each way's ratio to the skip-loop, and how far its scores are from the loop's."""
    net, batch = case(*sizes(name), device=device)
    blocks = fog_a.find_blocks(net, batch)
    want = skip_loop(net, batch, blocks)
    off = {}
    for way, run in ways.items():  # the first of each warms up, and is compared
        off[way] = max(abs(a - b) for a, b in zip(run(net, batch, blocks), want, strict=True)) / max(want)
        if not off[way] < TOLERANCE:
            raise SystemExit(f"{way} at {name}: its scores are off by {off[way]:.1e} of the largest")
    loops: dict[str, list[float]] = {way: [] for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way in list(ways) if repeat % 2 else reversed(list(ways)):
            pair = [
                (times, lambda run=ways[way]: run(net, batch, blocks)),
                (loops, lambda: skip_loop(net, batch, blocks)),
            ]
            for table, run in pair if repeat % 2 else reversed(pair):
                table[way].append(clock(device, run)[0])
    fastest = min(t for some in loops.values() for t in some)
    plain = min(clock(device, lambda: plain_forward(net, batch))[0] for _ in range(5))
    print(f"\n{name}: skip-loop {fastest:.3f} s, plain forward {plain * 1e3:.1f} ms, {repeats} repeats")
    print(f"  {'way':24s} {'median':>7s} {'fastest':>8s} {'least':>6s} {'most':>6s} {'scores off by':>14s}")
    report: dict[str, Any] = {"skip-loop, s": fastest, "plain forward, s": plain}
    for way in ways:
        ratios = [a / b for a, b in zip(times[way], loops[way], strict=True)]
        row = statistics.median(ratios), min(times[way]) / fastest, min(ratios), max(ratios)
        report[way] = dict(zip(("median", "fastest", "least", "most"), row, strict=True), off=off[way])
        print(f"  {way:24s} {row[0]:7.3f} {row[1]:8.3f} {row[2]:6.2f} {row[3]:6.2f} {off[way]:14.1e}")
    return report


@torch.no_grad()
def plain_forward(net: Any, batch: Any) -> Any:
    return net(*batch)


def growth(device: str, repeats: int) -> dict[str, Any]:
    """Row-evaluations and time with the number of layers; the layout's measurement is done before."""
    print("\ngrowth, L x 64 x T50 x B2: rows that blocks are run on, per sample, and the time against the skip-loop")
    report = {}
    for layers in GROWTH:
        net, batch = case(layers, 64, 50, 2, device)
        blocks = fog_a.find_blocks(net, batch)
        counted = {}
        for strategy in ("prefix", "fanout", "auto"):
            run = lambda: ours(net, batch, blocks, how=WAYS[strategy](2))  # noqa: B023, E731
            run()
            groups = [[block.ff] for block in net.blocks]
            clean, all_of_it = (sum(rows(what, groups)) for what in (lambda: net(*batch), run))  # noqa: B023
            counted[strategy] = all_of_it * layers / clean
        pairs = []
        for _ in range(repeats):
            pairs.append([clock(device, lambda way=way: way(net, batch, blocks))[0] for way in (ours, skip_loop)])  # noqa: B023
        ratio = statistics.median(a / b for a, b in pairs)
        least = layers * (layers + 1) / 2
        exact = all(n == least for n in counted.values())
        report[layers] = {"least": least, "ratio": ratio, **counted}
        print(f"  L = {layers:3d}: {counted['auto']:6.0f}, L(L+1)/2: {exact}, time {ratio:.3f}")
    return report


def peak(name: str, way: str, device: str) -> dict[str, float]:
    """MiB that a way needs at most beyond a plain forward, in a process of its own."""
    command = [sys.executable, __file__, "--case", name, "--device", device, "--peak", way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def print_peak(name: str, way: str, device: str) -> None:
    """`counted`: tensors alive together. `resident`: what the process's resident set grew by, its high-water mark; on a
    GPU what the allocator gave out."""
    small, small_batch = case(4, 16, 8, 2, device)
    run = {**OURS, **BY_HAND, "skip-loop": skip_loop, **others()}[way]
    run(small, small_batch, fog_a.find_blocks(small, small_batch))  # imports
    net, batch = case(*sizes(name), device=device)
    blocks = fog_a.find_blocks(net, batch)
    with torch.no_grad():
        for _ in range(2):
            net(*batch)
        with Footprint() as plain:
            net(*batch)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        plain_forward(net, batch)
        before = torch.cuda.max_memory_allocated()
        run(net, batch, blocks)
        resident = torch.cuda.max_memory_allocated() - before
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(net, batch, blocks)
        resident = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    with Footprint() as used:
        run(net, batch, blocks)
    print(json.dumps({"counted": (used.peak - plain.peak) / 2**20, "resident": resident / 2**20}))


def main() -> None:
    parser = argparse.ArgumentParser(description="What all L scores cost.")
    parser.add_argument("--case", action="append", help="layers x width x frames x batch; several. Default: all")
    parser.add_argument("--repeats", type=int, help="of every case")
    parser.add_argument("--only", action="append", help="these ways alone")
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--no-peak", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.peak:
        return print_peak(a.case[0], a.peak, a.device)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, load {load}")
    report: dict[str, Any] = {"load": load, "date": time.strftime("%Y-%m-%d")}
    for name in a.case or REPEATS:
        ways = {**OURS, **BY_HAND, **(others() if name in OTHERS_AT else {})}
        ways = {way: run for way, run in ways.items() if not a.only or way in a.only}
        report[name] = measured(name, ways, a.repeats or REPEATS.get(name, 3), a.device)
        if not a.no_peak:
            print(f"  {'peak beyond a plain forward, MiB':34s} {'tensors':>8s} {'resident':>9s}")
            for way in ways:
                found = report[name][way]["peak"] = peak(name, way, a.device)
                print(f"  {way:34s} {found['counted']:8.1f} {found['resident']:9.1f}")
    if not a.no_growth:
        report["growth"] = growth(a.device, a.repeats or 3)
    print(f"\nload at the end {', '.join(f'{x:.1f}' for x in os.getloadavg())}")
    if a.json:
        a.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
