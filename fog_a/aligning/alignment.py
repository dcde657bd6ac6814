"""AG-REPA: align the layers that drive the velocity with a frozen teacher.

    L = L_FM + Σ_m Σ_{k∈S_m} λ_{m,k} · E_{x∈D_m}[ 1 − cos( φ_{m,k}(h_k), T_m(x) ) ]                         (Eq. 12)

m are the domains, S_m and λ the selection (Eq. 10–11), φ_{m,k} one small head per layer and domain, which reads the
layer's output h_k, T_m the domain's teacher. The mean is over the domain's samples in the joint batch of all ranks;
domains are summed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.aligning.attached import Attached
from fog_a.aligning.course import Course
from fog_a.aligning.distances import distances
from fog_a.aligning.heads import TimeHeads
from fog_a.aligning.listening import Listening, Local
from fog_a.aligning.progress import Progress
from fog_a.aligning.recipe import RecipeOptions, recipe
from fog_a.aligning.slots import Slots
from fog_a.aligning.targets import Targets
from fog_a.aligning.warmup import Probe, Warmup, contribution
from fog_a.aligning.width import head_sizes, measured_widths
from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import unwrapped
from fog_a.errors import Unsupported
from fog_a.flows.flow import Flow
from fog_a.flows.provenance import signature
from fog_a.flows.samples import Samples
from fog_a.flows.wrapping import wrap
from fog_a.ranks import Group, from_bytes, inside_ddp, to_bytes, world
from fog_a.scores.selection import Selection


class AGREPA(Progress):
    """The alignment term of a training loss: `loss = flow.loss(batch) + reg(batch)`.

    Its parameters and its state dict are the heads and its own bookkeeping; neither the model nor the teachers are
    submodules. Before the choice, with weight 0 and in eval mode it gives 0 and touches nothing: not a gradient of the
    model, not a random number.

    Args:
        flow: a wrapped model (`fog_a.wrap`), or a model that `wrap` knows.
        teachers: domain → Teacher, or one teacher for all samples. An int is the width of features that you
            pass at each call; None leaves a domain out.
        selection: the layers: a Selection, layer names, or domain → layer names. None: the first `warmup` steps are
            probed, then it chooses by itself.
        batch: one batch of the training, on which blocks and widths are measured now. Without it the heads are built
            for the one width that the model's weights suggest, which the first call checks.
        blocks: names of the candidates; default: the main blocks.
        features: features(batch) → tensor or domain → tensor, asked at each call instead of the teachers.
        group: the process group that shares the joint batch; default: all ranks.
        probe: measures a few samples in the warm-up; default: Eq. 9 of every block. See `fog_a.aligning.warmup`.
        local: True, or names of layers: there the term trains the layer's own parameters alone, not those before it.
        **options: the fields of `fog_a.aligning.recipe.Recipe`.

    Raises:
        Unsupported: an option or combination that is refused. ShapeMismatch: widths that do not fit.
        BadFeatures, BadBatch: teachers' features, flow times or domains that do not fit.
        NoActivations: no forward before reg(batch), or one without a graph.
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
        local: Local = False,
        **options: Unpack[RecipeOptions],
    ) -> None:
        of_run, flow = recipe(**options), wrap(flow)
        targets = Targets(flow, teachers, features)
        super().__init__()
        self.recipe, self._last = of_run, {}
        self.flow, self.domains, self._targets, self._group = flow, targets.domains, targets, group
        self._attached: list[Attached] = []  # in a list: no submodule
        self._warmup = Warmup(flow, of_run, self.domains, blocks, group, probe)
        self._course = Course(of_run, Selection.of(selection, self.domains, of_run.total))
        weakref.finalize(self, self._course.say_if_idle)  # when it is dropped, or when the program ends
        layers = targets.layers(self.selection)
        candidates = None if batch is None else self._warmup.blocks(batch)
        widths, dims = head_sizes(targets, of_run.k, layers, batch, candidates)
        self.slots = Slots(widths, dims, of_run.head, of_run.seed, of_run.center, layers)
        by_time = of_run.time_weight is not None or any(isinstance(m, TimeHeads) for m in self.slots.modules())
        self._listening = Listening(flow, by_time or targets.needs_times, local)
        if self.selection is not None:
            self.slots.bind(self.selection, self.domains)
            self._listening.check(self.selection.layers)
        self._tried = candidates is not None
        """Whether blocks and widths are known to fit."""
        if candidates is not None:
            targets.step(batch, targets.samples(batch))
            if self.selection is not None:
                self._listen(candidates)

    def attach(self, model: nn.Module, batch: Callable[..., Any] | None = None) -> None:
        """Add the term in the model's own forward, for a trainer that you cannot edit.

        Attach before the trainer makes its optimizer: the heads become parameters of the model, and its state dict
        holds `reg.state_dict()` under `ag_repa.state`.

        Args:
            model: its forward gives the loss: a scalar, an output with a `loss`, or a tuple that begins with it.
            batch: what the flow reads, of the model's arguments: batch(*args, **kwargs). Default: `flow.batch_of`.

        Raises Unsupported when attached already.
        """
        if any(attached.live for attached in self._attached):
            raise Unsupported("this AGREPA is attached to a model already. Type reg.detach() first")
        self._attached = [Attached(self, unwrapped(model), batch or self.flow.batch_of)]

    def detach(self) -> None:
        """The reverse of `attach`: nothing stays on the model."""
        for attached in self._attached:
            attached.detach()

    def open(self) -> None:
        """Listen again after `close`; it does not attach again."""
        self._listening.open()

    def close(self) -> None:
        """Take all hooks off the model, and detach."""
        self._listening.close()
        self.detach()
        self._course.say_if_idle()

    def forward(self, batch: Any, *, features: Any = None, t: Tensor | None = None) -> Float[Tensor, ""]:
        """The alignment term for the batch of the last forward with grad; eval mode and no_grad do not count.

        Args:
            batch: what that forward was given.
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
        samples, state = self._targets.samples(batch), self.state
        if state == "aligning":
            with torch.autocast(term.device.type, enabled=False):
                term = self._align(batch, samples, features, t)
        elif state != "over":
            self._try_out(batch, samples, features, t)
        self._listening.clear()
        self._course.calls += 1
        if self._choose(batch, samples) or state == "finding":
            self._listen(self._warmup.blocks(batch))
        return term

    def reduce(self, sums: Mapping[str, Tensor], sizes: Mapping[str, Tensor], count: Tensor) -> Tensor:
        """Eq. 12 from its sums: each domain's mean, domains added.

        Args:
            sums: domain → Σ over this rank's samples and the domain's layers of λ_k (1 − cos).
            sizes, count: how many samples of each domain, and in all, the joint batch has.
        """
        return torch.stack([sums[domain] / sizes[domain] for domain in sums]).sum()

    def _try_out(self, batch: Any, samples: Samples, features: Any, t: Tensor | None) -> None:
        """Try out on this batch what alignment will need: blocks and widths once, each domain's target once."""
        if not self._tried:
            if self.selection is None:
                self._warmup.refuse_sharded()
            blocks, layers = self._warmup.blocks(batch), self._targets.layers(self.selection)
            self._listening.check(blocks.names)
            self.slots.check(*head_sizes(self._targets, self.recipe.k, layers, batch, blocks))
            self._tried = True
        self._targets.try_out(self._targets.step(batch, samples, features), self.slots.gives_tokens)
        self._listening.times(t, len(samples))

    def _align(self, batch: Any, samples: Samples, features: Any, t: Tensor | None) -> Tensor:
        """This rank's part of Eq. 12, scaled so that the mean over ranks is the joint mean."""
        assert self.selection is not None
        heard = self._listening.read(samples), self._listening.times(t, len(samples))
        step = self._targets.step(batch, samples, features, self._listening.blocks, *heard, self._course.calls)
        far = distances(step, self.slots, self._targets, self.selection, self.recipe.time_weight, self._group)
        sizes, count = far.joint_sizes(self.domains, len(samples), self._group)
        scale = self.weight * world(self._group)
        loss = far.zero + scale * self.reduce(far.sums, sizes, count) if far.sums else far.zero
        self._last = {f"ag_repa/{name}": mean for name, mean in far.cosines.items()}
        self._last["ag_repa/loss"] = loss.detach()
        if self.recipe.schedule.kind == "saturated":  # for that one alone: reading the mean waits for the device
            self._course.plateau.update(far.similarity(sizes, self.slots.bound, self._group))
        self._course.aligned += 1
        self.slots.watch(self.recipe.accumulation)
        return loss

    def _choose(self, batch: Any, samples: Samples) -> bool:
        """After a whole optimizer step, probe; whether it was time to choose layers."""
        self._warmup.seen.update(samples.domains)
        if self._course.calls % self.recipe.accumulation or (self.selection is not None and not self.recipe.refresh):
            return False
        chosen = self._warmup.advance(self.step, batch, samples, first=self.selection is None)
        if chosen is not None:
            self.slots.bind(chosen, self.domains, measured_widths(self.flow, batch, self._warmup.blocks(batch)))
            self._course.selection = chosen
        return chosen is not None

    def _listen(self, blocks: Blocks) -> None:
        """Hook the chosen layers, and what SelfTeachers read, from the next forward on. Raises BadScores."""
        assert self.selection is not None
        self.selection.check(signature(blocks.model, blocks))
        self._targets.block_of = self._targets.blocks_read(blocks)
        names = {*self.selection.layers, *self._targets.block_of.values()}
        self._listening.open(blocks.named([name for name in blocks.names if name in names]))

    def get_extra_state(self) -> Tensor:
        """All but the heads, as JSON in bytes: a tensor, so that safetensors and weights-only loading take it."""
        state = {
            "course": self._course.state(),
            "bound": self.slots.bound,
            "block of teacher": self._targets.block_of,
            "blocks": self._listening.state(),
            "warmup": self._warmup.state(),
        }
        return to_bytes(state)

    def set_extra_state(self, state: Tensor) -> None:
        """The reverse: goes on where it was, also in the middle of the warm-up."""
        saved = from_bytes(state)
        self._course.check(saved["course"])
        self._listening.restore(saved["blocks"])  # refuses another model before anything is taken over
        self._course.restore(saved["course"])
        self.slots.bound, self._targets.block_of = saved["bound"], saved["block of teacher"]
        self._warmup.restore(saved["warmup"])
