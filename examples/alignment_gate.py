"""Does any alignment help? Whisper tiny.en on spoken digits, few clips and more: the gate before layers are compared.

    python -m fog_a_adapters.dit.audio.whisper_folder out/whisper
    python examples/alignment_gate.py search  --whisper out/whisper --data ../shared/audio --out out/gate
    python examples/alignment_gate.py confirm --whisper out/whisper --data ../shared/audio --out out/gate --clips 50
    python examples/alignment_gate.py confirm --whisper out/whisper --data ../shared/audio --out out/again --clips 10 \
        --steps 600 --arms base,base-again,base-again2    # how much one draw of clips and noise moves a run
    python examples/alignment_gate.py search  --whisper out/whisper --data ../shared/audio --out out/few --clips 4 \
        --codes 1 --frames --own-clips                    # no tokens; each token against Whisper's frame, as in REPA
    python examples/alignment_gate.py confirm --whisper out/whisper --data ../shared/audio --out out/scaled --codes 1 \
        --frames --own-clips --layers 8 --least 0.1       # some layers count more, whatever their depth

docs/experiments/PLAN.md says what is looked for and what counts as no. A killed run goes on. The endpoint is the
held-out flow loss of averaged weights at 32 stratified flow times, the same noise for every arm and seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fog_a.errors import FogError
from fog_a.flows.flow import Flow
from fog_a_adapters.compare import Plan, Task, compare
from fog_a_adapters.compare.arms import ALONE
from fog_a_adapters.compare.benefits import correlations
from fog_a_adapters.dit.audio.tokens import STRIDE
from fog_a_adapters.dit.demo.bundled_task import bundled_task
from fog_a_adapters.dit.demo.train import Recipe, held_out_losses
from fog_a_adapters.dit.model.dit import DiTConfig
from planted import panel

LAYERS, FRAMES, BATCH, HELD_OUT, PROBED = 6, 64, 8, 32, 4
PLAN = Plan(warmup=80, steps=200, lr=2e-3, bitc=0.0, looks=0, draws=32, timing=0, average=0.98, center=True)
ARMS = {"search": ("base", "base-again", "fixed", "foga"), "confirm": ("base", "base-again", "each", "each-local")}
SEEDS = {"search": 0, "confirm": 100}
"""The first seed: what is searched on is never confirmed on."""
COLORS = {False: "#6b7280", True: "#D55E00"}


class Scaled(nn.Module):
    """Multiplies a layer's gates α₁ and α₂, the last third of its modulation, by a scale that is not trained."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, modulation: Tensor) -> Tensor:
        shifts, gates = modulation.tensor_split([modulation.shape[-1] * 2 // 3], dim=-1)
        return torch.cat([shifts, self.scale * gates], dim=-1)


def planted(flow: Flow, least: float, seed: int) -> Flow:
    """The flow, each layer's update times a planted scale: from `least` to 1, evenly in log, in this seed's order."""
    blocks = flow.model.net.blocks
    for block, scale in zip(blocks, scales_of(least, seed, len(blocks)).tolist(), strict=True):
        block.modulation.append(Scaled(scale))
    return flow


def scales_of(least: float, seed: int, layers: int) -> np.ndarray:
    """The planted scale of each layer."""
    return np.random.default_rng(seed).permutation(np.geomspace(least, 1.0, layers))


def gate_task(
    data: Path | None,
    whisper: Path,
    clips: int | None,
    codes: int = DiTConfig.vocab,
    data_seed: int = 0,
    layers: int = LAYERS,
    least: float = 1.0,
) -> Task:
    """Speech alone; held out are the first frames of each test clip, as many as a training crop has.

    `codes`: how many the tokens tell apart; 1: they tell nothing. `data_seed` draws the clips. `least`: see `planted`.
    """
    recipe = Recipe(size=min(BATCH, clips or BATCH), frames=FRAMES)
    config = DiTConfig.tiny(layers=layers, dim=48, vocab=codes)
    options: dict[str, Any] = {"teacher": f"whisper:{whisper}", "domains": ("speech",), "clips": clips}
    task = bundled_task(data, config=config, recipe=recipe, held_out=HELD_OUT, data_seed=data_seed, **options)
    batches = [cropped(batch, FRAMES) for batch in task.held_out]
    build = task.build if least == 1 else lambda seed: planted(task.build(seed), least, seed)
    return replace(
        task, build=build, held_out=batches, distance=None, probe=[task.batch(-1, i) for i in range(PROBED)],
        losses=lambda flow, draws: stratified(flow, batches, draws),
    )  # fmt: skip


def cropped(batch: Any, frames: int) -> Any:
    """The first frames of each clip of a batch, without its audio."""
    most = {"mel": frames, "lengths": frames, "tokens": frames // STRIDE, "token_lengths": frames // STRIDE}
    fewer = {key: value[:, : most[key]] for key, value in batch.items() if key in ("mel", "tokens")}
    fewer |= {key: batch[key].clamp(max=most[key]) for key in ("lengths", "token_lengths")}
    return {**{key: batch[key] for key in ("domain", "ids")}, **fewer}


def stratified(flow: Flow, batches: Sequence[Any], draws: int) -> dict[str, float]:
    """Held-out loss at the midpoints of `draws` strata of the flow time."""
    times = [(j + 0.5) / draws for j in range(draws)]
    return {"speech": statistics.fmean(held_out_losses(flow.model, batches, times).flatten().tolist())}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("stage", choices=(*sorted(ARMS), "draw"), help="draw: what --out holds, as pictures beside it")
    parser.add_argument("--whisper", type=Path, default=Path("out/whisper"), help="folder that whisper_folder made")
    parser.add_argument("--data", type=Path, help="folder with manifest.csv; default: the packaged clips")
    parser.add_argument("--out", type=Path, default=Path("out/gate"))
    parser.add_argument("--clips", type=int, help="training clips; default: all")
    parser.add_argument("--codes", type=int, default=DiTConfig.vocab, help="of the tokens; 1: they tell nothing")
    parser.add_argument("--own-clips", action="store_true", help="each seed draws its training and test clips")
    parser.add_argument("--frames", action="store_true", help="align each token with Whisper's frame, not their means")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument(
        "--least", type=float, default=1.0, help="smallest planted scale of an update; the largest is 1"
    )
    parser.add_argument("--total", type=float, default=0.5, help="the weight λ")
    parser.add_argument("--steps", type=int, default=PLAN.steps, help="after the branch")
    parser.add_argument("--first", type=int, help="the first seed; default: the stage's own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help="with commas, in place of the stage's own")
    args = parser.parse_args()
    if args.stage == "draw":
        runs = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(args.out.glob("*.json"))}
        if not runs:
            parser.error(f"{args.out} holds no results: type search or confirm before draw, or another --out")
        plot(runs).savefig(args.out.with_suffix(".png"))
        for name, run in runs.items():
            if "each" in run["benefits"]:
                plot_layers(run["benefits"]).savefig(args.out.with_name(f"{name}-layers.png"))
                print(name, *beside(run["benefits"], float(name.partition("least")[2] or 1)), sep="\n  ")
        return
    torch.set_num_threads(1)
    arms = ARMS[args.stage] if args.arms is None else tuple(args.arms.split(","))
    first = SEEDS[args.stage] if args.first is None else args.first
    plan = replace(PLAN, arms=arms, seeds=tuple(range(first, first + args.seeds)), total=args.total)
    plan = replace(plan, steps=args.steps, frames=args.frames)
    name = f"{args.stage}-{args.clips or 'all'}-{args.total:g}" + f"-{args.steps}" * (args.steps != PLAN.steps)
    name += f"-{args.codes}codes" * (args.codes != DiTConfig.vocab) + "-frames" * args.frames + "-own" * args.own_clips
    name += f"-{args.layers}layers" * (args.layers != LAYERS) + f"-least{args.least:g}" * (args.least != 1)
    try:
        for seed in plan.seeds if args.own_clips else ():
            compare(task_of(args, seed), replace(plan, seeds=(seed,)), args.out / name)
        report = compare(task_of(args, 0), plan, args.out / name)
    except FogError as error:
        parser.exit(1, f"{error}\n")
    kept = small(report)
    (args.out / f"{name}.json").write_text(json.dumps(kept), encoding="utf-8")
    print((args.out / name / "compare.md").read_text(encoding="utf-8"))
    for seed, sd in kept["scatter"].items():
        print(f"seed {seed}: base and its replicates scatter by {sd:.4f}")


def task_of(args: argparse.Namespace, seed: int) -> Task:
    """The task whose clips this seed draws."""
    return gate_task(args.data, args.whisper, args.clips, args.codes, seed, args.layers, args.least)


def small(report: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping: plan, each arm's loss at each seed, and what each layer's benefit goes with.

    `scatter`: seed → standard deviation over base and its replicates, which differ by clips and noise alone.
    """
    loss: dict[str, dict[str, float]] = {}
    for r in report["results"]:
        loss.setdefault(r["arm"], {})[str(r["seed"])] = r["metrics"]["loss"]
    again = [of for arm, of in loss.items() if arm.startswith("base")]
    scatter = {seed: statistics.stdev(of[seed] for of in again) for seed in loss["base"]} if len(again) > 2 else {}
    kept = {key: report[key] for key in ("task", "plan", "benefits")}
    facts = {**report["facts"], "data": report["facts"]["data"].rsplit("/", 1)[-1]}  # not where the folder lies
    return {**kept, "facts": facts, "loss": loss, "scatter": scatter, "summary": report["summary"]["metrics"]["loss"]}


def rows_of(run: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Arm → its loss less that of base; of the arms that align one layer alone their mean."""
    rows = {arm: c["difference"] for arm, c in run["summary"]["against base"].items() if not arm.startswith("each")}
    for arm, name in zip(ALONE, ("one layer", "one layer, locally"), strict=True):
        if arm in run["benefits"]:
            gain = run["benefits"][arm]["of any layer"]
            rows[name] = {"mean": -gain["mean"], "low": -gain["high"], "high": -gain["low"]}
    return rows


def plot(runs: Mapping[str, Any]) -> Figure:
    """Each arm's held-out loss less that of base, with its interval: left of 0 is better than base."""
    rows = [
        (f"{name.replace('-', ', ', 1)}: {arm}", difference, name.startswith("confirm"))
        for name, run in runs.items()
        for arm, difference in rows_of(run).items()
    ][::-1]
    fig = Figure(figsize=(10.4, 0.6 + 0.24 * len(rows)), dpi=160, layout="constrained")
    ax = fig.subplots()
    for y, (_, d, fresh) in enumerate(rows):
        ax.plot([d["low"], d["high"]], [y, y], color=COLORS[fresh], linewidth=2 if fresh else 1)
        ax.plot(
            d["mean"], y, "o", color=COLORS[fresh], markersize=5, markerfacecolor=COLORS[fresh] if fresh else "white"
        )
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("held-out flow loss, arm − base (right: worse than no alignment)")
    ax.set_title("filled: fresh seeds; hollow: search seeds", loc="left", fontsize=9)
    return fig


def plot_layers(benefits: Mapping[str, Any]) -> Figure:
    """What aligning each layer alone gains, by its depth and by its rank of FoG-A."""
    rank = np.argsort(np.argsort(benefits["each"]["scores"]["foga"], axis=1), axis=1)
    depth = np.broadcast_to(np.arange(rank.shape[1]), rank.shape)
    fig = Figure(figsize=(9.6, 3.6), dpi=160, layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, known, place in zip(axes, ("depth", "foga"), (depth, rank), strict=True):
        panel(ax, [benefits[arm] for arm in ALONE], known, place, "lower left")
    axes[0].set(ylabel="benefit: loss of base − aligned", xlabel="depth of the aligned layer")
    axes[1].set_xlabel(f"rank of the aligned layer by FoG-A  ({rank.shape[1]}: contributes most)")
    axes[0].set_title(f"{len(rank)} seeds", loc="left", fontweight="bold")
    return fig


def beside(benefits: Mapping[str, Any], least: float) -> list[str]:
    """Of stream alignment: how often it helps, what FoG-A itself goes with, and what depth tells without the first
    layers."""
    seeds, gain = benefits["each"]["seeds"], np.array(benefits["each"]["benefit"])
    foga = np.array(benefits["each"]["scores"]["foga"])
    scales = np.stack([scales_of(least, seed, foga.shape[1]) for seed in seeds])
    known = {"the planted scales": scales} if least < 1 else {}
    means = {f"FoG-A with {name}": e for name, e in correlations(foga, known).items()}
    means |= {f"benefit with depth, from layer {k} on": correlations(gain[:, k - 1 :], {})["depth"] for k in (2, 3)}
    rho = [f"ρ of {name}: {e['mean']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}]" for name, e in means.items()]
    seen = (
        f"{(gain > 0).sum()} of {gain.size} benefits are above 0, and their means on {(gain.mean(1) > 0).sum()} seeds"
    )
    return [*rho, f"{seen} of {len(gain)}"]


if __name__ == "__main__":
    main()
