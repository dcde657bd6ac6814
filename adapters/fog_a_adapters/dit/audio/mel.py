"""Waveform → normalised log-mel, as the paper's system does it.

16 kHz mono, divided by its peak, at most 10 s → 24 kHz (windowed sinc, Kaiser) → |STFT| (1024 window, 256 hop,
centred) → 100 HTK mel bins from 0 to 12 kHz → log(max(·, 1e-5)) → (x + 5.8843) / 2.2615. 93.75 frames a second; these
are the features of the vocoder Vocos `charactr/vocos-mel-24khz`, after de-normalisation.

torchaudio and soundfile are imported when first needed: what is absent or does not load becomes MissingDependency.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadManifest, MissingDependency

RATE = 16_000
MEL_RATE = 24_000
HOP = 256
MELS = 100
SECONDS = 10.0
SHORTEST = 0.05
MEAN, SCALE = -5.8843, 2.2615
RATES = range(4_000, 384_001)
CHANNELS = range(1, 9)


def optional(name: str) -> Any:
    """Import a package of the `audio` extra, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{error.name!r} is not installed; audio needs it: pip install 'fog-a[audio]'"
        ) from error
    except (OSError, ImportError, RuntimeError) as error:
        raise MissingDependency(_does_not_load(name, error)) from error


def _does_not_load(name: str, error: Exception) -> str:
    """What to do about a package that is there and fails to import."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    message = f"{name} is installed but does not load ({error})."
    if name != "torchaudio" or not places:
        return f"{message} Reinstall it: pip install --force-reinstall --no-deps {name}"
    lib = Path(places[0]) / "lib"
    return (
        f"{message} It is built for CUDA and this torch ({torch.__version__}) is not, or for another torch. Nothing "
        f"here needs its compiled part; move that away and it loads:  mv '{lib}' '{lib}.off'"
    )


def decode(path: str | Path) -> tuple[Float[Tensor, "N"], list[str]]:
    """A file's audio as 16 kHz mono with peak 1, its first 10 s, and what had to be converted.

    Raises:
        BadManifest: no audio, shorter than 50 ms, NaN, or a rate or channel count that is no recording's.
    """
    soundfile = optional("soundfile")
    try:
        data, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadManifest(f"{path} cannot be decoded as audio ({error}); convert it to FLAC or WAV") from error
    n, channels = data.shape
    if n < SHORTEST * rate:
        raise BadManifest(f"{path} is {n / rate:.3f} s long, the shortest usable clip is {SHORTEST} s; take it out")
    if channels not in CHANNELS:
        raise BadManifest(
            f"{path} has {channels} channels, expected 1 to {CHANNELS[-1]}; is it stored channels × time? Transpose it"
        )
    if rate not in RATES:
        raise BadManifest(f"{path} has {rate} samples a second, expected {RATES[0]} to {RATES[-1]}; fix its header")
    x = torch.from_numpy(data).mean(1)
    if not bool(x.isfinite().all()):
        raise BadManifest(f"{path} holds NaN or infinite samples; repair it or take it out")
    notes = [f"{channels} channels mixed to mono"] if channels > 1 else []
    if n > SECONDS * rate:
        notes.append(f"cut to the first {SECONDS:g} s")
        x = x[: int(SECONDS * rate)]
    if rate != RATE:
        notes.append(f"resampled from {rate} to {RATE} Hz")
        x = optional("torchaudio").functional.resample(x, rate, RATE)
    peak = float(x.abs().max())
    if peak == 0:
        notes.append("silent")
    return (x / max(peak, 1e-8)).clamp(-1, 1), notes


@functools.cache
def _transforms() -> tuple[Any, Any]:
    """The resampler 16 → 24 kHz and the mel filter bank."""
    torchaudio = optional("torchaudio")
    resample = torchaudio.transforms.Resample(
        RATE, MEL_RATE, resampling_method="sinc_interp_kaiser", lowpass_filter_width=6, rolloff=0.99
    )
    mel = torchaudio.transforms.MelSpectrogram(
        MEL_RATE, n_fft=1024, win_length=1024, hop_length=HOP, f_min=0.0, f_max=12_000.0, n_mels=MELS,
        power=1.0, center=True, norm=None, mel_scale="htk",
    )  # fmt: skip
    return resample, mel


def frames(samples: int) -> int:
    """Mel frames of a clip of so many samples at 16 kHz.

    >>> frames(160_000)
    938
    """
    return -(-samples * MEL_RATE // RATE) // HOP + 1


@torch.no_grad()
def log_mel(audio: Float[Tensor, "... N"]) -> Float[Tensor, "... T M"]:
    """Normalised log-mel (about zero mean, unit variance over speech) of 16 kHz audio."""
    resample, mel = _transforms()
    x = mel(resample(audio)).clamp(min=1e-5).log()
    return ((x - MEAN) / SCALE).transpose(-1, -2).contiguous()


def magnitudes(mel: Float[Tensor, "... T M"]) -> Float[Tensor, "... M T"]:
    """Mel magnitudes from `log_mel`'s values, for a vocoder."""
    return (mel * SCALE + MEAN).exp().transpose(-1, -2)
