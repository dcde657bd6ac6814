"""LASP: which layers hold what a teacher knows.

    LASP_m^{(l)} = E_{x∈D_m}[ cos( P_m(z^{(l)}), T_m(x) ) ]                                                     Eq. 6

z^{(l)} is the layer's descriptor (Eq. 3), T_m the teacher of domain m, and P_m ONE frozen head for all layers: a layer
scores high only if it holds the teacher's features in the form that the others share. The paper takes BiT-C's head;
where the layers are not of the interface's width, a ridge head is fitted on one half of the samples, over all layers
and times together, and the other half is scored.

A cosine alone misleads: teachers' features have a large common direction, which a head learns from any input. So each
score comes with controls, in `info["beside"]`:

    shuffled   the mean cosine to the *other* samples' features of the same domain: what the mean direction alone gives
    probe      the cosine of a ridge head of this layer's own, on samples it was not fitted on: what the layer holds in
               any linear form, while LASP asks for the form that all layers share
    cka        linear CKA, unbiased, over all samples: no head at all
    cknna      the same for neighborhoods
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from fog_a.blocks.block import Blocks
from fog_a.blocks.interrupts import unbroken
from fog_a.errors import BadBatch, Unsupported
from fog_a.flows.bare import flow_of
from fog_a.probing.bitc import BiTC
from fog_a.probing.depth import Depth, FeaturesOfBatches, Reading, read_depth
from fog_a.probing.lens import Head, Lens, lenses
from fog_a.probing.ridge import fit_copies
from fog_a.probing.similarity import cknna, cosine, linear_cka, shuffled_cosine
from fog_a.scores.scores import Scores
from fog_a.teachers.teacher import Teachers

Control = Literal["shuffled", "probe", "cka", "cknna"]
CONTROLS: tuple[Control, ...] = ("shuffled", "probe", "cka", "cknna")

Numbers = list[float | None]
"""One number for each time; None where there are too few samples."""


@unbroken()
def lasp(
    flow: Any,
    batch: Any,
    teacher: Teachers | None = None,
    *,
    head: Head = None,
    fit: Any = None,
    features: FeaturesOfBatches = None,
    blocks: Blocks | Sequence[str] | None = None,
    times: int | Sequence[float] | None = None,
    seed: int = 0,
    center: bool = False,
    beside: Sequence[Control] = CONTROLS,
) -> Scores:
    """Eq. 6 for every sample, time and layer: cosines in [−1, 1], kind "storage".

    Args:
        flow: a wrapped flow; or a bare module, which has no time axis and needs `features=`. For a module with a
            forward= of its own, domains or a mask, pass `fog_a.BareFlow(module, forward, domains, mask)`.
        batch: one batch, or several (a list, an iterator, a DataLoader).
        teacher: one for every domain, or domain → teacher (None: that domain is left out).
        head: BiT-C (its teachers are asked if `teacher` is None), a head of your own, or None: one ridge head per
            teacher, fitted on one half of the samples; only the other half is scored.
        fit: batches for fitting the head, so that all of `batch` is scored.
        features: in the teacher's place: (B, E) of the batch, or domain → (B, E) or (n, E); for several batches a
            list, or a function of the batch.
        blocks: which layers, as `Blocks` or names; default the main ones. All must be of one width.
        times: n midpoints (j+½)/n (default 8), or a list.
        seed: of the noise, and of the halves.
        center: the mean feature and the mean projection of each layer (over the fitted half; without one, over the
            samples scored) are taken away first: what is left tells samples apart.
        beside: which controls to compute; () for none.

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
    reading = Reading(flow_of(flow))
    if isinstance(head, BiTC):
        reading = replace(reading, describe=head.describe)
    where: dict[str, Any] = {"blocks": blocks, "times": times, "seed": seed}
    looks = read_lenses(reading, batch, teacher, head=head, fit=fit, features=features, center=center, **where)
    return storage(*looks, beside, {"times": times, "center": center})


def read_lenses(
    reading: Reading,
    batch: Any,
    teacher: Teachers | None,
    *,
    head: Head,
    fit: Any,
    features: FeaturesOfBatches,
    center: bool,
    **where: Any,
) -> tuple[Depth, list[Lens]]:
    """The layers' descriptors, and for each teacher the head that reads them; `where`: blocks, times and seed."""
    if isinstance(head, BiTC):
        teacher = head.asked() if teacher is None and features is None else teacher
    if fit is not None and features is not None and not callable(features):
        raise BadBatch("fit= needs its own features: give features= as a function of the batch")
    depth = read_depth(reading, batch, teacher, features=features, **where)
    other = None if fit is None else read_depth(reading, fit, teacher, features=features, **where)
    return depth, lenses(depth, other, head, center=center, seed=where["seed"])


