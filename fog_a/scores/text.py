"""Rankings as text: one line for `repr`, a table with intervals and bars for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from fog_a.scores.ranking import Ranking, count
from fog_a.scores.statistics import FEW

BAR = 24
"""Width of the longest bar, in characters."""


def summary(domains: Sequence[Ranking]) -> str:
    """One line: kind, sizes, domains, the best layer of each, and a caution where one is due."""
    first = domains[0]
    sizes = [count(sum(d.samples for d in domains), "sample"), count(len(first.layers), "layer")]
    if first.times is not None:
        sizes.insert(1, count(len(first.times), "time"))
    best = []
    for d in domains:
        lead = f"{first.layers[d.order[0]]} {d.mean[d.order[0]]:.3g}" if d.order else "no finite score"
        best.append(f"{d.domain} ({d.samples}): {lead}")
    missing = sum(d.missing for d in domains)
    cautions = [f"{missing} values missing"] if missing else []
    if any(d.n < FEW for d in domains):
        cautions.append(f"fewer than {FEW} independent samples: intervals cannot promise their level")
    words = [f"{first.kind}, {' × '.join(sizes)}", f"best of {', '.join(best)}", *cautions]
    return f"Scores({'; '.join(words)})"


def table(domains: Sequence[Ranking], k: int | None = None, level: float = 0.95) -> str:
    """For each domain the best k layers (best first), or all layers in order of execution."""
    return "\n\n".join(_domain(d, k, level) for d in domains)


def _domain(ranking: Ranking, k: int | None, level: float) -> str:
    k = None if k is None else ranking.check_k(k)
    interval, mean, order = ranking.interval(level), ranking.mean, ranking.order
    shown = order[:k] if k else range(len(ranking.layers))
    width = max(len("layer"), *(len(ranking.layers[i]) for i in shown), 0)
    largest = max((abs(mean[i]) for i in order), default=0.0) or 1.0
    size = ranking.size + (f" × {count(len(ranking.times), 'time')}" if ranking.times else "")
    lines = [
        f"{ranking.kind} · {ranking.domain} · {size}",
        f"{'rank':>4}  {'':>4}  {'layer':<{width}}  {'mean':>8}  {f'{level:.0%} interval':<20}",
    ]
    for i in shown:
        name = f"{f'L{i + 1}':>4}  {ranking.layers[i]:<{width}}"
        if i not in order:
            lines.append(f"{'–':>4}  {name}  {'missing':>8}")
            continue
        bar = "█" * round(BAR * abs(mean[i]) / largest) or "·"
        limits = "[{:.4f}, {:.4f}]".format(*interval[i])
        lines.append(f"{order.index(i) + 1:>4}  {name}  {mean[i]:>8.4f}  {limits:<20}  {bar}")
    if k and k < len(order):
        lines.append(f"this top {k} is the top {k} in {ranking.certainty(k):.0%} of bootstrap resamples")
    if ranking.noise_floor is not None:
        lines.append(f"noise floor {ranking.noise_floor:.2g}: a score near it tells nothing")
    return "\n".join([*lines, *(f"! {note}" for note in ranking.notes)])
