"""One measurement: what `attribute` was asked for, the cells it is cut into, and what has been measured so far."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fog_a.attributing.cells import Cells, Values
from fog_a.attributing.first_order import note, slopes
from fog_a.attributing.nnsight import Envoys
from fog_a.attributing.variants import Strategy, layout_of, variants
from fog_a.blocks.block import Blocks
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadOutput, ShapeMismatch, UnknownBlock, Unsupported
from fog_a.finding.blocks import find_blocks
from fog_a.flows.batches import signature
from fog_a.flows.case import Case, fingerprint, per_sample, weights_mark
from fog_a.flows.flow import Flow
from fog_a.scores.scores import Scores

Method = Literal["exact", "first_order"]
EPS = 1e-8
"""ε of Eq. 9."""


@dataclass
class Measurement:
    """One call of `attribute`: its options, and what has been measured so far."""

    flow: Flow
    wanted: Blocks | Sequence[str] | None
    level: Literal["layer", "branch"]
    grid: tuple[float | None, ...]
    gates: tuple[float, ...]
    seed: int
    strategy: Strategy
    max_rows: int | None
    memory: int | None
    checkpoint: str | None
    spread: bool
    progress: bool
    envoys: Envoys | None
    method: Method
    projections: int
    blocks: Blocks = field(init=False)
    signature: dict[str, Any] = field(init=False)
    sharded: bool = field(init=False)
    side: Blocks | None = None
    cells: Cells | None = None
    values: list[Values] = field(default_factory=list)  # one (G, S, J, L) for each batch
    ids: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    strategies: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    noise: float = 0.0
    floor: float = 0.0

    def measure(self, batch: Any) -> None:
        """All ablations of one batch, at every time."""
        batch = batch if self.envoys is None else self.envoys.batch(batch)
        number = len(self.values)
        cases = [
            Case(self.flow, batch, t, self.seed + 7919 * number + j, len(self.ids)) for j, t in enumerate(self.grid)
        ]
        if self.cells is None:
            self._begin(cases[0])
        assert self.cells is not None
        mark = cases[0].fingerprint
        self.cells.same_everywhere(repr(cases[0].layout).encode() + mark.encode())
        with tqdm(total=len(self.grid), disable=not self.progress, desc="FoG-A", leave=False) as bar:
            todo = [(f"batch{number}_{mark[:12]}_time{j}", self._cell(case, bar)) for j, case in enumerate(cases)]
            columns = self.cells.collect(todo)
        self._learn(self.cells.shared([sorted(self.strategies), self.notes, self.noise, self.floor]))
        self.values.append(np.stack(columns, axis=2))
        self._name(cases[0], columns[0].shape[1])

    def _learn(self, told: list[Any]) -> None:
        """How the cells of all processes were measured, the same on each."""
        strategies, notes, noise, floor = zip(*told, strict=True)
        self.strategies = {name for names in strategies for name in names}
        self.notes = list(dict.fromkeys(note for some in notes for note in some))
        self.noise, self.floor = max(noise), max(floor)

    def _begin(self, case: Case) -> None:
        self.blocks, self.side = self._chosen(case)
        self.signature = signature(self.blocks.model, self.blocks)
        self.sharded = _sharded(self.blocks.model)
        identity = {
            "signature": self.signature, "batch": case.fingerprint, "seed": self.seed, "times": self.grid,
            "gates": self.gates, "level": self.level, "strategy": self.strategy,
            "method": self.method, "projections": self.projections,
        }  # fmt: skip
        if self.checkpoint is not None:
            identity["weights"] = "sharded" if self.sharded else weights_mark(self.blocks.model)
            mask = self.flow.override.mask
            identity["mask"] = None if mask is None else fingerprint(torch.as_tensor(mask))
        self.cells = Cells(identity, self.checkpoint, self.spread and not self.sharded)

    def _chosen(self, case: Case) -> tuple[Blocks, Blocks | None]:
        """The blocks to score, and those that are left out because they do not see x_t."""
        if self.wanted is not None and len(self.wanted) == 0:
            raise UnknownBlock(
                "expected at least one block in blocks=, got none. Leave it out to score those of find_blocks"
            )
        if isinstance(self.wanted, Blocks):
            if self.wanted.model is not case.module:
                raise UnknownBlock("the blocks in blocks= are of another model object. Use find_blocks(model, batch)")
            return self.wanted, None
        found = find_blocks(case.flow, case.batch, level=self.level)
        if self.wanted is not None:
            return found.named([self.wanted] if isinstance(self.wanted, str) else list(self.wanted)), None
        rest = [b for b in found if not b.main]
        return found.main, Blocks(rest, found.model) if rest else None

    def _cell(self, case: Case, bar: Any) -> Callable[[], Values]:
        def cell() -> Values:
            with preserved(*case.modules):
                values = self._ablated(case) if self.method == "exact" else self._estimated(case)
            bar.update()
            return values

        return cell

    def _ablated(self, case: Case) -> Values:
        """Eq. 9 for each gate value, sample and block."""
        strategy = "loop" if self.sharded else self.strategy
        if self.envoys is not None:
            run = self.envoys.variants(case, self.blocks, self.gates)
        else:
            run = variants(
                case, self.blocks, values=self.gates, strategy=strategy, max_rows=self.max_rows, memory=self.memory,
            )  # fmt: skip
        v, keep = run.base, case.keep(run.base)
        scores = np.stack([_ratio(v_k, v, keep) for v_k in run])
        self.strategies.add(run.strategy)
        self.notes += [n for n in run.notes if n not in self.notes]
        self.noise = max(self.noise, run.noise)
        if run.strategy == "fanout":  # rows of one forward may differ: by a rounding, or by a float32 sum's few
            self.floor = max(self.floor, torch.finfo(v.dtype).eps, 8 * torch.finfo(torch.float32).eps)
        return scores.reshape(len(self.blocks), len(self.gates), len(v)).transpose(1, 2, 0).astype(np.float32)

    def _estimated(self, case: Case) -> Values:
        """Eq. 9 to first order, for each sample and block."""
        if self.sharded or self.envoys is not None:
            raise Unsupported("method='first_order' is not for sharded models or other engines. Use method='exact'")
        layout, _ = layout_of(case, self.blocks)
        change, norm = slopes(case, self.blocks, layout, self.projections)
        self.strategies.add("backward")
        self.notes += [told for told in (note(self.projections),) if told not in self.notes]
        return _relative(change, norm)[None].transpose(0, 2, 1).astype(np.float32)

    def _name(self, case: Case, count: int) -> None:
        """Ids and domains of a batch's samples; other processes may have run it."""
        samples = case.flow.samples_of(case.batch, (count,), case.start)
        self.ids += samples.ids
        self.domains += samples.domains

    def scores(self, g: int, verdicts: Any = None) -> Scores:
        """What has been measured so far, at one gate value."""
        values = np.concatenate([v[g] for v in self.values])
        axis = tuple(float(t) for t in self.grid if t is not None) or None
        info = self._info(self.gates[g])
        if verdicts is not None:
            info["settled"] = {d: dict(holds=bool(v), reason=v.reason, look=v.look) for d, v in verdicts.items()}
        return Scores(values, self.blocks.names, axis, tuple(self.domains), tuple(self.ids), "contribution", info)

    def _info(self, gate: float) -> dict[str, Any]:
        """What is needed to repeat the measurement."""
        import fog_a

        return {
            "strategy": "+".join(sorted(self.strategies)) or "checkpoint",
            "method": self.method, "gate": gate, "level": self.level,
            "seed": self.seed, "eps": EPS,
            "max_rows": self.max_rows, "memory": self.memory, "noise_floor": self.noise, "notes": list(self.notes),
            "stacks": [b.stack for b in self.blocks], "definitions": [b.definition for b in self.blocks],
            "signature": self.signature,
            "versions": {"fog_a": fog_a.__version__, "torch": str(torch.__version__), "numpy": np.__version__},
        }  # fmt: skip

    def tell(self) -> None:
        """What the user must know, once: what was left out, what was not finite; all zeros are an error."""
        for stack, members in self.side.stacks.items() if self.side is not None else ():
            inputs = ", ".join(sorted({i for b in members for i in b.inputs})) or "nothing"
            self.notes.append(
                f"{len(members)} blocks of {stack} depend only on {inputs}: left out. "
                "To score them pass blocks=find_blocks(...) or their names"
            )
            print(f"fog_a: {self.notes[-1]}", file=sys.stderr)
        values = np.concatenate(self.values, axis=1)
        lonely = np.asarray(np.isnan(values).all(axis=(0, 2, 3)))  # samples whose v is zero where it counts
        if lonely.any() and not lonely.all():
            lost = ", ".join(name for name, b in zip(self.ids, lonely, strict=True) if b)
            self.notes.append(f"the velocity of sample {lost} is zero where it counts: not averaged in")
            warnings.warn(self.notes[-1], stacklevel=3)
            values = values[:, ~lonely]
        bad = np.asarray(np.isnan(values).any(axis=(0, 1, 2)))
        if bad.all() and np.isnan(values).all():
            raise BadOutput(
                "no ablation gives a finite velocity: every block's removal makes it NaN or inf. Check the precision "
                "(autocast, dtype), or close the gates less: gate=0.5"
            )
        if bad.any():
            lost = ", ".join(name for name, b in zip(self.blocks.names, bad, strict=True) if b)
            self.notes.append(f"without {lost} the velocity is NaN or inf for some samples: not averaged in")
            warnings.warn(self.notes[-1], stacklevel=3)
        if not np.nanmax(np.abs(values)) > self.floor and any(g != 1 for g in self.gates):
            raise BadOutput(
                "all scores are zero: no block changes the velocity. The model is untrained: its gates or output "
                "projections are still at their zero initialisation, so every block is the identity. Train it first"
            )


