"""Teachers without weights: a deeper block of the same net, and the statistics of the log-mel spectrogram."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.errors import NoBlocksFound, UnknownBlock, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.descriptors import temporal_mean
from fog_a.teachers.waveforms import by_length, waveforms


class SelfTeacher:
    """A deeper block of the net that is being trained, with its gradient stopped (LayerSync; SPEC A12).

    It reads no audio: `AGREPA` taps the block in the user's own forward and asks `features`. Its width is known then.

    Args:
        block: name or index of the block among the main ones; None: layer ⌈2L/3⌉ of L.
        domain: the domain it is meant for, or None.
    """

    pool = "mean"

    def __init__(self, block: str | int | None = None, *, domain: str | None = None) -> None:
        self.block = block
        self.domain = domain
        self.name = f"self:{'two-thirds' if block is None else block}"
        self.dim = 0  # until features() has seen the block

    def block_of(self, blocks: Blocks) -> ResidualBlock:
        """The block it reads. Raises UnknownBlock."""
        if not len(blocks):
            raise NoBlocksFound("SelfTeacher needs a model with residual blocks, got none: find_blocks(model, batch)")
        if self.block is None:
            return blocks[math.ceil(2 * len(blocks) / 3) - 1]
        if isinstance(self.block, str):
            return blocks[self.block]
        if not -len(blocks) <= self.block < len(blocks):
            raise UnknownBlock(f"SelfTeacher({self.block}) but there are {len(blocks)} blocks: 0..{len(blocks) - 1}")
        return blocks[self.block]

    def features(self, h: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B D"]:
        """The temporal mean of the block's tokens over the real ones: float32, no gradient."""
        z = temporal_mean(h.detach().float(), mask)
        self.dim = z.shape[1]
        return z

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        raise Unsupported(
            "SelfTeacher reads a block in the net's own forward, not audio: type "
            "AGREPA(flow, teachers=SelfTeacher(...)). For lasp and BiTC give a teacher that stands outside the net"
        )


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

    def __init__(self, bands: int = 64, *, domain: str | None = None) -> None:
        self.bands = bands
        self.name = f"log-mel-statistics-{bands}"
        self.dim = 2 * bands
        self.domain = domain

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
