"""Does aligning the layers that contribute train better? A toy in which contribution and depth are told apart.

    python examples/planted.py --out out/planted                        # 12 seeds, about 3 minutes on a quiet core
    python examples/planted.py --first 100 --seeds 20 --out out/fresh   # other seeds

A small flow (8 residual layers over tokens) learns clips that a hidden vector z makes; the teacher knows z. The update
of each layer is multiplied by a fixed number, a new order of 0.1 … 1 for each seed: some layers contribute much and
others little, wherever they stand. After a warm-up FoG-A is measured. Then the same net is trained without alignment,
and with each layer aligned in turn, in two ways:

    stream    φ(pool(h_k))                                  Eq. 12: the loss reaches the updates 1 … k together
    local     φ(pool(sg(h_{k−1}) + f_k(sg(h_{k−1}))))       the loss reaches update k alone: AGREPA(local=True)

and on two amounts of data: new clips at every step (much), or the same few again and again (scarce). A layer's benefit
is the held-out flow loss without alignment minus that with it. All trainings run side by side, as rows of one tensor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import trange

import fog_a
from fog_a_adapters.compare.benefits import correlations, over_seeds
from planted_nets import Block, Linear, Nets, Setting, World, drawn

WAYS, COLORS = ("stream", "local"), ("#0072B2", "#D55E00")


class Heads(nn.Module):
    """φ of every aligned row: pooled stream → z. First values from seed and layer, so both ways start alike."""

    def __init__(self, s: Setting, seeds: Sequence[int]) -> None:
        super().__init__()
        names = [seed * 100 + k for seed in seeds for _ in WAYS for k in range(s.layers)]
        self.first, self.last = Linear(names, 90, s.width, s.width), Linear(names, 91, s.width, s.hidden)

    def forward(self, h: Float[Tensor, "M B T D"]) -> Float[Tensor, "M B H"]:
        z = F.layer_norm(h.mean(2), h.shape[-1:])
        return self.last(F.gelu(self.first(z)))


def alone(block: Block, h: Tensor, rows: Tensor) -> Tensor:
    """These rows' tokens after the block, with a gradient to its own parameters alone."""
    before, own = h[rows].detach(), {name: p[rows] for name, p in block.named_parameters()}
    return torch.func.functional_call(block, own, (before,))


def aligned(nets: Nets, s: Setting, x: Tensor, t: Tensor, seeds: int) -> tuple[Tensor, Tensor]:
    """v of every row, and of each aligned row the tokens that its head reads (rows: seed, way, layer)."""
    h = nets.enter(x, t)
    rows = torch.arange(len(h)).view(seeds, -1)[:, 1:].unflatten(1, (len(WAYS), s.layers))  # row 0 of a seed is base
    read: list[Tensor] = []
    for k, block in enumerate(nets.blocks):
        assert isinstance(block, Block)
        f = block.update(h)
        stream, local = rows[:, 0, k], rows[:, 1, k]
        read.append(torch.stack([(h + f)[stream], alone(block, h, local)], 1))
        h = h + f
    return nets.leave(h), torch.stack(read, 2).flatten(0, 2)


def train(s: Setting, seeds: Sequence[int], *, scarce: bool, progress: bool = True) -> dict[str, np.ndarray]:
    """Warm up, measure FoG-A, branch, train every arm: "foga" (seed, layer), "loss" (seed, 1 + ways · layers)."""
    world, nets = World(s, seeds), Nets(s, seeds)
    optimizer = torch.optim.Adam(nets.parameters(), s.lr)
    bar = trange(s.warmup + s.steps, desc="scarce" if scarce else "much", disable=not progress)
    arms, heads, contribution = 1 + len(WAYS) * s.layers, Heads(s, seeds), np.empty(0)
    for step in bar:
        z = world.latents(step, scarce)
        x, t, target = world.path(z, (7, step))
        if step == s.warmup:
            contribution = foga(nets, world)
            nets.branch(arms)
            optimizer = torch.optim.Adam([*nets.parameters(), *heads.parameters()], s.lr)
        for group in optimizer.param_groups:
            group["lr"] = s.lr * min(1.0, 2 * (1 - step / (s.warmup + s.steps)))
        if step < s.warmup:
            loss = (nets(x, t) - target).square().mean((1, 2, 3)).sum()
        else:
            x, t, target = (a.repeat_interleave(arms, 0) for a in (x, t, target))
            v, tokens = aligned(nets, s, x, t, len(seeds))
            far = 1 - F.cosine_similarity(heads(tokens), z.repeat_interleave(arms - 1, 0), dim=-1)
            loss = (v - target).square().mean((1, 2, 3)).sum() + s.weight * far.mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"foga": contribution, "loss": held_out(nets, world, arms)}


@torch.no_grad()
def held_out(nets: Nets, world: World, arms: int) -> Float[np.ndarray, "S A"]:
    """The flow loss on new clips, the same noise and times for all arms."""
    z = drawn(world.seeds, (8,), world.s.held_out, world.s.hidden)
    x, t, target = (a.repeat_interleave(arms, 0) for a in world.path(z, (9,)))
    return (nets(x, t) - target).square().mean((1, 2, 3)).view(-1, arms).numpy()


