"""Selection: which layers are aligned, per domain, and how much each counts. Made by `select`, or by hand."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fog_a.errors import BadArgument, BadScores, UnknownBlock
from fog_a.files import write
from fog_a.scores.files import read_json
from fog_a.scores.lists import indices

Weighting = Literal["normalized", "proportional", "equal"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


SETTLED = 0.95
"""The share of resamples that must agree on the chosen layers before they count as settled."""


class Choice(BaseModel):
    """One chosen layer: its score a, its weight λ, a 95 % interval of a, and how often the bootstrap agrees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    depth: int
    """Its place among all layers, from 0, in order of execution."""
    score: Number | None = None
    weight: Weight
    rank: int | None = None
    """1 for the highest score of the domain."""
    low: Number | None = None
    high: Number | None = None
    probability: Number | None = None
    """How often it is among the top K (by="bottom": the bottom K) when the samples are drawn again."""


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
    total: Weight = 0.5
    samples: dict[str, int] = {}
    certainty: dict[str, float] = {}
    """Per domain, for by="top" or "bottom": how often the samples, drawn again, have exactly these K layers there."""
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
        check_total(total)
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

    def indices(self, domain: str | None = None) -> dict[str, list[int]]:
        """List path → the numbers of the chosen blocks in it: what tools take that skip, train or cache some layers.

        Args:
            domain: one domain's layers; None: all that are chosen.

        Raises: BadArgument for a block that is no item of a list, or one execution of a module that runs several times.

        >>> Selection.fixed(["single.3", "double.0", "single.1"]).indices()
        {'single': [1, 3], 'double': [0]}
        """
        return indices(self.layers if domain is None else list(self.weights(domain)))

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
        end = "at the bottom" if self.by == "bottom" else "on top"
        for domain, choices in self.domains.items():
            n = self.samples.get(domain)
            of = f" of {n} samples" if n else ""
            sure = ""
            if domain in self.certainty:
                settled = "" if self.certainty[domain] >= SETTLED else ", not settled"
                sure = f"; just these {end} in {self.certainty[domain]:.0%} of resamples{settled}"
            lines.append(f"{domain}: {len(choices)} layers by {self.by} ({self.kind}{of}), λ {self.weighting}{sure}")
            lines += [_why(c, end.split()[-1]) for c in choices]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all. Raises NotWritten."""
        write(path, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read JSON. Raises BadScores where the file is absent, corrupt or holds something else."""
        content = read_json(path, "a selection")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise BadScores(
                f"{path} is no selection: {where}: {first['msg']}. Write one with select(scores).save(path)"
            ) from None

    def __str__(self) -> str:
        return self.explain()


def _why(c: Choice, end: str) -> str:
    line = f"  {c.layer} (layer {c.depth + 1}): λ = {c.weight:.4f}"
    if c.score is None:
        return line + ", named by hand"
    line += f", score {c.score:.4f}"
    if c.low is not None and c.high is not None:
        line += f" [{c.low:.4f}, {c.high:.4f}]"
    if c.rank is not None:
        line += f", rank {c.rank}"
    if c.probability is not None:
        line += f", among the {end} in {c.probability:.0%} of resamples"
        if c.probability < 0.8:
            line += " (not settled: measure more samples)"
    return line


def _brief(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def check_total(total: float) -> None:
    """Raises BadArgument for weights that would be negative, NaN or inf."""
    if isinstance(total, str) or not (math.isfinite(total) and total >= 0):
        raise BadArgument(f"total = {total!r}: expected a finite number ≥ 0, the sum of a domain's weights, e.g. 0.5")
