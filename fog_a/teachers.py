"""Teachers: frozen encoders that say what a clip is, one pooled vector per sample.

    T(x) = mean of the encoder's output frames over the real (unpadded) part of x           T_W, T_B of Eq. 4–6, 12

A teacher is a plain object, not an `nn.Module`: kept as an attribute of a model it is no submodule, so it is neither
trained, nor saved with the model, nor put in train mode. Its network follows the audio's device. Whatever the padding
of a batch, a sample's features are those of the sample alone.

Here are the paper's two. `HFAudioTeacher` (fog_a.encoders) is any transformers encoder; `CachedTeacher`
(fog_a.feature_cache) keeps features on disk; `SelfTeacher` and `SpectralTeacher` (fog_a.weightless) need no weights.
Which teacher reads which domain: fog_a.routing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.concepts import Samples
from fog_a.encoders import HFAudioTeacher as HFAudioTeacher
from fog_a.errors import MissingDependency, NoWeights, Unsupported
from fog_a.feature_cache import CachedTeacher as CachedTeacher
from fog_a.waveforms import by_length, waveforms
from fog_a.weightless import SelfTeacher as SelfTeacher
from fog_a.weightless import SpectralTeacher as SpectralTeacher
from fog_a.weights import fingerprint, frozen, loaded, short, transformers_for


class WhisperTeacher:
    """The encoder of a Whisper model (transformers), any size: what is said.

    Args:
        model: a hub name, a folder with `config.json`, `preprocessor_config.json` and `model.safetensors`, or a Whisper
            model or encoder object (which is put in eval mode and frozen).
        pool: `"real"`: the mean over the ceil(N / 320) frames of real audio (10 s: 500 of 1500); clips beyond the
            encoder's 30 s are read window by window. `"release"`: the mean over all 1500 frames of the first 30 s,
            silence included, as the AG-REPA release has it.
        domain: the domain it is meant for, or None.

    Raises:
        MissingDependency: transformers is absent.
        NoWeights: the hub is out of reach, or the folder lacks files.

    Source: SPEC §8; Whisper: arXiv 2212.04356.
    """

    rate = 16_000

    def __init__(
        self,
        model: Any = "openai/whisper-large-v3",
        *,
        pool: Literal["real", "release"] = "real",
        domain: str | None = None,
    ) -> None:
        transformers = transformers_for("WhisperTeacher")
        _one_of("pool", pool, ("real", "release"))
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
        self.domain, self.pool = domain, pool
        self.fingerprint = fingerprint(net)

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The frames of each sample before pooling, 50 a second: targets for token-wise alignment."""
        waves = waveforms(samples, self.rate, self.name)
        with frozen(self.net, waves[0].device) as net:
            return [self._frames(net, wave) for wave in waves]  # one at a time: Whisper pads each to 30 s anyway

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The pooled encoder output, float32, no grad."""
        return torch.stack([h.mean(0) for h in self.frames(samples)])

    def _frames(self, net: nn.Module, wave: Float[Tensor, "N"]) -> Float[Tensor, "T D"]:
        pieces = wave.split(self.window) if self.pool == "real" else (wave[: self.window],)
        mel = self.extract(
            [piece.cpu().numpy() for piece in pieces],
            sampling_rate=self.rate,
            max_length=self.window,
            return_tensors="pt",
            device=str(wave.device),
        ).input_features
        h = net(mel.to(wave.device, next(net.parameters()).dtype)).last_hidden_state.float()  # (windows, 1500, D)
        real = [math.ceil(len(p) / 320) if self.pool == "real" else self.window // 320 for p in pieces]
        return torch.cat([frames[:n] for frames, n in zip(h, real, strict=True)])


class BEATsTeacher:
    """BEATs (as speechbrain carries it): what sounds.

    Args:
        checkpoint: path of a BEATs checkpoint (`BEATs_iter3_plus_AS2M.pt`, from
            github.com/microsoft/unilm/tree/master/beats), read with `weights_only=True`;
            or a speechbrain `BEATs` object.
        pool: `"real"`: the mean over the patches of real audio; `"release"`: over those of the padded batch.
        domain: the domain it is meant for, or None.

    Raises:
        MissingDependency: speechbrain or torchaudio is absent.
        NoWeights: no such checkpoint, or it is none.

    Source: SPEC §8 (10 s: 998 fbank frames, 62 × 8 = 496 patches of 768); BEATs: arXiv 2212.09058.
    """

    rate = 16_000
    shortest = 400 + 15 * 160  # one patch is 16 fbank frames of 25 ms every 10 ms

    def __init__(
        self, checkpoint: Any, *, pool: Literal["real", "release"] = "real", domain: str | None = None
    ) -> None:
        _one_of("pool", pool, ("real", "release"))
        if isinstance(checkpoint, (str, Path)):
            self.net: nn.Module = _beats(Path(checkpoint))
            self.name = f"beats:{Path(checkpoint).name}"
        else:
            self.net, self.name = checkpoint, f"beats:{type(checkpoint).__name__}"
        config: Any = self.net.cfg
        if config.finetuned_model:
            self.name += ":finetuned"
        self.dim: int = config.encoder_embed_dim
        self.domain, self.pool = domain, pool
        self.fingerprint = fingerprint(self.net)

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The frames of each sample before pooling, one per 160 ms: the mean of its 8 patches in frequency."""
        waves = waveforms(samples, self.rate, self.name)
        if self.pool == "release":
            waves = list(nn.utils.rnn.pad_sequence(waves, batch_first=True))
        waves = [nn.functional.pad(w, (0, max(0, self.shortest - len(w)))) for w in waves]
        found: dict[int, Tensor] = {}
        with frozen(self.net, waves[0].device) as net:
            beats: Any = net
            for rows, audio in by_length(waves):
                whole = torch.ones(len(rows), device=audio.device)  # speechbrain fails without lengths
                patches = beats.extract_features(audio, whole)[0].float()  # (b, T · 8, D), time-major
                found |= dict(zip(rows, patches.unflatten(1, (-1, 8)).mean(2), strict=True))
        return [found[i] for i in range(len(waves))]

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The mean of the patch tokens, float32, no grad."""
        return torch.stack([h.mean(0) for h in self.frames(samples)])


def _beats(path: Path) -> nn.Module:
    try:
        import torchaudio  # noqa: F401  (speechbrain takes the fbank from it)
        from speechbrain.lobes.models.beats import BEATs  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise MissingDependency(
            f"BEATsTeacher needs speechbrain and torchaudio ({e}): pip install 'fog-a[beats]'; or light, "
            "beside your torch: pip install --no-deps speechbrain hyperpyyaml && "
            "pip install torchaudio 'ruamel.yaml<0.19' joblib requests"
        ) from e
    fetch = (
        "download BEATs_iter3_plus_AS2M.pt (links at github.com/microsoft/unilm/tree/master/beats) and give its path"
    )
    if not path.is_file():
        raise NoWeights(f"no BEATs checkpoint at {path}: {fetch}")
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)["model"]  # speechbrain would run a pickle
        return BEATs(ckp_path=str(path), freeze=True)
    except Exception as e:
        raise NoWeights(f"{path} is no BEATs checkpoint ({type(e).__name__}: {e}): {fetch}") from e


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise Unsupported(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
