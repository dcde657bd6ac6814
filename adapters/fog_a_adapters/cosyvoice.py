"""CosyVoice 1, 2 and 3: the flows `MaskedDiffWithXvec`, `CausalMaskedDiffWithXvec`, `CausalMaskedDiffWithDiT`.

Repository: https://github.com/FunAudioLLM/CosyVoice, read at ace7c47 (2026-03-16). It is no package: have a checkout,
with third_party/Matcha-TTS, on the Python path. Papers: arXiv 2407.05407, 2412.10117, 2505.17589.

A batch is what its own data pipeline gives `flow.forward`: `speech_token`, `speech_token_len`, `speech_feat` (B, T, M),
`speech_feat_len`, `embedding`. Its classes are known by module path or, in a fork, by their parts. A probe draws the
noise and the reference prefix sample by sample from its seed; classifier-free dropping is off, streaming an option.

chatterbox-tts 0.1.7 has a copy of version 2 as its S3Gen (`ChatterboxTTS(...).s3gen`, or its `.flow`), without
streaming; batches are the same. Its meanflow decoder, which predicts no velocity at t, is refused.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.flows.dicts import require_keys, samples_from, to_module
from fog_a.flows.frames import frame_mask, mask_along
from fog_a.flows.network import arguments
from fog_a.flows.noise import uniform
from fog_a.flows.register import is_a
from fog_a.flows.samples import Samples
from fog_a_adapters.straight import DecoderFlow

KEYS = ("speech_token", "speech_token_len", "speech_feat", "speech_feat_len", "embedding")
FLOWS = ("MaskedDiffWithXvec", "CausalMaskedDiffWithXvec", "CausalMaskedDiffWithDiT")
S3GEN = ("S3Token2Mel", "S3Token2Wav")
PARTS = ("input_embedding", "spk_embed_affine_layer", "decoder")


class CosyVoiceAdapter(DecoderFlow):
    """Adapter of CosyVoice's flows; velocities are (B, M, T).

    Args:
        model: the flow (`CosyVoice(...).model.flow`, or `configs["flow"]` in training).
        streaming: the chunked attention of versions 2 and 3, which training switches on for half of its batches.
    """

    checkout = "cosyvoice"
    version = "ace7c47"

    def __init__(self, model: Any, streaming: bool = False) -> None:
        if is_a(model, "chatterbox", *S3GEN):
            model = model.flow
        if getattr(model.decoder.estimator, "meanflow", False):
            raise Unsupported(
                "chatterbox's meanflow decoder predicts the mean velocity from t to a second time r, not v(x_t, t). "
                "Load S3Gen(meanflow=False)"
            )
        if not isinstance(model.decoder.estimator, nn.Module):
            raise Unsupported(
                f"the flow's estimator is {type(model.decoder.estimator).__name__}, no module: "
                "load CosyVoice without TensorRT (load_trt=False)"
            )
        self.model, self.streaming, self.sigma = model, streaming, model.decoder.sigma_min
        self.module: nn.Module = model.decoder.estimator
        self._streams = "streaming" in arguments(self.module)

    @staticmethod
    def matches(model: object) -> bool:
        """True for the three flows by name and for what has their parts."""
        fork: Any = model
        return (
            is_a(model, "cosyvoice", *FLOWS)
            or is_a(model, "chatterbox", *S3GEN)
            or (all(hasattr(fork, part) for part in PARTS) and hasattr(fork.decoder, "estimator"))
        )

    def drawn(self, batch: Any, seed: int) -> tuple[Tensor]:
        """The reference prefix: half of the samples see up to 30 % of x_1."""
        samples = self.samples(batch)
        assert samples.mask is not None
        lengths = samples.mask[:, 0].sum(-1)
        coin, part = uniform(samples.ids, seed, "prefix", 2).to(lengths.device).unbind(1)
        return ((((0.3 * lengths).long() + 1) * part * (coin >= 0.5)).long(),)

    def field(
        self, batch: Any, x0: Float[Tensor, "B M T"], t: Float[Tensor, "B"], prefix: Tensor
    ) -> Float[Tensor, "B M T"]:
        """v with everything that is random given: the noise, the time, and how many frames (B,) are the reference."""
        found = self._read(batch)
        x1 = found["x1"]
        mu, speaker, mask = self._conditions(found)
        frame = torch.arange(x1.shape[-1], device=x1.device)
        reference = torch.where((frame < prefix[:, None])[:, None], x1, 0)
        return self.module(self.between(x0, x1, t), mask, mu, t, speaker, reference, **self._streaming)

    def samples(self, batch: Any) -> Samples:
        """Ids from `utts` or `ids`, or made of the features; the mask of real frames (B, 1, T)."""
        found = self._read(batch)
        feat, lengths = found["speech_feat"], self._lengths(found)
        about = {"ids": batch["utts"], **batch} if "utts" in batch else batch
        mask = mask_along(frame_mask(lengths, feat.shape[1]), 3, 2)
        # the masks of the flow's forward are as long as the longest sample
        padded = {"speech_token": (1, "speech_token_len"), "speech_feat": (1, "speech_feat_len")}
        return samples_from(about, feat, lengths=lengths.tolist(), mask=mask, padded=padded)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The loss of the flow's own forward, with its own random numbers."""
        found, device = self._read(batch), next(self.model.parameters()).device
        if hasattr(self.model, "compute_loss"):  # chatterbox: no forward, and features as (B, M, T)
            return self.model.compute_loss({**found, "speech_feat": found["speech_feat"].mT}, device)["loss"]
        return self.model(batch, device)["loss"]

    @property
    def _streaming(self) -> dict[str, bool]:
        return {"streaming": self.streaming} if self._streams else {}

    @property
    def _first(self) -> bool:
        return hasattr(self.model, "length_regulator")

    def _lengths(self, found: dict[str, Any]) -> Tensor:
        """Real frames of each sample: versions 2 and 3 count them in tokens."""
        if self._first:
            return found["speech_feat_len"]
        return found["speech_token_len"] * self.model.token_mel_ratio

    def _conditions(self, found: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """μ (B, M, T), the speaker (B, M), the mask (B, 1, T) in the dtype of μ: as the flow's own forward has them."""
        model, size = self.model, found["speech_token_len"]
        speaker = model.spk_embed_affine_layer(F.normalize(found["embedding"], dim=1))
        longest = int(size.max())
        token = model.input_embedding(found["speech_token"][:, :longest].clamp(min=0))
        token = token * frame_mask(size, longest).to(token)[..., None]
        if self._first:
            h, _ = model.encoder(token, size)
            h, _ = model.length_regulator(model.encoder_proj(h), found["speech_feat_len"])
        elif hasattr(model, "pre_lookahead_layer"):
            h = model.pre_lookahead_layer(token).repeat_interleave(model.token_mel_ratio, dim=1)
        else:
            h, _ = model.encoder(token, size, **self._streaming)
            h = model.encoder_proj(h)
        frames = found["speech_feat"].shape[1]
        if h.shape[1] != frames:
            raise ShapeMismatch(
                f"the tokens stand for {h.shape[1]} frames, speech_feat has {frames}: cut the longer one"
            )
        mask = frame_mask(self._lengths(found), frames)
        return h.transpose(1, 2).contiguous(), speaker, mask.to(h)[:, None]

    def _read(self, batch: Any) -> dict[str, Any]:
        require_keys(
            batch, KEYS, "CosyVoice", "Its processor's padding gives them; whisper_feat alone has to be tokenized first"
        )
        found = to_module({key: batch[key] for key in KEYS}, self.module, "speech_feat", "embedding")
        return {**found, "x1": found["speech_feat"].transpose(1, 2)}