def foga(nets: Nets, world: World) -> Float[np.ndarray, "S L"]:
    """FoG-A of each seed's layers (a net is a row of the batch), on new clips at stratified flow times."""
    z = drawn(world.seeds, (10,), 64, world.s.hidden)
    x, t, _ = world.path(z, (11,))
    scores = fog_a.attribute(nets, {"x": x, "t": t}, how="loop", progress=False)
    return scores.values[:, 0]


def measured(s: Setting, seeds: Sequence[int], at_once: int = 4, progress: bool = True) -> dict[str, Any]:
    """Data amount → loss of base, each layer's FoG-A and benefit (seed, layer), and their rank correlations."""
    made: dict[str, Any] = {"setting": asdict(s), "seeds": list(seeds)}
    for data in ("much", "scarce"):
        parts = [
            train(s, seeds[i : i + at_once], scarce=data == "scarce", progress=progress)
            for i in range(0, len(seeds), at_once)
        ]
        foga, loss = (np.concatenate([part[name] for part in parts]) for name in ("foga", "loss"))
        benefit = (loss[:, :1] - loss[:, 1:]).reshape(len(seeds), len(WAYS), s.layers)
        made[data] = {"base": loss[:, 0].tolist(), "foga": foga.tolist()}
        for w, way in enumerate(WAYS):
            made[data][way] = {
                "benefit": benefit[:, w].tolist(),
                "of any layer": over_seeds(benefit[:, w].mean(1).tolist()),
                "rank correlation": correlations(benefit[:, w], {"foga": foga}),
            }
    return made


def plot(made: Mapping[str, Any]) -> Figure:
    """Rows: much and scarce data; columns: benefit by depth and by rank of FoG-A, for both ways of aligning."""
    fig = Figure(figsize=(9.6, 6.2), dpi=160, layout="constrained")
    grid = fig.subplots(2, 2, sharex="col", sharey="row")
    for row, data in zip(grid, ("much", "scarce"), strict=True):
        rank = np.argsort(np.argsort(made[data]["foga"], axis=1), axis=1)
        depth = np.broadcast_to(np.arange(rank.shape[1]), rank.shape)
        for ax, known, place in zip(row, ("depth", "foga"), (depth, rank), strict=True):
            panel(ax, [made[data][way] for way in WAYS], known, place, "lower left" if data == "much" else "upper left")
            ax.set_title(f"{data} data, {len(made['seeds'])} seeds", loc="left", fontweight="bold")
        row[0].set_ylabel("benefit: loss of base − aligned")
    grid[1, 0].set_xlabel("depth of the aligned layer")
    grid[1, 1].set_xlabel(f"rank of the aligned layer by FoG-A  ({len(made['much']['foga'][0])}: contributes most)")
    return fig


def panel(ax: Any, ways: Sequence[Mapping[str, Any]], known: str, place: np.ndarray, legend: str) -> None:
    """The benefits of stream and of local alignment, each by what is known of the layer."""
    for part, way, color in zip(ways, WAYS, COLORS, strict=True):
        draw(ax, part, known, place, f"{way} alignment", color)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(y=0.3)
    ax.legend(fontsize=8.5, frameon=False, loc=legend)


def draw(ax: Any, part: Mapping[str, Any], known: str, place: np.ndarray, name: str, color: str) -> None:
    """One way's mean benefit at each place, with its interval, and the rank correlation in the legend."""
    benefit, c = np.array(part["benefit"]), part["rank correlation"][known]
    columns = [over_seeds(benefit[place == i].tolist()) for i in range(benefit.shape[1])]
    low, mean, high = ([column[key] for column in columns] for key in ("low", "mean", "high"))
    x, label = range(1, len(columns) + 1), f"{name}: ρ = {c['mean']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]"
    ax.plot(x, mean, color=color, marker="o", markersize=4, label=label.replace("-", "−"))
    ax.fill_between(x, low, high, color=color, alpha=0.15)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=12, help="how many")
    parser.add_argument("--out", type=Path, default=Path("out/planted"))
    parser.add_argument("--drawn", type=Path, help="draw numbers that are there already")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.drawn is not None:
        if not args.drawn.is_file():
            parser.error(
                f"there are no numbers at {args.drawn}: leave --drawn out to measure them, or name another file"
            )
        plot(json.loads(args.drawn.read_text(encoding="utf-8"))).savefig(args.out.with_suffix(".png"))
        return
    made = measured(Setting(), range(args.first, args.first + args.seeds))
    args.out.with_suffix(".json").write_text(json.dumps(made), encoding="utf-8")
    plot(made).savefig(args.out.with_suffix(".png"))
    for data in ("much", "scarce"):
        for way in WAYS:
            part = made[data][way]
            said = [f"{data} data, {way} alignment: benefit {shown(part['of any layer'], 4)}"]
            said += [f"ρ({name}) {shown(c, 2)}" for name, c in part["rank correlation"].items()]
            print("; ".join(said))


def shown(e: Mapping[str, Any], digits: int) -> str:
    """A mean with its interval."""
    return f"{e['mean']:+.{digits}f} [{e['low']:+.{digits}f}, {e['high']:+.{digits}f}]"


if __name__ == "__main__":
    main()
