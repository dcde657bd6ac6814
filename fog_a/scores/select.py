"""Choosing layers from scores: which are aligned, per domain, and how much each counts.

    S_m = TopK_k({a_{m,k}}, K)                                   (Eq. 10)
    λ_{m,k} ∝ a_{m,k},  k ∈ S_m                                  (Eq. 11)

a are the mean scores of a domain m: FoG-A, LASP or gradient norms. `weighting` settles the constant of Eq. 11:
"normalized" λ = total·a/Σ_S a, "proportional" λ = total·a (the authors' release: total = 2), "equal" λ = total/K.
Equal scores: the earlier layer wins.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from fog_a.errors import BadOutput, ShapeMismatch, UnknownBlock, Untrained, near
from fog_a.scores.files import plain
from fog_a.scores.ranking import Ranked, Ranking, rankings
from fog_a.scores.selection import Choice, Selection, Weighting, check_total

NEGLIGIBLE = 1e-6
"""Mean contributions below this are rounding: closing the gate leaves v as it is."""


def select(
    scores: Ranked,
    k: int = 3,
    *,
    by: Literal["top", "bottom", "random", "shallow", "deep"] | Sequence[str] = "top",
    weighting: Weighting = "normalized",
    total: float = 0.5,
    seed: int = 0,
) -> Selection:
    """Choose K layers per domain from scores of any kind, and weigh them (Eq. 10–11).

    Args:
        scores: contribution, storage or gradient norms; a layer with a NaN is left out, with a note.
        k: how many layers per domain.
        by: "top" scores; "bottom", the lowest first: what to skip or to prune; or a control of the paper's Tables 2–3:
            "random" (drawn by `seed`), "shallow" (the first k), "deep" (the last k); or layer names.
        weighting, total: see the head of this module.

    Raises: Untrained when every score is zero: the model is untrained. ShapeMismatch when there are fewer than k
        layers. BadArgument for what are no Scores, or a total that is negative, NaN or inf.

    Example:
        >>> import numpy as np
        >>> from fog_a.scores.scores import Scores
        >>> a = np.array([[[0.1670, 0.0100, 0.0695, 0.0588]]], dtype=np.float32)
        >>> s = Scores(values=a, layers=("l1", "l2", "l9", "l5"), times=None, domains=("speech",), ids=("a",),
        ...            kind="contribution", info={})
        >>> {n: round(w, 4) for n, w in select(s, 3).weights("speech").items()}
        {'l1': 0.2828, 'l9': 0.1177, 'l5': 0.0996}
    """
    check_total(total)
    domains = rankings(scores)
    k = domains[0].check_k(k)
    notes: list[str] = []
    chosen = {r.domain: _chosen(r, k, by, weighting, total, seed, notes) for r in domains}
    return Selection(
        domains=chosen,
        kind=scores.kind,
        by=by if isinstance(by, str) else "names",
        weighting=weighting,
        total=total,
        samples={r.domain: r.n for r in domains},
        certainty={r.domain: _sought(r, by).certainty(k) for r in domains if by in ("top", "bottom") and r.n > 1},
        signature=plain(scores.info.get("signature", {})),
        notes=tuple(notes),
    )


def _chosen(
    ranking: Ranking, k: int, by: Any, weighting: Weighting, total: float, seed: int, notes: list[str]
) -> tuple[Choice, ...]:
    """The chosen layers of one domain; what is left out is added to the notes."""
    mean, usable = ranking.mean, _usable(ranking, notes)
    if ranking.kind == "contribution" and not np.any(np.abs(mean[usable]) > NEGLIGIBLE):
        raise Untrained(
            f"every layer of domain {ranking.domain!r} contributes nothing (largest mean score "
            f"{np.abs(mean[usable]).max(initial=0.0):.1e}): the model is untrained (identity-initialised). "
            "Train it first, then attribute and select; AGREPA does so with a longer warmup="
        )
    places = _pick(ranking.layers, mean, usable, k, by, seed)
    order = [i for i in ranking.order if i in usable]
    numbers = np.full((4, len(mean)), np.nan)  # score, low, high, probability
    numbers[0] = mean
    if ranking.n > 1:  # an interval needs two
        numbers[1:] = *ranking.interval().T, _sought(ranking, by).inclusion(k)
    choices = []
    for i, weight in zip(places, _weigh(mean[places], weighting, total, ranking.domain), strict=True):
        score, low, high, probability = (float(x) if np.isfinite(x) else None for x in numbers[:, i])
        rank = order.index(i) + 1 if i in order else None
        about = {"score": score, "rank": rank, "low": low, "high": high, "probability": probability}
        choices.append(Choice(layer=ranking.layers[i], depth=i, weight=float(weight), **about))
    return tuple(choices)


def _sought(ranking: Ranking, by: Any) -> Ranking:
    """The ranking whose top k are meant: turned round for "bottom"."""
    return replace(ranking, values=-ranking.values) if by == "bottom" else ranking


def _usable(ranking: Ranking, notes: list[str]) -> list[int]:
    """Layers whose every score is a number; the others are named in the notes."""
    lost = ~np.isfinite(ranking.values)
    out, why = lost.any(axis=(0, 1)), "their ablation gave NaN or inf"
    if ranking.info.get("unmeasured"):  # a probe that measures some layers at a time leaves gaps
        out, why = lost.all(axis=(0, 1)), "they were never measured"
    if out.any():
        notes.append(f"{ranking.domain}: left out, because {why}: {', '.join(np.array(ranking.layers)[out])}")
    if out.all():
        raise BadOutput(
            f"no layer of domain {ranking.domain!r} has a finite score: look at v with attribute(...).values"
        )
    return np.flatnonzero(~out).tolist()


def _pick(layers: Sequence[str], mean: np.ndarray, usable: list[int], k: int, by: Any, seed: int) -> list[int]:
    """The chosen layers' places, highest score first for "top", in the order of execution or naming otherwise."""
    if not isinstance(by, str):
        if unknown := [name for name in by if name not in layers]:
            raise UnknownBlock(
                f"by= names {', '.join(unknown)}; the scores' layers are {', '.join(layers)}{near(unknown[0], layers)}"
            )
        return [list(layers).index(name) for name in by]
    if by in ("top", "bottom", "random") and k > len(usable):
        raise ShapeMismatch(f"k = {k} layers asked for, but only {len(usable)} have finite scores")
    ways = {
        "top": lambda: sorted(usable, key=lambda i: (-mean[i], i))[:k],
        "bottom": lambda: sorted(usable, key=lambda i: (mean[i], i))[:k],
        "random": lambda: sorted(random.Random(seed).sample(usable, k)),
        "shallow": lambda: list(range(k)),
        "deep": lambda: list(range(len(layers) - k, len(layers))),
    }
    if by not in ways:
        raise UnknownBlock(f"by={by!r} is no selector: take {', '.join(map(repr, ways))} or a list of layer names")
    return ways[by]()


def _weigh(a: np.ndarray, weighting: Weighting, total: float, domain: str) -> np.ndarray:
    """λ of Eq. 11 for the chosen scores; equal where there are no shares (a sum ≤ 0, a negative or missing score)."""
    if weighting not in ("equal", "normalized", "proportional"):
        raise ShapeMismatch(f"weighting={weighting!r}: take 'normalized', 'proportional' or 'equal'")
    shares = bool(np.isfinite(a).all() and a.min() >= 0 and a.sum() > 0)
    if weighting != "equal" and not shares:
        warnings.warn(
            f"the chosen scores of domain {domain!r} ({', '.join(f'{x:.3g}' for x in a)}) give no shares: "
            "weighted equally",
            stacklevel=3,
        )
    if weighting == "equal" or not shares:
        return np.full(len(a), total / len(a))
    return total * a / a.sum() if weighting == "normalized" else total * a
