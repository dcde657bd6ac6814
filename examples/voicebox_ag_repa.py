"""AG-REPA in Voicebox's training step: three lines, marked `AG-REPA`.

The step is that of `voicebox_pytorch.VoiceBoxTrainer.train_step` (voicebox-pytorch 0.5.0): raw audio in, loss out.
Here a tiny VoiceBox learns the clips that come with fog_a, from log-mels (`MelVoco` would download its vocoder).

    pip install voicebox-pytorch==0.5.0 && python examples/voicebox_ag_repa.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from voicebox_pytorch import ConditionalFlowMatcherWrapper, VoiceBox
from voicebox_pytorch.voicebox_pytorch import AudioEncoderDecoder

import fog_a
import packaged_clips
from fog_a_adapters.dit.audio.mel import MELS, RATE, log_mel
from fog_a_adapters.dit.model.flow import MelBatch


class LogMel(AudioEncoderDecoder):
    """Audio (B, N) at 16 kHz → log-mel (B, T, 100)."""

    sampling_rate, latent_dim, downsample_factor = RATE, MELS, 256

    def encode(self, audio: Tensor) -> Tensor:
        return log_mel(audio)


def new_model(depth: int = 4, dim: int = 64) -> ConditionalFlowMatcherWrapper:
    """The paper's has depth 24 and dim 1024, and is conditioned on phonemes."""
    net = VoiceBox(
        dim=dim, dim_in=dim, depth=depth, dim_head=dim // 4, heads=4, ff_mult=2, num_register_tokens=4,
        audio_enc_dec=LogMel(), condition_on_text=False,
    )  # fmt: skip
    return ConditionalFlowMatcherWrapper(voicebox=net)


def as_batch(clips: MelBatch) -> dict[str, Any]:
    """Cropped to the shortest: Voicebox's own trainer knows no padding."""
    audio: Any = clips.get("audio")
    shortest = int(min(clips.get("audio_lengths", [0])))
    return {"x1": audio[:, :shortest], "ids": clips["ids"], "domains": packaged_clips.names(clips)}


def train(steps: int = 60, warmup: int = 20) -> packaged_clips.Losses:
    """The losses of each step."""
    torch.manual_seed(0)
    cfm_wrapper = new_model()
    teachers = packaged_clips.teachers()

    reg = fog_a.AGREPA(cfm_wrapper, teachers, k=2, warmup=warmup, every=5)  # AG-REPA 1 of 3
    optim = torch.optim.AdamW([*cfm_wrapper.parameters(), *reg.parameters()], lr=1e-3)  # AG-REPA 2 of 3

    losses = []
    for clips in packaged_clips.clips(steps):
        cfm_wrapper.train()
        batch = as_batch(clips)
        wave = batch["x1"]
        loss = cfm_wrapper(wave)
        flow = float(loss.detach())
        loss = loss + reg(batch)  # AG-REPA 3 of 3
        loss.backward()
        torch.nn.utils.clip_grad_norm_(cfm_wrapper.parameters(), 0.5)
        optim.step()
        optim.zero_grad()
        losses.append((flow, float(loss.detach()) - flow))
    assert reg.selection is not None
    print(reg.selection.explain())
    return losses


if __name__ == "__main__":
    packaged_clips.main(train)
