"""Selection: which layers are aligned, per domain, and how much each counts. Made by `select`, or by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from fog_a.errors import BadArgument, BadScores, UnknownBlock, is_real
from fog_a.files import write
from fog_a.scores.files import read_as
from fog_a.scores.lists import indices
from fog_a.scores.ranking import count

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

    def explain(self, end: str) -> str:
        """One line: the weight, and what the scores say of it; `end` is the end of the ranking that was sought."""
        line = f"  {self.layer} (layer {self.depth + 1}): λ = {self.weight:.4f}"
        if self.score is None:
            return line + ", named by hand"
        line += f", score {self.score:.4f}"
        if self.low is not None and self.high is not None:
            line += f" [{self.low:.4f}, {self.high:.4f}]"
        if self.rank is not None:
            line += f", rank {self.rank}"
        if self.probability is not None:
            doubt = " (not settled: measure more samples)" if self.probability < 0.8 else ""
            line += f", among the {end} in {self.probability:.0%} of resamples{doubt}"
        return line


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
        chosen = {
            domain: tuple(Choice(layer=n, depth=i, weight=total / len(names)) for i, n in enumerate(names))
            for domain, names in table.items()
        }
        return cls(domains=chosen, weighting="equal", total=total)

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
        blocks = list(signature.get("blocks", ()))
        what = None
        if missing := [n for n in [*self.layers, *self.signature.get("blocks", ())] if n not in blocks]:
            mine, others = (f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}" for names in (missing, blocks))
            what = f"it names {mine}, and this one has {others}"
        for key in ("class", "parameters"):
            was, now = self.signature.get(key), signature.get(key)
            if None not in (was, now) and was != now:
                what = what or f"its {key} was {was}, here it is {now}"
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
            n, sure = self.samples.get(domain), self.certainty.get(domain)
            of = f" of {count(n, 'sample')}" if n else ""
            line = f"{domain}: {count(len(choices), 'layer')} by {self.by} ({self.kind}{of}), λ {self.weighting}"
            if sure is not None:
                line += f"; just these {end} in {sure:.0%} of resamples{'' if sure >= SETTLED else ', not settled'}"
            lines += [line, *(choice.explain(end.split()[-1]) for choice in choices)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all. Raises NotWritten."""
        write(path, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read JSON. Raises BadScores where the file is absent, corrupt or holds something else."""
        return read_as(cls, path, "selection", "Write one with select(scores).save(path)")

    def __str__(self) -> str:
        return self.explain()


def check_total(total: float) -> None:
    """Raises BadArgument for weights that would be negative, NaN or inf."""
    if not is_real(total) or total < 0:
        raise BadArgument(f"total = {total!r}: expected a finite number ≥ 0, the sum of a domain's weights, e.g. 0.5")
