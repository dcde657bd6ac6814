"""LASP: which layers hold what a teacher knows.

    LASP_m^{(l)} = E_{x∈D_m}[ cos( P_m(z^{(l)}), T_m(x) ) ]                                                     Eq. 6

z^{(l)} is the layer's descriptor (Eq. 3), T_m the teacher of domain m, and P_m ONE frozen head for all layers: a layer
scores high only if it holds the teacher's features in the form that the others share. The paper takes BiT-C's head;
where the layers are not of the interface's width, a ridge head is fitted on one half of the samples, over all layers
and times together, and the other half is scored.

A cosine alone misleads: teachers' features have a large common direction, which a head learns from any input. So beside
each score stand (in `info["beside"]`, probing/controls.py) the same cosine to other samples' features, a probe of its
own for each layer, CKA and CKNNA.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from fog_a.blocks.block import Blocks
from fog_a.errors import BadBatch, Unsupported
from fog_a.flows.batches import Forward
from fog_a.probing.bitc import BiTC
from fog_a.probing.controls import CONTROLS, Control, beside_scores
from fog_a.probing.depth import Given, Reading, read_depth
from fog_a.probing.lens import Head, Lens, lens
from fog_a.probing.teachings import teachings
from fog_a.scores.scores import Scores
from fog_a.teachers.descriptors import Norm
from fog_a.teachers.routing import Teachers

RELEASE: dict[str, Any] = {"norm": "l2", "flip": True, "clean": True, "train": True, "times": (0.8,)}
"""What the AG-REPA release does otherwise (SPEC §3.4): each is an option of its own."""

DEFAULT: dict[str, Any] = {"norm": "layer", "flip": False, "clean": False, "train": False, "times": None}


def lasp(
    flow: Any,
    batch: Any,
    teacher: Teachers | None = None,
    *,
    head: Head = None,
    fit: Any = None,
    features: Given = None,
    blocks: Blocks | Sequence[str] | None = None,
    times: int | Sequence[float] | None = None,
    seed: int = 0,
    center: bool = False,
    beside: Sequence[Control] = CONTROLS,
    norm: Norm | None = None,
    flip: bool | None = None,
    clean: bool | None = None,
    train: bool | None = None,
    preset: Literal["release"] | None = None,
    forward: Forward | None = None,
    domains: Sequence[str] | None = None,
    mask: Bool[Tensor, "B T"] | None = None,
) -> Scores:
    """Eq. 6 for every sample, time and layer: cosines in [−1, 1], kind "storage".

    Args:
        flow: a wrapped flow; or a bare module, which has no time axis and whose teacher's features are given.
        batch: one batch, or several (a list, an iterator, a DataLoader).
        teacher: one for every domain, or domain → teacher (None: that domain is left out).
        head: BiT-C (its teachers are asked if `teacher` is None), a head of your own, or None: one ridge head per
            teacher, fitted on one half of the samples; only the other half is scored.
        fit: batches for fitting the head, so that all of `batch` is scored.
        features: in the teacher's place: (B, E) of the batch, or domain → (B, E) or (n, E); for several batches a
            list, or a function of the batch.
        blocks: which layers, as `Blocks` or names; default the main ones. All must be of one width.
        times: n midpoints (j+½)/n (default 8), or a list.
        center: the mean feature and the mean projection of each layer (over the fitted half; without one, over the
            samples scored) are taken away first: what is left tells samples apart.
        beside: which controls to compute; () for none.
        norm, flip, clean, train: the release's deviations, all on with `preset="release"`: L2 norm for LayerNorm; P(z)
            turned round where it points away from P(z^{(0)}); x_1 in x_t's place (at t = .8); dropout on.
        forward, domains, mask: of a bare module: see `attribute`; mask (B, T) True where tokens are real.

    Returns:
        Scores. `info["interface"]` has the interface (l = 0), `info["beside"]` the controls: name → domain → J × L.

    Raises:
        ShapeMismatch: blocks of different widths (ask for one width at a time), or a head for another width.
        BadBatch, BadFeatures: samples, domains or features that do not fit. Unsupported: options that do not.

    Leaves no trace in the model: no hook, flag, gradient, buffer or random number.

    >>> import fog_a, torch
    >>> from torch import nn
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    >>> x = torch.randn(12, 5, 8)
    >>> fog_a.lasp(net, x, features=x.mean(1)).values.shape           # the scored half, no time axis, 3 layers
    (6, 1, 3)
    """
    base = RELEASE if preset == "release" else DEFAULT
    if preset not in (None, "release"):
        raise Unsupported(f"preset must be 'release' or None, got {preset!r}")
    asked = {"norm": norm, "flip": flip, "clean": clean, "train": train, "times": times}
    options = {k: base[k] if v is None else v for k, v in asked.items()}
    reading = Reading(flow, forward, domains, mask, options["norm"], options["clean"], options["train"])
    if isinstance(head, BiTC):
        teacher = head.asked() if teacher is None and features is None else teacher
        reading = reading if norm or preset else replace(reading, norm=head.norm)
    if fit is not None and features is not None and not callable(features):
        raise BadBatch("fit= needs its own features: give features= as a function of the batch")
    how: dict[str, Any] = {"blocks": blocks, "times": options["times"], "seed": seed}
    depth = read_depth(reading, batch, teacher, features=features, **how)
    other = None if fit is None else read_depth(reading, fit, teacher, features=features, **how)
    lenses = [
        lens(t, head, center=center, flip=options["flip"]) for t in teachings(depth, other, seed, head is not None)
    ]
    values = torch.full(depth.z.shape[:3], torch.nan)
    for one in lenses:
        values[one.teaching.scored.rows] = one.cosines()
    kept = sorted(i for one in lenses for i in one.teaching.scored.rows)
    info = {
        "seed": seed,
        "options": {**options, "norm": reading.norm, "center": center, "preset": preset},
        "signature": depth.signature,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "head": {one.teaching.key: one.told for one in lenses},
        "warnings": _doubts(lenses),
        **beside_scores(lenses, beside),
    }
    names = tuple(depth.domains[i] for i in kept), tuple(depth.ids[i] for i in kept)
    return Scores(values[kept].numpy(), depth.layers, depth.times, *names, "storage", info)


def _doubts(lenses: Sequence[Lens]) -> list[str]:
    """What the reader should know of a fitted head that tells nothing."""
    said = []
    for one in lenses:
        explained = one.told.get("explained", 1.0)
        if explained < 0.01:
            said.append(
                f"the head of {one.teaching.key!r}, fitted on {one.told['samples']} samples, tells nothing of samples "
                f"that it has not seen (explained {explained:.2f}). Give more samples"
            )
            warnings.warn(said[-1], stacklevel=3)
    return said
