"""One call of `attribute`: the cells that it is cut into, one batch at one time each, and what they gave so far."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fog_a.attributing.along import Along, Times, cases_of
from fog_a.attributing.cells import Cell, Cells, Story, Values
from fog_a.attributing.choice import Choice, Wanted, chosen
from fog_a.attributing.first_order import note, slopes
from fog_a.attributing.nnsight import Envoys
from fog_a.attributing.variants import layout_of, variants
from fog_a.attributing.ways import FirstOrder, How, Shared
from fog_a.attributing.yardstick import EPS, Metric, metric_kind, metric_name, relative, yardstick
from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import is_sharded
from fog_a.errors import BadBatch, BadOutput, Interrupted, NotResidual, Unsupported, Untrained
from fog_a.flows.case import Case, fingerprint, weights_mark
from fog_a.flows.flow import Flow
from fog_a.flows.provenance import provenance, signature
from fog_a.flows.samples import Samples, names_of
from fog_a.scores.scores import Scores


@dataclass
class Measurement:
    """What `attribute` was asked for; `measure` adds a batch, `scores` gives what there is so far."""

    flow: Flow
    wanted: Wanted
    level: Literal["layer", "branch"]
    times: Times
    gate: float
    seed: int
    how: How
    checkpoint: Any
    bar: Any
    """Its `update()` is called for each cell that is finished."""
    envoys: Envoys | None = None
    closed: Wanted = None
    metric: Metric = None
    alone: bool = False
    """Leave the other processes of `torch.distributed` out: each has a batch of its own."""
    grid: tuple[float | None, ...] = ()
    blocks: Blocks = field(init=False)
    signature: dict[str, Any] = field(init=False)
    """What tells this model's scores from another's, or from those of other weights."""
    choice: Choice = field(init=False)
    cells: Cells | None = None
    parts: list[tuple[Values, Samples]] = field(default_factory=list)
    """(S, J, L) of each batch, and its samples."""
    current: tuple[int, Any, dict[int, Values]] = (0, None, {})
    """The number of the batch that is measured, the batch, and its finished cells."""
    story: Story = field(default_factory=Story)

    def measure(self, batch: Any) -> None:
        """All ablations of one batch, at every time."""
        batch = batch if self.envoys is None else self.envoys.batch(batch)
        number, start = len(self.parts), len(self.ids)
        cases, grid = cases_of(self.flow, batch, self.times, self.seed + 7919 * number, start)
        if self.cells is None:
            self.grid = grid
            self.cells = self._begin(cases[0])
        self._check_grid(grid)
        for case in cases:
            case.closed = self.choice.closed
        mark = cases[0].fingerprint
        self.cells.same_everywhere(f"{cases[0].layout}{mark}")
        todo = [Cell(f"batch{number}_{mark[:12]}_time{j}", case, self._measuring(case)) for j, case in enumerate(cases)]
        finished: dict[int, Values] = {}
        self.current = (number, batch, finished)
        columns = self.cells.collect(todo, finished)
        self.story.merge(self.cells)
        self.parts.append(self._part(batch, columns))

    def _check_grid(self, grid: tuple[float | None, ...]) -> None:
        if grid != self.grid:
            raise BadBatch(
                f"the sampler came to the times {grid}, and with the first batch to {self.grid}: it must take the same "
                "steps for every batch"
            )

    def _part(self, batch: Any, columns: Sequence[Values]) -> tuple[Values, Samples]:
        samples = self.flow.samples_of(batch, (len(columns[0]),), len(self.ids))
        return np.stack(columns, axis=1), samples

    @property
    def ids(self) -> list[str]:
        """Of all samples so far."""
        return [name for _, samples in self.parts for name in samples.ids]

    def interrupted(self) -> Interrupted:
        """What Ctrl-C leaves: the scores of all finished cells."""
        number, batch, finished = self.current
        done = len(self.parts) * len(self.grid)
        if number == len(self.parts) and finished:
            done += len(finished)
            unreached = np.full_like(next(iter(finished.values())), np.nan)
            columns = [finished.get(j, unreached) for j in range(len(self.grid))]
            self.parts.append(self._part(batch, columns))
        text = f"interrupted after {done} finished cells (a cell is one batch at one time)"
        self.story.notes.append(text)
        scores = self.scores() if self.parts else None
        if self.checkpoint is not None:
            return Interrupted(f"{text}. They are kept in {self.checkpoint}: the same call goes on from them", scores)
        where = " They are in `.scores` of this fog_a.Interrupted (at a prompt: sys.last_value.scores)." if done else ""
        return Interrupted(f"{text}.{where} With checkpoint=FOLDER the same call would go on from them", scores)

    def _begin(self, case: Case) -> Cells:
        room = self.how.bytes if isinstance(self.how, Shared) else None
        self.choice = chosen(case, self.wanted, self.level, room, self.closed)
        self.blocks = self.choice.blocks
        sharded = is_sharded(self.blocks.model)
        self.signature = signature(self.blocks.model, self.blocks)
        if not sharded:
            self.signature["weights"] = weights_mark(self.blocks.model)
        mask = self.flow.override.mask
        mark = None if mask is None else fingerprint(torch.as_tensor(mask))
        identity = {**self.asked, "batch": case.fingerprint, "times": self.grid, "mask": mark}
        return Cells(identity, self.checkpoint, alone=self.alone or sharded)

    def _measuring(self, case: Case) -> Callable[[], tuple[Values, Tensor | None]]:
        def measure() -> tuple[Values, Tensor | None]:
            with case.opened():
                values, v = self._estimated(case) if isinstance(self.how, FirstOrder) else self._ablated(case)
            case.close()
            self.bar.update()
            return values.astype(np.float32), v

        return measure

    def _ablated(self, case: Case) -> tuple[Values, Tensor | None]:
        """Eq. 9 for each sample and block, and v where it has the bits of a plain run."""
        if self.envoys is not None:
            run = self.envoys.variants(case, self.blocks, self.gate)
        else:
            discovery = self.choice.shown(case)
            first = not self.story.strategies
            run = variants(case, self.blocks, self.gate, self.how, discovery, first=first)
        v = run.base
        measure = yardstick(self.metric, case, v)
        scores = [measure(v_k, b.name) for v_k, b in zip(run.ablated, self.blocks, strict=True)]
        # rows of one forward may differ by a rounding, or by a float32 sum's few
        floor = max(torch.finfo(v.dtype).eps, 8 * torch.finfo(torch.float32).eps) if run.strategy == "fanout" else 0.0
        self.story.add(run.strategy, run.notes, run.noise, floor)
        return np.stack(scores, axis=1), v if run.strategy in ("loop", "prefix") else None

    def _estimated(self, case: Case) -> tuple[Values, None]:
        """Eq. 9 to first order, for each sample and block."""
        assert isinstance(self.how, FirstOrder)
        if is_sharded(self.blocks.model):
            raise Unsupported("FirstOrder is not for sharded models. Use how='auto'")
        layout, _ = layout_of(case, self.blocks)
        change, base = slopes(case, self.blocks, layout, self.how.projections)
        self.story.add("backward", [note(self.how.projections)])
        return relative(change.double().cpu().numpy(), base).T, None

    def scores(self, verdicts: Any = None) -> Scores:
        """What has been measured so far."""
        axis = tuple(float(t) for t in self.grid if t is not None) or None
        info = self._info()
        if verdicts is not None:
            info["settled"] = {d: dict(holds=bool(v), reason=v.reason, look=v.look) for d, v in verdicts.items()}
        values = np.concatenate([part for part, _ in self.parts])
        rows = names_of([samples for _, samples in self.parts])
        return Scores(values, self.blocks.names, axis, kind=metric_kind(self.metric), info=info, **rows)

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, of which model: what a checkpoint is of, and what `info` begins with."""
        closed = self.choice.closed
        return {
            "signature": self.signature, "how": repr(self.how), "gate": self.gate, "level": self.level,
            "seed": self.seed,
            **({} if closed is None else {"closed": list(closed.names)}),
            **({} if self.metric is None else {"metric": metric_name(self.metric)}),
            **({"along": repr(self.times)} if isinstance(self.times, Along) else {}),
        }  # fmt: skip

    def _info(self) -> dict[str, Any]:
        """What is needed to repeat the measurement, and how it was made."""
        return {
            **provenance(self.flow, self.blocks, self.seed), **self.asked, "eps": EPS,
            "strategy": "+".join(sorted(self.story.strategies)) or "checkpoint",
            "method": "first_order" if isinstance(self.how, FirstOrder) else "exact",
            "noise_floor": self.story.noise, "notes": list(self.story.notes),
            "stacks": [b.stack for b in self.blocks], "definitions": [b.definition for b in self.blocks],
        }  # fmt: skip

    def warn(self) -> None:
        """What the user must know, once: what was left out, what was not finite.

        Raises:
            BadOutput: no ablation is finite. Untrained: none changes anything. NotResidual: the gates reach nothing.
        """
        for left in self.choice.notes:
            self.story.notes.append(left)
            print(f"fog_a: {left}", file=sys.stderr)
        values = np.concatenate([part for part, _ in self.parts])
        lonely = np.asarray(np.isnan(values).all(axis=(1, 2)))  # samples whose v is zero where it counts
        if lonely.any() and not lonely.all():
            names = ", ".join(name for name, b in zip(self.ids, lonely, strict=True) if b)
            self._warned(f"the velocity of sample {names} is zero where it counts: not averaged in")
            values = values[~lonely]
        bad = np.asarray(np.isnan(values).any(axis=(0, 1)))
        if bad.all() and np.isnan(values).all():
            raise BadOutput(
                "no ablation gives a finite velocity: every block's removal makes it NaN or inf. Check the precision "
                "(autocast, dtype), or close the gates less: gate=0.5"
            )
        if bad.any():
            names = ", ".join(name for name, b in zip(self.blocks.names, bad, strict=True) if b)
            self._warned(f"without {names} the velocity is NaN or inf for some samples: not averaged in")
        self._note_turns(values)
        idle = not np.nanmax(np.abs(values)) > self.story.floor and self.gate != 1
        if idle and (passing := self.blocks.coverage.passing):
            raise NotResidual(
                f"all scores are zero, though what {', '.join(passing)} compute reaches the output: the model goes on "
                "with a tensor that they write into, or with another output of theirs, not with the stream that they "
                "return. Let its forward take that: h = block(h)"
            )
        if idle:
            raise Untrained(
                "all scores are zero: no block changes the velocity. Mostly the model is untrained: gates or output "
                "projections are at their zero initialisation, so train it first. If it is trained, look at what comes "
                "after the blocks: it gives the same whatever it gets, as a norm over one channel does. Of several "
                "outputs the first is measured: to measure another, return it from forward="
            )

    def _note_turns(self, values: Values) -> None:
        """Does each run of a block belong to another sample?"""
        runs = [name.partition("@")[2] for name in self.blocks.names]
        turns = [{runs[k] for k in np.flatnonzero(np.nan_to_num(s).any(axis=0))} for s in values]
        if all(len(t) == 1 for t in turns) and len(set.union(*turns)) > 1:
            self._warned(
                f"the blocks run once for each sample: the mean of {self.blocks.names[0]} counts the samples of other "
                "runs as 0. Give batches of one sample, or pad the samples into one tensor"
            )

    def _warned(self, text: str) -> None:
        self.story.notes.append(text)
        warnings.warn(text, stacklevel=5)  # where `attribute` was called, through `known_keywords`
