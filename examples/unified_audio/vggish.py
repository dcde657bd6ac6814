"""VGGish (arXiv 1609.09430), under which the Fréchet audio distance is published (FAD, arXiv 1812.08466).

16 kHz → |STFT| (Hann, 25 ms every 10 ms, 512 points, not centred) → 64 bands, triangles over mel from 125 to 7500 Hz →
log(x + 0.01) → patches of 96 frames (0.96 s), side by side → VGG of six convolutions → three linear layers → 128.
No activation after the last one, as FAD takes it. Built from a file of weights, read with `weights_only=True`: the
convolutions and linear layers in the order in which they are stored, as both PyTorch conversions store them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fog_a.errors import NoWeights
from fog_a_adapters.dit.audio.mel import RATE, optional

WINDOW, HOP, POINTS, BANDS, PATCH = 400, 160, 512, 64, 96
POOLED = (0, 1, 3, 5)
"""Convolutions that a pooling by two follows."""
FETCH = (
    "Get vggish-10086976.pth (github.com/harritaylor/torchvggish, releases; or torchaudio's vggish.pt) and give its "
    "path. Without it: MelWindows(mels), whose distance is no published FAD"
)


class VGGish:
    """The embedder of the published FAD: one embedding per 0.96 s of what the vocoder makes of each mel.

    Raises NoWeights: no such file, or none of six convolutions and three linear layers that fit.
    """

    def __init__(self, weights: str | Path, vocoder: Any) -> None:
        path = Path(weights)
        if not path.is_file():
            raise NoWeights(f"no VGGish weights at {path}. {FETCH}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.layers = _layers(list(state.values()))
            self(_silence := [torch.zeros(PATCH, BANDS)], patches=_silence)
        except Exception as error:
            raise NoWeights(f"{path} is no VGGish ({type(error).__name__}: {error}). {FETCH}") from error
        self.vocoder, self.name = vocoder, f"VGGish on {vocoder.name}"

    @torch.no_grad()
    def __call__(
        self, mels: Sequence[Float[Tensor, "T M"]], *, patches: Sequence[Float[Tensor, "96 64"]] | None = None
    ) -> Float[Tensor, "n D"]:
        if patches is None:
            sounds = [self.vocoder(m) for m in mels]
            resample = optional("torchaudio").functional.resample
            patches = [
                p for s in sounds for p in log_bands(resample(s.samples, s.rate, RATE)).unfold(0, PATCH, PATCH).mT
            ]
        x = torch.stack(list(patches))[:, None] if patches else torch.zeros(0, 1, PATCH, BANDS)
        convolutions, linears = self.layers
        for i, (weight, bias) in enumerate(convolutions):
            x = F.conv2d(x, weight, bias, padding=1).relu()
            x = F.max_pool2d(x, 2) if i in POOLED else x
        x = x.permute(0, 2, 3, 1).flatten(1)  # n, time · bands · channels: TensorFlow's order
        for i, (weight, bias) in enumerate(linears):
            x = F.linear(x if i == 0 else x.relu(), weight, bias)
        return x


def _layers(tensors: Sequence[Tensor]) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Weights, each with the bias that follows it: the convolutions, the linear layers."""
    pairs = [(a, b) for a, b in itertools.pairwise(tensors) if a.ndim in (2, 4) and b.ndim == 1]
    convolutions, linears = [p for p in pairs if p[0].ndim == 4], [p for p in pairs if p[0].ndim == 2]
    if (len(convolutions), len(linears)) != (6, 3):
        raise ValueError(f"{len(convolutions)} convolutions and {len(linears)} linear layers, expected 6 and 3")
    return convolutions, linears


def log_bands(audio: Float[Tensor, "n"]) -> Float[Tensor, "T 64"]:
    """Log mel bands of 16 kHz audio; no frame where it is shorter than a window."""
    if len(audio) < WINDOW:
        return audio.new_zeros(0, BANDS)
    frames = audio.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    return (torch.fft.rfft(frames, POINTS).abs() @ _bands() + 0.01).log()


@functools.cache
def _bands() -> Float[Tensor, "257 64"]:
    """Triangles that are linear in mel (the usual ones are linear in Hz); none reads the constant bin."""

    def mel(hz: Any) -> Any:
        return 1127.0 * np.log(1.0 + hz / 700.0)

    bins = mel(np.linspace(0.0, RATE / 2, POINTS // 2 + 1))[:, None]
    edges = np.linspace(mel(125.0), mel(7500.0), BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    weights[0] = 0.0
    return torch.from_numpy(weights).float()
