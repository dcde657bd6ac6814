"""Flows of the shape of CosyVoice 1, 2 and 3, written for these tests: same parts, same calls, same tensors, tiny.

CosyVoice has no package. What its decoders are built on has one, Matcha's, and that is the real thing here; the
encoders are a convolution each. `FOG_A_COSYVOICE` names a checkout on which the contract tests run the real classes.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from matcha.models.components.decoder import Decoder
from matcha.models.components.flow_matching import BASECFM
from torch import Tensor, nn

CFM = SimpleNamespace(
    solver="euler", sigma_min=1e-6, t_scheduler="cosine", training_cfg_rate=0.2, inference_cfg_rate=0.7
)


class UNet(Decoder):
    """CosyVoice 1 and 2: Matcha's decoder, with the reference as further channels."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        mu: Tensor,
        t: Tensor,
        spks: Any = None,
        cond: Any = None,
        streaming: bool = False,
    ) -> Tensor:
        return super().forward(x, mask, torch.cat([mu, cond], 1), t.reshape(-1), spks)


class DiTBlock(nn.Module):
    """Attention and feed-forward, scaled by the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.ff = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        a, b = self.modulate(t)[:, None].chunk(2, -1)
        h = self.norm(x)
        x = x + a * self.attn(h, h, h, key_padding_mask=~mask, need_weights=False)[0]
        return x + b * self.ff(x)


class DiT(nn.Module):
    """CosyVoice 3: blocks with tokens inside, channels first outside."""

    def __init__(self, mel: int, width: int, depth: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(4 * mel, width)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.transformer_blocks = nn.ModuleList(DiTBlock(width) for _ in range(depth))
        self.proj_out = nn.Linear(width, mel)

    def forward(
        self, x: Tensor, mask: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor, streaming: bool = False
    ) -> Tensor:
        x = torch.cat([x, cond, mu, spks[..., None].expand_as(x)], 1).transpose(1, 2)
        x, time = self.proj_in(x), self.time(t.reshape(-1, 1))
        for block in self.transformer_blocks:
            x = block(x, time, mask=mask[:, 0].bool())
        return self.proj_out(x).transpose(1, 2)


class ConditionalCFM(BASECFM):
    """Noise, time, classifier-free dropping and the loss, in CosyVoice's order of random numbers."""

    def __init__(self, mel: int, estimator: nn.Module) -> None:
        super().__init__(n_feats=3 * mel, cfm_params=CFM, n_spks=1, spk_emb_dim=mel)
        self.training_cfg_rate, self.estimator = CFM.training_cfg_rate, estimator

    def compute_loss(
        self, x1: Tensor, mask: Tensor, mu: Tensor, spks: Tensor, cond: Tensor, **streaming: bool
    ) -> tuple[Tensor, Tensor]:
        t, z = torch.rand(len(mu), 1, 1), torch.randn_like(x1)
        y, u = (1 - (1 - self.sigma_min) * t) * z + t * x1, x1 - (1 - self.sigma_min) * z
        if self.training_cfg_rate > 0:
            kept = (torch.rand(len(x1)) > self.training_cfg_rate).float()
            mu, spks, cond = mu * kept[:, None, None], spks * kept[:, None], cond * kept[:, None, None]
        v = self.estimator(y, mask, mu, t.squeeze(), spks, cond, **streaming)
        return F.mse_loss(v * mask, u * mask, reduction="sum") / (mask.sum() * u.shape[1]), y


class Encoder(nn.Module):
    """Tokens in, features and masks out, at `ratio` times the rate."""

    def __init__(self, size: int, ratio: int = 1) -> None:
        super().__init__()
        self.conv, self.size, self.ratio = nn.Conv1d(size, size, 3, padding=1), size, ratio

    def output_size(self) -> int:
        return self.size

    def forward(self, x: Tensor, lengths: Tensor, streaming: bool = False) -> tuple[Tensor, Tensor]:
        h = self.conv(x.transpose(1, 2)).repeat_interleave(self.ratio, -1).transpose(1, 2)
        return h, (torch.arange(h.shape[1]) < self.ratio * lengths[:, None])[:, None]


