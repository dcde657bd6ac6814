"""AG-REPA: align the layers that drive the velocity with a frozen teacher.

    L = L_FM + Σ_m Σ_{k∈S_m} λ_{m,k} · E_{x∈D_m}[ 1 − cos( φ_{m,k}(h_k), T_m(x) ) ]                         (Eq. 12)

m are the domains, S_m and λ the selection (Eq. 10–11), φ_{m,k} one small head per layer and domain, which reads the
layer's output h_k, T_m the domain's teacher. The mean is over the domain's samples in the joint batch of all ranks;
domains are summed.

A training goes through these states:

    probing    nothing is chosen yet: the warm-up measures the layers now and then
    finding    the layers are chosen by name, and the next call looks for their blocks on its batch
    aligning   the blocks are listened to, and the term is Eq. 12
    over       the schedule has ended
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.aligning.heads import TimeHeads
from fog_a.aligning.listening import Listening
from fog_a.aligning.recipe import RecipeOptions, recipe
from fog_a.aligning.schedules import Plateau, flow_times
from fog_a.aligning.slots import Slots
from fog_a.aligning.targets import Targets, merged, taught
from fog_a.aligning.warmup import Probe, Warmup, contribution, identity
from fog_a.aligning.width import head_sizes, measured_widths, self_blocks, slot_widths
from fog_a.blocks.block import Blocks
from fog_a.blocks.untouched import rng
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a.flows.wrapping import wrap
from fog_a.ranks import Group, inside_ddp, total, world
from fog_a.scores.scores import Scores
from fog_a.scores.selection import Selection
from fog_a.teachers.routing import check_teachers

log = logging.getLogger("fog_a")
STILL = 20
"""Aligned steps after which heads that have not moved are taken to be in no optimizer; a GradScaler may skip a few."""


class AGREPA(nn.Module):
    """The alignment term of a training loss: `loss = flow.loss(batch) + reg(batch)`.

    Its parameters and its state dict are the heads and its own bookkeeping; neither the model nor the teachers are
    submodules. Before the choice, with weight 0 and in eval mode it gives 0 and touches nothing: not a gradient of the
    model, not a random number.

    Args:
        flow: a wrapped model (`fog_a.wrap`), or a model that `wrap` knows.
        teachers: domain → Teacher, or one teacher for all samples. An int stands for features of that width that are
            given at each call; None leaves a domain out.
        selection: the layers: a Selection, layer names, or domain → layer names. None: the first `warmup` steps are
            probed, then it chooses by itself.
        batch: one batch of the training, on which blocks and widths are measured now. Without it the heads are built
            for the width that the model's weights suggest, which the first call checks.
        blocks: names of the candidates; default: the main blocks.
        features: features(batch) → tensor or domain → tensor, asked at each call instead of the teachers.
        group: the process group that shares the joint batch; default: all ranks.
        probe: measures a few samples in the warm-up; default: Eq. 9 of every block. See `fog_a.aligning.warmup`.
        **options: the fields of `fog_a.aligning.recipe.Recipe`.

    Raises:
        Unsupported: an option or combination that is refused. ShapeMismatch: widths that do not fit.
        BadFeatures, BadBatch: teachers' features, flow times or domains that do not fit.
        NoActivations: no forward before reg(batch), or one without a graph.
        BadOutput: at the end of the warm-up no layer contributes: the model is untrained.
        BadScores: a selection made for another model.

    Example:
        >>> reg = fog_a.AGREPA(flow, {"speech": whisper, "sound": beats})            # doctest: +SKIP
        >>> optimizer = torch.optim.AdamW([*model.parameters(), *reg.parameters()])  # doctest: +SKIP
        >>> loss = flow.loss(batch) + reg(batch)                                     # doctest: +SKIP
    """

    def __init__(
        self,
        flow: Flow | nn.Module,
        teachers: Mapping[str, Any] | Any,
        selection: Selection | Mapping[str, Sequence[str]] | Sequence[str] | str | None = None,
        *,
        batch: Any = None,
        blocks: Blocks | Sequence[str] | None = None,
        features: Callable[[Any], Any] | None = None,
        group: Group = None,
        probe: Probe = contribution,
        **options: Unpack[RecipeOptions],
    ) -> None:
        super().__init__()
        self.recipe = recipe(**options)
        self.flow = wrap(flow)
        self._merge = not isinstance(teachers, Mapping)
        self.teachers: dict[str, Any] = {"all": teachers} if self._merge else dict(teachers)
        self.domains = tuple(d for d, teacher in self.teachers.items() if teacher is not None)
        check_teachers(self.teachers)
        names = blocks.names if isinstance(blocks, Blocks) else blocks
        self._features, self._group = features, group
        self._warmup = Warmup(self.flow, self.recipe, self.domains, names, group, probe)
        self._plateau = Plateau(self.recipe.schedule)
        self._calls = self._aligned = 0
        self._block_of_teacher: dict[str, str] = {}  # domain → the block that its SelfTeacher reads
        self._last: dict[str, Tensor] = {}
        self._tried: set[str] = set()
        self._selection = Selection.of(selection, self.domains, self.recipe.total)
        self.slots = self._slots(batch)
        by_time = any(isinstance(m, TimeHeads) for m in self.slots.modules())
        self._needs_time = by_time or self.recipe.time_weight is not None
        self._listening = Listening(self.flow, clock=self._needs_time)
        if self._selection is not None:
            self.slots.bind(self._selection, self.domains)
            if batch is not None:
                self._listen(batch)

    @property
    def selection(self) -> Selection | None:
        """The layers that are aligned; None before the choice."""
        return self._selection

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self._calls // self.recipe.accumulation

    @property
    def state(self) -> Literal["probing", "finding", "aligning", "over"]:
        """What the next call does: see the head of this module."""
        if self._selection is None:
            return "probing"
        if self.weight == 0:
            return "over"
        return "finding" if self._listening.blocks is None else "aligning"

    @property
    def scores(self) -> Scores | None:
        """What the probes have measured since the last choice; None when nothing."""
        return self._warmup.scores({}) if self._warmup.rows else None

    @property
    def weight(self) -> float:
        """The schedule's factor at the next call; 0 before the choice."""
        if self._selection is None or self._plateau.reached:
            return 0.0
        return self.recipe.schedule(self._aligned // self.recipe.accumulation)

    def metrics(self) -> dict[str, float]:
        """Scalars of the last call for any logger: the loss, the weight, probes so far, each layer's mean cosine.

        `ag_repa/<domain>/<layer>/shuffled` is the cosine to other samples' features. Alignment learns of the samples
        as far as the layer's cosine is above it.
        """
        values = {name: float(value) for name, value in self._last.items()}
        probes = max(self._warmup.counts.values())
        return {**values, "ag_repa/weight": self.weight, "ag_repa/probes": float(probes)}

    def accumulate(self, calls: int) -> None:
        """How many calls make one optimizer step; the option `accumulation`, for loops that set it late."""
        self.recipe = self.recipe.model_copy(update={"accumulation": calls})

    def open(self) -> None:
        """Listen again after `close`."""
        self._listening.open()

    def close(self) -> None:
        """Take all hooks off the model: to export, pickle or deepcopy it."""
        self._listening.close()

    def forward(self, batch: Any, *, features: Any = None, t: Tensor | None = None) -> Float[Tensor, ""]:
        """The alignment term for the batch of the last forward.

        Args:
            batch: what the model was just trained on.
            features: teacher features of this batch, instead of asking the teachers.
            t: the samples' flow times (B,), for `time_weight` and heads by time.

        On many ranks the value is that rank's part, so that the mean over ranks is the joint batch's.
        """
        term = next(self.parameters()).new_zeros(())
        if inside_ddp():
            term = term + sum(p.sum() for p in self.parameters()) * 0.0
        if not self.training or not torch.is_grad_enabled():
            self._listening.clear()
            return term
        samples = self.flow.samples(batch)
        samples = merged(samples) if self._merge else samples
        state = self.state
        if state in ("probing", "finding"):
            self._try_out(batch, samples, features, t)
        if state == "finding":
            log.info("fog_a: the blocks are found now; alignment starts with the next step (batch= starts it at once)")
            self._listen(batch)
        elif state == "aligning":
            with torch.autocast(term.device.type, enabled=False):
                term = self._align(batch, samples, features, t)
        self._listening.clear()
        self._advance(batch, samples)
        return term

    def reduce(self, sums: Mapping[str, Tensor], sizes: Mapping[str, Tensor], count: Tensor) -> Tensor:
        """Eq. 12 from its sums: each domain's mean, domains added.

        Args:
            sums: domain → Σ over this rank's samples and the domain's layers of λ_k (1 − cos).
            sizes: domain → how many samples it has in the joint batch.
            count: how many samples the joint batch has.
        """
        return torch.stack([sums[domain] / sizes[domain] for domain in sums]).sum()

    def _align(self, batch: Any, samples: Samples, features: Any, t: Tensor | None) -> Tensor:
        """This rank's part of Eq. 12, scaled so that the mean over ranks is the joint mean."""
        assert self._selection is not None
        layers = self._listening.read(samples)
        of_teachers = {domain: layers[name] for domain, name in self._block_of_teacher.items()}
        targets = Targets(self.teachers, samples, self._features_of(batch, features), of_teachers)
        rows = taught(self.teachers, samples)
        zero, sums, means = self.slots.distances(
            rows, layers, targets, self._selection, self._times(t, len(samples)), self.recipe.time_weight, self._group
        )
        counts = [float(len(rows.get(domain, ()))) for domain in self.domains]
        *joint, count = total(torch.tensor([*counts, float(len(samples))], device=zero.device), self._group)
        sizes = dict(zip(self.domains, joint, strict=True))
        loss = zero + self.weight * world(self._group) * self.reduce(sums, sizes, count) if sums else zero
        self._last = {f"ag_repa/{name}": mean for name, mean in means.items()} | {"ag_repa/loss": loss.detach()}
        if self.recipe.schedule.kind == "saturated":  # for that one alone: reading the mean waits for the device
            here = torch.stack([len(rows[name.rsplit("/", 1)[0]]) * mean for name, mean in means.items()] or [zero])
            pairs = sum(float(size) * sum(map(bool, self.slots.bound[d])) for d, size in sizes.items())
            similarity = float(total(here.sum(), self._group)) / max(pairs, 1.0)
            self._plateau.update(similarity if pairs else math.nan)
        self._aligned += 1
        self.slots.watch(STILL * self.recipe.accumulation)
        return loss

    def _features_of(self, batch: Any, features: Any) -> Any:
        """What is given in the teachers' place, if anything."""
        if features is not None or self._features is None:
            return features
        with rng():
            return self._features(batch)

    def _times(self, t: Tensor | None, count: int) -> Tensor | None:
        """The flow times, given or heard; None where nobody needs them and they are not known."""
        heard = self._listening.t if t is None else torch.as_tensor(t)
        if self._needs_time or t is not None:
            return flow_times(heard, count)
        return None if heard is None or heard.numel() not in (1, count) else heard.float().reshape(-1).expand(count)

    def _advance(self, batch: Any, samples: Samples) -> None:
        """Count the call; after a whole optimizer step, probe and choose when it is time."""
        self._calls += 1
        first = self._selection is None
        if self._calls % self.recipe.accumulation or not (first or self.recipe.refresh):
            return
        chosen = self._warmup.advance(self.step, batch, samples, first=first)
        if chosen is not None:
            self.slots.bind(chosen, self.domains)
            self._selection = chosen
            self._listen(batch)

    def _try_out(self, batch: Any, samples: Samples, features: Any, t: Tensor | None) -> None:
        """Before a warm-up of thousands of steps: everything that alignment will need, once for each domain."""
        if not self._calls and self._selection is None:
            self._warmup.refuse_sharded()
            table = measured_widths(self.flow, batch, self._warmup.blocks(batch))
            self.slots.check(slot_widths(table, self.recipe.k, None)[0])
        new = taught(self.teachers, samples).keys() - self._tried
        if new:
            frames = {domain for domain in new if self.slots.gives_tokens(domain)}
            Targets(self.teachers, samples, self._features_of(batch, features)).try_out(new, frames)
            self._times(t, len(samples))
            self._tried |= new

    def _listen(self, batch: Any) -> None:
        """Find the chosen layers' blocks and hook them, from the next forward on."""
        assert self._selection is not None
        blocks = self._warmup.blocks(batch)
        self._selection.check(identity(blocks))
        self._block_of_teacher = self_blocks(self.teachers, blocks)
        names = [*self._selection.layers, *self._block_of_teacher.values()]
        self._listening.open(blocks.named([n for n in blocks.names if n in names]))

    def _slots(self, batch: Any) -> Slots:
        """K heads per domain, as wide as the streams are."""
        layers = None if self._selection is None else {d: list(self._selection.weights(d)) for d in self.domains}
        blocks = None if batch is None else self._warmup.blocks(batch)
        widths, dims = head_sizes(self.flow, self.teachers, self.recipe.k, layers, batch, blocks)
        return Slots(widths, dims, self.recipe.head, self.recipe.seed, self.recipe.center)

    def get_extra_state(self) -> Tensor:
        """All but the heads, as JSON in bytes: a tensor, so that safetensors and weights-only loading take it."""
        state = {
            "calls": self._calls,
            "aligned": self._aligned,
            "selection": None if self._selection is None else self._selection.model_dump(mode="json"),
            "bound": self.slots.bound,
            "block of teacher": self._block_of_teacher,
            "blocks": self._listening.state(),
            "warmup": self._warmup.state(),
            "plateau": self._plateau.state(),
        }
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """The reverse: goes on where it was, also in the middle of the warm-up."""
        saved = json.loads(bytes(state.cpu().tolist()).decode())
        self._listening.restore(saved["blocks"])  # refuses another model before anything is taken over
        self._calls, self._aligned = saved["calls"], saved["aligned"]
        self._selection = None if saved["selection"] is None else Selection.model_validate(saved["selection"])
        self.slots.bound, self._block_of_teacher = saved["bound"], saved["block of teacher"]
        self._warmup.restore(saved["warmup"])
        self._plateau.restore(saved["plateau"])
