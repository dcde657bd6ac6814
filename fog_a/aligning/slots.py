"""Slots: K heads per domain that exist before it is known which layers they serve.

Optimizers, OneCycle schedules, DDP and checkpoints want their parameters once and for all; so each domain has K heads
φ of each width from the first step, and `bind` says which layer each of them serves. A layer that stays keeps its head.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fog_a.aligning.heads import HeadFactory
from fog_a.aligning.targets import Target, TokensOfLayer
from fog_a.blocks.untouched import rng, with_data
from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.ranks import Group, shared, total, world
from fog_a.scores.selection import Selection
from fog_a.teachers.teacher import state_name

Outputs = Mapping[str, tuple[Tensor, Tensor | None]]
"""Layer → what its head gives of a domain's samples, and the mask of their tokens."""

STILL = 20
"""Steps after which heads that have not moved are taken to be in no optimizer; a GradScaler may skip a few."""


class Slots(nn.Module):
    """The heads of all domains.

    Args:
        widths: per domain, the stream's width for each of its slots.
        dims: per domain, the teacher's width.
        seed: with the domain and the layer (the slot, where the layer is not known yet) it gives a head's first values.
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
        self.widths, self.dims = {domain: list(row) for domain, row in widths.items()}, dict(dims)
        self.bound: dict[str, list[str]] = {}
        """Domain → the layer that each slot serves; "" for a slot that serves none."""
        self.heads = nn.ModuleDict(
            {
                state_name(domain): nn.ModuleList(
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
            start = f"{prefix}heads.{state_name(domain)}."
            saved = {key.removeprefix(start).split(".")[0] for key in state_dict if key.startswith(start)}
            if saved and len(saved) != len(row):
                raise ShapeMismatch(
                    f"expected a state of {len(row)} slots for {domain!r}, got one of {len(saved)}. "
                    f"Build it as it was saved: AGREPA(..., k={len(saved) // len({*row})}), with batch= or without"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def bind(self, selection: Selection, domains: Sequence[str], width_of: Mapping[str, int] | None = None) -> None:
        """Give each chosen layer a slot of its width; None: the slots were made for these layers, in this order.

        Raises ShapeMismatch where a domain has more layers than slots.
        """
        for domain in domains:
            names, row = list(selection.weights(domain)), self.widths[domain]
            slots = [name if name in names else "" for name in self.bound.get(domain, [""] * len(row))]
            for name in [name for name in names if name not in slots]:
                free = [i for i, at in enumerate(slots) if not at and (width_of is None or row[i] == width_of[name])]
                if not free:
                    raise ShapeMismatch(
                        f"{len(names)} layers were selected for {domain!r}, and none of its {len(row)} heads is left "
                        f"for {name!r}: type k={len(names)}, with batch= if the streams have several widths"
                    )
                slots[free[0]] = name
            self.bound[domain] = slots

    def check(self, widths: Mapping[str, Sequence[int]], dims: Mapping[str, int]) -> None:
        """Raises ShapeMismatch where measured streams or teachers are not as wide as the heads were built for."""
        for domain, row in self.widths.items():
            _check_width("the layers are", widths[domain], row)
            _check_width("the block of a SelfTeacher is", [dims[domain]], [self.dims[domain]])

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
        return any(getattr(m, "pool", True) is False for m in self.heads[state_name(domain)].modules())

    def outputs(
        self,
        rows: Mapping[str, Sequence[int]],
        layers: Mapping[str, TokensOfLayer],
        t: Tensor | None,
        group: Group = None,
    ) -> tuple[Tensor, dict[str, Outputs]]:
        """A zero to start the loss from, and what each domain's heads give of its rows."""
        weights: dict[str, Tensor] = dict(self.named_parameters())
        if world(group) == 1:
            zero = next(iter(weights.values())).new_zeros(())
        else:
            zero, same = shared(list(weights.values()), group)
            weights = dict(zip(weights, same, strict=True))
        return zero, {domain: self._outputs(domain, rows[domain], layers, t, weights) for domain in rows}

    def _outputs(
        self,
        domain: str,
        rows: Sequence[int],
        layers: Mapping[str, TokensOfLayer],
        t: Tensor | None,
        weights: Mapping[str, Tensor],
    ) -> Outputs:
        outputs = {}
        for slot, layer in enumerate(self.bound[domain]):
            if not layer:
                continue
            h, mask = layers[layer]
            if len(rows) < len(h):
                h, mask = h[rows], None if mask is None else mask[rows]
            _check_width("the layers are", [h.shape[-1]], [self.widths[domain][slot]])
            prefix = f"heads.{state_name(domain)}.{slot}."
            of_head = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            head, times = self.get_submodule(prefix.rstrip(".")), None if t is None else t[rows]
            outputs[layer] = torch.func.functional_call(head, of_head, (h, mask, times)), mask
        return outputs


