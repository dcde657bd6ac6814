"""The fields of Scores in their final form, or the reason why they do not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fog_a.errors import ShapeMismatch


def tidy(fields: Mapping[str, Any]) -> dict[str, Any]:
    """float32 values that nobody can write to, inf as NaN; a name, domain and group for every sample.

    Raises:
        ShapeMismatch: parts that do not fit together.
    """
    with np.errstate(over="ignore"):  # a float64 beyond float32 is inf, and inf is missing
        values = np.array(fields["values"], dtype=np.float32)
    if values.ndim == 2:
        values = values[:, None, :]
    values[~np.isfinite(values)] = np.nan
    values.setflags(write=False)
    count = len(values) if values.ndim else 0
    ids = tuple(str(i) for i in fields["ids"]) or tuple(str(i) for i in range(count))
    layers, domains = tuple(fields["layers"]), tuple(fields["domains"]) or ("all",) * count
    times = None if fields["times"] is None else tuple(float(t) for t in fields["times"])
    groups = tuple(str(g) for g in fields["groups"]) or ids
    want = (len(ids), 1 if times is None else len(times), len(layers))
    if values.shape != want or {len(domains), len(groups)} != {count} or not values.size:
        raise ShapeMismatch(
            f"values have shape {values.shape}; expected samples × times × layers = {want} for {want[0]} ids, "
            f"{len(domains)} domains, {len(groups)} groups, times {times}, {want[2]} layers, all > 0"
        )
    if not np.isfinite(times or ()).all():
        raise ShapeMismatch(f"times = {times}: expected finite numbers, e.g. (0.25, 0.75)")
    rows = {"ids": ids, "domains": domains, "groups": groups}
    return {"values": values, "layers": layers, "times": times, "info": dict(fields["info"]), **rows}
