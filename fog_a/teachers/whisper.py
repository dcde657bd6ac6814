"""Whisper as a teacher: what is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.errors import Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.teacher import FrameTeacher
from fog_a.teachers.waveforms import waveforms
from fog_a.teachers.weights import fingerprint, frozen, loaded, short, transformers_for


class WhisperTeacher(FrameTeacher):
    """The encoder of a Whisper model (transformers), any size: what is said.

    Args:
        model: a hub name, a folder with `config.json`, `preprocessor_config.json` and `model.safetensors`, or a Whisper
            model or encoder object (which is put in eval mode and frozen).

    It gives the mean over the ceil(N / 320) frames of real audio (10 s: 500 of 1500). Clips beyond the encoder's 30 s
    are read window by window.

    Raises:
        MissingDependency: transformers is absent.
        NoWeights: the hub is out of reach, or the folder lacks files.

    Source: SPEC §8; Whisper: arXiv 2212.04356.
    """

    rate = 16_000
    pool = "real"

    def __init__(self, model: Any = "openai/whisper-large-v3") -> None:
        transformers = transformers_for("WhisperTeacher")
        source = model if isinstance(model, (str, Path)) else None
        load = transformers.WhisperModel.from_pretrained
        whole: Any = model if source is None else loaded(load, source, "WhisperTeacher")
        net: Any = whole.get_encoder() if hasattr(whole, "get_encoder") else whole
        if not hasattr(net, "config") or not hasattr(net.config, "max_source_positions"):
            raise Unsupported(f"WhisperTeacher needs a Whisper model or its encoder, got {type(model).__name__}")
        self.net: nn.Module = net
        self.window: int = net.config.max_source_positions * 320  # samples; 1500 frames = 30 s
        self.extract = transformers.WhisperFeatureExtractor(feature_size=net.config.num_mel_bins)
        self.name = f"whisper:{short(source) if source else type(model).__name__}"
        self.dim: int = net.config.d_model
        self.fingerprint = fingerprint(net)

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The frames of each sample before pooling, 50 a second: targets for token-wise alignment."""
        return [self._frames(wave) for wave in waveforms(samples, self.rate, self.name)]

    def encode(self, pieces: Sequence[Float[Tensor, "_"]]) -> Float[Tensor, "W F D"]:
        """The encoder's frames of audio of 30 s at most each, silence after it included."""
        device = pieces[0].device
        with frozen(self.net, device) as net:
            mel = self.extract(
                [piece.cpu().numpy() for piece in pieces],
                sampling_rate=self.rate,
                max_length=self.window,
                return_tensors="pt",
                device=str(device),
            ).input_features
            return net(mel.to(device, next(net.parameters()).dtype)).last_hidden_state.float()

    def _frames(self, wave: Float[Tensor, "N"]) -> Float[Tensor, "T D"]:
        pieces = wave.split(self.window)  # a sample at a time: Whisper pads each window to 30 s anyway
        frames = [h[: math.ceil(len(piece) / 320)] for h, piece in zip(self.encode(pieces), pieces, strict=True)]
        return torch.cat(frames)
