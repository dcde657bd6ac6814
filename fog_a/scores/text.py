"""Scores as text: one line for `repr`, a table with intervals and bars for a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from fog_a.scores import statistics

if TYPE_CHECKING:
    from fog_a.scores.scores import Scores

BAR = 24
"""Width of the longest bar, in characters."""

CAUTION = f"fewer than {statistics.FEW} samples: the intervals cannot promise their level"


def count(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def noise_floor(scores: Scores) -> float | None:
    """What the same arithmetic gives where nothing is ablated (the largest, where a list was kept), or None."""
    floor = scores.info.get("noise_floor")
    if floor is None or isinstance(floor, str | bool | dict):
        return None
    values = np.asarray(floor, dtype=np.float64)
    return float(np.nanmax(values)) if values.size and np.isfinite(values).any() else None


def notes(scores: Scores, domain: str | None = None) -> list[str]:
    """What a reader of these scores should doubt: few samples, missing values, the probe's own notes."""
    part = scores.only(domain)
    said = [] if len(part.ids) >= statistics.FEW else [CAUTION]
    if part.missing:
        names = ", ".join(np.asarray(part.layers)[np.isnan(part.values).any((0, 1))][:4])
        said.append(f"{part.missing} of {part.values.size} values are missing (not finite, or not measured): {names}")
    return said + [str(n) for key in ("notes", "warnings") for n in scores.info.get(key) or ()]


def summary(scores: Scores) -> str:
    """One line: kind, sizes, domains, the best layer of each, and a caution where one is due."""
    s, j, n = scores.values.shape
    size = f"{count(s, 'sample')} × {count(j, 'time')} × {count(n, 'layer')}"
    if scores.times is None:
        size = f"{count(s, 'sample')} × {count(n, 'layer')}"
    best = []
    for domain, number in Counter(scores.domains).items():
        mean = scores.mean(domain)
        lead = statistics.top(mean, 1)[0]
        best.append(f"{domain} ({number}): {scores.layers[lead]} {mean[lead]:.3g}")
    few = min(Counter(scores.domains).values()) < statistics.FEW
    missing = f"; {scores.missing} values missing" if scores.missing else ""
    return f"Scores({scores.kind}, {size}; best of {', '.join(best)}{missing}{'; ' + CAUTION if few else ''})"


def table(scores: Scores, k: int | None = None, level: float = 0.95) -> str:
    """For each domain the best k layers (best first), or all layers in order of execution."""
    return "\n\n".join(_domain(scores.only(d), d, k, level) for d in scores.domain_names)


def _domain(part: Scores, domain: str, k: int | None, level: float) -> str:
    ranked = part.top(len(part.layers), level=level)
    place = {r.layer: i + 1 for i, r in enumerate(ranked)}
    by_name = {r.layer: r for r in ranked}
    shown = [r.layer for r in ranked[:k]] if k else list(part.layers)
    name_width = max(len("layer"), *(len(name) for name in shown))
    number = {name: f"L{i + 1}" for i, name in enumerate(part.layers)}
    largest = max((abs(r.mean) for r in ranked), default=0.0) or 1.0
    size = count(len(part.ids), "sample") + (f" × {count(len(part.times), 'time')}" if part.times else "")
    lines = [
        f"{part.kind} · {domain} · {size}",
        f"{'rank':>4}  {'':>4}  {'layer':<{name_width}}  {'mean':>8}  {f'{level:.0%} interval':<20}",
    ]
    for name in shown:
        if name not in by_name:
            lines.append(f"{'–':>4}  {number[name]:>4}  {name:<{name_width}}  {'missing':>8}")
            continue
        _, mean, (low, high) = by_name[name]
        bar = "█" * round(BAR * abs(mean) / largest) or "·"
        interval = f"[{low:.4f}, {high:.4f}]"
        lines.append(f"{place[name]:>4}  {number[name]:>4}  {name:<{name_width}}  {mean:>8.4f}  {interval:<20}  {bar}")
    if k and k < len(ranked):
        sure = part.top_probability(k)
        lines.append(f"this top {k} is the top {k} in {sure:.0%} of bootstrap resamples")
    floor = noise_floor(part)
    if floor is not None:
        lines.append(f"noise floor {floor:.2g}: a score near it tells nothing")
    return "\n".join([*lines, *(f"! {note}" for note in notes(part))])
