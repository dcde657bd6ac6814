"""AG-REPA in CosyVoice's training step: three lines, marked `AG-REPA`.

The step is that of `cosyvoice/utils/train_utils.py` (`batch_forward`, `batch_backward`; read at ace7c47) without its
scaler and process groups. Here a tiny CosyVoice 3 flow learns the clips that come with fog_a.

    git clone --recursive https://github.com/FunAudioLLM/CosyVoice, with its requirements installed, and then
    PYTHONPATH=CosyVoice:CosyVoice/third_party/Matcha-TTS python examples/cosyvoice_ag_repa.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

import fog_a
import packaged_clips
from fog_a.flows.samples import Samples
from fog_a.teachers import SpectralTeacher
from fog_a_adapters.dit.model.flow import MelBatch

MEL, SPEAKER, VOCAB = 100, 192, 128


def new_model(depth: int = 4, dim: int = 64) -> Any:
    """CosyVoice 3 has depth 22, dim 1024 and 80 mel bands: in earnest, `load_hyperpyyaml(...)["flow"]`."""
    cfm: Any = importlib.import_module("cosyvoice.flow.flow_matching")
    net = importlib.import_module("cosyvoice.flow.DiT.dit").DiT(
        dim=dim,
        depth=depth,
        heads=4,
        dim_head=dim // 4,
        ff_mult=2,
        mel_dim=MEL,
        mu_dim=MEL,
        spk_dim=MEL,
        out_channels=MEL,
    )
    ahead: Any = importlib.import_module("cosyvoice.transformer.upsample_encoder")
    params = SimpleNamespace(
        sigma_min=1e-6, solver="euler", t_scheduler="cosine", training_cfg_rate=0.2, inference_cfg_rate=0.7
    )
    return importlib.import_module("cosyvoice.flow.flow").CausalMaskedDiffWithDiT(
        input_size=MEL, output_size=MEL, spk_embed_dim=SPEAKER, vocab_size=VOCAB,
        pre_lookahead_layer=ahead.PreLookaheadLayer(in_channels=MEL, channels=dim, pre_lookahead_len=3),
        decoder=cfm.CausalConditionalCFM(in_channels=3 * MEL, cfm_params=params, spk_emb_dim=MEL, estimator=net),
    )  # fmt: skip


def as_batch(clips: MelBatch) -> dict[str, Any]:
    """What CosyVoice's padding gives: two frames a token. The long-term spectrum stands for the speaker."""
    size, lengths = clips["tokens"].shape[1], clips["token_lengths"]
    audio = packaged_clips.audio(clips)
    samples = Samples(
        tuple(clips["ids"]), ("all",) * len(lengths), list, audio["audio"], audio["rate"], audio["audio_lengths"]
    )
    return {
        "utts": clips["ids"],
        "speech_token": clips["tokens"] + 64 * clips["domain"][:, None],
        "speech_token_len": lengths,
        "speech_feat": F.pad(clips["mel"], (0, 0, 0, 1))[:, : 2 * size],
        "speech_feat_len": 2 * lengths,
        "embedding": SpectralTeacher(SPEAKER // 2)(samples),
        "domains": packaged_clips.names(clips),
        **audio,
    }


def train(steps: int = 60, warmup: int = 20, *, build: Callable[[], Any] = new_model) -> packaged_clips.Losses:
    """The losses of each step."""
    torch.manual_seed(0)
    model, device = build(), torch.device("cpu")
    teachers = packaged_clips.teachers()

    reg = fog_a.AGREPA(model, teachers, k=2, warmup=warmup, every=5)  # AG-REPA 1 of 3
    optimizer = torch.optim.Adam([*model.parameters(), *reg.parameters()], lr=1e-3)  # AG-REPA 2 of 3

    model.train()
    losses = []
    for clips in packaged_clips.clips(steps):
        batch = as_batch(clips)
        info_dict = {"loss_dict": model(batch, device)}
        loss = info_dict["loss_dict"]["loss"]
        flow = float(loss.detach())
        loss = loss + reg(batch)  # AG-REPA 3 of 3
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((flow, float(loss.detach()) - flow))
    assert reg.selection is not None
    print(reg.selection.explain())
    return losses


if __name__ == "__main__":
    packaged_clips.main(train)
