"""A teacher without weights: the statistics of the log-mel spectrogram."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.flows.samples import Samples
from fog_a.teachers.waveforms import by_length, waveforms


class SpectralTeacher:
    """Mean and standard deviation over time of each log-mel band: (B, 2·bands). No weights, nothing learned.

    It tells timbre and loudness, not words or events: for tests and dry runs without a network, and as the control
    that a learned teacher has to beat. Frames of 25 ms every 10 ms, those that lie in real audio; mel bands (HTK) over
    0–8 kHz at any sample rate, so nothing is resampled.

        >>> samples = Samples(ids=("a",), domains=("all",), rows=list, audio=torch.ones(1, 16000), rate=16000)
        >>> tuple(SpectralTeacher(bands=20)(samples).shape)
        (1, 40)
    """

    pool = "mean-std"

    def __init__(self, bands: int = 64) -> None:
        self.bands = bands
        self.name = f"log-mel-statistics-{bands}"
        self.dim = 2 * bands

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """Mean, then standard deviation, of log(max(mel, 1e-5)) of the magnitude spectrum."""
        rate = samples.rate or 16_000
        waves = waveforms(samples, rate, self.name)
        size, hop = round(0.025 * rate), round(0.010 * rate)
        fft = 2 ** math.ceil(math.log2(size))
        device = waves[0].device
        window = torch.hann_window(size, device=device, dtype=torch.float32)
        mel = mel_bands(self.bands, fft, rate).to(device)
        waves = [torch.nn.functional.pad(w, (0, max(0, size - len(w)))) for w in waves]
        out = torch.empty(len(waves), self.dim, device=device, dtype=torch.float32)
        with torch.autocast(device.type, enabled=False):
            for rows, audio in by_length(waves):
                frames = audio.unfold(-1, size, hop) * window  # (b, F, size)
                log_mel = (torch.fft.rfft(frames, fft).abs() @ mel).clamp(min=1e-5).log()  # (b, F, bands)
                out[rows] = torch.cat([log_mel.mean(1), log_mel.std(1, correction=0)], -1)
        return out


def mel_bands(bands: int, fft: int, rate: int, top: float = 8_000.0) -> Float[Tensor, "F M"]:
    """Triangular filters, equally spaced on the HTK mel scale m = 2595 log10(1 + f/700) from 0 to `top` Hz."""
    mels = torch.linspace(0, 2595 * math.log10(1 + top / 700), bands + 2, dtype=torch.float32, device="cpu")
    edges = 700 * (10 ** (mels / 2595) - 1)
    f = torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float32, device="cpu")[:, None]
    rise = (f - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - f) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)
