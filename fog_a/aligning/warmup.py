"""Probing while training: which probe is due, on which samples, at which t; and the choice when all is measured.

With C = warmup // every probes of n samples per domain, sample j of probe c is attributed at t = (π_j(c) + ½)/C, where
π_j is a permutation drawn from the seed: each slot j visits every stratum of [0, 1] once, and only one t is paid per
sample and probe. What a domain's probe needs and the batch does not have stays due until a batch has it.

The count that decides which half is probed is of probes, not of training steps: with steps, every 200th of which is
even, the authors' release only ever measured even layers.
"""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fog_a.aligning.recipe import Recipe
from fog_a.aligning.released import as_released
from fog_a.aligning.width import few
from fog_a.attributing.attribute import attribute
from fog_a.blocks.block import Blocks
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadOutput, FogError, ShapeMismatch, Unsupported
from fog_a.finding.blocks import find_blocks
from fog_a.flows.batches import signature
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a.ranks import Group, from_first, is_first, world
from fog_a.scores.scores import Scores
from fog_a.scores.selection import Selection, select

log = logging.getLogger("fog_a")
Rows = list[dict[str, Any]]
"""One measured sample each: domain, id, t, and a score per layer (None: not measured, or not finite)."""


class Warmup:
    """The probes of a training and the choices made from them; its state is plain numbers, to be saved at any time.

    Args:
        flow: what is probed.
        recipe: the options.
        domains: those that are to be probed.
        candidates: names of the blocks that may be chosen; None: the main ones.
        group: the process group; the first rank probes for all.
    """

    def __init__(
        self,
        flow: Flow,
        recipe: Recipe,
        domains: Sequence[str],
        candidates: Sequence[str] | None = None,
        group: Group = None,
    ) -> None:
        self.flow, self.recipe, self.group = flow, recipe, group
        self.domains = tuple(domains)
        self.candidates = None if candidates is None else tuple(candidates)
        self.chosen_at = 0
        self.due: list[str] = []
        self.counts = dict.fromkeys(self.domains, 0)
        self.layers: tuple[str, ...] = ()
        self.rows: Rows = []
        self._told = False

    def advance(self, step: int, batch: Any, samples: Samples, *, first: bool) -> Selection | None:
        """After `step` optimizer steps: probe what is due, and choose when it is time. `first`: nothing is chosen yet.

        Raises BadOutput where no layer contributes anything: the model is untrained.
        """
        self.call(step)
        if self.due:
            self.add(self.shared(batch, samples))
        wait = self.recipe.warmup if first else self.recipe.refresh or math.inf
        if step - self.chosen_at < wait:
            return None
        if self.due:
            self._tell(step)
        if self.due or not self.rows:
            return None
        r, scores = self.recipe, self.scores(identity(self.blocks(batch)))
        chosen = select(scores, r.k, by=r.by, weighting=r.weighting, total=r.total, seed=r.seed)
        self.rows, self.chosen_at = [], step
        log.info("fog_a: layers chosen at step %d\n%s", step, chosen.explain())
        return chosen

    def _tell(self, step: int) -> None:
        """Warn, once, that the choice waits."""
        if not self._told:
            self._told = True
            missing = self.due[0]
            warnings.warn(
                f"step {step}: the layers are to be chosen now, but no batch (of the first process) since the last "
                f"probe had a sample of {missing!r}: nothing is aligned until one has. Where the data has none, leave "
                f"it out: teachers={{..., {missing!r}: None}}",
                stacklevel=2,
            )

    def blocks(self, batch: Any) -> Blocks:
        """The candidates, found on two samples of the batch."""
        return self._candidates(few(self.flow, batch))

    def _candidates(self, batch: Any) -> Blocks:
        blocks = find_blocks(self.flow, batch).main
        return blocks if self.candidates is None else blocks.named(self.candidates)

    def call(self, step: int) -> None:
        """Mark what is due after `step` optimizer steps."""
        never = step >= self.recipe.warmup and not any(self.counts.values())
        if step % self.recipe.every == 0 or never:
            if self.due and not never:
                log.info("fog_a: no sample of %s in any batch since the last probe", ", ".join(self.due))
            self.due = list(self.domains)

    def measure(self, batch: Any, samples: Samples) -> dict[str, Any]:
        """Probe the due domains that this batch has samples of. Leaves this object as it is: `add` takes the result."""
        rows: Rows = []
        layers: tuple[str, ...] = self.layers
        ready: dict[int, list[str]] = {}
        for domain in self.due:
            if domain in samples.domains:
                ready.setdefault(self.counts[domain], []).append(domain)
        for count, domains in ready.items():
            for slot in range(self.recipe.samples):
                index = [i for d in domains for i in _of(samples, d)[slot : slot + 1]]
                if not index:
                    continue
                t = self.time(count, slot)
                with preserved(*self.flow.modules):  # the parts around the network too: they may drop conditions
                    layers, values = self._scores(samples.rows(index), count, t, self._seed(count, slot))
                for i, a in zip(index, values.tolist(), strict=True):
                    finite = [x if math.isfinite(x) else None for x in a]
                    rows.append({"domain": samples.domains[i], "id": samples.ids[i], "t": t, "values": finite})
        return {"layers": list(layers), "rows": rows}

    def shared(self, batch: Any, samples: Samples) -> dict[str, Any]:
        """`measure` on the first rank, its result on all of them; a failure there is raised everywhere."""
        self.refuse_sharded()
        if world(self.group) == 1:
            return self.measure(batch, samples)
        failure: Exception | None = None
        result: dict[str, Any] = {}
        if is_first(self.group):
            try:
                result = self.measure(batch, samples)
            except Exception as error:
                failure, result = error, {"failed": f"{type(error).__name__}: {error}"}
        result = from_first(result, next(self.flow.module.parameters()).device, self.group)
        if failure is not None:
            raise failure
        if "failed" in result:
            raise FogError(f"the probe failed on the first rank: {result['failed']}")
        return result

    def refuse_sharded(self) -> None:
        """Raises Unsupported for a model that one rank cannot run."""
        if any(type(p).__name__ == "DTensor" for p in self.flow.module.parameters()):
            raise Unsupported(
                "probing during training runs on one rank, and a sharded model (FSDP2) needs all ranks for a forward. "
                "Attribute first, select(scores).save(path), and pass AGREPA(..., selection=Selection.load(path))"
            )

    def add(self, measured: dict[str, Any]) -> None:
        """Take what `measure` gave, here or on another rank."""
        if not measured["rows"]:
            return
        layers = tuple(measured["layers"])
        if self.layers and self.layers != layers:
            raise ShapeMismatch(
                f"the model's blocks changed while it was probed: {len(self.layers)} before, now {len(layers)}. "
                "Build AGREPA anew after changing the model"
            )
        self.layers = layers
        self.rows += measured["rows"]
        for domain in {row["domain"] for row in measured["rows"]}:
            self.counts[domain] += 1
            self.due.remove(domain)

    def time(self, count: int, slot: int) -> float:
        """The t of a slot's sample at a domain's `count`-th probe."""
        if self.recipe.probe_time is not None:
            return self.recipe.probe_time
        strata = max(1, self.recipe.warmup // self.recipe.every)
        order = random.Random(f"{self.recipe.seed}/{slot}").sample(range(strata), strata)
        return (order[count % strata] + 0.5) / strata

    def scores(self, signature: dict[str, Any]) -> Scores:
        """Everything measured so far: one row per sample, no time axis (each row has its own t in `info`)."""
        values = [[np.nan if x is None else x for x in row["values"]] for row in self.rows]
        return Scores(
            values=np.asarray(values, dtype=np.float32)[:, None, :],
            layers=self.layers,
            times=None,
            domains=tuple(row["domain"] for row in self.rows),
            ids=tuple(f"{i}:{row['id']}" for i, row in enumerate(self.rows)),
            kind="contribution",
            info={
                "signature": signature,
                "seed": self.recipe.seed,
                "t": [row["t"] for row in self.rows],
                "unmeasured": self.recipe.probe_layers != "all",
            },
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-able; floats come back to the bit."""
        counts, layers = dict(self.counts), list(self.layers)
        return {"due": self.due, "counts": counts, "layers": layers, "rows": self.rows, "chosen_at": self.chosen_at}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.due, self.counts, self.rows = list(state["due"]), dict(state["counts"]), list(state["rows"])
        self.layers, self.chosen_at = tuple(state["layers"]), state["chosen_at"]

    def _seed(self, count: int, slot: int) -> int:
        return random.Random(f"{self.recipe.seed}/{count}/{slot}").getrandbits(31)

    def _scores(self, batch: Any, count: int, t: float, seed: int) -> tuple[tuple[str, ...], Tensor]:
        """All layers' names, and (rows, layers) scores with NaN for those that this probe does not measure."""
        r = self.recipe
        blocks = self._candidates(batch)
        offset = count if r.probe_layers == "alternate" else 0
        step = 1 if r.probe_layers == "all" else 2
        picked = list(range(offset % step, len(blocks), step))
        chosen = blocks.named([blocks[i].name for i in picked])
        if (r.probe_mode, r.probe_input, r.probe_norm) == ("eval", "noisy", "l2"):
            some = _attributed(self.flow, batch, chosen, t, seed)
        else:
            some = as_released(self.flow, batch, chosen, t, seed, r)
        full = torch.full((len(some), len(blocks)), math.nan)
        full[:, picked] = some.float()
        return blocks.names, full


def _of(samples: Samples, domain: str) -> list[int]:
    return [i for i, d in enumerate(samples.domains) if d == domain]


def _attributed(flow: Flow, batch: Any, blocks: Blocks, t: float, seed: int) -> Tensor:
    """Eq. 9 at one t. Early in training nothing may contribute yet: then zeros, judged at the end of the warm-up."""
    try:
        scores = attribute(flow, batch, blocks=blocks, times=[t], seed=seed, progress=False, spread=False)
    except BadOutput as error:
        if "untrained" not in str(error):
            raise
        return torch.zeros(len(flow.samples(batch)), len(blocks))
    return torch.from_numpy(np.array(scores.values[:, 0, :]))


def identity(blocks: Blocks) -> dict[str, Any]:
    """The model's signature; sharding (FSDP2 makes a class FSDPNet of Net) does not make it another model."""
    made = signature(blocks.model, blocks)
    kind = type(blocks.model)
    if any(base.__name__ == "FSDPModule" for base in kind.__bases__):
        made["class"] = f"{kind.__bases__[-1].__module__}.{kind.__bases__[-1].__qualname__}"
    return made
