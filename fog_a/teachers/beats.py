"""BEATs as a teacher: what sounds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.errors import MissingDependency, NoWeights
from fog_a.flows.samples import Samples
from fog_a.teachers.teacher import FrameTeacher
from fog_a.teachers.waveforms import by_length, waveforms
from fog_a.teachers.weights import fingerprint, frozen


class BEATsTeacher(FrameTeacher):
    """BEATs (as speechbrain carries it): what sounds.

    Args:
        checkpoint: path of a BEATs checkpoint (`BEATs_iter3_plus_AS2M.pt`, from
            github.com/microsoft/unilm/tree/master/beats), read with `weights_only=True`;
            or a speechbrain `BEATs` object.

    It gives the mean over the patches of real audio.

    Raises:
        MissingDependency: speechbrain or torchaudio is absent.
        NoWeights: no such checkpoint, or it is none.

    Source: SPEC §8 (10 s: 998 fbank frames, 62 × 8 = 496 patches of 768); BEATs: arXiv 2212.09058.
    """

    rate = 16_000
    pool = "real"
    shortest = 400 + 15 * 160  # one patch is 16 fbank frames of 25 ms every 10 ms

    def __init__(self, checkpoint: Any) -> None:
        if isinstance(checkpoint, (str, Path)):
            self.net: nn.Module = _beats(Path(checkpoint))
            self.name = f"beats:{Path(checkpoint).name}"
        else:
            self.net, self.name = checkpoint, f"beats:{type(checkpoint).__name__}"
        config: Any = self.net.cfg
        if config.finetuned_model:
            self.name += ":finetuned"
        self.dim: int = config.encoder_embed_dim
        self.fingerprint = fingerprint(self.net)

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The frames of each sample before pooling, one per 160 ms: the mean of its 8 patches in frequency."""
        return self.encode(waveforms(samples, self.rate, self.name))

    def encode(self, waves: Sequence[Float[Tensor, "_"]]) -> list[Float[Tensor, "_ D"]]:
        """The frames of each waveform, every sample of which counts as real."""
        waves = [nn.functional.pad(w, (0, max(0, self.shortest - len(w)))) for w in waves]
        frames: dict[int, Tensor] = {}
        with frozen(self.net, waves[0].device) as net:
            beats: Any = net
            for rows, audio in by_length(waves):
                whole = torch.ones(len(rows), device=audio.device)  # speechbrain fails without lengths
                patches = beats.extract_features(audio, whole)[0].float()  # (b, T · 8, D), time-major
                frames |= dict(zip(rows, patches.unflatten(1, (-1, 8)).mean(2), strict=True))
        return [frames[i] for i in range(len(waves))]


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
    if not os.path.isfile(path):
        raise NoWeights(f"no BEATs checkpoint at {path}: {fetch}")
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)["model"]  # speechbrain would run a pickle
        return BEATs(ckp_path=str(path), freeze=True)
    except Exception as e:
        raise NoWeights(f"{path} is no BEATs checkpoint ({type(e).__name__}: {e}): {fetch}") from e