def _ratio(v_k: Tensor, v: Tensor, keep: Tensor | None) -> np.ndarray:
    """Eq. 9 for each sample; NaN where the ablated velocity is not finite."""
    if v_k.shape != v.shape:
        raise ShapeMismatch(
            f"an ablation changed the output's shape from {tuple(v.shape)} to {tuple(v_k.shape)}: its length depends "
            "on inner layers (durations, say). Fix the lengths in forward=, or score other blocks with blocks="
        )
    d, n = per_sample(v_k) - per_sample(v), per_sample(v)
    if keep is not None:
        d, n = torch.where(keep, d, torch.zeros_like(d)), torch.where(keep, n, torch.zeros_like(n))
    return _relative(d.norm(dim=1), n.norm(dim=1))


def _relative(change: Tensor, norm: Tensor) -> np.ndarray:
    """‖Δv‖ / (‖v‖ + ε); NaN where nothing is there to change, or the change is not finite."""
    score = torch.where(norm > 0, change / (norm + EPS), torch.full_like(norm, torch.nan))
    return torch.where(torch.isfinite(score), score, torch.full_like(score, torch.nan)).cpu().numpy()


def _sharded(module: nn.Module) -> bool:
    """FSDP2's parameters are spread: all processes must run the same ablations, one at a time."""
    return any(type(p).__name__ == "DTensor" for m in module.modules() for p in m._parameters.values())
