"""Mel → sound at 24 kHz: Vocos where its weights are given, Griffin-Lim (torchaudio) otherwise; `name` says which.

Vocos `charactr/vocos-mel-24khz` was trained on just these features. Griffin-Lim inverts the mel filters by least
squares and guesses phases, so what it makes buzzes: a metric of such sound measures it too.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.blocks.untouched import rng
from fog_a.errors import BadArgument, MissingDependency, NoWeights
from fog_a.files import write
from fog_a_adapters.dit.audio.mel import HOP, MEL_RATE, MELS, magnitudes, optional

PEAK = 0.99
N_FFT = 1024


@dataclass(frozen=True)
class Sound:
    """Mono samples in [−1, 1] at `rate` Hz, and who made them."""

    samples: Float[Tensor, "n"]
    rate: int
    made_by: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def save(self, path: str | Path) -> Path:
        """A 16-bit WAV by soundfile, whole or absent. Raises NotWritten."""
        import io

        buffer = io.BytesIO()
        optional("soundfile").write(buffer, self.samples.numpy(), self.rate, format="WAV", subtype="PCM_16")
        write(Path(path), buffer.getvalue())
        return Path(path)


class Vocoder(Protocol):
    """Normalised log-mel (T, M) of `log_mel` → sound."""

    name: str

    def __call__(self, mel: Float[Tensor, "T M"]) -> Sound: ...


class GriffinLim:
    """torchaudio's, after its inverse mel filters. Needs no weights."""

    def __init__(self, iterations: int = 32, seed: int = 0) -> None:
        self.iterations, self.seed = iterations, seed
        self.name = f"Griffin-Lim, {iterations} iterations"

    @torch.no_grad()
    def __call__(self, mel: Float[Tensor, "T M"]) -> Sound:
        inverse, phases = _transforms(self.iterations)
        x = magnitudes(_checked(mel))
        with rng(self.seed):  # the phases start at random
            samples = phases(inverse(x))
        return Sound(_peaked(samples), MEL_RATE, self.name)


@functools.cache
def _transforms(iterations: int) -> tuple[Any, Any]:
    torchaudio = optional("torchaudio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inverse = torchaudio.transforms.InverseMelScale(
            N_FFT // 2 + 1, MELS, MEL_RATE, f_min=0.0, f_max=12_000.0, norm=None, mel_scale="htk", driver="gelsd"
        )
        phases = torchaudio.transforms.GriffinLim(N_FFT, n_iter=iterations, hop_length=HOP, power=1.0)
    return inverse, phases


class VocosVocoder:
    """Vocos, from pytorch_model.bin of `charactr/vocos-mel-24khz` or a folder that holds it.

    The sizes are read off the weights; Vocos's YAML, which names classes to call, is not read.

    Raises:
        MissingDependency: the vocos package is absent.
        NoWeights: no such file, or not Vocos's for 100 mel bins.
    """

    def __init__(self, weights: str | Path) -> None:
        path = Path(weights)
        path = path / "pytorch_model.bin" if path.is_dir() else path
        get = "get pytorch_model.bin of huggingface.co/charactr/vocos-mel-24khz and give its path"
        if not path.is_file():
            raise NoWeights(f"no Vocos weights at {path}; {get}, or leave it out: Griffin-Lim needs none")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.backbone, self.head = _vocos({k: v for k, v in state.items() if not k.startswith("feature_extractor")})
        except MissingDependency:
            raise
        except Exception as error:
            raise NoWeights(
                f"{path} is no Vocos for {MELS} mel bins ({type(error).__name__}: {error}); {get}"
            ) from error
        self.name = f"Vocos {path.parent.name}"

    @torch.no_grad()
    def __call__(self, mel: Float[Tensor, "T M"]) -> Sound:
        x = magnitudes(_checked(mel)).log()[None]
        return Sound(_peaked(self.head(self.backbone(x))[0]), MEL_RATE, self.name)


def _vocos(state: dict[str, Tensor]) -> tuple[Any, Any]:
    """Backbone and head of the sizes that the weights have."""
    models, heads = optional("vocos.models"), optional("vocos.heads")
    dim, bins, _ = state["backbone.embed.weight"].shape
    layers = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("backbone.convnext."))
    wide = state["backbone.convnext.0.pwconv1.weight"].shape[0]
    n_fft = state["head.out.weight"].shape[0] - 2
    if (bins, n_fft) != (MELS, N_FFT):
        raise ValueError(f"{bins} mel bins and windows of {n_fft}, expected {MELS} and {N_FFT}")
    backbone = models.VocosBackbone(bins, dim, wide, layers)
    head = heads.ISTFTHead(dim, n_fft, HOP, padding="center")
    for name, part in (("backbone.", backbone), ("head.", head)):
        part.load_state_dict({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})
        part.eval()
    return backbone, head


def vocoder(weights: str | Path | None = None) -> Vocoder:
    """Vocos where weights are given, Griffin-Lim otherwise."""
    return GriffinLim() if weights is None else VocosVocoder(weights)


def _checked(mel: Float[Tensor, "T M"]) -> Float[Tensor, "T M"]:
    if mel.ndim != 2 or mel.shape[1] != MELS or len(mel) < 2 or not bool(mel.isfinite().all()):
        raise BadArgument(
            f"a vocoder reads a finite mel of (frames, {MELS}), at least 2 frames; got {tuple(mel.shape)}"
        )
    return mel.detach().float().cpu().clamp(max=5.0)  # e^(5 · 2.26 − 5.9) is louder than any recording's bin


def _peaked(samples: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Peak 0.99, unless silent."""
    peak = float(samples.abs().max())
    return samples * (PEAK / peak) if peak > 1e-8 else samples
