"""FoG-A: how far the velocity moves when one block's gate is closed.

    v^{\\k} = v_θ(x_t, t, c; g_k = 0, g_{j≠k} = 1)                          (Eq. 8)
    FoG-A_k = E_{x,t,c}[ ‖v^{\\k} − v‖₂ / (‖v‖₂ + ε) ]                      (Eq. 9)

Norms are in float32 over the valid entries of one sample; the base and every ablation see the same x_t, t, c and random
numbers, in eval mode and without grad. How the ablations are run is decided in `variants`; here they become scores.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from tqdm import tqdm

from fog_a import probe as probing
from fog_a.ablating.cells import Cells, Values
from fog_a.ablating.envoys import Envoys, envoys_of
from fog_a.ablating.variants import Strategy, parse_bytes, variants
from fog_a.batches import Forward, each, signature
from fog_a.concepts import Blocks
from fog_a.errors import BadBatch, BadOutput, ShapeMismatch, UnknownBlock
from fog_a.finding.blocks import find_blocks
from fog_a.flows.adapters import Flow, knows
from fog_a.hooks import preserved
from fog_a.scoring.scores import Scores

EPS = 1e-8


def attribute(
    model: nn.Module | Flow,
    batch: Any,
    *,
    blocks: Blocks | Sequence[str] | None = None,
    forward: Forward | None = None,
    times: int | Sequence[float] | None = None,
    domains: Sequence[str] | None = None,
    mask: Bool[Tensor, "B ..."] | None = None,
    level: Literal["layer", "branch"] = "layer",
    gate: float | Sequence[float] = 0.0,
    output: str | None = None,
    seed: int = 0,
    strategy: Strategy = "auto",
    engine: Literal["hooks", "nnsight"] = "hooks",
    remote: bool = False,
    max_rows: int | None = None,
    memory: int | str | None = None,
    until: Literal["settled"] | None = None,
    k: int = 3,
    confidence: float = 0.95,
    max_batches: int | None = None,
    checkpoint: str | None = None,
    spread: bool = True,
    progress: bool | None = None,
) -> Scores:
    """FoG-A (Eq. 9): the relative change of the velocity when each block's gate is closed, per sample and time.

    Args:
        model: any `nn.Module`, or a flow from `wrap`.
        batch: a Tensor → `model(x)`, a tuple → `model(*batch)`, a mapping → `model(**batch)`, `Inputs` → both; for a
            flow, its own batch. A list, iterator or DataLoader is several.
        blocks: which to score: `Blocks`, or names. None: those of `find_blocks` whose update depends on x_t.
        forward: `forward(model, batch) -> Tensor` for anything else.
        times: for a flow, None → 8 midpoints (j + ½)/8, n → n midpoints, a list → exactly those in [0, 1].
        domains: one name per sample of each batch; a flow's adapter gives its own.
        mask: True where v counts, broadcastable to v; a flow's adapter gives its own.
        level: `"branch"` scores attention, feed-forward, … separately.
        gate: the gate's value, 0 (closed) to 1; several (dose and response) give a dict of Scores by value.
        output: the name of a module whose output is the velocity, where the forward returns something else.
        seed: of every random number the model or the adapter draws.
        strategy: how ablations are run (`"loop"`, `"prefix"`, `"fanout"`); the result names the one that was.
        engine: `"nnsight"` ablates through nnsight, for a `model` that is an `nnsight.NNsight` or LanguageModel already
            (then a batch may be text), or any other.
        remote: with nnsight's wrappers of hub models: passed to its `trace`.
        max_rows: at most so many rows (samples × variants) in one fanned-out forward.
        memory: the same as a number of bytes, or `"2GiB"`: what may be needed beyond a plain forward, by an estimate
            from what one needs.
        until: `"settled"` draws batches until the top-`k` set holds at `confidence`, or `max_batches` are used up.
        checkpoint: a directory where finished cells are kept; the next run of the same goes on from there.
        spread: share the cells with the other processes of `torch.distributed`, where there are any.
        progress: a progress bar; None: when attached to a terminal.

    Returns:
        Scores of kind "contribution", samples × times × layers, each ≥ 0 and without a unit.

    Raises:
        NoBlocksFound, UnknownBlock, BadBatch, BadOutput: each with what was expected, what was got, what to type next.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> scores = fog_a.attribute(net, torch.randn(4, 5, 8))
        >>> scores.layers, scores.values.shape
        (('layers.0', 'layers.1'), (4, 1, 2))
    """
    gates = _gates(gate)
    envoys = envoys_of(engine, model, remote, strategy=strategy, max_rows=max_rows, memory=memory)
    model = model if envoys is None else envoys.model
    run = _Run(
        model, forward, blocks, level, output, _grid(model, times, forward), gates, domains, mask, seed, strategy,
        max_rows, parse_bytes(memory), checkpoint, spread, _shown(progress), envoys,
    )  # fmt: skip
    verdict = None
    looks = _looks(batch, until, max_batches)
    for look, one in enumerate(itertools.islice(each(batch), looks), start=1):
        run.measure(one)
        if until == "settled":
            verdict = run.scores(0).verdicts(k, confidence=confidence, look=look, max_looks=looks or look)
            if all(verdict.values()):
                break
    run.tell()
    found = [run.scores(g, verdict) for g in range(len(gates))]
    if isinstance(gate, Sequence):  # several Scores; typed as what nearly everybody asks for
        return dict(zip(gates, found, strict=True))  # pyright: ignore[reportReturnType]
    return found[0]


@dataclass
class _Run:
    """One call of `attribute`: its options, and what has been measured so far."""

    model: nn.Module | Flow
    forward: Forward | None
    wanted: Blocks | Sequence[str] | None
    level: Literal["layer", "branch"]
    output: str | None
    grid: tuple[float | None, ...]
    gates: tuple[float, ...]
    named: Sequence[str] | None
    mask: Tensor | None
    seed: int
    strategy: Strategy
    max_rows: int | None
    memory: int | None
    checkpoint: str | None
    spread: bool
    progress: bool
    envoys: Envoys | None
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
        probing.check_batch(batch)
        number = len(self.values)
        if self.cells is None:
            self._begin(batch)
        assert self.cells is not None
        mark = probing.digest(batch).hex()
        self.cells.same_everywhere(repr(probing.shape_of(batch)).encode() + mark.encode())
        with tqdm(total=len(self.grid), disable=not self.progress, desc="FoG-A", leave=False) as bar:
            todo = [
                (f"batch{number}_{mark[:12]}_time{j}", self._cell(batch, number, j, bar)) for j in range(len(self.grid))
            ]
            columns = self.cells.collect(todo)
        self._learn(self.cells.shared([sorted(self.strategies), self.notes, self.noise, self.floor]))
        self.values.append(np.stack(columns, axis=2))
        self._name(batch, columns[0].shape[1])

    def _learn(self, told: list[Any]) -> None:
        """How the cells of all processes were measured, the same on each."""
        strategies, notes, noise, floor = zip(*told, strict=True)
        self.strategies = {name for names in strategies for name in names}
        self.notes = list(dict.fromkeys(note for some in notes for note in some))
        self.noise, self.floor = max(noise), max(floor)

    def _begin(self, batch: Any) -> None:
        self.blocks, self.side = self._chosen(batch)
        self.signature = signature(self.blocks.model, self.blocks)
        self.sharded = _sharded(self.blocks.model)
        identity = {
            "signature": self.signature, "batch": probing.digest(batch).hex(), "seed": self.seed, "times": self.grid,
            "gates": self.gates, "level": self.level, "output": self.output, "strategy": self.strategy,
        }  # fmt: skip
        if self.checkpoint is not None:
            identity["weights"] = "sharded" if self.sharded else probing.weights_mark(self.blocks.model)
            identity["mask"] = None if self.mask is None else probing.digest(torch.as_tensor(self.mask)).hex()
        self.cells = Cells(identity, self.checkpoint, self.spread and not self.sharded)

    def _chosen(self, batch: Any) -> tuple[Blocks, Blocks | None]:
        """The blocks to score, and those that are left out because they do not see x_t."""
        if self.wanted is not None and len(self.wanted) == 0:
            raise UnknownBlock(
                "expected at least one block in blocks=, got none. Leave it out to score those of find_blocks"
            )
        if isinstance(self.wanted, Blocks):
            if self.wanted.model is not probing.module_of(self.model):
                raise UnknownBlock("the blocks in blocks= are of another model object. Use find_blocks(model, batch)")
            return self.wanted, None
        found = find_blocks(self.model, batch, forward=self.forward, level=self.level)
        if self.wanted is not None:
            return found.named([self.wanted] if isinstance(self.wanted, str) else list(self.wanted)), None
        rest = [b for b in found if not b.main]
        return found.main, Blocks(rest, found.model) if rest else None

    def _cell(self, batch: Any, number: int, j: int, bar: Any) -> Callable[[], Values]:
        def cell() -> Values:
            one = probing.probe(
                self.model, batch, self.grid[j], self.seed + 7919 * number + j, self.forward, self.output
            )
            with preserved(*one.modules):
                values = self._ablated(one, batch)
            bar.update()
            return values

        return cell

    def _ablated(self, one: probing.Probe, batch: Any) -> Values:
        """Eq. 9 for each gate value, sample and block."""
        strategy = "loop" if self.sharded else self.strategy
        if self.envoys is not None:
            run = self.envoys.variants(one, self.blocks, self.gates)
        else:
            run = variants(
                one, self.blocks, values=self.gates, strategy=strategy, max_rows=self.max_rows, memory=self.memory,
                shape=probing.shape_of(batch),
            )  # fmt: skip
        v = run.base
        if v.ndim == 0:
            self._no_loss()
            v = v[None]
        samples = probing.samples_of(self.model, batch, v, 0)
        keep = probing.mask_of(samples.mask if self.mask is None else self.mask, v)
        probing.checked(v, keep)
        scores = np.stack([_ratio(v_k, v, keep) for v_k in run])
        self.strategies.add(run.strategy)
        self.notes += [n for n in run.notes if n not in self.notes]
        self.noise = max(self.noise, run.noise)
        if run.strategy == "fanout":  # rows of one forward may differ: by a rounding, or by a float32 sum's few
            self.floor = max(self.floor, torch.finfo(v.dtype).eps, 8 * torch.finfo(torch.float32).eps)
        return scores.reshape(len(self.blocks), len(self.gates), len(v)).transpose(1, 2, 0).astype(np.float32)

    def _no_loss(self) -> None:
        """One number is no velocity: of a model whose adapter was forgotten it is the loss."""
        asked = self.forward is not None or self.output is not None
        if not asked and isinstance(self.model, nn.Module) and knows(self.model):
            raise BadBatch(
                f"{type(self.model).__name__} gives one number, its loss. An adapter reads its velocity: type "
                "fog_a.wrap(model)"
            )

    def _name(self, batch: Any, count: int) -> None:
        """Ids and domains of a batch's samples."""
        samples = probing.samples_of(self.model, batch, torch.empty(count, 1), len(self.ids))
        names = samples.domains if self.named is None else tuple(self.named)
        if len(names) != count:
            raise ShapeMismatch(
                f"expected one domain per sample, {count} of them, got {len(names)}. Give domains= as many names"
            )
        self.ids += samples.ids
        self.domains += names

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
            "gate": gate, "seed": self.seed, "eps": EPS, "level": self.level, "output": self.output,
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
    if v_k.ndim == 0:
        v_k = v_k[None]
    if v_k.shape != v.shape:
        raise ShapeMismatch(
            f"an ablation changed the output's shape from {tuple(v.shape)} to {tuple(v_k.shape)}: its length depends "
            "on inner layers (durations, say). Fix the lengths in forward=, or score other blocks with blocks="
        )
    d, n = probing.per_sample(v_k) - probing.per_sample(v), probing.per_sample(v)
    if keep is not None:
        d, n = torch.where(keep, d, torch.zeros_like(d)), torch.where(keep, n, torch.zeros_like(n))
    score = d.norm(dim=1) / (n.norm(dim=1) + EPS)
    score = torch.where(n.norm(dim=1) > 0, score, torch.full_like(score, torch.nan))  # nothing there to change
    return torch.where(torch.isfinite(score), score, torch.full_like(score, torch.nan)).cpu().numpy()


