"""What the adapters of speech models share: straight paths from noise to data, and Matcha's decoder.

x_t = (1 − (1 − σ) t) x_0 + t x_1,   v is trained towards x_1 − (1 − σ) x_0
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.blocks.block import ResidualBlock
from fog_a.flows.convention import sample_times
from fog_a.flows.flow import Flow
from fog_a.flows.frames import token_mask
from fog_a.flows.noise import noise
from fog_a.flows.samples import Samples


class StraightFlow(Flow):
    """A flow on straight paths.

    Attributes:
        sigma: σ above.
        axis: the frames' axis in x_1.
        field: field(batch, x0, t, *drawn): v with everything that is random given; a subclass has it.
    """

    sigma: float = 0.0
    axis: int = 1
    field: Callable[..., Tensor]

    def _read(self, batch: Any) -> dict[str, Any]:
        """What the model takes, x_1 under `x1`."""
        raise NotImplementedError

    def drawn(self, batch: Any, seed: int) -> tuple[Any, ...]:
        """What training draws besides noise and time, from a seed."""
        return ()

    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """v(x_t, t, c), with the noise and whatever else training draws from the seed."""
        x1, x0 = self._ends(batch, seed)
        return self.field(batch, x0, sample_times(t, x1), *self.drawn(batch, seed))

    def target(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """x_1 − (1 − σ) x_0."""
        x1, x0 = self._ends(batch, seed)
        return x1 - (1 - self.sigma) * x0

    def between(self, x0: Float[Tensor, "B ..."], x1: Float[Tensor, "B ..."], t: Float[Tensor, "B"]) -> Tensor:
        """x_t."""
        at = t[:, None, None]
        return (1 - (1 - self.sigma) * at) * x0 + at * x1

    def _ends(self, batch: Any, seed: int) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """x_1, and the noise that the seed draws for it."""
        x1, samples = self._read(batch)["x1"], self.samples(batch)
        lengths = None if samples.mask is None else samples.mask.flatten(1).sum(1).tolist()
        return x1, noise(x1, samples.ids, seed, lengths, self.axis)


class DecoderFlow(StraightFlow):
    """A flow around Matcha's decoder, which CosyVoice 1 and 2 are built on: data and velocities are (B, M, T)."""

    axis = 2
    t = "t"  # the argument of the network that holds the flow time
    _conditions: Callable[[dict[str, Any]], tuple[Any, ...]]  # μ (B, M, T) and what else the network is given

    def interface(self, batch: Any) -> Float[Tensor, "B T M"]:
        """μ: the encoded text or speech tokens at mel length."""
        return self._conditions(self._read(batch))[0].transpose(1, 2)

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """Transformer blocks give tokens; the convolutional blocks between them give (B, D, T)."""
        if "Resnet" in type(self.module.get_submodule(block.name.split("@")[0])).__name__:
            h = h.transpose(1, 2)
        return h, token_mask(samples.mask, h)


def theirs(part: Any, name: str) -> Any:
    """The module of a model's package that defines its class of this name."""
    return sys.modules[next(kind for kind in type(part).__mro__ if kind.__name__ == name).__module__]
