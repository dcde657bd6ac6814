"""Selection: which layers are aligned, per domain, and how much each counts.

    S_m = TopK_k({a_{m,k}}, K)                                   (Eq. 10)
    λ_{m,k} ∝ a_{m,k},  k ∈ S_m                                  (Eq. 11)

a are the mean scores of a domain m: FoG-A, LASP or gradient norms. `weighting` settles the constant of Eq. 11:
"normalized" λ = total·a/Σ_S a, "proportional" λ = total·a (the authors' release: total = 2), "equal" λ = total/K.
Equal scores: the earlier layer wins.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fog_a.errors import BadOutput, BadScores, ShapeMismatch, UnknownBlock
from fog_a.files import write
from fog_a.scores.scores import Scores

Weighting = Literal["normalized", "proportional", "equal"]
NEGLIGIBLE = 1e-6
"""Mean contributions below this are rounding: closing the gate leaves v as it is."""


class Choice(BaseModel):
    """One chosen layer: its score a, its weight λ, a 95 % interval of a, and how often the bootstrap agrees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    depth: int
    """Its place among all layers, from 0, in order of execution."""
    score: float | None = None
    weight: float
    rank: int | None = None
    """1 for the highest score of the domain."""
    low: float | None = None
    high: float | None = None
    probability: float | None = None
    """How often it is among the top K when the samples are drawn again."""


class Selection(BaseModel):
    """The chosen layers and their weights, per domain. JSON in and out; knows the model it was made for.

    Example:
        >>> from fog_a.scores.selection import Selection
        >>> Selection.fixed(["blocks.7"], total=0.5).weights("all")
        {'blocks.7': 0.5}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: dict[str, tuple[Choice, ...]]
    kind: str = "fixed"
    """The scores it was made from: "contribution", "storage", "gradnorm"; "fixed" without scores."""
    by: str = "names"
    weighting: Weighting = "normalized"
    total: float = 0.5
    samples: dict[str, int] = {}
    certainty: dict[str, float] = {}
    """Per domain: how often the samples, drawn again, have exactly these K layers on top (for by="top")."""
    signature: dict[str, Any] = {}
    notes: tuple[str, ...] = ()

    @classmethod
    def fixed(
        cls,
        layers: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        total: float = 0.5,
        domains: Sequence[str] = ("all",),
    ) -> Selection:
        """Layers named by hand, equally weighted: the same for every domain, or a mapping domain → layers."""
        table = layers if isinstance(layers, Mapping) else dict.fromkeys(domains, layers)
        empty = [domain for domain, names in table.items() if not names]
        if empty or not table:
            raise UnknownBlock(f"no layer is named for {', '.join(empty) or 'any domain'}: name one, ['blocks.3']")
        return cls(
            domains={
                domain: tuple(Choice(layer=n, depth=i, weight=total / len(names)) for i, n in enumerate(names))
                for domain, names in table.items()
            },
            weighting="equal",
            total=total,
        )

    @classmethod
    def of(cls, given: Any, domains: Sequence[str], total: float) -> Selection | None:
        """What a caller may give for a selection: one, layer names for every domain, or domain → names; None stays."""
        if given is None or isinstance(given, Selection):
            return given
        if isinstance(given, Mapping):
            return cls.fixed({d: [n] if isinstance(n, str) else list(n) for d, n in given.items()}, total=total)
        return cls.fixed([given] if isinstance(given, str) else list(given), total=total, domains=domains)

    @property
    def layers(self) -> tuple[str, ...]:
        """All chosen layers, each once, in order of execution."""
        depth = {c.layer: c.depth for choices in self.domains.values() for c in choices}
        return tuple(sorted(depth, key=depth.__getitem__))

    def weights(self, domain: str) -> dict[str, float]:
        """λ_k of the domain's layers; a selection over all samples ("all") answers for any domain."""
        if domain not in self.domains and set(self.domains) != {"all"}:
            raise UnknownBlock(
                f"no layers were selected for domain {domain!r}, only for {', '.join(self.domains)}: give those their "
                f"teachers, teachers={{{next(iter(self.domains))!r}: ...}}, or select on scores of {domain!r}"
            )
        return {c.layer: c.weight for c in self.domains.get(domain, self.domains.get("all", ()))}

    def check(self, signature: Mapping[str, Any]) -> Self:
        """Refuse a model other than the one the scores were measured on. Raises BadScores.

        Blocks that were not scored do not matter: a selection from some of a model's blocks fits the model.
        """
        there, blocks = self.signature, list(signature.get("blocks", ()))
        missing = [n for n in [*self.layers, *there.get("blocks", ())] if n not in blocks]
        what = None
        if missing:
            what = f"it names {_brief(missing)}, and this one has {_brief(blocks)}"
        for key in ("class", "parameters"):
            if key in there and key in signature and there[key] != signature[key]:
                what = what or f"its {key} was {there[key]}, here it is {signature[key]}"
        if what is not None:
            raise BadScores(
                f"this selection was made for another model: {what}. Select on scores of this model: "
                "select(attribute(model, batch))"
            )
        return self

    def explain(self) -> str:
        """Why each layer was chosen and how sure that is, one line each."""
        lines = []
        for domain, choices in self.domains.items():
            n = self.samples.get(domain)
            of = f" of {n} samples" if n else ""
            sure = (
                f"; just these on top in {self.certainty[domain]:.0%} of resamples" if domain in self.certainty else ""
            )
            lines.append(f"{domain}: {len(choices)} layers by {self.by} ({self.kind}{of}), λ {self.weighting}{sure}")
            lines += [_why(c) for c in choices]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all."""
        write(path, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read JSON. Raises BadScores where the file is corrupt or holds something else."""
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise BadScores(
                f"{path} is no selection: {where}: {first['msg']}. Write one with select(scores).save(path)"
            ) from None

    def __str__(self) -> str:
        return self.explain()


