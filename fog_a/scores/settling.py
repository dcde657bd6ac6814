"""When to stop drawing samples: a top-k set that may be claimed although one has looked before.

`settled` looks at most J times at growing data. Half of the error α = 1 − confidence is for what no sample has shown
yet, half for what the samples show.

* *Not seen.* A value that a share q of all samples has stays unseen in n samples with probability (1 − q)ⁿ, so values
  up to q = 1 − (α/2)^(1/n) must be reckoned with. A claim needs q ≤ 2 % (183 samples at 95 %), and a lead that stays
  positive when a share q of the samples is turned over by the largest score that was seen.
* *Seen.* Every layer inside must beat every layer outside in a paired, one-sided test at α/(2J) (Bonferroni over
  looks: right under any dependence between them, whenever one stops). Both a Student and a Hall (skewness corrected) t
  must agree: on skewed differences each alone is wrong on one side.

`benchmarks/intervals.py` simulates the error rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fog_a.errors import BadArgument
from fog_a.scores.statistics import Array, check_share, top

RARE = 0.02
"""Share of samples whose values must have had their chance to be seen before a set is claimed."""


@dataclass(frozen=True)
class Verdict:
    """The answer of one look. True in a condition when the top-k set holds at the asked confidence.

    Attributes:
        settled: whether every layer of the set beats every other one.
        top: the set, as indices, largest first.
        rival: the pair (inside, outside) that is hardest to tell apart, or None.
        p: the one-sided p of that pair.
        threshold: what p must stay below at this look: (1 − confidence) / (2 · max_looks).
        look: which look this was, from 1.
        max_looks: how many were planned.
        samples: complete samples seen.
        reason: one sentence for a person.
    """

    settled: bool
    top: tuple[int, ...]
    rival: tuple[int, int] | None
    p: float
    threshold: float
    look: int
    max_looks: int
    samples: int
    reason: str

    def __bool__(self) -> bool:
        return self.settled


def needed(confidence: float) -> int:
    """How many samples a claim needs, so that values of a share `RARE` of all samples have been seen."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-RARE))


def _p_greater(d: Float[Array, "n P"]) -> Float[Array, " P"]:
    """One-sided p for mean(d) > 0: the larger of Student's and Hall's (J. R. Stat. Soc. B 54, 1992)."""
    from scipy.special import stdtr

    n = len(d)
    mean, spread = d.mean(0), d.std(0, ddof=1)
    flat = spread <= 1e-12 * np.abs(d).max(0)
    spread = np.where(flat, 1.0, spread)
    skew = ((d - mean) ** 3).mean(0) / spread**3
    u = mean / spread
    hall = u + skew * u**2 / 3 + skew**2 * u**3 / 27 + skew / (6 * n)
    p = stdtr(n - 1, -np.sqrt(n) * np.minimum(u, hall))
    return np.where(flat, np.where(mean > 0, 0.0, 1.0), p)


def settled(x: Float[Array, "n L"], k: int, *, confidence: float = 0.95, look: int = 1, max_looks: int = 1) -> Verdict:
    """Whether the top-k set by mean can be claimed now, honest about having looked before.

    Over all looks together, a wrong set is claimed with probability at most about 1 − confidence; where the k-th and
    the (k+1)-th layer are truly equal any claim is wrong, and the usual answer is "not settled".

    Args:
        x: one row for each independent sample drawn so far; rows with a NaN are left out, a layer without any value is
            never chosen.
        k: size of the set.
        confidence: in (0, 1).
        look: how many looks have been taken, this one included.
        max_looks: how many looks were planned before the first. It must not be raised afterwards.

    Raises: BadArgument where look > max_looks, k or confidence is out of range.

    Example:
        >>> x = np.random.default_rng(0).normal([3.0, 2.0, 0.0], 0.5, size=(200, 3))
        >>> bool(settled(x, k=2, look=1, max_looks=5)), bool(settled(x[:100], k=2, look=1, max_looks=5))
        (True, False)
    """
    if not 1 <= look <= max_looks:
        raise BadArgument(f"look {look} of {max_looks}: expected 1 ≤ look ≤ max_looks; plan more looks from the start")
    check_share("confidence", confidence)
    x = np.asarray(x, dtype=np.float64)
    if not 1 <= k <= x.shape[1]:
        raise BadArgument(f"k = {k}: expected 1 ≤ k ≤ {x.shape[1]}, the number of layers")
    usable, rows = np.flatnonzero(np.isfinite(x).any(0)), len(x)
    x = x[np.isfinite(x[:, usable]).all(1)][:, usable]
    threshold, least = (1 - confidence) / (2 * max_looks), needed(confidence)
    order = top(x.mean(0), len(usable)) if len(x) else np.arange(len(usable))
    inside, outside = order[:k], order[k:]
    rival, sure = None, f"at {100 * confidence:g}% confidence"
    if not len(outside):
        p, reason = 0.0, f"all {len(usable)} layers are chosen: there is nothing to tell apart"
    elif len(x) < least:
        few = f"{len(x)} complete samples: at least {least} are needed to tell {sure}"
        p, reason = 1.0, f"{few}, for rare large values to show"
    else:
        unseen = 1 - ((1 - confidence) / 2) ** (1 / len(x))
        d = (x[:, inside, None] - x[:, None, outside]).reshape(len(x), -1)
        every = _p_greater(d - unseen * np.abs(x).max())
        worst, p = int(np.argmax(every)), float(every.max())
        rival = int(usable[inside[worst // len(outside)]]), int(usable[outside[worst % len(outside)]])
        claim, sign = ("holds", "<") if p < threshold else ("does not hold", "≥")
        pair = f"its closest pair has p = {p:.2g} ({sign} {threshold:.2g})"
        reason = f"the top {k} {claim} {sure} after look {look}: {pair}"
    if len(x) < rows:
        reason += f"; {rows - len(x)} samples with missing values are left out"
    chosen = tuple(usable[inside].tolist())
    return Verdict(p < threshold, chosen, rival, p, threshold, look, max_looks, len(x), reason)
