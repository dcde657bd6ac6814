"""Do layers that store and layers that contribute differ, are the first ones dominant, and does the ranking stay?

    python -m fog_a_adapters.dit.audio.whisper_folder out/whisper
    python -m fog_a_adapters.dit.demo.dissociation train --whisper out/whisper --data ../shared/audio
    python -m fog_a_adapters.dit.demo.dissociation tell              # the numbers; a picture beside the folder

Base trainings alone, no alignment: docs/experiments/PLAN.md, parts C and D. At each look `attribute` and `lasp` measure
the same held-out clips at the same x_t. A killed run goes on: each seed is a file, its training a checkpoint.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import fog_a
from fog_a.errors import FogError
from fog_a.files import write_json
from fog_a.scores.scores import Scores
from fog_a.scores.statistics import agreement
from fog_a_adapters.compare.benefits import over_seeds, spearman
from fog_a_adapters.compare.contrasts import contrast, holm
from fog_a_adapters.compare.files import claim, read_json
from fog_a_adapters.compare.leg import Leg, Progress, Schedule
from fog_a_adapters.dit.audio.data import Corpus, collate, load_corpus
from fog_a_adapters.dit.demo.bundled_task import teachers_for
from fog_a_adapters.dit.demo.train import new_model
from fog_a_adapters.dit.model.dit import DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching

KINDS, NAMES = ("foga", "lasp"), {"foga": "contribution (FoG-A)", "lasp": "storage (LASP)"}
PEAKS, DEPTH = "depth of LASP's peak - of FoG-A's", "rho of FoG-A with depth"
FIRST_IS_TOP = "the first layer is the top one"
FIRST = 300
"""The first seed: of no other experiment."""


@dataclass(frozen=True)
class Setting:
    """Sizes of the trainings and of what is measured; `looks`: after which steps; `head`: of LASP, L_BiT's own or one
    ridge head for all layers, fitted on the held-out clips that are not measured.
    """

    layers: int = 8
    dim: int = 48
    size: int = 8
    frames: int = 48
    clips: int = 32
    times: int = 8
    looks: tuple[int, ...] = (100, 500, 1000, 2000)
    lr: float = 2e-3
    bitc: float = 0.5
    head: Literal["bitc", "ridge"] = "bitc"


class Trainings:
    """One corpus, its teachers, and the clips on which every look measures.

    Raises Unsupported where the folder holds trainings of another setting.
    """

    def __init__(self, setting: Setting, corpus: Corpus, teachers: Any, out: Path) -> None:
        self.setting, self.corpus, self.teachers, self.out = setting, corpus, teachers, out
        s = setting
        clips = f"{len(corpus.train)} to train on, {len(corpus.test)} held out"
        taught = {d: teacher.name for d, teacher in teachers.items()}
        claim(out, {**asdict(s), "corpus": clips, "teachers": taught})
        self.config = DiTConfig.tiny(layers=s.layers, dim=s.dim, token_dim=s.dim, domains=corpus.domains)
        of_domain = {name: [i for i in corpus.test if i.domain == d] for d, name in enumerate(corpus.domains)}
        drawn = {name: random.Random(f"0/test/{name}").sample(items, s.clips) for name, items in of_domain.items()}
        measured = {i.id for items in drawn.values() for i in items}
        crops = [i.crop(0, s.frames) for i in sorted(corpus.test, key=lambda i: (i.domain, i.id))]
        self.probed = collate([i for i in crops if i.id in measured])
        self.fitted = [i for i in crops if i.id not in measured]

    def seed(self, seed: int) -> dict[str, Any]:
        """Train and look; what is there already is not made again."""
        s, path, state = self.setting, self.out / f"seed{seed}.json", self.out / f"seed{seed}.pt"
        made: dict[str, Any] = read_json(path) or {}
        leg, bitc = self._leg(seed)
        progress = leg.load(state) if state.exists() else Progress(0)
        with tqdm(total=s.looks[-1], initial=progress.step, desc=f"seed {seed}", mininterval=10.0) as bar:

            def tick(loss: float) -> None:
                bar.update()

            for look in s.looks:
                if str(look) in made:
                    continue
                leg.run(self.batch, seed, look, progress, state, tick=tick)
                made[str(look)] = self.look(leg, bitc, seed)
                write_json(path, made)
        state.unlink(missing_ok=True)
        return made

    def batch(self, seed: int, step: int) -> Any:
        """Training batch number `step`, without its audio: Whisper's frames of each clip are there already."""
        return self.corpus.batch(step, self.setting.size, self.setting.frames, seed)

    def _leg(self, seed: int) -> tuple[Leg, fog_a.BiTC]:
        model = new_model(lambda: FlowMatching(self.config), seed)
        model.start_at(self.corpus.mean_frame())
        flow = fog_a.wrap(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            bitc = fog_a.BiTC(flow, self.teachers, weight=self.setting.bitc, batch=self.batch(seed, 0))
        return Leg(flow, {"bitc": bitc}, Schedule(self.setting.lr, self.setting.looks[-1]), weight_decay=0.1), bitc

    def look(self, leg: Leg, bitc: fog_a.BiTC, seed: int) -> dict[str, Any]:
        """Kind → domain → mean of each layer: of all clips, of every other clip from the first and from the second on,
        and over flow time. With a ridge head also its controls, and what it explains of clips it has not seen.
        """
        leg.model.eval()
        where: dict[str, Any] = {"times": self.setting.times, "seed": seed}
        foga = fog_a.attribute(leg.flow, self.probed, progress=False, **where)
        if self.setting.head == "bitc":
            lasp = fog_a.lasp(leg.flow, self.probed, head=bitc, center=True, beside=(), **where)
        else:
            where |= {"fit": collate(self.fitted), "beside": ("probe", "shuffled")}
            lasp = fog_a.lasp(leg.flow, self.probed, self.teachers, center=True, **where)
        leg.train()
        made = {kind: {d: means(of, d) for d in of.domain_names} for kind, of in (("foga", foga), ("lasp", lasp))}
        for control, of in lasp.info["beside"].items():
            made[control] = {d: {"all": rounded(np.array(of[d]).mean(0))} for d in of}
        if self.setting.head == "ridge":
            made["explained"] = {d: of["explained"] for d, of in lasp.info["head"].items()}
        return made


def means(scores: Scores, domain: str) -> dict[str, Any]:
    """The layers' means, over everything and over parts, to five digits."""
    values = scores.values[[d == domain for d in scores.domains]]
    parts = {"all": values, "even": values[0::2], "odd": values[1::2]}
    made = {name: rounded(part.mean((0, 1))) for name, part in parts.items()}
    return made | {"times": rounded(values.mean(0))}


def rounded(x: np.ndarray) -> list[Any]:
    """Five significant digits: small files."""
    return [rounded(row) if np.ndim(row) else float(f"{row:.5g}") for row in x]


def told(runs: Sequence[Mapping[str, Any]], k: int = 3) -> dict[str, dict[str, dict[str, Any]]]:
    """Domain → endpoint → its estimate over the seeds, as docs/experiments/PLAN.md has them.

    The primary ones have p, of a t test against their null, adjusted (Holm) over the domains.
    """
    first, last = min(runs[0], key=int), max(runs[0], key=int)
    rows = {domain: [_endpoints(run, domain, k) for run in runs] for domain in runs[0][last]["foga"]}
    made = {d: {name: over_seeds([row[name] for row in of]) for name in of[0]} for d, of in rows.items()}
    layers = len(next(iter(runs[0][last]["foga"].values()))["all"])
    kept = f"top {k} at {first} steps kept"
    for name, null in ((PEAKS, 0.0), (DEPTH, 0.0), (FIRST_IS_TOP, 1 / layers), (kept, k * k / layers)):
        differences = {d: [row[name] for row in of] for d, of in rows.items()}
        for d, p in zip(rows, holm([contrast(x, [null] * len(x)).p for x in differences.values()]), strict=True):
            made[d][name]["p"] = p
    return made


def plot(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """FoG-A and LASP of each layer after the last step: a line for each seed, and their mean."""
    last = max(runs[0], key=int)
    domains = list(runs[0][last]["foga"])
    fig = Figure(figsize=(9.6, 3.0 * len(domains)), dpi=160, layout="constrained")
    grid = fig.subplots(len(domains), len(KINDS), squeeze=False, sharex=True)
    for row, domain in zip(grid, domains, strict=True):
        for ax, kind, color in zip(row, KINDS, ("#D55E00", "#0072B2"), strict=True):
            lines = np.array([run[last][kind][domain]["all"] for run in runs])
            layers = np.arange(1, lines.shape[1] + 1)
            ax.plot(layers, lines.T, color="#9ca3af", linewidth=0.7)
            ax.plot(layers, lines.mean(0), color=color, linewidth=2.4, marker="o", markersize=4)
            ax.set_title(f"{NAMES[kind]} · {domain}, {len(lines)} seeds", loc="left", fontsize=10, fontweight="bold")
            ax.spines[["top", "right"]].set_visible(False)
    for ax in grid[-1]:
        ax.set_xlabel("layer")
    return fig


def _endpoints(run: Mapping[str, Any], domain: str, k: int) -> dict[str, float]:
    """One seed's numbers."""
    looks = sorted(run, key=int)

    def layers(kind: str, look: str = looks[-1], part: str = "all") -> np.ndarray:
        return np.array(run[look][kind][domain][part])

    foga, lasp = layers("foga"), layers("lasp")
    floors = {kind: 1 - agreement(layers(kind, part="even"), layers(kind, part="odd"), k).kendall for kind in KINDS}
    made = {
        PEAKS: float(lasp.argmax() - foga.argmax()),
        "1 - tau, LASP and FoG-A": 1 - agreement(lasp, foga, k).kendall,
        **{f"floor of {kind}": floor for kind, floor in floors.items()},
        DEPTH: spearman(foga, np.arange(len(foga), dtype=float)),
        FIRST_IS_TOP: float(foga.argmax() == 0),
        "FoG-A of the first layer / mean of the others": float(foga[0] / foga[1:].mean()),
    }
    if "explained" in run[looks[-1]]:
        made["explained by the ridge head"] = run[looks[-1]]["explained"][domain]
        made["depth of the own probe's peak - of FoG-A's"] = float(layers("probe").argmax() - foga.argmax())
        made["LASP - shuffled, mean layer"] = float((lasp - layers("shuffled")).mean())
    for look in looks[:-1]:
        same = agreement(layers("foga", look), foga, k)
        made |= {f"top {k} at {look} steps kept": k * same.overlap, f"tau of {look} steps and the end": same.kendall}
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("stage", choices=("train", "tell"))
    parser.add_argument("--whisper", type=Path, default=Path("out/whisper"), help="folder that whisper_folder made")
    parser.add_argument("--data", type=Path, help="folder with manifest.csv; default: the packaged clips")
    parser.add_argument("--head", choices=("bitc", "ridge"), default="bitc", help="of LASP: L_BiT's own, or one fitted")
    parser.add_argument("--out", type=Path, default=Path("docs/experiments/dissociation"))
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    if args.stage == "tell":
        runs = [read_json(path) for path in sorted(args.out.glob("seed*.json"))]
        runs = [run for run in runs if str(Setting().looks[-1]) in run]
        if not runs:
            parser.error(f"{args.out} holds no whole training: type train before tell, or another --out")
        plot(runs).savefig(args.out.with_suffix(".png"))
        for domain, numbers in told(runs).items():
            for name, e in numbers.items():
                p = f", p {e['p']:.2g}" if "p" in e else ""
                print(f"{domain}: {name}: {e['mean']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}], {e['n']} seeds{p}")
        return
    torch.set_num_threads(1)
    try:
        corpus = load_corpus(args.data, audio=True)
        taught = teachers_for(f"whisper:{args.whisper}", corpus)
        trainings = Trainings(Setting(head=args.head), corpus, taught, args.out)
    except FogError as error:
        parser.exit(1, f"{error}\n")
    for seed in range(args.first, args.first + args.seeds):
        trainings.seed(seed)


if __name__ == "__main__":
    main()
