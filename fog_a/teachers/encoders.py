"""Transformers' audio encoders as teachers: Whisper (what is said), and any other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.errors import NoWeights, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers.modules import named
from fog_a.teachers.teacher import FrameTeacher
from fog_a.teachers.waveforms import by_length, waveforms
from fog_a.teachers.weights import fingerprint, frozen, loaded, short, transformers_for


class HFAudioTeacher(FrameTeacher):
    """Any transformers audio encoder with a `last_hidden_state`: HuBERT, WavLM, wav2vec 2.0, AST, …

    Args:
        model: a hub name, a folder, or a model object (frozen and put in eval mode).
        extractor: its feature extractor (name, folder or object); by default the one beside the weights. A model object
            needs it: the wrong normalization gives wrong features in silence.
        layer: which hidden state to read; None: the last.
        pool: `"mean"`: over the real frames (masks for padded audio; AST: the patches of real audio without its two
            special tokens); or a function (hidden (b, T, D), real audio samples (b,)) → (b, D) for encoders whose
            tokens mean something else.

    Raises:
        MissingDependency: transformers is absent.
        NoWeights: the hub is out of reach, or the folder lacks files.
        Unsupported: a model object without an extractor, or no frames to pool.
    """

    def __init__(
        self,
        model: Any,
        *,
        extractor: Any = None,
        layer: int | None = None,
        pool: Literal["mean"] | Callable[[Tensor, Tensor], Tensor] = "mean",
    ) -> None:
        transformers = transformers_for("HFAudioTeacher")
        source = model if isinstance(model, (str, Path)) else None
        extractor = source if extractor is None else extractor
        if extractor is None:
            raise Unsupported(
                "HFAudioTeacher of a model object needs its feature extractor: "
                "HFAudioTeacher(model, extractor=AutoFeatureExtractor.from_pretrained(...))"
            )
        if isinstance(extractor, (str, Path)):
            extractor = loaded(transformers.AutoFeatureExtractor.from_pretrained, extractor, "HFAudioTeacher")
        load = transformers.AutoModel.from_pretrained
        self.net: Any = model if source is None else loaded(load, source, "HFAudioTeacher")
        seconds = getattr(extractor, "chunk_length", None)
        if seconds and not callable(pool):
            raise Unsupported(
                f"{type(extractor).__name__} pads every clip to {seconds} s, which a mean would count: type "
                "WhisperTeacher(model) for Whisper, else pool=lambda hidden, n: ... -> (b, D)"
            )
        self.extract, self.layer = extractor, layer
        self.reduce = pool if callable(pool) else None
        self.pool = named(pool) + ("" if layer is None else f"-layer{layer}")
        self.rate: int = extractor.sampling_rate
        self.name = f"hf:{short(source) if source else type(model).__name__}"
        self.dim: int = self.net.config.hidden_size
        self.fingerprint = fingerprint(self.net)

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The real frames of each sample before pooling. Raises Unsupported where tokens are no frames."""
        frames: dict[int, Tensor] = {}
        for rows, h, lengths, mask in self._hidden(samples):
            if h.ndim != 3:
                raise Unsupported(
                    f"{self.name} gives {tuple(h.shape)}, not (b, T, D): pass pool=lambda hidden, n: ... -> (b, D)"
                )
            h, real = self._real(h, lengths, mask)
            frames |= {i: x[keep] for i, x, keep in zip(rows, h, real, strict=True)}
        return [frames[i] for i in range(len(samples))]

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The pooled hidden state, float32, no grad."""
        if self.reduce is None:
            return super().__call__(samples)
        pooled: dict[int, Tensor] = {}
        for rows, h, lengths, _ in self._hidden(samples):
            pooled |= dict(zip(rows, self.reduce(h, lengths).float(), strict=True))
        return torch.stack([pooled[i] for i in range(len(samples))])

    def _hidden(self, samples: Samples) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor | None]]:
        """Groups of samples: their rows, hidden states, real audio samples, and the extractor's mask."""
        waves = waveforms(samples, self.rate, self.name)
        device = waves[0].device
        masked = bool(getattr(self.extract, "return_attention_mask", False))
        options: dict[str, Any] = {"padding": True, "return_attention_mask": True} if masked else {}
        for rows, _ in by_length(waves):  # an encoder that normalizes over time feels padding even under a mask
            with frozen(self.net, device) as net:
                arrays = [waves[i].cpu().numpy() for i in rows]
                inputs = self.extract(arrays, sampling_rate=self.rate, return_tensors="pt", **options)
                dtype = self.net.dtype
                inputs = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}
                out = net(**inputs, output_hidden_states=self.layer is not None)
            h = out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]
            lengths = torch.tensor([len(waves[i]) for i in rows], device=device)
            yield rows, h.float(), lengths, inputs.get("attention_mask")

    def _real(self, h: Tensor, lengths: Tensor, mask: Tensor | None) -> tuple[Tensor, Bool[Tensor, "b T"]]:
        """The tokens as frames (b, T, D), and which of them come from real audio."""
        config = self.net.config
        if config.model_type == "audio-spectrogram-transformer":
            frames = ((lengths - 400) // 160 + 1).clamp(min=config.patch_size)  # of its fbank, 25 ms every 10 ms
            times = (config.max_length - config.patch_size) // config.time_stride + 1
            known = (frames - config.patch_size) // config.time_stride + 1  # patches that lie in real audio
            h = h[:, 2:].unflatten(1, (-1, times)).mean(1)  # two special tokens, then frequency by frequency
            return h, torch.arange(times, device=h.device) < known[:, None]
        if mask is None or mask.shape == h.shape[:2]:
            return h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device) if mask is None else mask.bool()
        known = (mask.float().mean(1, keepdim=True) * h.shape[1]).ceil()  # of the extractor's frames, or of the audio
        return h, torch.arange(h.shape[1], device=h.device) < known


