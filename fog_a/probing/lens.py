"""One frozen head, through which every layer of a net is looked at: P_m of Eq. 6.

Where none is passed, a head is fitted on one half of the samples, and the other half is scored. Halves are of different
clips (`Samples.groups`), never of different times or layers of one clip.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fog_a.blocks.untouched import with_data
from fog_a.errors import BadBatch, ShapeMismatch, Unsupported
from fog_a.probing.bitc import BiTC
from fog_a.probing.depth import Depth
from fog_a.probing.ridge import fit_copies
from fog_a.probing.similarity import cosine

Head = BiTC | nn.Module | Tensor | Mapping[str, nn.Module | Tensor] | None
"""BiT-C's heads; one linear head (a module, or a matrix (D, E)) for all domains, or one for each; None: fit one."""


@dataclass(frozen=True)
class Described:
    """Samples with the layers' descriptors z, the interface's or None, and the teacher's features y.

    Attributes:
        rows: where they stand in the `Depth`.
        clip: one number per group: the same for crops of the same clip.
    """

    rows: list[int]
    domains: tuple[str, ...]
    clip: Int[Tensor, "n"]
    z: Float[Tensor, "n J L D"]
    interface: Float[Tensor, "n A"] | None
    y: Float[Tensor, "n E"]

    def pick(self, which: Sequence[int]) -> Described:
        """Those at these places."""
        keep = list(which)
        interface = None if self.interface is None else self.interface[keep]
        rows, domains = [self.rows[i] for i in keep], tuple(self.domains[i] for i in keep)
        return Described(rows, domains, self.clip[keep], self.z[keep], interface, self.y[keep])

    def of(self, domain: str) -> list[int]:
        """The places of the samples of this domain."""
        return [i for i, d in enumerate(self.domains) if d == domain]

    def layer(self, number: int | None) -> Float[Tensor, "n J D"]:
        """The descriptors of one layer; None: of the interface, which has no time."""
        if number is not None:
            return self.z[:, :, number]
        assert self.interface is not None
        return self.interface[:, None]


@dataclass(frozen=True)
class Lens:
    """A head, and the samples that it is about: those of a domain, or all where they have one teacher.

    Attributes:
        key: the domain's name, or "all".
        whole: all samples.
        fit: the half to fit on; None where there are too few.
        unseen: the samples that no fit has seen.
        scored: those that are scored, the unseen ones or all.
        center: whether the mean projection and the mean feature of `reference` are taken away.
        head: P, frozen, on the CPU: (…, D) → (…, E).
        info: the head's kind, and how it was fitted.
    """

    key: str
    whole: Described
    fit: Described | None
    unseen: Described
    scored: Described
    center: bool = False
    head: Callable[[Tensor], Tensor] = lambda z: z
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> Described:
        return self.fit if self.fit is not None and self.scored is self.unseen else self.whole

    @property
    def domains(self) -> list[str]:
        """The domains of the scored samples, in order of first appearance."""
        return list(dict.fromkeys(self.scored.domains))

    @property
    def reads_interface(self) -> bool:
        """Whether the interface goes through the same head."""
        return self.scored.interface is not None and self.scored.interface.shape[-1] == self.scored.z.shape[-1]

    def look(self, number: int | None) -> tuple[Float[Tensor, "n J E"], Float[Tensor, "n E"]]:
        """P(z) of one layer (None: the interface) and T, of the scored samples."""
        with torch.no_grad():
            p, y = self.head(self.scored.layer(number)), self.scored.y
            if self.center:
                p, y = p - self.head(self.reference.layer(number)).mean(0), y - self.reference.y.mean(0)
        return p, y

    def cosines(self) -> Float[Tensor, "n J L"]:
        """Eq. 6 before its mean."""
        layers = range(self.scored.z.shape[2])
        return torch.stack([cosine(p, y[:, None]) for p, y in map(self.look, layers)], -1)


