"""One teacher's features beside the layers' descriptors, in two halves: one fits a head, the other is scored.

Halves are of different clips (`Samples.groups`), never of different times or layers of one clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fog_a.probing.depth import Depth


@dataclass(frozen=True)
class Described:
    """Samples with the layers' descriptors and the teacher's features.

    Attributes:
        rows: where they stand in the `Depth`.
        domains: their names.
        clip: one number per group: the same for crops of the same clip.
        z: descriptors of the layers. interface: of the interface, or None. y: the teacher's features.
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
class Halves:
    """The samples that one head is about: those of a domain, or all where they have one teacher.

    Attributes:
        key: the domain's name, or "all".
        whole: all samples.
        fit: the half to fit on; None where there are too few.
        unseen: the samples that no fit has seen.
        scored: those that are scored, the unseen ones or all.
        reference: whose means are taken away when features are centered.
    """

    key: str
    whole: Described
    fit: Described | None
    unseen: Described
    scored: Described
    reference: Described


def halves(depth: Depth, fit: Depth | None, seed: int, all_scored: bool) -> list[Halves]:
    """One for each head. `fit` holds the samples to fit on, None: half of `depth`'s own, drawn by `seed`."""
    out = []
    for key, whole in _described(depth).items():
        seen, unseen = (_described(fit).get(key), whole) if fit is not None else _divided(whole, seed)
        scored = whole if all_scored or fit is not None else unseen
        reference = seen if seen is not None and scored is unseen else whole
        out.append(Halves(key, whole, seen, unseen, scored, reference))
    return out


def _described(depth: Depth) -> dict[str, Described]:
    """The samples of each head."""
    targets = {"all": _joined(depth)} if depth.single and depth.targets else depth.targets
    names: dict[str, str] = {}  # each clip is called by its first sample
    for sample, group in sorted(zip(depth.ids, depth.groups, strict=True)):
        names.setdefault(group, sample)
    clip = torch.from_numpy(np.unique([names[group] for group in depth.groups], return_inverse=True)[1])
    described = {}
    for key, (rows, y) in targets.items():
        interface = None if depth.interface is None else depth.interface[rows]
        domains = tuple(depth.domains[i] for i in rows)
        described[key] = Described(rows, domains, clip[rows], depth.z[rows], interface, y)
    return described


def _joined(depth: Depth) -> tuple[list[int], Float[Tensor, "n E"]]:
    """The samples of all domains, in the order of the batches."""
    rows = [i for part, _ in depth.targets.values() for i in part]
    order = np.argsort(rows, kind="stable").tolist()
    return [rows[i] for i in order], torch.cat([y for _, y in depth.targets.values()])[order]


def _divided(whole: Described, seed: int) -> tuple[Described | None, Described]:
    """Half of the clips to fit on, and the others; (None, all) below four clips."""
    clips = whole.clip.unique().numpy()
    if len(clips) < 4:
        return None, whole
    drawn = set(np.random.default_rng(seed).permutation(clips)[: len(clips) // 2].tolist())
    seen = [i for i, clip in enumerate(whole.clip.tolist()) if clip in drawn]
    unseen = [i for i, clip in enumerate(whole.clip.tolist()) if clip not in drawn]
    return whole.pick(seen), whole.pick(unseen)
