"""AG-REPA in F5-TTS's training step: three lines, marked `AG-REPA`.

The step is that of `f5_tts.model.Trainer.train` (f5-tts 1.1.22, trainer.py, lines 359–390); in your copy of it, or of
train.py, the same three lines go to the same places. Their own Trainer, unedited, takes `reg.attach(model)` instead of
lines 2 and 3 (docs/integrations/pytorch.md). Here a tiny CFM learns the clips that come with fog_a.

    pip install f5-tts==1.1.22 && python examples/f5_tts_ag_repa.py
"""

from __future__ import annotations

from typing import Any

import torch
from f5_tts.model import CFM, DiT
from f5_tts.model.dataset import collate_fn

import fog_a
import packaged_clips
from fog_a_adapters.dit.model.flow import MelBatch


def new_model(depth: int = 4, dim: int = 64) -> CFM:
    """F5-TTS's Base has depth 22 and dim 1024; text is bytes."""
    net = DiT(
        dim=dim, depth=depth, heads=4, dim_head=dim // 4, ff_mult=2, mel_dim=100, text_num_embeds=256, text_dim=32
    )
    return CFM(net, mel_spec_kwargs=dict(n_mel_channels=100))


def as_batch(clips: MelBatch) -> dict[str, Any]:
    """F5-TTS's own collate; a clip's token ids stand for its text. What teachers need goes along under other keys."""
    items = [
        {"mel_spec": mel[:n].T[None], "text": "".join(chr(48 + int(k)) for k in tokens[:m])}
        for mel, n, tokens, m in zip(
            clips["mel"], clips["lengths"], clips["tokens"], clips["token_lengths"], strict=True
        )
    ]
    more = {"ids": clips["ids"], "domains": packaged_clips.names(clips)}
    return {**collate_fn(items), **packaged_clips.audio(clips), **more}


def train(steps: int = 60, warmup: int = 20) -> packaged_clips.Losses:
    """The losses of each step."""
    torch.manual_seed(0)
    model = new_model()
    teachers = packaged_clips.teachers()

    reg = fog_a.AGREPA(model, teachers, k=2, warmup=warmup, every=5)  # AG-REPA 1 of 3
    optimizer = torch.optim.AdamW([*model.parameters(), *reg.parameters()], lr=1e-3)  # AG-REPA 2 of 3

    model.train()
    losses = []
    for clips in packaged_clips.clips(steps):
        batch = as_batch(clips)
        text_inputs = batch["text"]
        mel_spec = batch["mel"].permute(0, 2, 1)
        mel_lengths = batch["mel_lengths"]
        loss, _cond, _pred = model(mel_spec, text=text_inputs, lens=mel_lengths)
        flow = float(loss.detach())
        loss = loss + reg(batch)  # AG-REPA 3 of 3
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((flow, float(loss.detach()) - flow))
    assert reg.selection is not None
    print(reg.selection.explain())
    return losses


if __name__ == "__main__":
    packaged_clips.main(train)
