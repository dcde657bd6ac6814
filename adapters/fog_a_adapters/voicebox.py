"""Voicebox: `ConditionalFlowMatcherWrapper` around `VoiceBox`, or a bare `VoiceBox`.

Repository: https://github.com/lucidrains/voicebox-pytorch, read at 0.5.0.
Install: `pip install voicebox-pytorch==0.5.0`.
Paper: Voicebox, arXiv 2306.15687.

A batch is a dict of the wrapper's own keywords: `x1` (B, T, D) features or (B, N) audio, `phoneme_ids` or
`semantic_token_ids`, `cond`, `cond_mask`, `mask`; or x1 alone. In eval mode its model ignores `cond` if there is no
`cond_mask`, so a probe draws that span from its seed as training does. Classifier-free dropping is off in probes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.blocks.block import ResidualBlock
from fog_a.errors import BadBatch
from fog_a.flows.dicts import require_keys, samples_from, to_module
from fog_a.flows.frames import mask_along, token_mask
from fog_a.flows.noise import spans, uniform
from fog_a.flows.register import is_a
from fog_a.flows.samples import Samples
from fog_a_adapters.straight import StraightFlow, theirs

KEYWORDS = ("x1", "mask", "semantic_token_ids", "phoneme_ids", "cond", "cond_mask", "input_sampling_rate")
HINT = "Its keywords: " + ", ".join(KEYWORDS)


class VoiceboxAdapter(StraightFlow):
    """Adapter of voicebox-pytorch; velocities are (B, T, D).

    Args:
        model: the wrapper, or the VoiceBox itself (then σ = 0).
    """

    package = "voicebox-pytorch"
    version = "0.5.0"
    t = "times"  # the argument of the network that holds the flow time

    def __init__(self, model: Any) -> None:
        self.model = model
        self.module: Any = getattr(model, "voicebox", model)
        self.sigma: float = getattr(model, "sigma", 0.0)

    @staticmethod
    def matches(model: object) -> bool:
        """True for the wrapper and for a VoiceBox."""
        return is_a(model, "voicebox_pytorch", "ConditionalFlowMatcherWrapper", "VoiceBox")

    def drawn(self, batch: Any, seed: int) -> tuple[Bool[Tensor, "B T"]]:
        """The span to fill in, where the batch gives none."""
        found = self._read(batch)
        x1, span = found["x1"], found.get("cond_mask")
        if span is None:
            low, high = self.module.frac_lengths_mask
            width, start = uniform(self.samples(batch).ids, seed, "span", 2).to(x1.device).unbind(1)
            whole = torch.full((len(x1),), x1.shape[1], device=x1.device)
            span = spans(whole, low + (high - low) * width, start, x1.shape[1])
        return (span,)

    def field(
        self, batch: Any, x0: Float[Tensor, "B T D"], t: Float[Tensor, "B"], span: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """v with everything that is random given: the noise, the time, the span to fill in."""
        inputs, _ = self._inputs(self._read(batch), x0, t)
        return self.module(**inputs, cond_mask=span, cond_drop_prob=0.0)

    def samples(self, batch: Any) -> Samples:
        """Ids made of x1 (or given under `ids`), audio where x1 is audio, the mask (B, T, 1)."""
        found, batch = self._read(batch), named(batch)
        mask = found.get("mask")
        lengths = None if mask is None else mask.sum(1).tolist()
        samples = samples_from(
            batch, found["x1"], lengths=lengths, mask=None if mask is None else mask_along(mask, 3, 1)
        )
        if is_audio(batch["x1"]) and samples.audio is None:
            rate = batch.get("input_sampling_rate") or self.module.audio_enc_dec.sampling_rate
            samples = replace(samples, audio=batch["x1"].flatten(1), rate=rate)
        return samples

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """The embedding of phonemes or semantic tokens, at their own length; None for a model without text."""
        tokens = self._tokens(self._read(batch))
        return None if tokens is None else self.module.to_cond_emb(tokens)

    def tokens(
        self, h: Float[Tensor, "B R D"], block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """One token per frame: the register tokens in front are dropped."""
        registers = self.module.transformer.num_register_tokens
        h = h[:, registers:]
        return h, token_mask(samples.mask, h)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The wrapper's loss, with its own random numbers; the train mode that it sets is put back."""
        flags = [(m, m.training) for m in self.module.modules()]
        try:
            if self.model is not self.module:
                return self.model(**{key: value for key, value in named(batch).items() if key in KEYWORDS})
            found = self._read(batch)
            x0, t = torch.randn_like(found["x1"]), torch.rand(len(found["x1"])).to(found["x1"])
            inputs, target = self._inputs(found, x0, t)
            return self.module.train()(**inputs, target=target, cond_mask=found.get("cond_mask"))
        finally:
            for m, training in flags:
                m.training = training

    def _inputs(self, found: dict[str, Any], x0: Tensor, t: Tensor) -> tuple[dict[str, Any], Tensor]:
        """What VoiceBox takes at x_t, and its target x_1 − (1 − σ) x_0: also the condition if none is given."""
        x1 = found["x1"]
        target = x1 - (1 - self.sigma) * x0
        cond = found.get("cond")
        inputs = dict(
            x=self.between(x0, x1, t),
            times=t,
            cond=target if cond is None else cond,
            cond_token_ids=self._tokens(found),
            self_attn_mask=found.get("mask"),
        )
        return inputs, target

    def _tokens(self, found: dict[str, Any]) -> Tensor | None:
        if not self.module.condition_on_text:
            return None
        tokens = found.get("semantic_token_ids")
        tokens = found.get("phoneme_ids") if tokens is None else tokens
        if tokens is None:
            raise BadBatch(
                f"this Voicebox is conditioned on text: the batch lacks phoneme_ids or semantic_token_ids. {HINT}"
            )
        return tokens

    def _read(self, batch: Any) -> dict[str, Any]:
        batch = named(batch)
        require_keys(batch, ("x1",), "Voicebox", HINT)
        found = to_module({key: batch[key] for key in KEYWORDS if key in batch}, self.module.to_pred, "x1", "cond")
        audio = {key: found[key] for key in ("x1", "cond") if is_audio(found.get(key))}
        return {**found, **{key: self._encoded(x, found.get("input_sampling_rate")) for key, x in audio.items()}}

    def _encoded(self, audio: Tensor, rate: int | None) -> Float[Tensor, "B T D"]:
        codec = self.module.audio_enc_dec
        if codec is None:
            raise BadBatch("x1 is audio (B, N), and this VoiceBox has no audio_enc_dec: give features (B, T, D)")
        with torch.no_grad():
            resample = theirs(self.module, "VoiceBox").resample
            return codec.encode(resample(audio.flatten(1), rate or codec.sampling_rate, codec.sampling_rate))


def named(batch: Any) -> Any:
    """x1 alone is a batch too, in training."""
    return {"x1": batch} if isinstance(batch, Tensor) else batch


def is_audio(x: Any) -> bool:
    """(B, N) or (B, 1, N), as the wrapper decides it."""
    return isinstance(x, Tensor) and (x.ndim == 2 or (x.ndim == 3 and x.shape[1] == 1))
