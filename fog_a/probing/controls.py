"""What stands beside a layer's cosine, so that nobody is fooled by it.

shuffled   the mean cosine to the *other* samples' features of the same domain: what the mean direction alone gives
probe      the cosine of a ridge head of this layer's own, on samples it was not fitted on: what the layer holds in any
           linear form, while LASP asks for the form that all layers share
cka        linear CKA, unbiased, over all samples: no head at all
cknna      the same for neighborhoods
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import Tensor

from fog_a.errors import Unsupported
from fog_a.probing.lens import Lens
from fog_a.probing.ridge import fit_copies
from fog_a.probing.similarity import cknna, cosine, linear_cka, shuffled_cosine

Control = Literal["shuffled", "probe", "cka", "cknna"]
CONTROLS: tuple[Control, ...] = ("shuffled", "probe", "cka", "cknna")

Numbers = list[float | None]
"""One number for each time; None where there are too few samples."""


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
            columns = {control: _measured(control, lens, None) for control in wanted}
            for domain, (cosine_of_interface, *_) in _cosines(lens).items():
                of_controls = {control: column[domain][0] for control, column in columns.items()}
                interface[domain] = {"cosine": cosine_of_interface, **of_controls}
    return {"beside": beside, "interface": interface}


def _cosines(lens: Lens) -> dict[str, Numbers]:
    """Eq. 6 of the interface, domain by domain."""
    if not lens.reads_interface:
        return {domain: [None] for domain in lens.domains}
    (p, y), scored = lens.look(None), lens.scored
    rows = {domain: scored.of(domain) for domain in lens.domains}
    return {domain: numbers([cosine(p[rows[domain], 0], y[rows[domain]]).mean()]) for domain in rows}


def _measured(control: Control, lens: Lens, number: int | None) -> dict[str, Numbers]:
    """Domain → one control of one layer (None: the interface) at each time."""
    samples = lens.whole
    if control == "shuffled":
        if number is None and not lens.reads_interface:
            return {domain: [None] for domain in lens.domains}
        samples = lens.scored
        (z, y), compare = lens.look(number), _each_time(lambda p, y: shuffled_cosine(p, y).mean())
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
