"""Probing while training: which probe is due, on which samples, at which t; and the choice when all is measured.

With C = warmup // every probes of n samples per domain, sample j of probe c is attributed at t = (π_j(c) + ½)/C, where
π_j is a permutation drawn from the seed: each slot j visits every stratum of [0, 1] once, and only one t is paid per
sample and probe. What a domain's probe needs and the batch does not have stays due until a batch has it.

The count that decides which half is probed is of probes, not of training steps: with steps, every 200th of which is
even, the authors' release only ever measured even layers.
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fog_a.aligning.recipe import Recipe
from fog_a.aligning.width import of_few
from fog_a.attributing.attribute import attribute_alone
from fog_a.attributing.steady import FAILURES
from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import is_sharded
from fog_a.blocks.untouched import preserved
from fog_a.errors import ShapeMismatch, Unsupported, Untrained, ZeroVelocity, near
from fog_a.finding.blocks import find_blocks
from fog_a.flows.flow import Flow
from fog_a.flows.provenance import signature
from fog_a.flows.samples import Samples
from fog_a.ranks import Group, is_first, once
from fog_a.scores.scores import Scores
from fog_a.scores.select import select
from fog_a.scores.selection import Selection
from fog_a.teachers.teacher import by_domain


@dataclass(frozen=True)
class Draw:
    """What a probe is offered: the number of its domain's probes before it, a flow time, and a seed for the noise."""

    number: int
    t: float
    seed: int


Probe = Callable[[Flow, Any, Blocks, Draw], Scores]
"""probe(flow, batch, blocks, draw) → one score per sample for those of the blocks that it measures, at one time."""


def contribution(flow: Flow, batch: Any, blocks: Blocks, draw: Draw) -> Scores:
    """The default probe: Eq. 9 of every block. Early in training nothing may contribute yet: then all scores are 0."""
    try:
        return attribute_alone(flow, batch, blocks=blocks, t=draw.t, seed=draw.seed)
    except Untrained:
        samples = flow.samples(batch)
        zeros = np.zeros((len(samples), 1, len(blocks)), dtype=np.float32)
        return Scores(zeros, blocks.names, (draw.t,), samples.domains, samples.ids, "contribution", {})


