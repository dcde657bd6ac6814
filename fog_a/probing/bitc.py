"""BiT-C: bidirectional teacher consistency of the conditioning interface.

    BiT-C_m^{(l)} = cos( P_m(z^{(l)}), T_m(x) ),     z = LayerNorm(temporal mean)                          Eq. 3, 4
    L_BiT = Σ_m λ_m E_{x∈D_m}[ 1 − BiT-C_m^{(0)} ]                                                         Eq. 5

m are the domains, T_m their frozen teachers, P_m one linear head each, without bias, orthogonal at the start;
superscript 0 is the conditioning (token) embedding. The gradient reaches that embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.untouched import preserved
from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.flows.frames import interface_mask
from fog_a.flows.wrapping import wrap
from fog_a.probing.similarity import cosine
from fog_a.ranks import Group, shared, total, world
from fog_a.teachers.descriptors import descriptor
from fog_a.teachers.teacher import Features, Teacher, Teachers, check_teachers, route, state_name

ALL = "all"
"""The key of the one head where one teacher serves every domain."""


class BiTC(nn.Module):
    """Anchors the conditioning interface to the teachers: `loss = flow.loss(batch) + bitc(batch)`.

    Args:
        flow: a wrapped model whose adapter has an `interface`.
        teachers: domain → Teacher, or one teacher for every domain. An int in a teacher's place is the width of
            the features that each call passes; None leaves a domain out.
        weight: λ_m, one for all or one per domain.
        batch: one batch, on which the interface's width is measured now; or `width`, if it is known.
        group: the process group that shares the joint batch; None: all ranks.

    Its parameters and its state dict are the heads; neither the model nor the teachers are submodules. A head without
    samples in a batch gets a zero gradient, not none: DDP goes on.

    Raises:
        Unsupported: the adapter gives no interface, or its width is not known.
        BadBatch, BadFeatures: domains or features that do not fit.

    Example:
        >>> bitc = fog_a.BiTC(flow, {"speech": whisper, "sound": beats}, batch=batch)  # doctest: +SKIP
        >>> optimizer = AdamW([*model.parameters(), *bitc.parameters()])               # doctest: +SKIP
        >>> scores = fog_a.lasp(flow, batches, head=bitc)  # the layers, same heads    # doctest: +SKIP
    """

    def __init__(
        self,
        flow: Any,
        teachers: Mapping[str, Teacher | int | None] | Teacher | int,
        *,
        weight: float | Mapping[str, float] = 1.0,
        batch: Any = None,
        width: int | None = None,
        group: Group = None,
    ) -> None:
        super().__init__()
        table: dict[str, Teacher | int | None] = dict(teachers) if isinstance(teachers, Mapping) else {ALL: teachers}
        check_teachers(table)
        self.teachers = table
        self.flow, self.group = wrap(flow), group
        scale = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(table, float(weight))
        if scale.keys() != table.keys():
            raise Unsupported(f"weight= names {', '.join(scale)}; the teachers are of {', '.join(table)}")
        self._scale = {state_name(d): float(w) for d, w in scale.items()}
        width = self._width(batch) if width is None else width
        dims = {d: t if isinstance(t, int) else t.dim for d, t in table.items() if t is not None}
        self.heads = nn.ModuleDict({state_name(d): nn.Linear(width, dim, bias=False) for d, dim in dims.items()})
        for head in self.heads.values():
            nn.init.orthogonal_(cast(nn.Linear, head).weight)

    @property
    def width(self) -> int:
        """D of the interface."""
        return cast(nn.Linear, next(iter(self.heads.values()))).in_features

    def head(self, domain: str) -> nn.Linear:
        """P_m. Raises Unsupported for a domain without one."""
        for name in (domain, ALL):
            if state_name(name) in self.heads:
                return cast(nn.Linear, self.heads[state_name(name)])
        raise Unsupported(f"BiTC has no head for domain {domain!r}; it has {', '.join(self.heads)}")

    def forward(
        self, batch: Any, *, features: Features | None = None, kept: Bool[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        """L_BiT of Eq. 5 on this batch.

        Args:
            batch: what the flow's `loss` takes.
            features: the teachers' features, instead of asking them.
            kept: False for samples whose condition was dropped: they do not count.
        """
        samples = self.flow.samples(batch)
        c = self._interface(batch)
        z = self.describe(c, interface_mask(samples.mask, c))
        if z.shape[-1] != self.width:
            raise ShapeMismatch(f"the interface is {z.shape[-1]} wide, BiTC's heads were built for {self.width}")
        weights = {name: cast(nn.Linear, head).weight for name, head in self.heads.items()}
        zero = torch.stack([0.0 * w.float().sum() for w in weights.values()]).sum()
        if world(self.group) > 1:
            zero, same = shared(list(weights.values()), self.group)
            weights = dict(zip(weights, same, strict=True))
        sums = dict.fromkeys(weights, z.new_zeros(()))
        sizes = dict.fromkeys(weights, 0)
        teachers = None if features is not None else self.asked()
        for domain, routed in route(teachers, samples, features=features).items():
            key = state_name(domain) if state_name(domain) in weights else ALL
            place = [i for i, row in enumerate(routed.rows) if kept is None or bool(kept[row])]
            rows = [routed.rows[i] for i in place]
            with torch.autocast(z.device.type, enabled=False):
                bitc = cosine(z[rows] @ weights[key].float().T, routed.features[place].to(z.device))
            sums[key] = sums[key] + self._scale[key] * (1 - bitc).sum()
            sizes[key] += len(rows)
        *joint, count = total(
            torch.tensor([*sizes.values(), len(samples)], device=z.device, dtype=torch.float32), self.group
        )
        return zero + world(self.group) * self.reduce(sums, dict(zip(weights, joint, strict=True)), count)

    def describe(self, h: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B D"]:
        """z of Eq. 3: one vector of a sample's tokens, what the heads read."""
        return descriptor(h, mask)

    def reduce(self, sums: Mapping[str, Tensor], sizes: Mapping[str, Tensor], count: Tensor) -> Tensor:
        """Eq. 5 from its sums: each domain's mean, domains added.

        Args:
            sums: domain → Σ over this rank's samples of λ_m (1 − cos).
            sizes, count: how many samples of each domain, and in all, the joint batch has.
        """
        return torch.stack([sums[domain] / sizes[domain].clamp(min=1) for domain in sums]).sum()

    def check(self, width: int) -> None:
        """Raises ShapeMismatch where the layers' width is not the interface's, for which the heads are made."""
        if width != self.width:
            raise ShapeMismatch(
                f"the layers are {width} wide, BiTC's heads were made for an interface of {self.width}: leave "
                "head=None, and one ridge head is fitted for all layers"
            )

    def asked(self) -> Teachers:
        """The teachers that were passed. Raises Unsupported where of some only the width is known."""
        numbers = [d for d, t in self.teachers.items() if isinstance(t, int)]
        if numbers:
            raise Unsupported(f"BiTC knows only the width of {', '.join(numbers)}, no teacher: pass features={{...}}")
        return cast(Teachers, self.teachers.get(ALL, self.teachers))

    def _interface(self, batch: Any) -> Float[Tensor, "B T D"]:
        c = self.flow.interface(batch)
        if c is None:
            raise Unsupported(
                f"{type(self.flow).__name__} has no conditioning interface, and BiT-C is a loss on it. Give "
                "one: fog_a.wrap(net, ..., interface=lambda net, batch: ...), or train without BiT-C"
            )
        return c

    def _width(self, batch: Any) -> int:
        if batch is None:
            raise Unsupported(
                "BiTC's heads need the interface's width now: BiTC(flow, teachers, batch=one_batch), or width="
            )
        with preserved(*self.flow.modules):
            return self._interface(batch).shape[-1]
