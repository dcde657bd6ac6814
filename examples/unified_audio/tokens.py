"""What makes a clip's codes: one call, whatever stands behind it.

    S3Codes (unified_audio.s3)   audio → S3 codes of the s3tokenizer package, where its weights are given
    ASTCodes                     frames → codes of a trained ASTTokenizer
    KMeansCodes                  frames → nearest of K centres: the stand-in for S3 without weights, and named as such

`frames` says what a tokenizer reads: None is the waveform itself. `name` tells kinds and weights apart, since caches
key on it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a.teachers.weights import fingerprint
from fog_a_adapters.dit.audio.mel import optional
from unified_audio.ast_tokenizer import ASTTokenizer
from unified_audio.audio_frames import AudioFrames


class Codes(Protocol):
    """Audio → codes in [0, vocab), `rate` a second."""

    name: str
    vocab: int
    rate: float
    frames: AudioFrames | None

    def __call__(self, audio: Float[Tensor, "n"]) -> Int[Tensor, "N"]: ...

    def of_frames(self, frames: Float[Tensor, "N D"]) -> Int[Tensor, "N"]: ...


class ASTCodes:
    """The codes of a trained tokenizer over its frames."""

    def __init__(self, tokenizer: ASTTokenizer, frames: AudioFrames) -> None:
        if frames.dim != tokenizer.config.input_dim:
            raise ShapeMismatch(
                f"this tokenizer was trained on frames of width {tokenizer.config.input_dim}, {frames.name} has "
                f"{frames.dim}; give the frames it was trained on"
            )
        self.tokenizer, self.frames = tokenizer.eval(), frames
        self.vocab, self.rate = tokenizer.config.vocab, frames.rate
        self.name = f"ast-{frames.name}-{fingerprint(tokenizer)}"

    def __call__(self, audio: Float[Tensor, "n"]) -> Int[Tensor, "N"]:
        return self.of_frames(self.frames(audio))

    def of_frames(self, frames: Float[Tensor, "N D"]) -> Int[Tensor, "N"]:
        """Codes of frames that were computed before."""
        device = self.tokenizer.book.codes.device
        return self.tokenizer.eval().encode(frames[None].to(device))[0].cpu()


class KMeansCodes:
    """Nearest of K centres of a corpus's frames. No speech recognizer stands behind these codes: they are not S3's."""

    def __init__(self, centres: Float[Tensor, "K D"], frames: AudioFrames) -> None:
        if centres.ndim != 2 or centres.shape[1] != frames.dim:
            raise ShapeMismatch(f"centres {tuple(centres.shape)} do not fit frames of width {frames.dim}: (K, width)")
        self.centres, self.frames = centres.float(), frames
        self.vocab, self.rate = len(centres), frames.rate
        print_ = zlib.crc32(self.centres.contiguous().numpy().tobytes())
        self.name = f"kmeans-{frames.name}-{self.vocab}-{print_:08x}"

    @classmethod
    def fit(
        cls, features: Sequence[Float[Tensor, "T D"]], frames: AudioFrames, vocab: int = 64, seed: int = 0
    ) -> KMeansCodes:
        """scikit-learn's MiniBatchKMeans on training clips; fewer frames than codes gives fewer codes.

        Raises BadArgument without features, MissingDependency without scikit-learn.
        """
        if not features:
            raise BadArgument("KMeansCodes.fit needs the frames of at least one training clip, got none")
        cluster = optional("sklearn.cluster")
        x = torch.cat(list(features)).numpy()
        kmeans = cluster.MiniBatchKMeans(min(vocab, len(x)), random_state=seed, n_init=1, batch_size=1024)
        return cls(torch.from_numpy(kmeans.fit(x).cluster_centers_), frames)

    def __call__(self, audio: Float[Tensor, "n"]) -> Int[Tensor, "N"]:
        return self.of_frames(self.frames(audio))

    def of_frames(self, frames: Float[Tensor, "N D"]) -> Int[Tensor, "N"]:
        """Codes of frames that were computed before."""
        return torch.cdist(frames.float(), self.centres).argmin(1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; `from_state` reads them back."""
        return {"centres": self.centres}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], frames: AudioFrames) -> KMeansCodes:
        """The inverse of `state`."""
        return cls(state["centres"], frames)
