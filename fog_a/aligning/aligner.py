"""Eq. 12 before its mean: how far each domain's layers are from what their teacher says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.aligning.listening import Listening
from fog_a.aligning.schedules import TimeWeight
from fog_a.aligning.slots import Slots
from fog_a.aligning.targets import Targets, TokensOfLayer, cosines, shuffled, taught
from fog_a.aligning.width import measured_widths, self_blocks, slot_widths
from fog_a.blocks.block import Blocks
from fog_a.blocks.untouched import rng
from fog_a.flows.batches import signature
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a.flows.twin import twin
from fog_a.ranks import Group, total
from fog_a.scores.selection import Selection
from fog_a.teachers.self_teacher import SelfTeacher


def averages(teachers: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Domain → the average of the model's weights that its SelfTeacher reads; such a domain needs flow times."""
    readers = {domain: teacher for domain, teacher in teachers.items() if isinstance(teacher, SelfTeacher)}
    return {domain: teacher.ema for domain, teacher in readers.items() if teacher.ema is not None}


@dataclass
class Distances:
    """What one rank's samples give.

    Attributes:
        zero: tied to every head, so that a rank without samples takes part in the backward pass.
        rows: domain → its rows in the batch.
        sums: domain → Σ over samples and layers of λ_k (1 − cos), weighted by time.
        cosines: "domain/layer" → its mean cosine.
        shuffled: "domain/layer" → its mean cosine with other samples' targets.
    """

    zero: Tensor
    rows: Mapping[str, Sequence[int]]
    sums: dict[str, Tensor] = field(default_factory=dict)
    cosines: dict[str, Tensor] = field(default_factory=dict)
    shuffled: dict[str, Tensor] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, Tensor]:
        """Both mean cosines of each layer, by "domain/layer" and "domain/layer/shuffled"."""
        return self.cosines | {f"{name}/shuffled": mean for name, mean in self.shuffled.items()}

    def joint_sizes(self, domains: Sequence[str], count: int, group: Group) -> tuple[dict[str, Tensor], Tensor]:
        """How many samples of each domain the joint batch has, and how many in all."""
        here = [float(len(self.rows.get(domain, ()))) for domain in domains]
        *sizes, everyone = total(torch.tensor([*here, float(count)], device=self.zero.device), group)
        return dict(zip(domains, sizes, strict=True)), everyone

    def similarity(self, sizes: Mapping[str, Tensor], layers: Mapping[str, Sequence[str]], group: Group) -> float:
        """The mean cosine over the samples and layers of the joint batch; NaN where there are none."""
        parts = [len(self.rows[name.rsplit("/", 1)[0]]) * mean for name, mean in self.cosines.items()]
        pairs = sum(float(size) * sum(map(bool, layers[domain])) for domain, size in sizes.items())
        summed = total(torch.stack(parts).sum() if parts else self.zero.detach(), group)
        return float(summed) / pairs if pairs else float("nan")


