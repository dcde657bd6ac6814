"""One frozen head, through which every layer of a net is looked at: P_m of Eq. 6."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.blocks.untouched import with_data
from fog_a.errors import BadBatch, ShapeMismatch, Unsupported
from fog_a.probing.bitc import BiTC
from fog_a.probing.halves import Described, Halves
from fog_a.probing.ridge import fit_ridge
from fog_a.probing.similarity import cosine

Head = BiTC | nn.Module | Tensor | Mapping[str, nn.Module | Tensor] | None
"""BiT-C's heads; one linear head (a module, or a matrix (D, E)) for all domains, or one for each; None: fit one."""


@dataclass(frozen=True)
class Lens:
    """A head and what it is asked about.

    Attributes:
        halves: the samples.
        head: P, frozen, on the CPU: (…, D) → (…, E).
        center: whether the reference's mean projection and mean feature are taken away.
        info: the head's kind, and how it was fitted.
    """

    halves: Halves
    head: Callable[[Tensor], Tensor]
    center: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_interface(self) -> bool:
        """Whether the interface goes through the same head."""
        scored = self.halves.scored
        return scored.interface is not None and scored.interface.shape[-1] == scored.z.shape[-1]

    def look(self, number: int | None) -> tuple[Float[Tensor, "n J E"], Float[Tensor, "n E"]]:
        """P(z) of one layer (None: the interface) and T, of the scored samples."""
        p, y = self._projected(self.halves.scored, number), self.halves.scored.y
        return p, y - self.halves.reference.y.mean(0) if self.center else y

    def cosines(self) -> Float[Tensor, "n J L"]:
        """Eq. 6 before its mean."""
        layers = range(self.halves.scored.z.shape[2])
        return torch.stack([cosine(p, y[:, None]) for p, y in map(self.look, layers)], -1)

    @torch.no_grad()
    def _projected(self, samples: Described, number: int | None) -> Float[Tensor, "n J E"]:
        p = self.head(samples.layer(number))
        return p - self.head(self.halves.reference.layer(number)).mean(0) if self.center else p


def lens(halves: Halves, head: Head, *, center: bool = False) -> Lens:
    """The lens of the head that was passed, or of a fitted head.

    Raises ShapeMismatch for a head of another width, Unsupported for a domain without one, BadBatch below 4 samples.
    """
    width, dim = halves.whole.z.shape[-1], halves.whole.y.shape[-1]
    if head is None:
        return fitted_lens(halves, center=center)
    if isinstance(head, BiTC):
        head.check(width)
        head = head.head(halves.key).weight.T
    elif isinstance(head, Mapping):
        if halves.key not in head:
            raise Unsupported(f"head= has none for {halves.key!r}, only for {', '.join(head)}; a single one is for all")
        head = head[halves.key]
    if isinstance(head, nn.Module):
        module = copy.deepcopy(head).float().cpu().eval().requires_grad_(False)
        with torch.no_grad():
            fits = _width_of_output(module, width) == dim
        kind, project = "module", module
    else:
        matrix = head.detach().float().cpu()
        fits = matrix.shape == (width, dim)
        kind, project = "matrix", lambda z: z @ matrix
    if not fits:
        raise ShapeMismatch(
            f"a head for {halves.key!r} reads layers {width} wide and gives the teacher's {dim}: this does not"
        )
    return Lens(halves, project, center, {"kind": kind})


def fitted_lens(halves: Halves, *, center: bool = False) -> Lens:
    """One ridge head of all layers and times, fitted on one half of the samples."""
    seen = halves.fit
    if seen is None:
        raise BadBatch(
            f"a ridge head is fitted on one half of the samples, the other half is scored: {halves.key!r} has "
            f"{len(halves.whole.clip.unique())} different ones, at least 4 are needed (64 for a steady head). Give "
            "more batches, other samples for the fit (fit=batches), or a head that exists (head=bitc)"
        )
    _, times, layers, _ = seen.z.shape
    copies = times * layers
    z, y = seen.z.flatten(0, 2), seen.y.repeat_interleave(copies, 0)
    if center:
        z, y = z - z.mean(0), y - y.mean(0)
    ridge = fit_ridge(z, y, seen.clip.repeat_interleave(copies))
    info = {"kind": "ridge", "samples": ridge.samples, "penalty": ridge.penalty, "explained": ridge.explained}
    return Lens(halves, ridge, center, info)


def _width_of_output(module: nn.Module, width: int) -> int | None:
    try:
        with with_data():
            return module(torch.zeros(1, width)).shape[-1]
    except RuntimeError:  # a matrix product that does not fit
        return None
