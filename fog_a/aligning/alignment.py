"""AG-REPA: align the layers that drive the velocity with a frozen teacher.

    L = L_FM + Σ_m Σ_{k∈S_m} λ_{m,k} · E_{x∈D_m}[ 1 − cos( φ_{m,k}(h̄_k), T_m(x) ) ]                       (Eq. 12)

m are the domains, S_m and λ the selection (Eq. 10–11), φ_{m,k} one small head per layer and domain, h̄_k the descriptor
of the layer's output (Eq. 3), T_m the domain's teacher. The mean is over the domain's samples in the joint batch of all
ranks; domains are summed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.aligning.listening import Listening
from fog_a.aligning.recipe import recipe
from fog_a.aligning.schedules import Plateau
from fog_a.aligning.slots import Slots
from fog_a.aligning.targets import Target, merged, targets
from fog_a.aligning.warmup import Warmup, identity
from fog_a.aligning.width import measured_widths, slot_widths, stream_width
from fog_a.blocks.block import Blocks
from fog_a.errors import BadBatch, ShapeMismatch
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a.flows.wrapping import wrap
from fog_a.ranks import Group, inside_ddp, total, world
from fog_a.scores.scores import Scores
from fog_a.scores.selection import Selection
from fog_a.teachers.routing import check_teachers
from fog_a.teachers.weightless import SelfTeacher

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
            for the width that the model's weights suggest (checked at the first call), and with `selection=` the
            first call only looks for the blocks.
        width: of the streams, where neither is wanted.
        blocks: names of the candidates; default: the main blocks.
        features: features(batch) → tensor or domain → tensor, asked at each call instead of the teachers.
        group: the process group that shares the joint batch; default: all ranks.
        preset: "paper" or "release"; see `fog_a.aligning.recipe`.
        **options: the fields of `fog_a.aligning.recipe.Recipe`: k, warmup, every, samples, refresh, weighting, total,
            head, hidden, schedule, targets, accumulation, seed, …

    Raises:
        Unsupported: an option or combination that is refused. ShapeMismatch: widths that do not fit.
        BadFeatures, BadBatch: teachers' features or domains that do not fit.
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
        width: int | None = None,
        blocks: Blocks | Sequence[str] | None = None,
        features: Callable[[Any], Any] | None = None,
        group: Group = None,
        preset: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.recipe = recipe(preset, **options)
        self.flow = flow if isinstance(flow, Flow) else wrap(flow)
        self._one = not isinstance(teachers, Mapping)
        self.teachers: dict[str, Any] = {"all": teachers} if self._one else dict(teachers)
        self.domains = tuple(d for d, teacher in self.teachers.items() if teacher is not None)
        check_teachers(self.teachers)
        names = blocks.names if isinstance(blocks, Blocks) else blocks
        self._features, self._group = features, group
        self._listening = Listening(self.flow)
        self._warmup = Warmup(self.flow, self.recipe, self.domains, names, group)
        self._plateau = Plateau(self.recipe.schedule)
        self._calls = self._aligned = 0
        self._own: dict[str, str] = {}  # domain → the block that its SelfTeacher reads
        self._last: dict[str, Tensor] = {}
        self._selection = Selection.of(selection, self.domains, self.recipe.total)
        self.slots = self._slots(batch, width)
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
        """Scalars of the last call for any logger: the loss, each layer's mean cosine, the weight, probes so far."""
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
            t: the samples' flow times (B,), for `time_weight` and `time_bins`.

        On many ranks the value is that rank's part, so that the mean over ranks is the joint batch's.
        """
        loss = next(self.parameters()).new_zeros(())
        if inside_ddp():
            loss = loss + sum(p.sum() for p in self.parameters()) * 0.0
        if not self.training or not torch.is_grad_enabled():
            self._listening.clear()
            return loss
        samples = self.flow.samples(batch)
        samples = merged(samples) if self._one else samples
        if not self._calls and self._selection is None:
            self._check(batch)
        if self.weight > 0 and self._listening.blocks is None:
            log.info("fog_a: the blocks are found now; alignment starts with the next step (batch= starts it at once)")
            self._listen(batch)
        elif self.weight > 0:
            with torch.autocast(loss.device.type, enabled=False):
                loss = self._align(batch, samples, features, t)
        self._listening.clear()
        self._advance(batch, samples)
        return loss

    def _align(self, batch: Any, samples: Samples, features: Any, t: Tensor | None) -> Tensor:
        """This rank's part of Eq. 12, scaled so that the mean over ranks is the joint mean."""
        assert self._selection is not None
        if features is None and self._features is not None:
            features = self._features(batch)
        heard = self._listening.read(samples)
        own = {domain: heard[name] for domain, name in self._own.items()}
        wanted = targets(self.teachers, samples, own, features=features, tokens=self.recipe.targets == "tokens")
        device = next(iter(heard.values()))[0].device
        counts = [float(len(wanted[d].rows)) if d in wanted else 0.0 for d in self.domains]
        *joint, everyone = total(torch.tensor([*counts, float(len(samples))], device=device), self._group)
        sizes = joint if self.recipe.reduction == "domain" else [everyone] * len(joint)
        factor = self.weight * world(self._group)
        scales = {d: factor / size for d, size in zip(self.domains, sizes, strict=True)}
        shares = {d: self._selection.weights(d) for d in self.domains}
        times = self._times(t, len(samples), device)
        loss, cosines = self.slots.loss(wanted, heard, shares, scales, times, self._group)
        self._last = {f"ag_repa/{name}": value for name, value in cosines.items()} | {"ag_repa/loss": loss.detach()}
        if self.recipe.schedule.kind == "saturated":
            self._saturate(wanted, dict(zip(self.domains, joint, strict=True)))
        self._aligned += 1
        self.slots.watch(STILL * self.recipe.accumulation)
        return loss

    def _times(self, t: Tensor | None, count: int, device: torch.device) -> Tensor | None:
        if not self.recipe.needs_time:
            return None
        t = self._listening.t if t is None else t
        if t is None:
            raise BadBatch(
                "time_weight= and time_bins= need this batch's flow times, and the adapter's attribute t names no "
                "argument of the network: type reg(batch, t=t)"
            )
        t = torch.as_tensor(t, device=device).detach().float().reshape(-1)
        if t.numel() not in (1, count):
            raise ShapeMismatch(
                f"t has {t.numel()} values for {count} samples: pass the (B,) that the forward was given"
            )
        return t.expand(count)

    def _saturate(self, wanted: Mapping[str, Target], joint: Mapping[str, Tensor]) -> None:
        """Tell the plateau the joint mean cosine; only for that schedule, since reading it waits for the device."""
        own, count = next(iter(joint.values())).new_zeros(()), 0.0
        for domain, size in joint.items():
            for layer in filter(None, self.slots.bound[domain]):
                count += float(size)
                if domain in wanted:
                    own = own + self._last[f"ag_repa/{domain}/{layer}"] * len(wanted[domain].rows)
        mean = float(total(own, self._group)) / max(count, 1.0)
        if count:
            self._plateau.update(mean)

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

    def _check(self, batch: Any) -> None:
        """Before a warm-up of thousands of steps: that there are layers to choose, and heads that fit them."""
        self._warmup.refuse_sharded()
        table = measured_widths(self.flow, batch, self._warmup.blocks(batch))
        self.slots.check(slot_widths(table, self.recipe.k, None)[0])

    def _listen(self, batch: Any) -> None:
        """Find the chosen layers' blocks and hook them, from the next forward on."""
        assert self._selection is not None
        blocks = self._warmup.blocks(batch)
        self._selection.check(identity(blocks))
        own = {d: t for d, t in self.teachers.items() if isinstance(t, SelfTeacher)}
        self._own = {d: teacher.block_of(blocks).name for d, teacher in own.items()}
        names = [*self._selection.layers, *self._own.values()]
        self._listening.open(blocks.named([n for n in blocks.names if n in names]))

    def _slots(self, batch: Any, width: int | None) -> Slots:
        """K heads per domain, as wide as the streams are."""
        chosen = None if self._selection is None else {d: list(self._selection.weights(d)) for d in self.domains}
        k = {d: self.recipe.k if chosen is None else len(chosen[d]) for d in self.domains}
        own: dict[str, int] = {}  # of the blocks that SelfTeachers read
        if batch is not None:
            blocks = self._warmup.blocks(batch)
            table = measured_widths(self.flow, batch, blocks)
            own = {d: table[t.block_of(blocks).name] for d, t in self.teachers.items() if isinstance(t, SelfTeacher)}
            widths = {d: slot_widths(table, k[d], None if chosen is None else chosen[d]) for d in self.domains}
        else:
            width = width or stream_width(self.flow.module)
            widths = {d: [width] * k[d] for d in self.domains}
        dims = {
            d: t if isinstance(t, int) else own.get(d) or t.dim or widths[d][0]
            for d, t in self.teachers.items()
            if t is not None
        }
        return Slots(widths, dims, self.recipe)

    def get_extra_state(self) -> Tensor:
        """All but the heads, as JSON in bytes: a tensor, so that safetensors and weights-only loading take it."""
        state = {
            "calls": self._calls,
            "aligned": self._aligned,
            "selection": None if self._selection is None else self._selection.model_dump(mode="json"),
            "bound": self.slots.bound,
            "own": self._own,
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
        self.slots.bound, self._own = saved["bound"], saved["own"]
        self._warmup.restore(saved["warmup"])
        self._plateau.restore(saved["plateau"])