class Aligner:
    """What is aligned with what: the layers that are listened to, the heads, and the teachers.

    Args:
        flow: what is trained.
        teachers: domain → Teacher, a width, or None.
        slots: the heads.
        listening: the tap on the layers.
        features: features(batch), asked instead of the teachers.
        time_weight: how a sample's distance is weighted by its flow time.
        group: the process group that shares the joint batch.
    """

    def __init__(
        self,
        flow: Flow,
        teachers: Mapping[str, Any],
        slots: Slots,
        listening: Listening,
        *,
        features: Any = None,
        time_weight: TimeWeight | None = None,
        group: Group = None,
    ) -> None:
        self.flow, self.teachers, self.slots, self.listening = flow, teachers, slots, listening
        self.features, self.time_weight, self.group = features, time_weight, group
        self.block_of_teacher: dict[str, str] = {}
        """Domain → the block that its SelfTeacher reads."""
        self._twins = {domain: twin(flow, copied) for domain, copied in averages(teachers).items()}
        self._tried: set[str] = set()

    def check_blocks(self, batch: Any, blocks: Blocks, k: int) -> None:
        """That there are k layers to choose among these blocks, heads that fit them, and the local ones."""
        self.listening.check(blocks.names)
        self.slots.check(slot_widths(measured_widths(self.flow, batch, blocks), k, None)[0])

    def listen(self, blocks: Blocks, selection: Selection) -> None:
        """Hook the selected layers, and what SelfTeachers read, from the next forward on.

        Raises BadScores for a selection made for another model.
        """
        selection.check(signature(blocks.model, blocks))
        self.block_of_teacher = self_blocks(self.teachers, blocks)
        names = [*selection.layers, *self.block_of_teacher.values()]
        self.listening.open(blocks.named([name for name in blocks.names if name in names]))

    def try_out(self, batch: Any, samples: Samples, features: Any, t: Tensor | None) -> None:
        """Ask for everything that alignment will need, once for each domain, thousands of steps before it."""
        new = taught(self.teachers, samples).keys() - self._tried
        if new:
            frames = {domain for domain in new if self.slots.gives_tokens(domain)}
            Targets(self.teachers, samples, self._features_of(batch, features)).try_out(new, frames)
            self.listening.times(t, len(samples))
            self._tried |= new

    def distances(
        self,
        batch: Any,
        samples: Samples,
        selection: Selection,
        *,
        features: Any = None,
        t: Tensor | None = None,
        seed: int = 0,
    ) -> Distances:
        """The distances of this rank's samples, from what the last forward left; `seed`: of a SelfTeacher's noise."""
        layers = self.listening.read(samples)
        times = self.listening.times(t, len(samples))
        of_teachers = self._of_itself(layers, samples, times, seed)
        targets = Targets(self.teachers, samples, self._features_of(batch, features), of_teachers)
        zero, weights = self.slots.synchronized(self.group)
        out = Distances(zero, taught(self.teachers, samples))
        outputs = {d: list(self.slots.outputs(d, rows, layers, times, weights)) for d, rows in out.rows.items()}
        tokens = {domain for domain, heads in outputs.items() if any(y.ndim == 3 for _, y, _ in heads)}
        goals = {domain: targets.of(domain, rows, frames=domain in tokens) for domain, rows in out.rows.items()}
        if self.slots.center is not None:
            goals = self.slots.center(goals, self.group)
        for domain, rows in out.rows.items():
            for layer, y, mask in outputs[domain]:
                cosine = cosines(y, goals[domain], mask)
                distance = 1 - cosine
                if self.time_weight is not None and times is not None:
                    distance = distance * self.time_weight(times[rows])
                out.sums[domain] = out.sums.get(domain, zero) + selection.weights(domain)[layer] * distance.sum()
                out.cosines[f"{domain}/{layer}"] = cosine.detach().mean()
                if len(rows) > 1:
                    others = cosines(y.detach(), shuffled(goals[domain]), mask)
                    out.shuffled[f"{domain}/{layer}"] = others.mean()
        return out

    def _of_itself(
        self, layers: Mapping[str, TokensOfLayer], samples: Samples, t: Tensor | None, seed: int
    ) -> dict[str, TokensOfLayer]:
        """Domain → the tokens of the block that its SelfTeacher reads, in the model or in its average."""
        tokens = {domain: layers[name] for domain, name in self.block_of_teacher.items()}
        averaged: dict[int, TokensOfLayer] = {}
        for domain, flow in self._twins.items():
            teacher, block = self.teachers[domain], self.block_of_teacher[domain]
            if id(teacher) not in averaged:
                assert self.listening.blocks is not None and t is not None
                averaged[id(teacher)] = teacher.tokens(flow, self.listening.blocks[block], samples, t, seed)
            tokens[domain] = averaged[id(teacher)]
        return tokens

    def _features_of(self, batch: Any, features: Any) -> Any:
        """Features in the teachers' place, or None."""
        if features is not None or self.features is None:
            return features
        with rng():
            return self.features(batch)
