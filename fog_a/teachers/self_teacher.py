"""The model that is trained, as its own teacher: a deeper block, of itself or of an average of its weights."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.calls import unwrapped
from fog_a.blocks.tap import tap
from fog_a.blocks.untouched import preserved
from fog_a.errors import NoBlocksFound, UnknownBlock, Unsupported
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a.teachers.descriptors import temporal_mean

LATEST = 0.999
"""The cleanest time: at 1 some networks' predictions tell no velocity."""


class SelfTeacher:
    """A deeper block of the net that is being trained, with its gradient stopped (LayerSync; SPEC A12).

    It reads no audio: `AGREPA` taps the block in the user's own forward and asks `features`. Its width is known then.
    With `ema=`, the block is read in that copy of the model, which sees the same clean samples with other noise, at
    times closer to the data (after Self-Flow). That costs one more forward a step, without gradients.

    Args:
        block: name or index of the block among the main ones; None: layer ⌈2L/3⌉ of L.
        ema: the average of the model's weights that the training keeps: a deep copy of the model or of its network, or
            torch's AveragedModel. None: the model itself.
        cleaner: how much is added to the flow times of the batch for `ema`, in [0, 1]; sums above .999 are .999.

    Raises:
        Unsupported: `cleaner` without `ema`, or either of another kind.
    """

    pool = "mean"

    def __init__(
        self,
        block: str | int | None = None,
        *,
        ema: nn.Module | None = None,
        cleaner: float = 0.0,
    ) -> None:
        if ema is not None and not isinstance(ema, nn.Module):
            raise Unsupported(
                f"ema= is the averaged copy of the model, an nn.Module, got {ema!r}. Type "
                "ema=torch.optim.swa_utils.AveragedModel(model), and update it as you train"
            )
        if not isinstance(cleaner, (int, float)) or not 0 <= cleaner <= 1:
            raise Unsupported(f"cleaner= is added to flow times in [0, 1], 1 the data; got {cleaner!r}. Type 0.2")
        if cleaner and ema is None:
            raise Unsupported(
                f"SelfTeacher(cleaner={cleaner!r}) needs the copy of the model that sees the cleaner samples: type ema="
            )
        self.block, self.ema, self.cleaner = block, ema, float(cleaner)
        self.name = f"self:{'two-thirds' if block is None else block}"
        self.dim = 0  # until features() has seen the block

    def block_of(self, blocks: Blocks) -> ResidualBlock:
        """The block it reads. Raises UnknownBlock."""
        if not len(blocks):
            raise NoBlocksFound("SelfTeacher needs a model with residual blocks, got none: find_blocks(model, batch)")
        if self.block is None:
            return blocks[math.ceil(2 * len(blocks) / 3) - 1]
        if isinstance(self.block, str):
            return blocks[self.block]
        if not -len(blocks) <= self.block < len(blocks):
            raise UnknownBlock(f"SelfTeacher({self.block}) but there are {len(blocks)} blocks: 0..{len(blocks) - 1}")
        return blocks[self.block]

    def features(self, h: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B D"]:
        """The temporal mean of the block's tokens over the real ones: float32, no gradient."""
        z = temporal_mean(h.detach().float(), mask)
        self.dim = z.shape[1]
        return z

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        raise Unsupported(
            "SelfTeacher reads a block in the net's own forward, not audio: type "
            "AGREPA(flow, teachers=SelfTeacher(...)). For lasp and BiTC give a teacher that stands outside the net"
        )

    def tokens(
        self, twin: Flow, block: ResidualBlock, samples: Samples, t: Float[Tensor, "B"], seed: int
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """The block's tokens in `twin`, the flow around `ema`; t: the flow times in the training's forward."""
        times = (t + self.cleaner).clamp(max=LATEST)
        with preserved(*twin.modules), tap(Blocks([block], unwrapped(twin.module))) as h:
            twin.velocity(samples.rows(range(len(samples))), times, seed)
        return twin.tokens(h[block.name], block, samples)