def select(
    scores: Scores,
    k: int = 3,
    *,
    by: Literal["top", "random", "shallow", "deep"] | Sequence[str] = "top",
    weighting: Weighting = "normalized",
    total: float = 0.5,
    seed: int = 0,
) -> Selection:
    """Choose K layers per domain from scores of any kind, and weigh them (Eq. 10–11).

    Args:
        scores: contribution, storage or gradient norms; a layer with a NaN is left out, with a note.
        k: how many layers per domain.
        by: "top" scores; or a control of the paper's Tables 2–3: "random" (drawn by `seed`), "shallow" (the first k),
            "deep" (the last k), or layer names.
        weighting, total: see the head of this module.

    Raises BadOutput when every score is zero: the model is untrained; ShapeMismatch when there are fewer than k layers.

    Example:
        >>> import numpy as np
        >>> from fog_a.scores.scores import Scores
        >>> a = np.array([[[0.1670, 0.0100, 0.0695, 0.0588]]], dtype=np.float32)
        >>> s = Scores(values=a, layers=("l1", "l2", "l9", "l5"), times=None, domains=("speech",), ids=("a",),
        ...            kind="contribution", info={})
        >>> {n: round(w, 4) for n, w in select(s, 3).weights("speech").items()}
        {'l1': 0.2828, 'l9': 0.1177, 'l5': 0.0996}
    """
    if not 1 <= k <= len(scores.layers):
        raise ShapeMismatch(f"k = {k} layers asked for, but the scores have {len(scores.layers)}: take 1 ≤ k ≤ that")
    notes: list[str] = []
    chosen: dict[str, tuple[Choice, ...]] = {}
    counts: dict[str, int] = {}
    certainty: dict[str, float] = {}
    for domain in dict.fromkeys(scores.domains):
        mean = np.asarray(scores.mean(domain), dtype=np.float64)
        usable = _usable(scores, domain, notes)
        if scores.kind == "contribution" and not np.any(np.abs(mean[usable]) > NEGLIGIBLE):
            raise BadOutput(
                f"every layer of domain {domain!r} contributes nothing (largest mean score "
                f"{np.abs(mean[usable]).max(initial=0.0):.1e}): the model is untrained (identity-initialised). "
                "Train it first, then attribute and select; AGREPA does so with a longer warmup="
            )
        picked = _pick(scores.layers, mean, usable, k, by, seed)
        weights = _weigh(mean[picked], weighting, total, domain)
        chosen[domain] = tuple(_choices(scores, domain, mean, usable, picked, weights, k))
        counts[domain] = sum(d == domain for d in scores.domains)
        if by == "top" and counts[domain] > 1:
            certainty[domain] = scores.top_probability(k, domain)
    return Selection(
        domains=chosen,
        kind=scores.kind,
        by=by if isinstance(by, str) else "names",
        weighting=weighting,
        total=total,
        samples=counts,
        certainty=certainty,
        signature=json.loads(json.dumps(scores.info.get("signature", {}))),
        notes=tuple(notes),
    )


