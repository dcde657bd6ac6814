"""One teacher's features beside the layers' descriptors, in two halves: one fits, the other is scored.

Halves are of different samples (ids), never of different times or layers of one sample.
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
class Half:
    """Samples with descriptors and features.

    Attributes:
        rows: where they stand in the `Depth`.
        domains: their names.
        group: one number per id: the same for the same clip.
        z: descriptors of the layers. anchor: of the interface, or None. y: the teacher's features.
    """

    rows: list[int]
    domains: tuple[str, ...]
    group: Int[Tensor, "n"]
    z: Float[Tensor, "n J L D"]
    anchor: Float[Tensor, "n A"] | None
    y: Float[Tensor, "n E"]

    def pick(self, which: Sequence[int]) -> Half:
        keep = list(which)
        anchor = None if self.anchor is None else self.anchor[keep]
        rows, domains = [self.rows[i] for i in keep], tuple(self.domains[i] for i in keep)
        return Half(rows, domains, self.group[keep], self.z[keep], anchor, self.y[keep])

    def of(self, domain: str) -> list[int]:
        """Which of these samples are of this domain."""
        return [i for i, d in enumerate(self.domains) if d == domain]

    def layer(self, number: int | None) -> Float[Tensor, "n J D"]:
        """The descriptors of one layer; None: of the interface, which has no time."""
        if number is not None:
            return self.z[:, :, number]
        assert self.anchor is not None
        return self.anchor[:, None]


@dataclass(frozen=True)
class Teaching:
    """What one head is about: a domain, or all domains where they have one teacher.

    Attributes:
        key: the domain's name, or "all".
        whole: all samples. fitted: the half to fit on, None where there are too few.
        held: the samples that no fit has seen. scored: those that are scored, the held ones or all.
        reference: whose means are taken away when features are centered.
    """

    key: str
    whole: Half
    fitted: Half | None
    held: Half
    scored: Half
    reference: Half


def teachings(depth: Depth, other: Depth | None, seed: int, all_scored: bool) -> list[Teaching]:
    """One for each head. `other` holds the samples to fit on, None: half of `depth`'s own, drawn by `seed`."""
    found = []
    for key, half in _halves(depth).items():
        fitted, held = (_halves(other).get(key), half) if other is not None else _divided(half, seed)
        scored = half if all_scored or other is not None else held
        apart = fitted is not None and scored is held
        found.append(Teaching(key, half, fitted, held, scored, fitted if fitted is not None and apart else half))
    return found


def _halves(depth: Depth) -> dict[str, Half]:
    """The samples of each head."""
    merged = {"all": _joined(depth)} if depth.one and depth.targets else depth.targets
    _, number = np.unique(np.array(depth.ids), return_inverse=True)
    group = torch.from_numpy(number)
    found = {}
    for key, (rows, y) in merged.items():
        anchor = None if depth.interface is None else depth.interface[rows]
        found[key] = Half(rows, tuple(depth.domains[i] for i in rows), group[rows], depth.z[rows], anchor, y)
    return found


def _joined(depth: Depth) -> tuple[list[int], Float[Tensor, "n E"]]:
    rows = [i for part, _ in depth.targets.values() for i in part]
    order = np.argsort(rows, kind="stable").tolist()
    return [rows[i] for i in order], torch.cat([y for _, y in depth.targets.values()])[order]


def _divided(half: Half, seed: int) -> tuple[Half | None, Half]:
    """Half of the clips to fit on, the others; (None, all) below four clips."""
    clips = half.group.unique().numpy()
    if len(clips) < 4:
        return None, half
    chosen = set(np.random.default_rng(seed).permutation(clips)[: len(clips) // 2].tolist())
    inside = [i for i, g in enumerate(half.group.tolist()) if g in chosen]
    return half.pick(inside), half.pick([i for i in range(len(half.rows)) if i not in set(inside)])
