"""What stands beside a layer's cosine, so that nobody is fooled by it.

shuffled   the mean cosine to the *other* samples' features of the same domain: what the mean direction alone gives
probe      the cosine of a ridge head of this layer's own, on samples it was not fitted on: what the layer holds in any
           linear form, while LASP asks for the form that all layers share
cka        linear CKA, unbiased, over all samples: no head at all
cknna      the same for neighborhoods
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from fog_a.errors import Unsupported
from fog_a.probing.halves import Halves
from fog_a.probing.lens import Lens
from fog_a.probing.ridge import fit_ridge
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
        layers = lens.halves.whole.z.shape[2]
        for domain in dict.fromkeys(lens.halves.scored.domains):
            for control in wanted:
                columns = [_measured(control, lens, domain, number) for number in range(layers)]
                beside[control][domain] = [list(row) for row in zip(*columns, strict=True)]
            if lens.halves.whole.interface is not None:
                interface[domain] = _of_interface(lens, domain, wanted)
    return {"beside": beside, "interface": interface}


def _of_interface(lens: Lens, domain: str, wanted: Sequence[Control]) -> dict[str, float | None]:
    values: dict[str, float | None] = {"cosine": None}
    if lens.reads_interface:
        p, y = lens.look(None)
        rows = lens.halves.scored.of(domain)
        values["cosine"] = numbers([cosine(p[rows, 0], y[rows]).mean()])[0]
    return values | {control: _measured(control, lens, domain, None)[0] for control in wanted}


def _measured(control: Control, lens: Lens, domain: str, number: int | None) -> Numbers:
    """One control of one layer (None: the interface) at each time."""
    if control == "shuffled":
        if number is None and not lens.reads_interface:
            return [None]
        (p, y), rows = lens.look(number), lens.halves.scored.of(domain)
        return numbers([shuffled_cosine(p[rows, j], y[rows]).mean() for j in range(p.shape[1])])
    if control == "probe":
        return _probe(lens.halves, number, domain, lens.center)
    whole = lens.halves.whole
    rows = whole.of(domain)
    z, y = whole.layer(number)[rows], whole.y[rows]
    compare = linear_cka if control == "cka" else cknna
    return numbers([compare(z[:, j], y) for j in range(z.shape[1])])


def _probe(halves: Halves, number: int | None, domain: str, center: bool) -> Numbers:
    """A head of this layer alone, all times together."""
    rows = halves.unseen.of(domain)
    z, y = halves.unseen.layer(number)[rows], halves.unseen.y[rows]
    fit = halves.fit
    if fit is None or len(fit.clip.unique()) < 2 or not rows:
        return [None] * z.shape[1]
    z_fit, y_fit = fit.layer(number), fit.y
    if center:
        shift, mean = z_fit.mean(0), y_fit.mean(0)
        z_fit, y_fit, z, y = z_fit - shift, y_fit - mean, z - shift, y - mean
    times = z_fit.shape[1]
    head = fit_ridge(z_fit.flatten(0, 1), y_fit.repeat_interleave(times, 0), fit.clip.repeat_interleave(times))
    return numbers(cosine(head(z), y[:, None]).mean(0))


def numbers(values: Sequence[Tensor | float] | Tensor) -> Numbers:
    """Plain numbers, None for NaN: what JSON can hold."""
    return [None if math.isnan(v) else v for v in map(float, values)]
