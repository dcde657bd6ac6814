"""S3 tokens: CosyVoice's supervised semantic speech codes, through the s3tokenizer package (Apache 2.0).

    speech_tokenizer_v1.onnx of CosyVoice-300M: 50 codes a second out of 4096, from a 128-bin Whisper log-mel

The package downloads by itself when asked for a model by name; here a file is given and nothing is fetched. An `.onnx`
is read as the protobuf it is; converted weights may also be `.safetensors`, or `.pt` (read with `weights_only=True`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fog_a.errors import MissingDependency, NoWeights, Unsupported
from fog_a.teachers.weights import fingerprint, frozen
from unified_audio.audio_frames import AudioFrames

FETCH = (
    "Get speech_tokenizer_v1.onnx (CosyVoice-300M: modelscope.cn/models/iic/CosyVoice-300M or "
    "huggingface.co/FunAudioLLM/CosyVoice-300M), put it in a folder of yours and give its path. Without it: "
    "KMeansCodes.fit(...), whose codes are named as what they are"
)


class S3Codes:
    """S3 codes of a waveform.

    Args:
        weights: path of `speech_tokenizer_v1.onnx` (or its weights as .safetensors or .pt), or an `S3Tokenizer` object.
        rate: codes a second: 50, or 25 for the 25 Hz model of the first version.

    Raises:
        MissingDependency: s3tokenizer or onnx is absent.
        NoWeights: no such file, or it holds other weights.
        Unsupported: weights of the second or third version, which have no 4096-entry codebook.
    """

    frames: AudioFrames | None = None

    def __init__(self, weights: Any, *, rate: int = 50) -> None:
        package = _package()
        self.net: nn.Module = _load(package, Path(weights), rate) if isinstance(weights, (str, Path)) else weights
        config: Any = self.net.config
        self.mels, self.vocab, self.rate = int(config.n_mels), int(config.n_codebook_size), float(rate)
        self._log_mel = package.log_mel_spectrogram
        self.name = f"s3-{rate}hz-{fingerprint(self.net)}"

    def __call__(self, audio: Float[Tensor, "n"]) -> Int[Tensor, "N"]:
        """Codes of 16 kHz audio (10 s: 500)."""
        mel = self._log_mel(audio, n_mels=self.mels)
        with frozen(self.net, audio.device) as net:
            codes, lengths = net(mel[None], torch.tensor([mel.shape[1]], device=audio.device))
        return codes[0, : int(lengths[0])].long().clone()

    def of_frames(self, frames: Float[Tensor, "N D"]) -> Int[Tensor, "N"]:
        """Refused: S3 reads audio, not frames."""
        raise Unsupported("S3 codes are made of audio, not of frame features: call it on the waveform")


def _package() -> Any:
    try:
        import s3tokenizer
    except ImportError as error:
        raise MissingDependency(
            f"S3 tokens need the packages s3tokenizer and onnx ({error}): pip install onnx && "
            "pip install --no-deps s3tokenizer"
        ) from error
    return s3tokenizer


def _load(package: Any, path: Path, rate: int) -> nn.Module:
    if not path.is_file():
        raise NoWeights(f"no S3 tokenizer at {path}. {FETCH}")
    try:
        state = _state(package, path)
    except Exception as error:  # protobuf, onnx, safetensors and torch each raise their own
        reason = (str(error) or "empty").splitlines()[0] if path.suffix != ".pt" else "no dict of plain tensors"
        raise NoWeights(f"{path} is no S3 tokenizer ({type(error).__name__}: {reason}). {FETCH}") from error
    if any("project_down" in name for name in state):
        raise Unsupported(
            f"{path} is a later S3 tokenizer (6561 FSQ codes); this one reads version 1, 4096 codes. {FETCH}"
        )
    try:
        net = package.model.S3Tokenizer(f"speech_tokenizer_v1{'_25hz' if rate == 25 else ''}", _config(package, state))
        net.load_state_dict(state, strict=True)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NoWeights(f"{path} holds other weights than an S3 tokenizer's ({reason}). {FETCH}") from error
    return net


def _state(package: Any, path: Path) -> dict[str, Tensor]:
    if path.suffix == ".onnx":
        return package.onnx2torch(str(path), None, False)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _config(package: Any, state: Mapping[str, Tensor]) -> Any:
    """The sizes that the weights have. Heads cannot be read off: 64 channels each, as all published ones have."""
    width, mels, _ = state["encoder.conv1.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.blocks."))
    return package.model.ModelConfig(
        n_mels=mels,
        n_audio_ctx=len(state["encoder.positional_embedding"]),
        n_audio_state=width,
        n_audio_head=max(1, width // 64),
        n_audio_layer=layers,
        n_codebook_size=len(state["quantizer._codebook.embed"]),
    )