class WhisperTeacher(FrameTeacher):
    """The encoder of a Whisper model (transformers), any size: what is said.

    Args:
        model: a hub name, a folder with `config.json`, `preprocessor_config.json` and `model.safetensors`, or a Whisper
            model or encoder object (which is put in eval mode and frozen).

    It gives the mean over the ceil(N / 320) frames of real audio (10 s: 500 of 1500). Clips beyond the encoder's 30 s
    are read window by window.

    Raises:
        MissingDependency: transformers is absent.
        NoWeights: the hub is out of reach, or the folder lacks files or weights.

    Source: SPEC §8; Whisper: arXiv 2212.04356.
    """

    rate = 16_000
    pool = "real"

    def __init__(self, model: Any = "openai/whisper-large-v3") -> None:
        transformers = transformers_for("WhisperTeacher")
        source = model if isinstance(model, (str, Path)) else None
        whole: Any = model if source is None else self._loaded(transformers, source)
        net: Any = whole.get_encoder() if hasattr(whole, "get_encoder") else whole
        if not hasattr(net, "config") or not hasattr(net.config, "max_source_positions"):
            raise Unsupported(f"WhisperTeacher needs a Whisper model or its encoder, got {type(model).__name__}")
        self.net: nn.Module = net
        self.window: int = net.config.max_source_positions * 320  # samples; 1500 frames = 30 s
        self.extract = transformers.WhisperFeatureExtractor(feature_size=net.config.num_mel_bins)
        self.name = f"whisper:{short(source) if source else type(model).__name__}"
        self.dim: int = net.config.d_model
        self.fingerprint = fingerprint(net)

    @staticmethod
    def _loaded(transformers: Any, source: str | Path) -> Any:
        load = functools.partial(transformers.WhisperModel.from_pretrained, output_loading_info=True)
        whole, info = loaded(load, source, "WhisperTeacher")
        absent = sorted(key for key in info["missing_keys"] if key.startswith("encoder."))
        if absent:  # transformers fills them with random numbers
            raise NoWeights(
                f"the weights in {str(source)!r} lack {len(absent)} tensors of Whisper's encoder, such as {absent[0]}: "
                "they are another model's. Copy config.json and model.safetensors of one Whisper into the folder"
            )
        return whole

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
