"""Diffusers' transformers, tiny and with random weights, each with a batch as its pipeline makes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from flow_cases import named, noisy, normal
from torch import nn

B = 3
TEXT = 5


@dataclass
class Tiny:
    """A transformer, a batch, the main blocks, and how its pipeline's scheduler is made."""

    model: nn.Module
    batch: dict[str, Any]
    blocks: tuple[str, ...]
    frames: int
    """Tokens of the latents in a block's output."""
    options: dict[str, Any] = field(default_factory=dict)


def made(kind: str, batch: dict[str, Any], blocks: tuple[str, ...], frames: int, /, **config: Any) -> Tiny:
    pytest.importorskip("diffusers")
    model = getattr(importlib.import_module("diffusers"), kind)(**config)
    noisy(model)
    return Tiny(model.eval(), batch, blocks, frames)


def mask() -> torch.Tensor:
    """The second text is shorter."""
    real = torch.ones(B, TEXT, dtype=torch.bool)
    real[1, 3:] = False
    return real


def ids(tokens: int, axes: int) -> torch.Tensor:
    at = torch.arange(tokens)
    columns = [torch.zeros(tokens)] * (axes - 2) + [at // 4, at % 4]
    return torch.stack(columns, -1).float()


def wan() -> Tiny:
    batch = {"hidden_states": normal(B, 4, 2, 4, 4), "encoder_hidden_states": normal(B, TEXT, 12)}
    return made(
        "WanTransformer3DModel", batch, named("blocks", 3), 8, num_attention_heads=2, attention_head_dim=12,
        in_channels=4, out_channels=4, text_dim=12, freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip


def flux2() -> Tiny:
    batch = {
        "hidden_states": normal(B, 16, 4), "encoder_hidden_states": normal(B, TEXT, 12),
        "img_ids": ids(16, 4), "txt_ids": torch.zeros(TEXT, 4), "guidance": torch.full((B,), 4.0),
    }  # fmt: skip
    blocks = named("transformer_blocks", 2) + named("single_transformer_blocks", 2)
    return made(
        "Flux2Transformer2DModel", batch, blocks, 16, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )  # fmt: skip


def chroma() -> Tiny:
    batch = {
        "hidden_states": normal(B, 16, 4), "encoder_hidden_states": normal(B, TEXT, 12),
        "img_ids": ids(16, 3), "txt_ids": torch.zeros(TEXT, 3),
    }  # fmt: skip
    blocks = named("transformer_blocks", 2) + named("single_transformer_blocks", 2)
    return made(
        "ChromaTransformer2DModel", batch, blocks, 16, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip


def aura_flow() -> Tiny:
    batch = {"hidden_states": normal(B, 4, 8, 8), "encoder_hidden_states": normal(B, TEXT, 12)}
    blocks = named("joint_transformer_blocks", 2) + named("single_transformer_blocks", 2)
    return made(
        "AuraFlowTransformer2DModel", batch, blocks, 16, sample_size=8, in_channels=4, num_mmdit_layers=2,
        num_single_dit_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
        caption_projection_dim=16, pos_embed_max_size=16,
    )  # fmt: skip


def qwen_image() -> Tiny:
    batch = {
        "hidden_states": normal(B, 16, 4), "encoder_hidden_states": normal(B, TEXT, 12),
        "encoder_hidden_states_mask": torch.ones(B, TEXT, dtype=torch.long), "img_shapes": [[(1, 4, 4)]] * B,
    }  # fmt: skip
    return made(
        "QwenImageTransformer2DModel", batch, named("transformer_blocks", 3), 16, in_channels=4, out_channels=1,
        num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def z_image() -> Tiny:
    batch = {"x": normal(B, 4, 8, 8), "cap_feats": normal(B, TEXT, 12)}
    # it is given lists of samples: which of them is x_t cannot be told, so the text's refiner is among the main blocks
    blocks = ("noise_refiner.0", "context_refiner.0", *named("layers", 3))
    return made(
        "ZImageTransformer2DModel", batch, blocks, 16, in_channels=4, dim=32, n_layers=3,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12, axes_dims=[4, 6, 6],
        axes_lens=[64, 16, 16],
    )  # fmt: skip


def sana() -> Tiny:
    batch = {
        "hidden_states": normal(B, 4, 4, 4), "encoder_hidden_states": normal(B, TEXT, 12),
        "encoder_attention_mask": mask().long(),
    }  # fmt: skip
    return made(
        "SanaTransformer2DModel", batch, named("transformer_blocks", 3), 16, in_channels=4, out_channels=4,
        num_attention_heads=2, attention_head_dim=8, num_layers=3, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12, sample_size=4,
    )  # fmt: skip


def hunyuan_video() -> Tiny:
    batch = {
        "hidden_states": normal(B, 4, 2, 4, 4), "encoder_hidden_states": normal(B, TEXT, 12),
        "encoder_attention_mask": mask(), "pooled_projections": normal(B, 8), "guidance": torch.full((B,), 6000.0),
    }  # fmt: skip
    blocks = named("transformer_blocks", 2) + named("single_transformer_blocks", 2)
    return made(
        "HunyuanVideoTransformer3DModel", batch, blocks, 8, in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=8, num_layers=2, num_single_layers=2, num_refiner_layers=1, text_embed_dim=12,
        pooled_projection_dim=8, rope_axes_dim=(2, 2, 4),
    )  # fmt: skip


def cogvideox() -> Tiny:
    batch = {"hidden_states": normal(B, 2, 4, 8, 8), "encoder_hidden_states": normal(B, TEXT, 12)}
    tiny = made(
        "CogVideoXTransformer3DModel", batch, named("transformer_blocks", 3), 32, num_attention_heads=2,
        attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=12, num_layers=3,
        sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=TEXT,
    )  # fmt: skip
    # as the published checkpoints configure it
    scheduler = importlib.import_module("diffusers").CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0
    )
    tiny.options["scheduler"] = scheduler
    return tiny


def pixart() -> Tiny:
    batch = {
        "hidden_states": normal(B, 4, 8, 8), "encoder_hidden_states": normal(B, TEXT, 12),
        "encoder_attention_mask": mask().long(), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    return made(
        "PixArtTransformer2DModel", batch, named("transformer_blocks", 3), 16, num_attention_heads=2,
        attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, cross_attention_dim=16, sample_size=8,
        caption_channels=12,
    )  # fmt: skip


def ace_step() -> Tiny:
    batch = {
        "hidden_states": normal(B, 16, 4), "encoder_hidden_states": normal(B, TEXT, 16),
        "context_latents": normal(B, 16, 8),
    }  # fmt: skip
    return made(
        "AceStepTransformer1DModel", batch, named("layers", 3), 8, hidden_size=16, intermediate_size=32,
        num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8, in_channels=12,
        audio_acoustic_hidden_dim=4, sliding_window=4,
    )  # fmt: skip


def stable_audio_3() -> Tiny:
    batch = {
        "hidden_states": normal(B, 4, 16), "encoder_hidden_states": normal(B, TEXT, 12),
        "global_hidden_states": normal(B, 12), "encoder_attention_mask": mask(),
    }  # fmt: skip
    return made(
        "StableAudio3DiTModel", batch, named("transformer_blocks", 3), 16, io_channels=4, embed_dim=64, depth=3,
        num_heads=1, cond_token_dim=12, global_cond_dim=12, local_add_cond_dim=5, timestep_features_dim=16,
        num_memory_tokens=2,
    )  # fmt: skip


def longcat_audio() -> Tiny:
    batch = {
        "hidden_states": normal(B, 16, 4), "encoder_hidden_states": normal(B, TEXT, 12),
        "encoder_attention_mask": mask(), "latent_cond": normal(B, 16, 4),
    }  # fmt: skip
    return made(
        "LongCatAudioDiTTransformer", batch, named("blocks", 3), 16, dit_dim=16, dit_depth=3, dit_heads=2,
        dit_text_dim=12, latent_dim=4,
    )  # fmt: skip


def minimax_music() -> Tiny:
    batch = {"hidden_states": normal(B, 4, 16), "encoder_hidden_states": normal(B, 16, 12)}
    return made(
        "MiniMaxMusic3Transformer1DModel", batch, named("transformer_blocks", 3), 16, in_channels=4, condition_dim=12,
        num_layers=3, num_attention_heads=2, attention_head_dim=8, ff_inner_dim=32, rotary_dim=4,
        fourier_embedding_dim=8,
    )  # fmt: skip


def ltx2() -> Tiny:
    batch = {
        "hidden_states": normal(B, 8, 4), "audio_hidden_states": normal(B, 6, 4),
        "encoder_hidden_states": normal(B, TEXT, 16), "audio_encoder_hidden_states": normal(B, TEXT, 16),
        "num_frames": 2, "height": 2, "width": 2, "audio_num_frames": 6,
    }  # fmt: skip
    return made(
        "LTX2VideoTransformer3DModel", batch, named("transformer_blocks", 2), 8, in_channels=4, out_channels=4,
        num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4,
        audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16, num_layers=2,
        caption_channels=16,
    )  # fmt: skip


TINY: dict[str, Callable[[], Tiny]] = {
    f.__name__: f
    for f in (
        wan, flux2, chroma, aura_flow, qwen_image, z_image, sana, hunyuan_video, cogvideox, pixart, ace_step,
        stable_audio_3, longcat_audio, minimax_music, ltx2,
    )
}  # fmt: skip
