"""F5-TTS and E2-TTS: `CFM` around DiT, UNetT or MMDiT.

Repository: https://github.com/SWivid/F5-TTS, read at f5-tts 1.1.22. Install: `pip install f5-tts==1.1.22`.
Paper: F5-TTS, arXiv 2410.06885.

A batch is what its own `collate_fn` gives: `mel` (B, M, T), `mel_lengths`, `text`. Of what its training draws, a probe
draws noise and the infilling span sample by sample from its seed; time is given. Conditions are dropped (for the whole
batch, by Python's `random` in the original) only if asked for: `wrap(cfm, drop=True)`.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.flows.dicts import require_keys, samples_from, to_module
from fog_a.flows.frames import frame_mask, mask_along, token_mask
from fog_a.flows.network import arguments
from fog_a.flows.noise import spans, uniform
from fog_a.flows.register import is_a
from fog_a.flows.samples import Samples
from fog_a_adapters.straight import StraightFlow, theirs

KEYS = ("mel", "mel_lengths", "text")
HINT = "F5-TTS's collate_fn gives: mel (B, M, T), mel_lengths, text"


class F5TTSAdapter(StraightFlow):
    """Adapter of `f5_tts.model.CFM`; velocities are (B, T, M).

    Args:
        model: the CFM.
        drop: draw the condition dropout of its training too, once per batch, from the seed.
    """

    package = "f5-tts"
    version = "1.1.22"
    t = "time"  # the argument of the network that holds the flow time

    def __init__(self, model: Any, drop: bool = False) -> None:
        self.model = model
        self.module: nn.Module = model.transformer
        self.drop = drop

    @staticmethod
    def matches(model: object) -> bool:
        """True for a CFM of f5_tts, or a subclass of it."""
        return is_a(model, "f5_tts", "CFM")

    def drawn(self, batch: Any, seed: int) -> tuple[Bool[Tensor, "B T"], bool, bool]:
        """The span to fill in, and whether the audio around it and the text are dropped."""
        found, (low, high) = self._read(batch), self.model.frac_lengths_mask
        width, start = uniform(self.samples(batch).ids, seed, "span", 2).to(found["x1"]).unbind(1)
        draw = random.Random(seed)
        audio, both = draw.random() < self.model.audio_drop_prob, draw.random() < self.model.cond_drop_prob
        span = spans(found["lengths"], low + (high - low) * width, start, found["x1"].shape[1])
        return span, self.drop and (audio or both), self.drop and both

    def field(
        self,
        batch: Any,
        x0: Float[Tensor, "B T M"],
        t: Float[Tensor, "B"],
        span: Bool[Tensor, "B T"],
        drop_audio_cond: bool = False,
        drop_text: bool = False,
    ) -> Float[Tensor, "B T M"]:
        """v with everything that is random given: the noise, the time, the span to fill in, what is dropped."""
        found = self._read(batch)
        x_t, cond = self.between(x0, found["x1"], t), torch.where(span[..., None], 0, found["x1"])
        given = {"text": self._text(found), "mask": frame_mask(found["lengths"], cond.shape[1])}
        return self.module(x=x_t, cond=cond, time=t, drop_audio_cond=drop_audio_cond, drop_text=drop_text, **given)

    def samples(self, batch: Any) -> Samples:
        """Ids made of the mel (or given under `ids`), and the mask of real frames (B, T, 1)."""
        found = self._read(batch)
        x1, lengths = found["x1"], found["lengths"]
        mask = mask_along(frame_mask(lengths, x1.shape[1]), 3, 1)
        # the text embedding is as long as the longest sample
        return samples_from(batch, x1, lengths=lengths.tolist(), mask=mask, padded={"mel": (2, "mel_lengths")})

    def interface(self, batch: Any) -> Float[Tensor, "B T D"]:
        """The text embedding: at mel length (DiT, UNetT) or at its own (MMDiT)."""
        found = self._read(batch)
        embed: Any = self.module.text_embed
        if "seq_len" not in arguments(embed):  # MMDiT
            return embed(self._text(found))
        size = found["lengths"] if is_a(self.module, "f5_tts", "DiT") else found["x1"].shape[1]
        return embed(self._text(found), seq_len=size)

    def tokens(
        self, h: Float[Tensor, "B R D"], block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """One token per mel frame; UNetT's time token in front is dropped."""
        assert samples.mask is not None
        if h.shape[1] == samples.mask.shape[1] + 1:
            h = h[:, 1:]
        if h.shape[1] != samples.mask.shape[1]:  # MMDiT's text stream: text has no mel frames
            return h, None
        return h, token_mask(samples.mask, h)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The loss of `CFM.forward`, with its own random numbers."""
        found = self._read(batch)
        return self.model(found["x1"], text=batch["text"], lens=found["lengths"])[0]

    def batch_of(self, inp: Tensor, text: Any, *, lens: Any = None, **_: Any) -> dict[str, Any]:
        """The batch of a call of `CFM.forward`, as its Trainer makes it."""
        lengths = torch.full((len(inp),), inp.shape[1], device=inp.device) if lens is None else lens
        return {"mel": inp.transpose(1, 2), "mel_lengths": lengths, "text": text}

    def _read(self, batch: Any) -> dict[str, Any]:
        require_keys(batch, KEYS, "F5-TTS", HINT)
        found = to_module({key: batch[key] for key in KEYS}, self.module, "mel")
        x1 = found["mel"].transpose(1, 2)
        return {"x1": x1, "lengths": torch.as_tensor(found["mel_lengths"], device=x1.device), "text": found["text"]}

    def _text(self, found: dict[str, Any]) -> Int[Tensor, "B N"]:
        text, package, vocabulary = found["text"], theirs(self.model, "CFM"), self.model.vocab_char_map
        if not isinstance(text, Tensor):
            text = package.list_str_to_tensor(text) if vocabulary is None else package.list_str_to_idx(text, vocabulary)
        return text.to(found["x1"].device)
