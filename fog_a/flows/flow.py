"""A flow-matching model with the adapter that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.flows.samples import Samples


@runtime_checkable
class Adapter(Protocol):
    """What fog_a must know of a flow-matching model. A third party implements this; see docs/write-an-adapter.md."""

    module: nn.Module
    """The velocity network: where the blocks are, and where rows are fanned out."""

    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int) -> Float[Tensor, "B ..."]:
        """v(x_t, t, c) at time t, with the noise that `seed` draws: same seed, same x_t. Module calls `module` once."""
        ...

    def samples(self, batch: Any) -> Samples:
        """The batch's samples: ids, domains, audio, mask of v, and `rows`."""
        ...

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """The conditioning (token) embedding with its graph, for BiT-C; None where there is none."""
        ...

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """A block's output as tokens, channels last, without register or time tokens, and which of them are real."""
        ...

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The model's own training loss."""
        ...


@dataclass(frozen=True, eq=False)
class Flow:
    """A model and the adapter that reads it; what `fog_a.attribute` and the others take.

    Attributes:
        model: the third party's object, as it was given.
        adapter: how to read it.
    """

    model: Any
    adapter: Adapter

    @property
    def module(self) -> nn.Module:
        """The velocity network: where the blocks are."""
        return self.adapter.module

    @property
    def modules(self) -> list[nn.Module]:
        """The network, and the model around it where that is a module: whose state a probe leaves as it was."""
        return [m for m in (self.module, self.model) if isinstance(m, nn.Module)]

    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """v(x_t, t, c) at t in [0, 1], with the noise that `seed` draws."""
        return self.adapter.velocity(batch, t, seed)

    def samples(self, batch: Any) -> Samples:
        """Ids, domains, audio and mask of the batch's samples, and `rows` for a smaller batch."""
        return self.adapter.samples(batch)

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """The conditioning embedding with its graph, or None."""
        return self.adapter.interface(batch)

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """A block's output as tokens, and which of them are real."""
        return self.adapter.tokens(h, block, samples)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The model's own training loss."""
        return self.adapter.loss(batch)

    def __repr__(self) -> str:
        return f"Flow({type(self.model).__name__}, {type(self.adapter).__name__})"