def storage(depth: Depth, looks: Sequence[Lens], beside: Sequence[Control], options: Mapping[str, Any]) -> Scores:
    """The Scores of what lenses see, with the controls beside them."""
    values = torch.full(depth.z.shape[:3], torch.nan, dtype=torch.float32, device="cpu")
    for lens in looks:
        values[lens.scored.rows] = lens.cosines()
    rows = sorted(i for lens in looks for i in lens.scored.rows)
    info = {
        **depth.provenance,
        "options": options,
        "head": {lens.key: lens.info for lens in looks},
        "warnings": _doubts(looks),
        **beside_scores(looks, beside),
    }
    domains, ids, groups = (tuple(x[i] for i in rows) for x in (depth.domains, depth.ids, depth.groups))
    return Scores(values[rows].numpy(), depth.layers, depth.times, domains, ids, "storage", info, groups)


def _doubts(looks: Sequence[Lens]) -> list[str]:
    """What the reader should know of a fitted head that tells nothing."""
    doubts = []
    for lens in looks:
        explained = lens.info.get("explained", 1.0)
        if explained < 0.01:
            doubts.append(
                f"the head of {lens.key!r}, fitted on {lens.info['samples']} samples, tells nothing of samples "
                f"that it has not seen (explained {explained:.2f}). Give more samples"
            )
            warnings.warn(doubts[-1], stacklevel=4)
    return doubts


def beside_scores(lenses: Sequence[Lens], wanted: Sequence[Control]) -> dict[str, Any]:
    """`{"beside": control → domain → [J][L], "interface": domain → {"cosine": …, control → …}}`, None where unknown."""
    unknown = [c for c in wanted if c not in CONTROLS]
    if unknown:
        raise Unsupported(f"beside= knows {', '.join(CONTROLS)}; got {', '.join(unknown)}")
    beside: dict[str, dict[str, Any]] = {c: {} for c in wanted}
    interface: dict[str, dict[str, float | None]] = {}
    for lens in lenses:
        for control in wanted:
            layers = [_measured(control, lens, number) for number in range(lens.whole.z.shape[2])]
            for domain in lens.domains:
                beside[control][domain] = [list(row) for row in zip(*(x[domain] for x in layers), strict=True)]
        if lens.whole.interface is not None:
            columns = {name: _measured(name, lens, None) for name in ("cosine", *wanted)}
            for domain in lens.domains:
                interface[domain] = {name: column[domain][0] for name, column in columns.items()}
    return {"beside": beside, "interface": interface}


def _measured(control: Control | Literal["cosine"], lens: Lens, number: int | None) -> dict[str, Numbers]:
    """Domain → Eq. 6 or one control, of one layer (None: the interface) at each time."""
    samples = lens.whole
    if control in ("cosine", "shuffled"):
        if number is None and not lens.reads_interface:
            return {domain: [None] for domain in lens.domains}
        samples, of = lens.scored, cosine if control == "cosine" else shuffled_cosine
        (z, y), compare = lens.look(number), _each_time(lambda p, y: of(p, y).mean())
    elif control == "probe":
        samples = lens.unseen
        z, y, compare = _own_head(lens, number)
    else:
        z, y, compare = samples.layer(number), samples.y, _each_time(linear_cka if control == "cka" else cknna)
    rows = {domain: samples.of(domain) for domain in lens.domains}
    return {domain: numbers(compare(z[index], y[index])) for domain, index in rows.items()}


def _each_time(compare: Any) -> Any:
    return lambda z, y: [compare(z[:, j], y) for j in range(z.shape[1])]


def _own_head(lens: Lens, number: int | None) -> tuple[Tensor, Tensor, Any]:
    """The unseen samples, and the cosine of a head of this layer alone, all times together."""
    z, y, fit = lens.unseen.layer(number), lens.unseen.y, lens.fit
    if fit is None or len(fit.clip.unique()) < 2:
        return z, y, lambda z, y: [math.nan] * z.shape[1]
    z_fit, y_fit = fit.layer(number), fit.y
    if lens.center:
        shift, mean = z_fit.mean(0), y_fit.mean(0)
        z_fit, y_fit, z, y = z_fit - shift, y_fit - mean, z - shift, y - mean
    head = fit_copies(z_fit, y_fit, fit.clip)
    return z, y, lambda z, y: cosine(head(z), y[:, None]).mean(0)


def numbers(values: Iterable[Tensor | float]) -> Numbers:
    """Plain numbers, None for NaN: what JSON can hold."""
    return [None if math.isnan(v) else v for v in map(float, values)]
