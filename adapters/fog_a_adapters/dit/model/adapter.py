"""How fog_a reads the bundled model: `fog_a.wrap(FlowMatching(...))` finds this adapter.

Batches are `MelBatch` dicts. Scores have a time axis: x_t is built at any t from the clip and the noise that the seed
draws for its id. Paper: AG-REPA, Eq. 21–23.
"""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.errors import BadBatch
from fog_a.flows.dicts import require_keys, samples_from, to_module
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a_adapters.dit.model.flow import FlowMatching, MelBatch
from fog_a_adapters.dit.model.interface import frame_mask

KEYS = ("mel", "lengths", "tokens", "token_lengths", "domain", "ids")
HINT = "fog_a_adapters.dit.audio.data makes such batches: load_corpus(folder).held_out()"


class DiTAdapter(Flow):
    """Adapter of `FlowMatching`.

    Args:
        model: the flow-matching model; its `net` is the velocity network whose blocks are found.
    """

    t = "t"
    """The network's argument that holds the flow time (AGREPA's heads and weights by t read it)."""

    def __init__(self, model: FlowMatching) -> None:
        self.model = model

    @staticmethod
    def matches(model: object) -> bool:
        """True for the bundled model."""
        return isinstance(model, FlowMatching)

    @property
    def module(self) -> nn.Module:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The DiT."""
        return self.model.net

    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B T M"]:
        """v(x_t, t, c); noise and reference length are functions of the seed and of each clip's id."""
        return self.model.velocity(self._read(batch), t, seed)

    def target(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B T M"]:
        """x_1 − x_0."""
        found = self._read(batch)
        return found["mel"] - self.model.draws(found, seed)[0]

    def samples(self, batch: Any) -> Samples:
        """Ids, domains, audio where the batch holds it, and the mask (B, T, 1) of real frames."""
        found, names = self._read(batch), self.model.config.domains
        mask = frame_mask(found["lengths"], found["mel"].shape[1])[..., None]
        return samples_from(
            batch, found["mel"], lengths=found["lengths"].tolist(), mask=mask,
            named=lambda b: [names[i] for i in b["domain"].tolist()],
        )  # fmt: skip

    def interface(self, batch: Any) -> Float[Tensor, "B T C"]:
        """The token features c at mel length, zero in the padding, with their graph to the embeddings."""
        return self.model.tokens(self._read(batch))

    def tokens(
        self, h: Float[Tensor, "B T D"], block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """A block's output is tokens already: one per mel frame."""
        mask = samples.mask
        return h, None if mask is None else mask[..., 0].to(h.device)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """L_FM (Eq. 23), masked."""
        return self.model.loss(self._read(batch))

    def _read(self, batch: Any) -> MelBatch:
        """The batch on the model's device. Raises BadBatch where the model cannot take it."""
        require_keys(batch, KEYS, "the bundled DiT", HINT)
        mel, sizes = batch["mel"], {key: len(batch[key]) for key in KEYS}
        want = self.model.config.mels
        if not isinstance(mel, Tensor) or mel.ndim != 3 or not len(mel) or mel.shape[2] != want:
            got = tuple(mel.shape) if isinstance(mel, Tensor) else type(mel).__name__
            raise BadBatch(f"'mel' is (samples, frames, {want} mel bins) with at least one sample, got {got}. {HINT}")
        if len(set(sizes.values())) > 1:
            raise BadBatch(f"everything in a batch has the same number of samples, got {sizes}. {HINT}")
        lengths = batch["lengths"]
        if int(lengths.min()) < 1 or int(lengths.max()) > mel.shape[1]:
            raise BadBatch(f"'lengths' are 1 to {mel.shape[1]} frames, got {lengths.tolist()}. {HINT}")
        return cast(MelBatch, to_module(batch, self.model, "mel"))