def _usable(scores: Scores, domain: str, notes: list[str]) -> list[int]:
    """Layers whose every score is a number; the others are named in the notes."""
    lost = ~np.isfinite(np.asarray(scores.only(domain).values))
    if scores.info.get("unmeasured"):  # a probe that measures some layers at a time leaves gaps
        out, why = np.flatnonzero(lost.all(axis=(0, 1))), "they were never measured"
    else:
        out, why = np.flatnonzero(lost.any(axis=(0, 1))), "their ablation gave NaN or inf"
    if out.size:
        notes.append(f"{domain}: left out, because {why}: {', '.join(scores.layers[i] for i in out)}")
    usable = [i for i in range(len(scores.layers)) if i not in set(out.tolist())]
    if not usable:
        raise BadOutput(f"no layer of domain {domain!r} has a finite score: look at v with attribute(...).values")
    return usable


def _pick(layers: Sequence[str], mean: np.ndarray, usable: list[int], k: int, by: Any, seed: int) -> list[int]:
    """The chosen layers' places, highest score first for "top", in the order of execution or naming otherwise."""
    if not isinstance(by, str):
        unknown = [name for name in by if name not in layers]
        if unknown:
            raise UnknownBlock(f"by= names {', '.join(unknown)}; the scores' layers are {', '.join(layers)}")
        return [list(layers).index(name) for name in by]
    if by in ("top", "random") and k > len(usable):
        raise ShapeMismatch(f"k = {k} layers asked for, but only {len(usable)} have finite scores")
    if by == "top":
        return sorted(usable, key=lambda i: (-mean[i], i))[:k]
    if by == "random":
        return sorted(random.Random(seed).sample(usable, k))
    if by in ("shallow", "deep"):
        return list(range(k)) if by == "shallow" else list(range(len(layers) - k, len(layers)))
    raise UnknownBlock(f"by={by!r} is no selector: take 'top', 'random', 'shallow', 'deep' or a list of layer names")


def _weigh(a: np.ndarray, weighting: Weighting, total: float, domain: str) -> np.ndarray:
    """λ of Eq. 11 for the chosen scores; equal where there are no shares (a sum ≤ 0, a negative or missing score)."""
    equal = np.full(len(a), total / len(a))
    if weighting == "equal":
        return equal
    if weighting not in ("normalized", "proportional"):
        raise ShapeMismatch(f"weighting={weighting!r}: take 'normalized', 'proportional' or 'equal'")
    if not np.all(np.isfinite(a)) or a.min() < 0 or a.sum() <= 0:
        warnings.warn(
            f"the chosen scores of domain {domain!r} ({', '.join(f'{x:.3g}' for x in a)}) give no shares: "
            "weighted equally",
            stacklevel=3,
        )
        return equal
    return total * a / a.sum() if weighting == "normalized" else total * a


def _choices(
    scores: Scores, domain: str, mean: np.ndarray, usable: list[int], picked: list[int], weights: np.ndarray, k: int
) -> list[Choice]:
    """The picked layers with what is known of them; intervals need at least two samples."""
    order = sorted(usable, key=lambda i: (-mean[i], i))
    low = high = chance = None
    if sum(d == domain for d in scores.domains) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few samples: explain() says how many
            low, high = np.asarray(scores.interval(domain=domain), dtype=np.float64).T
            chance = np.asarray(scores.inclusion_probability(k, domain), dtype=np.float64)

    def at(values: np.ndarray | None, i: int) -> float | None:
        return float(values[i]) if values is not None and np.isfinite(values[i]) else None

    return [
        Choice(
            layer=scores.layers[i],
            depth=i,
            score=at(mean, i),
            weight=float(w),
            rank=order.index(i) + 1 if i in order else None,
            low=at(low, i),
            high=at(high, i),
            probability=at(chance, i),
        )
        for i, w in zip(picked, weights, strict=True)
    ]


def _why(c: Choice) -> str:
    line = f"  {c.layer} (layer {c.depth + 1}): λ = {c.weight:.4f}"
    if c.score is None:
        return line + ", named by hand"
    line += f", score {c.score:.4f}"
    if c.low is not None and c.high is not None:
        line += f" [{c.low:.4f}, {c.high:.4f}]"
    if c.rank is not None:
        line += f", rank {c.rank}"
    if c.probability is not None:
        line += f", among the top in {c.probability:.0%} of resamples"
        if c.probability < 0.8:
            line += " (not settled: measure more samples)"
    return line


def _brief(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
