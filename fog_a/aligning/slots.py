"""Slots: K heads per domain that exist before it is known which layers they serve.

Optimizers, OneCycle schedules, DDP and checkpoints want their parameters once and for all; so each domain has K heads
φ from the first step, and `bind` says which layer each of them serves. A layer that stays keeps its head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.aligning.heads import Head
from fog_a.aligning.recipe import Recipe
from fog_a.aligning.targets import Target, Tokens, aligned_frames
from fog_a.blocks.untouched import rng
from fog_a.errors import ShapeMismatch
from fog_a.ranks import Group, shared, world
from fog_a.scores.selection import Selection
from fog_a.teachers.descriptors import normalized, temporal_mean


class Slots(nn.Module):
    """The heads of all domains.

    Args:
        widths: per domain, the stream's width for each of its K slots.
        dims: per domain, the teacher's width.
        recipe: kind of head, bins of t, seed of the first values (which leave the caller's random numbers alone).
    """

    def __init__(self, widths: Mapping[str, Sequence[int]], dims: Mapping[str, int], recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.bound: dict[str, list[str]] = {}
        heads: dict[str, nn.ModuleList] = {}
        with rng(recipe.seed):
            for domain, row in widths.items():
                heads[_key(domain)] = nn.ModuleList(
                    Head(width, dims[domain], kind=recipe.head, hidden=recipe.hidden, grid=recipe.grid)
                    for width in row
                    for _ in range(recipe.time_bins)
                )
        self.heads = nn.ModuleDict(heads)
        self._calls, self._start = 0, torch.empty(0)

    def bind(self, selection: Selection, domains: Sequence[str]) -> None:
        """Give each chosen layer a slot. Raises ShapeMismatch where a domain has more layers than slots."""
        for domain in domains:
            names = list(selection.weights(domain))
            size = len(self._of(domain)) // self.recipe.time_bins
            if len(names) > size:
                raise ShapeMismatch(
                    f"{len(names)} layers were selected for {domain!r}, but there are {size} slots: k={len(names)}"
                )
            slots: list[str | None] = [n if n in names else None for n in self.bound.get(domain, [])]
            slots += [None] * (len(names) - len(slots))
            fresh = iter([n for n in names if n not in slots])
            self.bound[domain] = [n if n is not None else next(fresh, "") for n in slots]

    def check(self, width: int) -> None:
        """Raises ShapeMismatch where the streams are not as wide as the heads were built for."""
        for head in self.modules():
            if isinstance(head, Head):
                _fits(head, width)

    def watch(self, calls: int) -> None:
        """Warn where after so many calls the heads are still what they were at the first: no optimizer has them."""
        self._calls += 1
        if self._calls not in (1, calls):
            return
        biases = [h.outer.bias.detach() for h in self.modules() if isinstance(h, Head) and h.outer.bias.requires_grad]
        now = torch.cat([self._start[:0], *(b.cpu() for b in biases if type(b) is Tensor)])  # a sharded one: not asked
        if self._calls == 1:
            self._start = now
        elif len(now) and torch.equal(now, self._start):
            warnings.warn(
                "the heads of AGREPA have not changed since alignment began: they are in no optimizer. Type "
                "AdamW([*model.parameters(), *reg.parameters()])",
                stacklevel=4,
            )

    def weights(self, group: Group = None) -> tuple[Tensor, dict[str, Tensor]]:
        """A zero to start the loss from, and the heads' weights; on many ranks their gradients come out in sync."""
        named: dict[str, Tensor] = dict(self.named_parameters())
        if world(group) == 1:
            return next(iter(named.values())).new_zeros(()), named
        zero, same = shared(list(named.values()), group)
        return zero, dict(zip(named, same, strict=True))

    def loss(
        self,
        wanted: Mapping[str, Target],
        heard: Mapping[str, Tokens],
        shares: Mapping[str, Mapping[str, float]],
        scales: Mapping[str, Tensor],
        t: Tensor | None,
        group: Group = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 12's sum over this rank's samples, and each layer's mean cosine.

        Args:
            wanted: targets per domain.
            heard: tokens per layer.
            shares: λ_k per domain.
            scales: what a domain's sum over samples is multiplied with, 1/N_m.
            t: flow times (B,), where weights or heads go by them.
        """
        loss, weights = self.weights(group)
        seen: dict[str, Tensor] = {}
        for domain, target in wanted.items():
            for layer, cosine in self.cosines(domain, target, heard, t, weights):
                term = -cosine if self.recipe.loss == "negative_cosine" else 1 - cosine
                if self.recipe.time_weight is not None and t is not None:
                    term = term * self.recipe.time_weight(t[target.rows])
                loss = loss + term.sum() * (shares[domain][layer] * scales[domain])
                seen[f"{domain}/{layer}"] = cosine.detach().mean()
        return loss, seen

    def cosines(
        self, domain: str, target: Target, heard: Mapping[str, Tokens], t: Tensor | None, weights: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Float[Tensor, "n"]]]:
        """cos(φ_k(h̄_k), T(x)) of each of the domain's samples, layer by layer."""
        for slot, layer in enumerate(self.bound[domain]):
            if layer:
                h, mask = heard[layer]
                if len(target.rows) < len(h):
                    h, mask = h[target.rows], None if mask is None else mask[target.rows]
                yield layer, self._binned(domain, slot, (h, mask), target, t, weights)

    def _binned(
        self, domain: str, slot: int, heard: Tokens, target: Target, t: Tensor | None, weights: Mapping[str, Tensor]
    ) -> Float[Tensor, "n"]:
        """Each sample by the head of its part of [0, 1] in t; by the slot's only head where t plays no part."""
        bins = self.recipe.time_bins
        if bins == 1 or t is None:
            return self._compare(domain, slot * bins, heard, target.features, weights)
        (h, mask), features = heard, target.features
        which = (t[target.rows] * bins).long().clamp(0, bins - 1).tolist()
        parts: list[Tensor] = []
        order: list[int] = []
        for b in sorted(set(which)):
            at = [i for i, w in enumerate(which) if w == b]
            goal = features[at] if isinstance(features, Tensor) else [features[i] for i in at]
            part = (h[at], None if mask is None else mask[at])
            parts.append(self._compare(domain, slot * bins + b, part, goal, weights))
            order += at
        back = torch.tensor(order, device=h.device).argsort()
        return torch.cat(parts)[back]

    def _compare(
        self, domain: str, index: int, heard: Tokens, goal: Tensor | list[Tensor], weights: Mapping[str, Tensor]
    ) -> Float[Tensor, "n"]:
        """The cosines through one head, pooled or averaged over tokens as the target asks."""
        (h, mask), head = heard, self._of(domain)[index]
        assert isinstance(head, Head)
        _fits(head, h.shape[-1])
        prefix = f"heads.{_key(domain)}.{index}."
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}

        def project(x: Tensor) -> Tensor:
            return torch.func.functional_call(head, own, (x, mask if x.ndim == 3 else None))

        norm = self.recipe.descriptor
        if isinstance(goal, Tensor):
            if head.reads_tokens:
                y = temporal_mean(project(normalized(h.float(), norm)), mask)
            else:
                y = project(normalized(temporal_mean(h.float(), mask), norm))
            return F.cosine_similarity(y, goal.to(y.device, y.dtype), dim=-1)
        y = project(normalized(h.float(), norm))  # (n, T, E)
        frames = aligned_frames([x.to(y.device, y.dtype) for x in goal], y.shape[1], mask)
        return temporal_mean(F.cosine_similarity(y, frames, dim=-1).unsqueeze(-1), mask).squeeze(-1)

    def _of(self, domain: str) -> nn.ModuleList:
        heads = self.heads[_key(domain)]
        assert isinstance(heads, nn.ModuleList)
        return heads


def _fits(head: Head, width: int) -> None:
    if width != head.width:
        raise ShapeMismatch(
            f"the layers are {width} wide, but the heads were built for {head.width}: type "
            f"AGREPA(..., batch=one_training_batch) or width={width}"
        )


def _key(domain: str) -> str:
    """A domain as a part of a state dict's names."""
    return domain.replace(".", "_")
