"""What AG-REPA costs: a training step with it, against a plain step and against one fixed layer aligned by hand.

    python benchmarks/alignment.py                     # 24 × 256, T = 200, batch 16
    python benchmarks/alignment.py --layers 8 --dim 64 --frames 50 --repeats 5

Steps of all kinds are interleaved and compared pairwise; medians of the ratios are printed. On a CPU the clock is the
process's own CPU time in one thread, which other processes disturb least. Peak memory is taken in a process per kind.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fog_a
from fog_a.aligning.warmup import Warmup
from fog_a.flows.samples import Samples
from fog_a.teachers import CachedTeacher
from fog_a_adapters.dit import DiTConfig, FlowMatching

KINDS = ("plain", "one fixed layer, by hand", "AGREPA, k = 1", "AGREPA, k = 3, local", "AGREPA, k = 3")
WIDTHS = {"speech": 1280, "sound": 768}


class Kept:
    """A teacher to fill the cache with: a vector per id. What it costs is not measured."""

    def __init__(self, dim: int) -> None:
        self.name, self.dim = f"kept-{dim}", dim

    def __call__(self, samples: Samples) -> Tensor:
        return torch.randn(len(samples), self.dim, generator=torch.Generator().manual_seed(0))


class FixedLayer(nn.Module):
    """Alignment of one layer as one writes it by hand: a hook, the mean over time, an MLP per domain, a cosine."""

    def __init__(self, block: nn.Module, width: int, teachers: dict[str, Any], flow: fog_a.Flow) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {d: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, WIDTHS[d])) for d in teachers}
        )
        self.teachers, self.flow = teachers, flow
        self.h = torch.empty(0)
        self.hook = block.register_forward_hook(lambda m, args, out: setattr(self, "h", out))

    def forward(self, batch: Any) -> Tensor:
        samples = self.flow.samples(batch)
        loss = self.h.new_zeros(())
        for domain, teacher in self.teachers.items():
            rows = [i for i, d in enumerate(samples.domains) if d == domain]
            part = self.flow.samples(samples.rows(rows))
            z = F.layer_norm(self.h[rows].mean(1), self.h.shape[-1:])
            loss = loss + 0.5 * (1 - F.cosine_similarity(self.heads[domain](z), teacher(part), dim=-1)).mean()
        self.h = torch.empty(0)
        return loss


def data(a: argparse.Namespace, seconds: float = 2.0) -> dict[str, Any]:
    """A batch as the bundled model reads it, with noise for audio."""
    g = torch.Generator().manual_seed(0)
    n = int(16_000 * seconds)
    return {
        "mel": torch.randn(a.batch, a.frames, 100, generator=g),
        "lengths": torch.full((a.batch,), a.frames),
        "tokens": torch.randint(64, (a.batch, a.frames // 2), generator=g),
        "token_lengths": torch.full((a.batch,), a.frames // 2),
        "domain": torch.arange(a.batch) % 2,
        "ids": [f"clip-{i}" for i in range(a.batch)],
        "audio": torch.randn(a.batch, n, generator=g) * 0.1,
        "audio_lengths": torch.full((a.batch,), n),
        "rate": 16_000,
    }


def setting(a: argparse.Namespace, kind: str, folder: str) -> tuple[Callable[[], None], fog_a.Flow, Any]:
    """One training step of a kind, on a model of its own."""
    torch.manual_seed(0)
    config = DiTConfig(layers=a.layers, dim=a.dim, heads=max(1, a.dim // 64), init="release", token_dim=a.dim)
    model = FlowMatching(config).to(a.device)
    with torch.no_grad():  # away from the identity, as after some training
        for p in model.net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    flow = fog_a.wrap(model)
    batch = {k: v.to(a.device) if isinstance(v, Tensor) else v for k, v in data(a).items()}
    teachers: dict[str, Any] = {d: CachedTeacher(Kept(w), folder, check=False) for d, w in WIDTHS.items()}
    reg: Any = None
    if kind.startswith("AGREPA"):
        names = [f"blocks.{i}" for i in range(int(kind[12]))]
        reg = fog_a.AGREPA(flow, teachers, names, batch=batch, local=kind.endswith("local"))
    elif kind != "plain":
        reg = FixedLayer(model.net.blocks[a.layers // 3], a.dim, teachers, flow)
    reg = reg.to(a.device) if reg is not None else None
    optimizer = torch.optim.AdamW([*model.parameters(), *(reg.parameters() if reg is not None else [])], lr=1e-4)

    def step() -> None:
        loss = flow.loss(batch)
        if reg is not None:
            loss = loss + reg(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, flow, batch


def clock(a: argparse.Namespace, run: Callable[[], Any]) -> float:
    """Seconds that `run` takes: CPU time on a CPU, wall time around a synchronisation on a GPU."""
    if a.device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(a: argparse.Namespace, kind: str) -> float:
    """MiB that two steps of a kind need at most beyond what stood before them, in a process of its own."""
    options = [f"--{k}={getattr(a, k)}" for k in ("layers", "dim", "frames", "batch", "device")]
    done = subprocess.run(
        [sys.executable, __file__, *options, f"--peak={kind}"], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def print_peak(a: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        step, _, _ = setting(a, a.peak, folder)
        if a.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            step()
            print((torch.cuda.max_memory_allocated() - before) / 2**20)
        else:
            before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
            step()
            step()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before)


def probing(a: argparse.Namespace, flow: fog_a.Flow, batch: Any, plain: float) -> dict[str, float]:
    """25 probes of 2 + 2 samples, one t each, all layers, as shares of 5,000 plain steps."""
    reg = fog_a.AGREPA(flow, dict(WIDTHS))
    warmup = Warmup(flow, reg.recipe, tuple(WIDTHS))
    warmup.due = list(WIDTHS)
    samples = flow.samples(batch)
    times = [clock(a, lambda: warmup.measure(batch, samples)) for _ in range(4)][1:]
    one = statistics.median(times)
    return {"probe, s": one, "25 probes / 5000 plain steps": 25 * one / (5000 * plain)}


def teaching(a: argparse.Namespace, flow: fog_a.Flow, batch: Any, step: float, folder: str) -> dict[str, float]:
    """What a Whisper-tiny-sized teacher with random weights takes on the fly, and what the cache leaves of it."""
    from transformers import WhisperConfig, WhisperModel

    from fog_a.teachers import WhisperTeacher

    tiny: dict[str, Any] = dict(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    tiny |= dict(decoder_layers=1, decoder_attention_heads=6, decoder_ffn_dim=384)
    whisper = WhisperTeacher(WhisperModel(WhisperConfig(**tiny)).to(a.device))
    samples = flow.samples(batch)
    live = statistics.median([clock(a, lambda: whisper(samples)) for _ in range(2)])
    cached = CachedTeacher(whisper, folder, check=False)
    cached(samples)
    kept = statistics.median([clock(a, lambda: cached(samples)) for _ in range(5)])
    return {"teacher live, s": live, "teacher live / (step + teacher)": live / (step + live), "teacher cached, s": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step with AG-REPA costs.")
    for name, default in (("layers", 24), ("dim", 256), ("frames", 200), ("batch", 16), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.peak:
        return print_peak(a)
    with tempfile.TemporaryDirectory() as folder:
        runs = {kind: setting(a, kind, folder) for kind in KINDS}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for repeat in range(a.repeats + 1):
            for kind in KINDS if repeat % 2 else reversed(KINDS):
                seconds = clock(a, runs[kind][0])
                if repeat:  # the first of each warms up
                    times[kind].append(seconds)
        medians = {kind: statistics.median(t) for kind, t in times.items()}
        report: dict[str, Any] = {f"{kind}, s": m for kind, m in medians.items()}
        ours = times[KINDS[-1]]
        for against in KINDS[:-1]:
            ratios = [x / y for x, y in zip(ours, times[against], strict=True)]
            report[f"AGREPA, k = 3 / {against}"] = statistics.median(ratios)
        local = [x / y for x, y in zip(times["AGREPA, k = 3, local"], times["plain"], strict=True)]
        report["AGREPA, k = 3, local / plain"] = statistics.median(local)
        _, flow, batch = runs["plain"]
        report |= probing(a, flow, batch, medians["plain"])
        report |= teaching(a, flow, batch, medians[KINDS[-1]], folder)
    for kind in ("plain", KINDS[-1]):
        report[f"peak of {kind}, MiB"] = peak(a, kind)
    report["extra peak"] = report[f"peak of {KINDS[-1]}, MiB"] / report["peak of plain, MiB"] - 1
    for name, value in report.items():
        print(f"{name:42s} {value:10.4g}")
    if a.json:
        a.json.write_text(json.dumps({**vars(a), **report}, indent=1, default=str))


if __name__ == "__main__":
    main()
