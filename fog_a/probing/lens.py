"""One frozen head, through which every layer of a net is looked at: P_m of Eq. 6."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.errors import BadBatch, ShapeMismatch, Unsupported
from fog_a.probing.bitc import BiTC
from fog_a.probing.ridge import fit_ridge
from fog_a.probing.similarity import cosine
from fog_a.probing.teachings import Half, Teaching

Head = BiTC | nn.Module | Tensor | Mapping[str, nn.Module | Tensor] | None
"""BiT-C's heads; one linear head (a module, or a matrix (D, E)) for all domains, or one for each; None: fit one."""


@dataclass(frozen=True)
class Lens:
    """A head and what it is asked about.

    Attributes:
        teaching: the samples.
        head: P, frozen, on the CPU: (…, D) → (…, E).
        center: whether the reference's mean projection and mean feature are taken away.
        flip: whether P(z) is turned round where it points away from P(z^{(0)}).
        told: the head's kind, and how it was fitted.
    """

    teaching: Teaching
    head: Callable[[Tensor], Tensor]
    center: bool = False
    flip: bool = False
    told: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.flip and not self.reads_interface:
            raise Unsupported(
                "flip= turns P(z) round where it points away from P(z) of the interface, and there is no interface of "
                "the layers' width here. Leave it out: it is a quirk of the release, not of Eq. 6"
            )

    @property
    def reads_interface(self) -> bool:
        """Whether the interface goes through the same head."""
        half = self.teaching.scored
        return half.anchor is not None and half.anchor.shape[-1] == half.z.shape[-1]

    def look(self, number: int | None) -> tuple[Float[Tensor, "n J E"], Float[Tensor, "n E"]]:
        """P(z) of one layer (None: the interface) and T, of the scored samples."""
        half = self.teaching.scored
        p, y = self._projected(half, number), half.y
        if self.center:
            y = y - self.teaching.reference.y.mean(0)
        if self.flip and number is not None:
            anchor = self._projected(half, None)
            p = torch.where((p * anchor).sum(-1, keepdim=True) < 0, -p, p)
        return p, y

    def cosines(self) -> Float[Tensor, "n J L"]:
        """Eq. 6 before its mean."""
        layers = range(self.teaching.scored.z.shape[2])
        return torch.stack([cosine(p, y[:, None]) for p, y in map(self.look, layers)], -1)

    @torch.no_grad()
    def _projected(self, half: Half, number: int | None) -> Float[Tensor, "n J E"]:
        p = self.head(half.layer(number))
        return p - self.head(self.teaching.reference.layer(number)).mean(0) if self.center else p


def lens(teaching: Teaching, head: Head, *, center: bool = False, flip: bool = False) -> Lens:
    """The lens of a head that is given, or of one that is fitted.

    Raises ShapeMismatch for a head of another width, Unsupported for a domain without one, BadBatch below 4 samples.
    """
    width, dim = teaching.whole.z.shape[-1], teaching.whole.y.shape[-1]
    if head is None:
        return fitted(teaching, center=center, flip=flip)
    if isinstance(head, BiTC):
        head.check(width)
        head = head.head(teaching.key).weight.T
    elif isinstance(head, Mapping):
        if teaching.key not in head:
            raise Unsupported(
                f"head= has none for {teaching.key!r}, only for {', '.join(head)}; a single one is for all"
            )
        head = head[teaching.key]
    if isinstance(head, nn.Module):
        module = copy.deepcopy(head).float().cpu().eval().requires_grad_(False)
        with torch.no_grad():
            fits = _gives(module, width) == dim
        told, project = {"kind": "module"}, module
    else:
        matrix = head.detach().float().cpu()
        fits = matrix.shape == (width, dim)
        told, project = {"kind": "matrix"}, lambda z: z @ matrix
    if not fits:
        raise ShapeMismatch(
            f"a head for {teaching.key!r} reads layers {width} wide and gives the teacher's {dim}: this does not"
        )
    return Lens(teaching, project, center, flip, told)


def fitted(teaching: Teaching, *, center: bool = False, flip: bool = False) -> Lens:
    """One ridge head of all layers and times, fitted on one half of the samples."""
    half = teaching.fitted
    if half is None:
        raise BadBatch(
            f"a ridge head is fitted on one half of the samples, the other half is scored: {teaching.key!r} has "
            f"{len(teaching.whole.group.unique())} different ones, at least 4 are needed (64 for a steady head). Give "
            "more batches, other samples for the fit (fit=batches), or a head that exists (head=bitc)"
        )
    _, times, layers, _ = half.z.shape
    copies = times * layers
    z, y = half.z.flatten(0, 2), half.y.repeat_interleave(copies, 0)
    shift = (z.mean(0), y.mean(0)) if center else (torch.zeros(()), torch.zeros(()))
    ridge = fit_ridge(z - shift[0], y - shift[1], half.group.repeat_interleave(copies))
    told = {"kind": "ridge", "samples": ridge.samples, "penalty": ridge.penalty, "explained": ridge.explained}
    return Lens(teaching, ridge, center, flip, told)


def _gives(module: nn.Module, width: int) -> int | None:
    try:
        return module(torch.zeros(1, width)).shape[-1]
    except RuntimeError:  # a matrix product that does not fit
        return None