class Warmup:
    """The probes of a training and the choices made from them; its state is plain numbers, to be saved at any time.

    Args:
        candidates: the blocks that may be chosen, as `Blocks` or names; None: the main ones.
        group: the process group; the first rank probes for all.

    Attributes:
        due: domains whose probe waits for a batch that has a sample of them. seen: those that batches had.
        counts: domain → its probes so far.
        rows: one measured sample each: domain, id, group, t, and a score per layer (None: not measured).
    """

    def __init__(
        self,
        flow: Flow,
        recipe: Recipe,
        domains: Sequence[str],
        candidates: Blocks | Sequence[str] | None = None,
        group: Group = None,
        probe: Probe = contribution,
    ) -> None:
        self.flow, self.recipe, self.group, self.probe = flow, recipe, group, probe
        self.domains = tuple(domains)
        self.candidates = candidates.names if isinstance(candidates, Blocks) else candidates
        self.chosen_at = 0
        self.due: list[str] = []
        self.counts = dict.fromkeys(self.domains, 0)
        self.seen: set[str] = set()
        self.layers: tuple[str, ...] = ()
        self.rows: list[dict[str, Any]] = []
        self._warned: set[str] = set()

    def advance(self, step: int, batch: Any, samples: Samples, *, first: bool) -> Selection | None:
        """After `step` optimizer steps: probe what is due, and choose when it is time. `first`: nothing is chosen yet.

        Where no layer contributes anything yet, further probes are waited for.
        """
        self.call(step)
        if self.due:
            self.refuse_sharded()
            device = next(self.flow.module.parameters()).device
            self.add(once(lambda: self.measure(batch, samples), device, self.group))
        wait = self.recipe.warmup if first else self.recipe.refresh or math.inf
        if step - self.chosen_at < wait:
            return None
        if self.due:
            self._warn(
                "waiting",
                f"step {step}: the layers are to be chosen now, but no batch (of the first process) since the last "
                f"probe had a sample of {self.due[0]!r}: nothing is aligned until one has. Where the data has none, "
                f"leave it out: teachers={{..., {self.due[0]!r}: None}}",
            )
        if self.due or not {row["domain"] for row in self.rows}.issuperset(self.domains):
            return None
        r, blocks = self.recipe, self.blocks(batch)
        scores = self.scores(signature(blocks.model, blocks))
        self.rows = []
        try:
            chosen = select(scores, r.k, by=r.by, weighting=r.weighting, total=r.total, seed=r.seed)
        except Untrained as error:
            self._warn("untrained", f"step {step}: nothing is aligned, and the next probe tries again: {error}")
            return None
        self.chosen_at = step
        if is_first(self.group):
            print(f"fog_a: layers chosen at step {step}\n{chosen.explain()}", file=sys.stderr)
        return chosen

    def call(self, step: int) -> None:
        """Mark what is due after `step` optimizer steps."""
        never = step >= self.recipe.warmup and not any(self.counts.values())
        if step % self.recipe.every == 0 or never:
            absent = [domain for domain in self.due if not self.counts[domain] and domain not in self.seen]
            if absent and step < self.recipe.warmup:
                self._warn(
                    "absent",
                    f"step {step}: no batch (of the first process) has had a sample of domain {absent[0]!r}, only of "
                    f"{', '.join(map(repr, sorted(self.seen)))}{near(absent[0], self.seen)}. Is the name right? Where "
                    f"the data has none, leave it out: teachers={{..., {absent[0]!r}: None}}",
                )
            self.due = list(self.domains)

    def blocks(self, batch: Any) -> Blocks:
        """The candidates, found on two samples of the batch, if the model takes so few."""
        return of_few(self.flow, batch, self._candidates)

    def time(self, count: int, slot: int) -> float:
        """The t of a slot's sample at a domain's `count`-th probe."""
        strata = max(1, self.recipe.warmup // self.recipe.every)
        order = random.Random(f"{self.recipe.seed}/{slot}").sample(range(strata), strata)
        return (order[count % strata] + 0.5) / strata

    def measure(self, batch: Any, samples: Samples) -> dict[str, Any]:
        """Probe the due domains that this batch has samples of. Leaves this object as it is: `add` takes the result."""
        measured: dict[str, Any] = {"layers": list(self.layers), "rows": [], "skipped": []}
        rows_of = by_domain(samples)
        present = [domain for domain in self.due if domain in rows_of]
        for count in dict.fromkeys(self.counts[domain] for domain in present):
            domains = [domain for domain in present if self.counts[domain] == count]
            for slot in range(self.recipe.samples):
                index = [i for domain in domains for i in rows_of[domain][slot : slot + 1]]
                if not index:
                    continue
                try:
                    draw = Draw(count, self.time(count, slot), self._seed(count, slot))
                    measured["layers"], rows = self._probe(samples, index, draw)
                    measured["rows"] += rows
                except ZeroVelocity as error:
                    measured["skipped"] = sorted({*measured["skipped"], *domains})
                    self._warn("skipped", f"a probe was skipped, and the next one tries again: {error}")
        return measured

    def _probe(self, samples: Samples, index: list[int], draw: Draw) -> tuple[list[str], list[dict[str, Any]]]:
        """All candidates' names, and one row for each of these samples."""
        with preserved(*self.flow.modules):  # the parts around the network too: they may drop conditions
            batch = samples.rows(index)
            try:
                blocks = self._candidates(batch)
            except FAILURES as error:
                raise Unsupported(
                    f"the warm-up probes {len(index)} of the batch's {len(samples)} samples, and the model does not "
                    f"take so few ({type(error).__name__}: {str(error)[:120]}): type AGREPA(..., selection="
                    "fog_a.select(fog_a.attribute(flow, batch), k=3))"
                ) from error
            scores = self.probe(self.flow, batch, blocks, draw)
        t = draw.t if scores.times is None else scores.times[0]
        rows = []
        for i, values in zip(index, scores.values[:, 0].tolist(), strict=True):
            score = dict(zip(scores.layers, values, strict=True))
            row = {"domain": samples.domains[i], "id": samples.ids[i], "group": samples.groups[i], "t": t}
            rows.append({**row, "values": [score.get(name) for name in blocks.names]})
        return list(blocks.names), rows

    def add(self, measured: dict[str, Any]) -> None:
        """Take what `measure` gave, here or on another rank."""
        layers, domains = tuple(measured["layers"]), {row["domain"] for row in measured["rows"]}
        if self.layers and self.layers != layers:
            raise ShapeMismatch(
                f"the model's blocks changed while it was probed: {len(self.layers)} before, now {len(layers)}. "
                "Build AGREPA anew after changing the model"
            )
        self.layers, self.rows = layers, [*self.rows, *measured["rows"]]
        for domain in domains:
            self.counts[domain] += 1
        self.due = [domain for domain in self.due if domain not in {*domains, *measured["skipped"]}]

    def scores(self, model: dict[str, Any]) -> Scores:
        """Everything measured so far: one row per sample, no time axis (each row has its own t in `info`)."""
        values = np.array([row["values"] for row in self.rows], dtype=np.float32)[:, None, :]  # None is NaN
        domains, groups, t = ([row[key] for row in self.rows] for key in ("domain", "group", "t"))
        ids = tuple(f"{i}:{row['id']}" for i, row in enumerate(self.rows))
        unmeasured = any(x is None for row in self.rows for x in row["values"])
        info = {"signature": model, "seed": self.recipe.seed, "t": t, "unmeasured": unmeasured}
        return Scores(values, self.layers, None, tuple(domains), ids, "contribution", info, tuple(groups))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-able; floats come back to the bit."""
        return {name: getattr(self, name) for name in ("chosen_at", "due", "counts", "layers", "rows")}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        vars(self).update(state, layers=tuple(state["layers"]))

    def refuse_sharded(self) -> None:
        """Raises Unsupported for a model that one rank cannot run."""
        if is_sharded(self.flow.module):
            raise Unsupported(
                "probing during training runs on one rank, and a sharded model (FSDP2) needs all ranks for a forward. "
                "Attribute first, select(scores).save(path), and pass AGREPA(..., selection=Selection.load(path))"
            )

    def _candidates(self, batch: Any) -> Blocks:
        blocks = find_blocks(self.flow, batch).main
        return blocks if self.candidates is None else blocks.named(self.candidates)

    def _seed(self, count: int, slot: int) -> int:
        return random.Random(f"{self.recipe.seed}/{count}/{slot}").getrandbits(31)

    def _warn(self, kind: str, message: str) -> None:
        """Warn, once of each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)
