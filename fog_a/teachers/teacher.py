"""What a teacher is: anything that gives one pooled vector per sample."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fog_a.flows.samples import Samples


@runtime_checkable
class Teacher(Protocol):
    """A frozen feature extractor: one pooled vector per sample."""

    name: str
    dim: int
    domain: str | None

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """Features pooled over the real frames; no grad."""
        ...
