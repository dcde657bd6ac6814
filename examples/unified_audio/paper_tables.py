"""The paper's tables of layers, arms and costs, filled from a comparison of any size; 4 and 5: `other_systems`.

    1  where teachers' features are stored, and what contributes    7  does the choice hold while training goes on?
    2  which layers to align, by place                              8  choosing anew        9  heads by flow time
    3  which layers to align, by probe                             10  how many, which weights   11  heads
    6  steps, and the cost of the probe, to a loss                 12  whose features

A number is a mean over seeds with half its 95 % Student interval. An arm that was not run has no row; the note says
which.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fog_a.scores.scores import Scores
from fog_a_adapters.compare.contrasts import Estimate, estimate
from fog_a_adapters.compare.files import read_json
from fog_a_adapters.compare.tables import plain
from unified_audio.clips import DOMAINS
from unified_audio.evaluation import steps_to

Cell = Estimate | str | int | None
METRICS = {"loss": "flow loss", "frechet/speech": "Fréchet, speech", "frechet/sound": "Fréchet, sound", "wer": "WER"}
BY_ARMS = {
    2: ("Which layers to align, by place", ("base", "base-again", "fixed", "shallow", "deep", "foga", "foga-again")),
    3: ("Which layers to align, by probe", ("random", "lasp", "gradnorm", "foga")),
    8: ("Choosing anew while training goes on", ("foga", "foga-refresh")),
    9: ("Heads by flow time", ("foga", "foga-times")),
    10: ("How many layers, weighted how", ("foga-k2", "foga-equal", "foga", "foga-k4")),
    11: ("Heads", ("foga", "foga-conv1d", "foga-conv2d")),
    12: ("Whose features: the teacher's, or deeper ones of its own", ("fixed", "fixed-self", "foga", "foga-self")),
}
"""Number → title, and the arms that are its rows."""
COUNTED = "L1:3 is the first layer, in three seeds."
NOTES = {
    "layers, speech": COUNTED,
    "time, relative": "Time of all training steps; on a CPU the processor's own, which other programs do not stretch.",
}
"""Column → what is to be said of it."""


@dataclass(frozen=True)
class PaperTable:
    """One table: a row is as long as `columns`."""

    number: int
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def paper_tables(report: Mapping[str, Any], folder: str | Path) -> list[PaperTable]:
    """The tables of what `compare` returned, with the probes' scores that it left in its folder."""
    run = _Run(report, Path(folder))
    made = [run.layers(), run.convergence(), run.stability(), *(run.by_arms(n) for n in BY_ARMS)]
    return sorted(made, key=lambda t: t.number)


def markdown(tables: Iterable[PaperTable]) -> str:
    """All tables to read."""
    lines = [
        "# The paper's tables, in small",
        "",
        "Means over seeds ± half the 95 % Student interval; lower is better.",
    ]
    for t in tables:
        lines += [
            "",
            f"## Table {t.number}. {t.title}",
            "",
            f"| {' | '.join(t.columns)} |",
            "|---" * len(t.columns) + "|",
        ]
        lines += [f"| {' | '.join(map(shown, row))} |" for row in t.rows]
        lines += ["", t.note] if t.note else []
    return "\n".join(lines) + "\n"


def as_json(tables: Iterable[PaperTable]) -> list[dict[str, Any]]:
    """All tables as data: a row is column → cell."""

    def cell(x: Cell) -> Any:
        return plain(asdict(x)) if isinstance(x, Estimate) else x

    return [
        {**asdict(t), "rows": [dict(zip(t.columns, map(cell, row), strict=True)) for row in t.rows]} for t in tables
    ]


def shown(x: Cell) -> str:
    """A cell as text.

    >>> shown(Estimate(0.70563, 0.6871, 0.7240, 3)), shown(None)
    ('0.7056 ± 0.0184', '–')
    """
    if isinstance(x, Estimate):
        digits = 4 if abs(x.mean) < 10 else 1
        mean, half = f"{x.mean:.{digits}f}".replace("-", "−"), x.high - x.mean
        return f"{mean} ± {half:.{digits}f}" if math.isfinite(half) else mean
    return "–" if x is None else str(x)