def _made(factory: HeadFactory, width: int, dim: int, name: str) -> nn.Module:
    with rng(random.Random(name).getrandbits(62)), with_data():
        head = factory(width, dim)
    if not isinstance(head, nn.Module):
        raise Unsupported(
            f"head= must be a factory (width, dim) -> nn.Module, and it gave {type(head).__name__}. Type "
            "head=fog_a.aligning.heads.mlp"
        )
    return head


def _check_width(what: str, widths: Sequence[int], built: Sequence[int]) -> None:
    if list(widths) != list(built):
        got, expected = (" and ".join(str(n) for n in sorted({*row})) for row in (widths, built))
        raise ShapeMismatch(
            f"{what} {got} wide, but the heads were built for {expected}: type AGREPA(..., batch=one_training_batch)"
        )


class Center(nn.Module):
    """The mean m of each domain's targets so far, taken away from them: T(x) − m; the same on all ranks, and saved.

    A teacher's features share a large common direction: on speech, one constant vector reaches 1 − cos of about .08.
    Without that direction, the term can only fall by what tells samples apart.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.dims = dict(dims)
        with with_data():
            self.register_buffer("sums", torch.zeros(sum(self.dims.values()), dtype=torch.float64))
            self.register_buffer("counts", torch.zeros(len(self.dims), dtype=torch.float64))
        self.sums: Tensor
        self.counts: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moved with the heads, and still exact where they become bfloat16."""
        device = fn(self.sums.new_empty(0)).device
        self.sums, self.counts = self.sums.to(device), self.counts.to(device)
        return self

    def forward(self, targets: Mapping[str, Target], group: Group = None) -> dict[str, Target]:
        """The targets less the mean of their domain so far, this batch included."""
        new = [self._sum(targets.get(domain), dim) for domain, dim in self.dims.items()]
        sums = torch.cat([x for x, _ in new]).to(self.sums)
        counts = torch.tensor([n for _, n in new], dtype=torch.float64, device=self.counts.device)
        joint = total(torch.cat([sums, counts]), group)
        self.sums += joint[: len(sums)]
        self.counts += joint[len(sums) :]
        parts = dict(zip(self.dims, self.sums.split(list(self.dims.values())), strict=True))
        sizes = dict(zip(self.dims, self.counts, strict=True))
        means = {domain: parts[domain] / sizes[domain].clamp(min=1) for domain in targets}
        return {domain: _less(target, means[domain]) for domain, target in targets.items()}

    def _sum(self, target: Target | None, dim: int) -> tuple[Tensor, int]:
        """Σ over samples, each sample's frames averaged, and how many samples."""
        if target is None:
            return self.sums.new_zeros(dim), 0
        rows = target if isinstance(target, Tensor) else torch.stack([frames.mean(0) for frames in target])
        return rows.double().sum(0).to(self.sums.device), len(rows)


def _less(target: Target, mean: Tensor) -> Target:
    if isinstance(target, Tensor):
        return target - mean.to(target)
    return [frames - mean.to(frames) for frames in target]
