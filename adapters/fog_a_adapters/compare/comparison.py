"""Probe, then intervene: does aligning the layers that FoG-A names train better than aligning others?

For each seed: train for `warmup` steps (flow loss, and BiT-C where the model has a token interface), probe the model on
training clips, choose each arm's layers, and train every arm for `steps` more from that same checkpoint, with the same
clips, crops, noise and learning rates. Then measure each on held-out clips. Arms are compared seed by seed (contrasts).

This is the paper's protocol (§5: 5,000 steps, then to 500,000) with one difference: layers are chosen from one probe of
many samples at the branch, the same for all selectors, not from probes spread over the warm-up.

A killed run goes on where it was: everything finished is a JSON file in `out`, everything else a checkpoint there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fog_a.aligning.alignment import AGREPA
from fog_a.aligning.heads import mlp
from fog_a.blocks.untouched import rng
from fog_a.errors import Unsupported
from fog_a.files import write, write_json
from fog_a.finding.blocks import find_blocks
from fog_a.flows.flow import Flow
from fog_a.probing.bitc import BiTC
from fog_a.scores.scores import Scores
from fog_a_adapters.compare.arms import check_arms, choose, expanded, options, parsed, probe, probes_of, teachers_of
from fog_a_adapters.compare.benefits import benefits
from fog_a_adapters.compare.files import claim, read_json
from fog_a_adapters.compare.leg import Leg, Progress, Schedule
from fog_a_adapters.compare.measures import flow_losses
from fog_a_adapters.compare.tables import markdown, plain, summary
from fog_a_adapters.compare.task import Plan, Task

REPLICATE = 1_000_003
"""What a replicate adds to the seed of what it draws anew: clips and noise of base, first values of the heads else."""


def compare(task: Task, plan: Plan, out: str | Path, *, level: float = 0.95, progress: bool = True) -> dict[str, Any]:
    """Run what is not yet done, and report.

    Writes compare.json and compare.md to `out`, and returns what compare.json holds. Call it again after a kill.

    Raises:
        Unsupported: arms that are not known or need more layers than the model has, or a folder that holds another
            comparison.
        BadScores: a damaged checkpoint, with the file to delete.
        BadOutput: the loss is not finite; the model is untrained at the branch.
    """
    check_arms(plan.arms)
    out = Path(out)
    plan = replace(plan, arms=expanded(plan.arms, _layers(task, plan.seeds[0]), plan.k))
    claim(out, {"task": task.name, "facts": dict(task.facts), **asdict(plan)}, grown=("seeds", "arms"))
    results: list[dict[str, Any]] = []
    total = len(plan.seeds) * (plan.warmup + len(plan.arms) * plan.steps)
    with tqdm(total=total, desc="compare", unit="step", disable=not progress, mininterval=1.0) as bar:
        for seed in plan.seeds:
            results += _Seed(task, plan, seed, out / f"seed{seed}", bar).results()
    report = {"task": task.name, "facts": dict(task.facts), "plan": asdict(plan), "results": results}
    report["summary"] = summary(results, plan.arms, level)
    report["benefits"] = plain(benefits(results, out, level))
    write_json(out / "compare.json", report)
    write(out / "compare.md", markdown(report).encode())
    return report


class _Seed:
    """All arms of one seed."""

    def __init__(self, task: Task, plan: Plan, seed: int, folder: Path, bar: Any) -> None:
        self.task, self.plan, self.seed, self.folder, self.bar = task, plan, seed, folder, bar
        self.schedule = Schedule(plan.lr, plan.warmup + plan.steps)
        self.last = plan.warmup + plan.steps
        gap = plan.steps / max(1, plan.looks)
        self.looks = frozenset(plan.warmup + round(gap * (i + 1)) for i in range(plan.looks))

    def results(self) -> list[dict[str, Any]]:
        """One result per arm, from its file or made now."""
        found = {a: read_json(self.folder / f"{a}.json") for a in self.plan.arms}
        left = [arm for arm, result in found.items() if result is None]
        self.bar.update((len(found) - len(left)) * self.plan.steps + (0 if left else self.plan.warmup))
        if left:
            self._branch()
            scores = self._probes()
            found |= {arm: self._arm(arm, scores) for arm in left}
        return [f for f in found.values() if f is not None]

    def _leg(self) -> Leg:
        """The model at step 0 with the terms of the warm-up."""
        flow = self.task.build(self.seed)
        with rng(self.seed):
            bitc = self._bitc(flow)
        terms = {} if bitc is None else {"bitc": bitc}
        return Leg(flow, terms, self.schedule, self.plan.weight_decay, self.plan.precision, self.plan.average)

    def _bitc(self, flow: Flow) -> BiTC | None:
        if not self.plan.bitc:
            return None
        try:
            teachers = self.task.teachers
            return BiTC(flow, teachers, weight=self.plan.bitc, batch=self.task.batch(self.seed, 0))
        except Unsupported:  # a model without a token interface
            return None

    def _branch(self) -> None:
        """Train the warm-up, or find it trained."""
        path = self.folder / "warmup.pt"
        leg = self._leg()
        progress = leg.load(path) if path.exists() else Progress(0)
        self.bar.update(progress.step)
        leg.run(self.task.batch, self.seed, self.plan.warmup, progress, path, tick=self._tick("warm-up"))

    def _probes(self) -> dict[str, Scores]:
        """The scores at the branch, measured once."""
        names = probes_of(self.plan.arms)
        scores: dict[str, Scores] = {}
        spent = read_json(self.folder / "probe-seconds.json") or {}
        for name in names:
            path = self.folder / f"scores-{name}.json"
            if not path.exists():
                leg = self._leg()
                leg.load(self.folder / "warmup.pt")
                leg.model.eval()
                start = leg.clock()
                made = self._probe(name, leg)
                spent[name] = leg.clock() - start
                write_json(self.folder / "probe-seconds.json", spent)
                made.save(path)
            scores[name] = Scores.load(path)
        return scores

    def _probe(self, name: str, leg: Leg) -> Scores:
        t, bitc = self.task, leg.terms.get("bitc")
        return probe(name, leg.flow, t.probe, t.teachers, bitc, self.seed, center=self.plan.center)

    def _arm(self, arm: str, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Train an arm from the branch, or from where it was, and measure it."""
        p, path, again = self.plan, self.folder / f"{arm}.pt", parsed(arm)[1]
        chosen = choose(arm, scores, k=p.k, total=p.total, seed=self.seed, fixed=p.fixed)
        leg = self._leg()
        reg = None
        if chosen is not None:
            with rng(self.seed):
                first = self.task.batch(self.seed, p.warmup)
                head = partial(mlp, pool=not p.frames)
                more = {"head": head, "k": p.k, "total": p.total, "center": p.center, **options(arm, p.steps)}
                taught = teachers_of(arm, self.task.teachers)
                reg = AGREPA(leg.flow, taught, chosen, batch=first, seed=self.seed + REPLICATE * again, **more)
        if path.exists():
            if reg is not None:
                leg.add("reg", reg)
            progress = leg.load(path)
        else:
            leg.load(self.folder / "warmup.pt")
            if reg is not None:
                leg.add("reg", reg)
            progress = Progress(p.warmup)
        self.bar.update(progress.step - p.warmup)
        leg.run(
            self.task.batch, self.seed + REPLICATE * (again if chosen is None else 0), self.last, progress, path,
            look=lambda: self._look(arm, leg, progress.step), at=self.looks, tick=self._tick(arm),
        )  # fmt: skip
        result = self._measured(leg, progress) | {"arm": arm, "seed": self.seed, "seconds": progress.seconds}
        if reg is not None:
            result["head parameters"] = sum(p.numel() for p in reg.parameters())
            reg.close()
        if self.task.done is not None:
            result["metrics"] |= self.task.done(arm, self.seed, leg.flow)
        if reg is not None:
            reg.open()
        if p.timing:  # last: it trains further
            result["metrics"]["cost"] = 1.0 if arm == "base" else self._cost(leg)
        result["layers"] = {} if chosen is None else {d: chosen.weights(d) for d in chosen.domains}
        write_json(self.folder / f"{arm}.json", result)
        path.unlink()
        return result

    def _look(self, arm: str, leg: Leg, step: int) -> dict[str, float]:
        """The held-out loss on the way; and, of base, which layers contribute by then."""
        if arm == "base" and self.plan.reprobe:
            self._probe("foga", leg).save(self.folder / f"scores-foga-step{step}.json")
        return self._losses(leg)

    def _losses(self, leg: Leg) -> dict[str, float]:
        """Held-out loss per domain, on the averaged weights where the plan has them."""
        with leg.averaged():
            if self.task.losses is not None:
                return self.task.losses(leg.flow, self.plan.draws)
            return flow_losses(leg.flow, self.task.held_out, self.plan.draws)

    def _measured(self, leg: Leg, progress: Progress) -> dict[str, Any]:
        leg.model.eval()
        losses = self._losses(leg)
        metrics = {f"loss/{d}": v for d, v in losses.items()} | {"loss": statistics.fmean(losses.values())}
        if self.task.distance is not None:
            far = self.task.distance(leg.flow)
            metrics |= {f"frechet/{d}": v for d, v in far.items()} | {"frechet": statistics.fmean(far.values())}
        curve = [[step, statistics.fmean(values.values())] for step, values in progress.curve]
        return {"metrics": metrics, "curve": curve}

    def _cost(self, leg: Leg) -> float:
        """Time of an arm's step over that of base: the median over pairs of steps, taken in turn on the same batch."""
        base = self._leg()
        base.load(self.folder / "warmup.pt")
        ratios = []
        for i in range(self.plan.timing + 1):
            batch = self.task.batch(self.seed, i)
            spent = {}
            for which in ("base", "arm") if i % 2 else ("arm", "base"):
                line = base if which == "base" else leg
                line.train()
                start = time.perf_counter()
                line.step(batch, self.seed, i)
                spent[which] = time.perf_counter() - start
            ratios.append(spent["arm"] / spent["base"])
        return statistics.median(ratios[1:])  # the first pair warms up

    def _tick(self, what: str) -> Callable[[float], None]:
        def tick(loss: float) -> None:
            self.bar.set_postfix_str(f"seed {self.seed} {what} {loss:.3f}", refresh=False)
            self.bar.update()

        return tick


def _layers(task: Task, seed: int) -> int:
    """How many layers the model has to choose from."""
    flow = task.build(seed)
    return len(find_blocks(flow, task.probe[0]).main)