class _Run:
    """What the tables are made of."""

    def __init__(self, report: Mapping[str, Any], folder: Path) -> None:
        plan = report["plan"]
        self.arms, self.seeds, self.k, self.steps = plan["arms"], plan["seeds"], plan["k"], plan["steps"]
        self.warmup, self.folder = plan["warmup"], folder
        self.of = {(r["arm"], r["seed"]): r for r in report["results"]}
        self.metrics = [m for m in METRICS if m in report["summary"]["metrics"]]

    def scores(self, name: str) -> list[Scores]:
        """A probe of each seed, where there is one."""
        paths = [self.folder / f"seed{s}" / f"scores-{name}.json" for s in self.seeds]
        return [Scores.load(p) for p in paths if p.exists()]

    def over_seeds(self, value: Any) -> Estimate:
        return estimate([float(value(s)) for s in self.seeds])

    def layers(self) -> PaperTable:
        """Table 1: the top layers of each probe, by their mean over seeds."""
        rows: list[list[Cell]] = []
        for name, said in (("lasp", "storage (LASP, cosine)"), ("foga", "contribution (FoG-A)")):
            for domain in DOMAINS if (scores := self.scores(name)) else ():
                means = list(zip(*(s.mean(domain).tolist() for s in scores), strict=True))  # layer → seeds
                best = sorted(range(len(means)), key=lambda i: -statistics.fmean(means[i]))[: self.k]
                tops = Counter(n for s in scores for n in s.top(self.k, domain).names)
                names = scores[0].layers
                cells = [f"L{i + 1} {shown(estimate(means[i]))} ({tops[names[i]]} of {len(scores)})" for i in best]
                rows.append([said, domain, *cells, *[None] * (self.k - len(cells))])
        columns = ("probe", "domain", *(f"rank {i + 1}" for i in range(self.k)))
        return PaperTable(1, "Where it is stored, and where it acts", columns, rows,
                          f"In brackets: in how many seeds the layer is among the first {self.k}.")  # fmt: skip

    def by_arms(self, number: int) -> PaperTable:
        """Tables whose rows are arms."""
        title, arms = BY_ARMS[number]
        arms = (*arms, *(a for a in self.arms if number == 2 and a.startswith("repa-")))
        columns, more = ["arm", *(METRICS[m] for m in self.metrics)], _more(number)
        rows: list[list[Cell]] = []
        for arm in (a for a in arms if a in self.arms):
            cells: list[Cell] = [
                self.over_seeds(lambda s, m=m, a=arm: self.of[a, s]["metrics"][m]) for m in self.metrics
            ]
            rows.append([arm, *cells, *(self.extra(name, arm) for name in more)])
        left = [a for a in arms if a not in self.arms]
        notes = [NOTES[name] for name in more if name in NOTES] + self.absent(number)
        notes += [f"Not run: {', '.join(left)} (`--arms`)."] if left else []
        return PaperTable(number, title, [*columns, *more], rows, " ".join(dict.fromkeys(notes)))

    def absent(self, number: int) -> list[str]:
        """What the paper's Table 2 has and this run has not."""
        if number != 2:
            return []
        deaf = (
            [] if "wer" in self.metrics else ["No word error rate: no recognizer knows these words (`--recognizer`)."]
        )
        return [*deaf, "Opinion scores need listeners: unified_audio.listening_tests."]

    def extra(self, name: str, arm: str) -> Cell:
        """A column that is no metric."""
        if name == "head parameters":
            return self.of[arm, self.seeds[0]].get(name)
        if name == "time, relative":
            base = "foga" if "foga" in self.arms else arm
            return self.over_seeds(lambda s: self.of[arm, s]["seconds"] / self.of[base, s]["seconds"])
        counts = Counter(n for s in self.seeds for n in self.of[arm, s]["layers"].get(name.split(", ")[1], ()))
        return self.numbered(counts)

    def numbered(self, counts: Counter[str]) -> str:
        """Layers and in how many seeds they were taken, in the order of the network: "L1:3 L4:2"."""
        order = self.scores("foga")[0].layers
        return " ".join(f"L{i + 1}:{counts[n]}" for i, n in enumerate(order) if counts[n])

    def convergence(self) -> PaperTable:
        """Table 6: when base's last held-out loss is reached, and what the probe costs, in steps."""
        rows: list[list[Cell]] = []
        for arm in (a for a in ("base", "lasp", "foga") if a in self.arms):
            reached = {s: self.reached(arm, s) for s in self.seeds}
            took = [t for t in reached.values() if t is not None]
            probe = [self.probe_steps(arm, s) for s in self.seeds]
            ratios = [(t + p) / b for s, p in zip(self.seeds, probe, strict=True)
                      if (t := reached[s]) is not None and (b := self.reached("base", s))]  # fmt: skip
            rows.append([arm, f"{len(took)} of {len(self.seeds)}", estimate(took) if took else None,
                         estimate(probe), estimate(ratios) if ratios else None])  # fmt: skip
        columns = ("arm", "seeds that reach it", "steps", "probe, in steps", "steps and probe, relative to base")
        note = ("Steps from the start to the held-out loss that base has at its end, linear between looks; only seeds "
                "that reach it count. The probe in steps: its time over that of a step of base.")  # fmt: skip
        return PaperTable(6, "How long to a loss", columns, rows, note)

    def reached(self, arm: str, seed: int) -> float | None:
        return steps_to(self.of[arm, seed]["curve"], self.of["base", seed]["curve"][-1][1])

    def probe_steps(self, arm: str, seed: int) -> float:
        spent = read_json(self.folder / f"seed{seed}" / "probe-seconds.json") or {}
        return spent.get(arm, 0.0) / (self.of["base", seed]["seconds"] / self.steps)

    def stability(self) -> PaperTable:
        """Table 7: FoG-A of base at the branch and at each look."""
        first, rows = self.scores("foga"), []
        looks = sorted({int(p.stem.rsplit("step", 1)[1]) for p in self.folder.glob("seed*/scores-foga-step*.json")})
        for step, scores in [(self.warmup, first), *((n, self.scores(f"foga-step{n}")) for n in looks)]:
            tops = {d: [set(s.top(self.k, d).names) for s in scores] for d in DOMAINS}
            kept = [len(a & set(b.top(self.k, d).names)) for d in DOMAINS for a, b in zip(tops[d], first, strict=False)]
            layers = [self.numbered(Counter(n for top in tops[d] for n in top)) for d in DOMAINS]
            rows.append([step, *layers, f"{statistics.fmean(kept):.1f} of {self.k}"])
        columns = ("step", *(f"layers, {d}" for d in DOMAINS), "of the first choice kept")
        note = f"Of base, so that no alignment moves the layers. {COUNTED} Kept: mean over seeds and domains."
        return PaperTable(7, "Does the choice hold?", columns, rows, note)


def _more(number: int) -> list[str]:
    """The columns of a table of arms that are no metrics."""
    return {3: [f"layers, {d}" for d in DOMAINS], 8: ["time, relative"], 11: ["head parameters", "time, relative"]}.get(
        number, []
    )
