"""What a teacher is: anything that gives one pooled vector per sample."""

from __future__ import annotations

import abc
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.flows.samples import Samples


@runtime_checkable
class Teacher(Protocol):
    """A frozen feature extractor: one pooled vector per sample."""

    name: str
    dim: int

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """Features pooled over the real frames; no grad."""
        ...


class FrameTeacher(abc.ABC):
    """A teacher that reads a sample frame by frame; its feature is the mean of the frames.

    Attributes:
        pool: how it pools, one word of the key under which features are kept.
    """

    name: str
    dim: int
    pool: str = "mean"

    @abc.abstractmethod
    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The real frames of each sample before pooling: targets for heads that keep their tokens."""

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The mean of each sample's frames, float32, no grad."""
        return torch.stack([h.mean(0) for h in self.frames(samples)])
