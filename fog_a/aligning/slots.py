"""Slots: K heads per domain that exist before it is known which layers they serve.

Optimizers, OneCycle schedules, DDP and checkpoints want their parameters once and for all; so each domain has K heads
φ from the first step, and `bind` says which layer each of them serves. A layer that stays keeps its head.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.aligning.center import Center
from fog_a.aligning.heads import HeadFactory
from fog_a.aligning.targets import TokensOfLayer
from fog_a.blocks.untouched import rng, with_data
from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.ranks import Group, shared, world
from fog_a.scores.selection import Selection

Weights = Mapping[str, Tensor]
"""The heads' parameters by name."""

STILL = 20
"""Steps after which heads that have not moved are taken to be in no optimizer; a GradScaler may skip a few."""


class Slots(nn.Module):
    """The heads of all domains.

    Args:
        widths: per domain, the stream's width for each of its K slots.
        dims: per domain, the teacher's width.
        head: makes one head.
        center: whether the mean of a teacher's features over the training is taken away from them.
        seed: a head's first values follow from seed, domain and its layer alone (its slot, where the layer is not known
            yet); the caller's random numbers are left alone.
        layers: per domain, the layers that the slots will serve, where they are known.
    """

    def __init__(
        self,
        widths: Mapping[str, Sequence[int]],
        dims: Mapping[str, int],
        head: HeadFactory,
        seed: int,
        center: bool = False,
        layers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.widths = {domain: list(row) for domain, row in widths.items()}
        self.bound: dict[str, list[str]] = {}
        """Domain → the layer that each slot serves; "" for a slot that serves none."""
        self.heads = nn.ModuleDict(
            {
                _key(domain): nn.ModuleList(
                    _made(head, width, dims[domain], f"{seed}/{domain}/{layers[domain][slot] if layers else slot}")
                    for slot, width in enumerate(row)
                )
                for domain, row in widths.items()
            }
        )
        self.center = Center({domain: dims[domain] for domain in widths}) if center else None
        self._calls, self._start = 0, torch.empty(0, device="cpu")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """torch's own loading, after a word on another k: its message would name tensors."""
        for domain, row in self.widths.items():
            start = f"{prefix}heads.{_key(domain)}."
            saved = {key.removeprefix(start).split(".")[0] for key in state_dict if key.startswith(start)}
            if saved and len(saved) != len(row):
                raise ShapeMismatch(
                    f"expected a state of {len(row)} slots for {domain!r}, got one of {len(saved)}. "
                    f"Build it as it was saved: AGREPA(..., k={len(saved)})"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def bind(self, selection: Selection, domains: Sequence[str]) -> None:
        """Give each chosen layer a slot. Raises ShapeMismatch where a domain has more layers than slots."""
        for domain in domains:
            names = list(selection.weights(domain))
            count = len(self.widths[domain])
            if len(names) > count:
                raise ShapeMismatch(
                    f"{len(names)} layers were selected for {domain!r}, but there are {count} slots: k={len(names)}"
                )
            slots = [name if name in names else "" for name in self.bound.get(domain, [])]
            slots += [""] * (len(names) - len(slots))
            fresh = iter([name for name in names if name not in slots])
            self.bound[domain] = [name or next(fresh, "") for name in slots]

    def check(self, width: int) -> None:
        """Raises ShapeMismatch where the streams are not as wide as the heads were built for."""
        for row in self.widths.values():
            for built in row:
                _check_width(width, built)

    def watch(self, accumulation: int) -> None:
        """Warn where the heads are still what they were at the first call: no optimizer has them."""
        self._calls += 1
        if self._calls not in (1, STILL * accumulation):
            return
        heads = [head for row in self.heads.values() for head in row.children()]
        last = [list(head.parameters())[-1:] for head in heads]  # the last map's bias: it has a gradient at each step
        trained = [p.detach() for row in last for p in row if p.requires_grad and type(p.detach()) is Tensor]
        now = torch.cat([self._start[:0], *(p.flatten().cpu() for p in trained)])
        if self._calls == 1:
            self._start = now
        elif len(now) and torch.equal(now, self._start):
            warnings.warn(
                "the heads of AGREPA have not changed since alignment began: they are in no optimizer. Type "
                "AdamW([*model.parameters(), *reg.parameters()])",
                stacklevel=4,
            )

    def gives_tokens(self, domain: str) -> bool:
        """Whether a head of this domain says (by `pool=False`) that it keeps the tokens apart."""
        return any(getattr(m, "pool", True) is False for m in self.heads[_key(domain)].modules())

    def synchronized(self, group: Group = None) -> tuple[Tensor, Weights]:
        """A zero to start the loss from, and the heads' weights; on many ranks their gradients come out in sync."""
        weights: dict[str, Tensor] = dict(self.named_parameters())
        if world(group) == 1:
            return next(iter(weights.values())).new_zeros(()), weights
        zero, same = shared(list(weights.values()), group)
        return zero, dict(zip(weights, same, strict=True))

    def outputs(
        self, domain: str, rows: Sequence[int], layers: Mapping[str, TokensOfLayer], t: Tensor | None, weights: Weights
    ) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Layer by layer: its name, what its head gives of these rows of the batch, and their mask."""
        for slot, layer in enumerate(self.bound[domain]):
            if not layer:
                continue
            h, mask = layers[layer]
            if len(rows) < len(h):
                h, mask = h[rows], None if mask is None else mask[rows]
            _check_width(h.shape[-1], self.widths[domain][slot])
            times = t[rows] if t is not None else None
            yield layer, self._run(domain, slot, (h, mask, times), weights), mask

    def _run(self, domain: str, slot: int, arguments: tuple[Tensor | None, ...], weights: Weights) -> Tensor:
        prefix = f"heads.{_key(domain)}.{slot}."
        head = self.get_submodule(prefix.rstrip("."))
        weights_of_head = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        return torch.func.functional_call(head, weights_of_head, arguments)


def _made(factory: HeadFactory, width: int, dim: int, name: str) -> nn.Module:
    with rng(random.Random(name).getrandbits(62)), with_data():
        head = factory(width, dim)
    if not isinstance(head, nn.Module):
        raise Unsupported(
            f"head= must be a factory (width, dim) -> nn.Module, and it gave {type(head).__name__}. Type "
            "head=fog_a.aligning.heads.mlp"
        )
    return head


def _check_width(width: int, built: int) -> None:
    if width != built:
        raise ShapeMismatch(
            f"the layers are {width} wide, but the heads were built for {built}: type "
            "AGREPA(..., batch=one_training_batch)"
        )


def _key(domain: str) -> str:
    """A domain as a part of a state dict's names."""
    return domain.replace(".", "_")