def lenses(depth: Depth, fit: Depth | None, head: Head, *, center: bool, seed: int) -> list[Lens]:
    """One for each teacher, through the head that was passed or a fitted one.

    `fit` holds the samples to fit on, None: half of `depth`'s own, drawn by `seed`. Raises ShapeMismatch for a head of
    another width, Unsupported for a domain without one, BadBatch below 4 samples.
    """
    out = []
    for key, whole in _described(depth).items():
        seen, unseen = _divided(whole, seed) if fit is None else (_described(fit).get(key), whole)
        bare = Lens(key, whole, seen, unseen, whole if head is not None or fit is not None else unseen, center)
        project, info = _fitted(bare) if head is None else _passed(bare, head)
        out.append(Lens(key, whole, seen, unseen, bare.scored, center, project, info))
    return out


def _described(depth: Depth) -> dict[str, Described]:
    """The samples of each teacher."""
    parts = depth.targets
    if depth.single and parts:  # all domains together, in the order of the batches
        rows = [i for part, _ in parts.values() for i in part]
        order = np.argsort(rows, kind="stable").tolist()
        parts = {"all": ([rows[i] for i in order], torch.cat([y for _, y in parts.values()])[order])}
    names: dict[str, str] = {}  # each clip is called by its first sample
    for sample, group in sorted(zip(depth.ids, depth.groups, strict=True)):
        names.setdefault(group, sample)
    clip = torch.from_numpy(np.unique([names[group] for group in depth.groups], return_inverse=True)[1])
    described = {}
    for key, (rows, y) in parts.items():
        interface = None if depth.interface is None else depth.interface[rows]
        domains = tuple(depth.domains[i] for i in rows)
        described[key] = Described(rows, domains, clip[rows], depth.z[rows], interface, y)
    return described


def _divided(whole: Described, seed: int) -> tuple[Described | None, Described]:
    """Half of the clips to fit on, and the others; (None, all) below four clips."""
    clips = whole.clip.unique().numpy()
    if len(clips) < 4:
        return None, whole
    drawn = np.isin(whole.clip.numpy(), np.random.default_rng(seed).permutation(clips)[: len(clips) // 2])
    return whole.pick(np.flatnonzero(drawn).tolist()), whole.pick(np.flatnonzero(~drawn).tolist())


def _passed(lens: Lens, head: Any) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """A head of the caller's."""
    width, dim = lens.whole.z.shape[-1], lens.whole.y.shape[-1]
    if isinstance(head, BiTC):
        head.check(width)
        head = head.head(lens.key).weight.T
    elif isinstance(head, Mapping):
        if lens.key not in head:
            raise Unsupported(f"head= has none for {lens.key!r}, only for {', '.join(head)}; a single one is for all")
        head = head[lens.key]
    if isinstance(head, nn.Module):
        module = copy.deepcopy(head).float().cpu().eval().requires_grad_(False)
        fits, kind, project = _width_of_output(module, width) == dim, "module", module
    else:
        matrix = head.detach().float().cpu()
        fits, kind, project = matrix.shape == (width, dim), "matrix", lambda z: z @ matrix
    if not fits:
        raise ShapeMismatch(
            f"a head for {lens.key!r} reads layers {width} wide and gives the teacher's {dim}: this does not"
        )
    return project, {"kind": kind}


def _fitted(lens: Lens) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """One ridge head of all layers and times, fitted on one half of the samples."""
    seen = lens.fit
    if seen is None:
        raise BadBatch(
            f"a ridge head is fitted on one half of the samples, the other half is scored: {lens.key!r} has "
            f"{len(lens.whole.clip.unique())} different ones, at least 4 are needed (64 for a steady head). Give "
            "more batches, other samples for the fit (fit=batches), or a head that exists (head=bitc)"
        )
    ridge = fit_copies(seen.z.flatten(1, 2), seen.y, seen.clip, center=lens.center)
    info = {"kind": "ridge", "samples": ridge.samples, "penalty": ridge.penalty, "explained": ridge.explained}
    return ridge, info


def _width_of_output(module: nn.Module, width: int) -> int | None:
    try:
        with with_data(), torch.no_grad():
            return module(torch.zeros(1, width)).shape[-1]
    except RuntimeError:  # a matrix product that does not fit
        return None