class Regulator(nn.Module):
    """CosyVoice 1: stretched to the mel's length."""

    def __init__(self, mel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(mel, mel, 3, padding=1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        size = int(lengths.max())
        h = self.conv(F.interpolate(x.transpose(1, 2), size=size, mode="linear")).transpose(1, 2)
        return h * (torch.arange(size) < lengths[:, None])[..., None], lengths


class Flow(nn.Module):
    """What the three versions share: embeddings, the prefix of real frames as reference, the decoder's loss."""

    def __init__(self, mel: int, vocab: int, size: int, estimator: nn.Module, speaker: int = 12) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(vocab, size)
        self.spk_embed_affine_layer = nn.Linear(speaker, mel)
        self.decoder = ConditionalCFM(mel, estimator)

    def forward(self, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        feat, lengths = batch["speech_feat"].to(device), batch["speech_token_len"].to(device)
        streaming = {} if isinstance(self, MaskedDiffWithXvec) else {"streaming": random.random() < 0.5}
        spks = self.spk_embed_affine_layer(F.normalize(batch["embedding"].to(device), dim=1))
        real = (torch.arange(int(lengths.max())) < lengths[:, None]).float()[..., None]
        token = self.input_embedding(batch["speech_token"].to(device).clamp(min=0)) * real
        mu, mask = self.encoded(token, lengths, batch, **streaming)
        cond = torch.zeros_like(feat)
        for i, n in enumerate(batch["speech_feat_len"]):
            if random.random() >= 0.5:
                index = random.randint(0, int(0.3 * n))
                cond[i, :index] = feat[i, :index]
        loss, _ = self.decoder.compute_loss(
            feat.transpose(1, 2).contiguous(), mask, mu.transpose(1, 2), spks, cond.transpose(1, 2), **streaming
        )
        return {"loss": loss}

    def encoded(self, token: Tensor, lengths: Tensor, batch: Any, streaming: bool = False) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class MaskedDiffWithXvec(Flow):
    """CosyVoice 1."""

    def __init__(self, mel: int = 16, vocab: int = 30, size: int = 8) -> None:
        super().__init__(mel, vocab, size, unet(mel, [32, 32]))
        self.encoder, self.encoder_proj = Encoder(size), nn.Linear(size, mel)
        self.length_regulator = Regulator(mel)

    def encoded(self, token: Tensor, lengths: Tensor, batch: Any, streaming: bool = False) -> tuple[Tensor, Tensor]:
        h, _ = self.encoder(token, lengths)
        h, sizes = self.length_regulator(self.encoder_proj(h), batch["speech_feat_len"])
        return h, (torch.arange(h.shape[1]) < sizes[:, None]).float()[:, None]


class CausalMaskedDiffWithXvec(Flow):
    """CosyVoice 2."""

    def __init__(self, mel: int = 16, vocab: int = 30, size: int = 8) -> None:
        super().__init__(mel, vocab, size, unet(mel, [32]))
        self.encoder, self.encoder_proj, self.token_mel_ratio = Encoder(size, ratio=2), nn.Linear(size, mel), 2

    def encoded(self, token: Tensor, lengths: Tensor, batch: Any, streaming: bool = False) -> tuple[Tensor, Tensor]:
        h, mask = self.encoder(token, lengths, streaming=streaming)
        return self.encoder_proj(h), mask.float()


class CausalMaskedDiffWithDiT(Flow):
    """CosyVoice 3."""

    def __init__(self, mel: int = 16, vocab: int = 30, speaker: int = 12) -> None:
        super().__init__(mel, vocab, mel, DiT(mel, 32, 3), speaker)
        self.pre_lookahead_layer, self.token_mel_ratio = Lookahead(mel), 2

    def encoded(self, token: Tensor, lengths: Tensor, batch: Any, streaming: bool = False) -> tuple[Tensor, Tensor]:
        h = self.pre_lookahead_layer(token).repeat_interleave(2, dim=1)
        return h, (torch.arange(h.shape[1]) < 2 * lengths[:, None]).float()[:, None]


class Lookahead(nn.Module):
    """A convolution over the tokens to come, added to the token."""

    def __init__(self, mel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(mel, mel, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.pad(x.transpose(1, 2), (0, 3))).transpose(1, 2)


def unet(mel: int, channels: list[int]) -> UNet:
    """A decoder with an input channel for each of x, mu, speaker and reference."""
    return UNet(
        in_channels=4 * mel, out_channels=mel, channels=channels, dropout=0.0, attention_head_dim=8, n_blocks=1,
        num_mid_blocks=2, num_heads=2, act_fn="snakebeta",
    )  # fmt: skip
