"""Eq. 12 before its mean: how far each domain's layers are from what their teacher says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.aligning.schedules import TimeWeight
from fog_a.aligning.slots import Slots
from fog_a.aligning.targets import Step, Target, Targets
from fog_a.ranks import Group, total
from fog_a.scores.selection import Selection
from fog_a.teachers.descriptors import temporal_mean


@dataclass
class Distances:
    """What one rank's samples give.

    Attributes:
        zero: tied to every head, so that a rank without samples takes part in the backward pass.
        rows: domain → its rows in the batch.
        sums: domain → Σ over samples and layers of λ_k (1 − cos), weighted by time.
        cosines: "domain/layer" → its mean cosine; "domain/layer/shuffled": that with other samples' targets.
    """

    zero: Tensor
    rows: Mapping[str, Sequence[int]]
    sums: dict[str, Tensor] = field(default_factory=dict)
    cosines: dict[str, Tensor] = field(default_factory=dict)

    def joint_sizes(self, domains: Sequence[str], count: int, group: Group) -> tuple[dict[str, Tensor], Tensor]:
        """How many samples of each domain the joint batch has, and how many in all."""
        here = [float(len(self.rows.get(domain, ()))) for domain in domains]
        *sizes, everyone = total(torch.tensor([*here, float(count)], device=self.zero.device), group)
        return dict(zip(domains, sizes, strict=True)), everyone

    def similarity(self, sizes: Mapping[str, Tensor], layers: Mapping[str, Sequence[str]], group: Group) -> float:
        """The mean cosine over the samples and layers of the joint batch; NaN where there are none."""
        parts = [
            len(rows) * self.cosines[f"{domain}/{layer}"]
            for domain, rows in self.rows.items()
            for layer in filter(None, layers[domain])
        ]
        pairs = sum(float(size) * sum(map(bool, layers[domain])) for domain, size in sizes.items())
        summed = total(torch.stack(parts).sum() if parts else self.zero.detach(), group)
        return float(summed) / pairs if pairs else float("nan")


def distances(
    step: Step, slots: Slots, targets: Targets, selection: Selection, time_weight: TimeWeight | None, group: Group
) -> Distances:
    """The distances of this rank's samples, from what the last forward left."""
    zero, outputs = slots.outputs(step.rows, step.layers, step.t, group)
    far = Distances(zero, step.rows)
    frames = {domain: any(y.ndim == 3 for y, _ in of_layers.values()) for domain, of_layers in outputs.items()}
    goals = {domain: targets.of(step, domain, frames=frames[domain]) for domain in step.rows}
    if slots.center is not None:
        goals = slots.center(goals, group)
    for domain, rows in step.rows.items():
        goal, weights = goals[domain], selection.weights(domain)
        for layer, (y, mask) in outputs[domain].items():
            cosine = cosines(y, goal, mask)
            distance = 1 - cosine
            if time_weight is not None and step.t is not None:
                distance = distance * time_weight(step.t[rows])
            far.sums[domain] = far.sums.get(domain, zero) + weights[layer] * distance.sum()
            far.cosines[f"{domain}/{layer}"] = cosine.detach().mean()
            if len(rows) > 1:
                far.cosines[f"{domain}/{layer}/shuffled"] = cosines(y.detach(), shuffled(goal), mask).mean()
    return far


def cosines(y: Float[Tensor, "n *T E"], target: Target, mask: Bool[Tensor, "n T"] | None) -> Float[Tensor, "n"]:
    """cos(φ_k(h_k), T(x)) of each sample; of tokens, its mean over the real ones."""
    if isinstance(target, Tensor):
        return F.cosine_similarity(y, target.to(y.device, y.dtype), dim=-1)
    frames = at_tokens([x.to(y.device, y.dtype) for x in target], y.shape[1], mask)
    return temporal_mean(F.cosine_similarity(y, frames, dim=-1).unsqueeze(-1), mask).squeeze(-1)


def shuffled(target: Target) -> Target:
    """Each sample with the target of the sample before it."""
    return target.roll(1, 0) if isinstance(target, Tensor) else [*target[-1:], *target[:-1]]


def at_tokens(
    frames: Sequence[Float[Tensor, "S E"]], length: int, mask: Bool[Tensor, "n T"] | None
) -> Float[Tensor, "n T E"]:
    """Each sample's frames resampled to its real tokens; zeros where the layer has padding."""
    out = frames[0].new_zeros(len(frames), length, frames[0].shape[1])
    for i, x in enumerate(frames):
        count = length if mask is None else int(mask[i].sum())
        if count:
            out[i, slice(None) if mask is None else mask[i]] = resample(x.unsqueeze(0), count)[0]
    return out


def resample(features: Float[Tensor, "B S E"], length: int) -> Float[Tensor, "B length E"]:
    """A teacher's frames at another number of frames, linearly (edges aligned to the ends of the clip)."""
    if features.shape[1] == length:
        return features
    return F.interpolate(features.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(1, 2)