def _grid(
    model: nn.Module | Flow, times: int | Sequence[float] | None, forward: Forward | None
) -> tuple[float | None, ...]:
    if not isinstance(model, Flow) or forward is not None:
        if times is not None:
            what = "a bare module" if forward is None else "a forward= of your own"
            raise BadBatch(
                f"{what} has no time axis, so times= means nothing to it. "
                "Wrap it: fog_a.wrap(net, x='x', t='t'), or put t into the batch"
            )
        return (None,)
    if times is None or isinstance(times, int):
        n = 8 if times is None else times
        if n < 1:
            raise BadBatch(f"expected at least one time, got times={times}. Give a number of midpoints or a list")
        return tuple((j + 0.5) / n for j in range(n))
    grid = tuple(float(t) for t in times)
    if not grid or any(not 0 <= t <= 1 for t in grid):
        raise BadBatch(f"expected times in [0, 1], at least one, got {list(times)}. t = 0 is noise, t = 1 is data")
    return grid


def _gates(gate: float | Sequence[float]) -> tuple[float, ...]:
    gates = tuple(float(g) for g in gate) if isinstance(gate, Sequence) else (float(gate),)
    if not gates or any(not 0 <= g <= 1 for g in gates):
        raise BadBatch(
            f"expected gate values in [0, 1], at least one, got {gate}. 0 removes a block, 1 changes nothing"
        )
    return gates


def _looks(batch: Any, until: str | None, max_batches: int | None) -> int | None:
    """How many batches may be drawn: planned before the first, so that looking often costs what it must."""
    if until not in (None, "settled"):
        raise BadBatch(f"expected until='settled' or None, got {until!r}")
    if max_batches is None and until is not None:
        if not hasattr(batch, "__len__") or isinstance(batch, (Tensor, dict, tuple)):
            raise BadBatch(
                "until='settled' looks after each batch and must know how many there may be. "
                "Give a list or DataLoader of batches, or max_batches="
            )
        max_batches = len(batch)
    return max_batches


def _sharded(module: nn.Module) -> bool:
    """FSDP2's parameters are spread: all processes must run the same ablations, one at a time."""
    return any(type(p).__name__ == "DTensor" for m in module.modules() for p in m._parameters.values())


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress
