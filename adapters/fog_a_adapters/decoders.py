"""Matcha's decoder, which CosyVoice 1 and 2 are built on: transformer blocks between convolutional ones."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.flows.frames import token_mask
from fog_a.flows.samples import Samples


def decoder_tokens(
    net: nn.Module, h: Tensor, block: ResidualBlock, samples: Samples
) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
    """A block's output as tokens with their mask: transformer blocks give (B, T, D), convolutional ones (B, D, T)."""
    if "Resnet" in type(net.get_submodule(block.name.split("@")[0])).__name__:
        h = h.transpose(1, 2)
    return h, token_mask(samples.mask, h)
