"""Matcha-TTS: `MatchaTTS`, or its decoder `CFM` alone.

Repository: https://github.com/shivammehta25/Matcha-TTS, read at matcha-tts 0.0.7.2. Install:
`pip install matcha-tts==0.0.7.2`. Paper: arXiv 2309.03199.

A batch is a dict of what `MatchaTTS.forward` takes: `x`, `x_lengths`, `y` (B, M, T), `y_lengths`, `spks`, `durations`;
or, for the decoder, of what `CFM.compute_loss` takes: `x1` (B, M, T), `mask` (B, 1, T), `mu`, `spks`, `cond`.
T is a multiple of 4, as Matcha's own collate function makes it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fog_a.flows.dicts import require_keys, samples_from, to_module
from fog_a.flows.frames import frame_mask
from fog_a.flows.register import is_a
from fog_a.flows.samples import Samples
from fog_a_adapters.straight import DecoderFlow, theirs

TEXT = ("x", "x_lengths", "y", "y_lengths", "spks", "durations")
DECODER = ("x1", "mask", "mu", "spks", "cond")


class MatchaAdapter(DecoderFlow):
    """Adapter of Matcha-TTS; velocities are (B, M, T).

    Args:
        model: a MatchaTTS, or its CFM.
    """

    package = "matcha-tts"
    version = "0.0.7.2"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.whole = hasattr(model, "encoder")
        self.decoder: Any = model.decoder if self.whole else model
        self.module: nn.Module = self.decoder.estimator
        self.sigma = self.decoder.sigma_min

    @staticmethod
    def matches(model: object) -> bool:
        """True for MatchaTTS and for its CFM."""
        return is_a(model, "matcha", "MatchaTTS", "CFM")

    def field(self, batch: Any, x0: Float[Tensor, "B M T"], t: Float[Tensor, "B"]) -> Float[Tensor, "B M T"]:
        """v with everything that is random given: the noise and the time."""
        found = self._read(batch)
        mu, spks = self._conditions(found)
        return self.module(self.between(x0, found["x1"], t), found["mask"], mu, t, spks)

    def samples(self, batch: Any) -> Samples:
        """Ids made of the mel (or given under `ids`), the mask of real frames (B, 1, T)."""
        found = self._read(batch)
        mask = found["mask"].bool()
        return samples_from(batch, found["x1"], lengths=mask[:, 0].sum(-1).tolist(), axis=2, mask=mask)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """Duration, prior and flow-matching loss together, as its training step adds them; the decoder's alone."""
        found = self._read(batch)
        if not self.whole:
            return self.decoder.compute_loss(**{key: found.get(key) for key in DECODER})[0]
        return sum(self.model(**{k: found.get(k) for k in TEXT}, out_size=self.model.out_size)[:3])  # pyright: ignore

    def _read(self, batch: Any) -> dict[str, Any]:
        if not self.whole:
            require_keys(batch, DECODER[:3], "Matcha's CFM", "These are the arguments of CFM.compute_loss")
            return to_module({key: batch.get(key) for key in DECODER}, self.module, "x1", "mask", "mu")
        require_keys(batch, TEXT[:4], "Matcha-TTS", "Its TextMelBatchCollate gives them")
        found = to_module({key: batch.get(key) for key in TEXT}, self.module, "y")
        mask = frame_mask(found["y_lengths"], found["y"].shape[-1]).to(found["y"])[:, None]
        return {**found, "x1": found["y"], "mask": mask}

    def _conditions(self, found: dict[str, Any]) -> tuple[Float[Tensor, "B M T"], Tensor | None]:
        """μ at mel length and the speaker. Where durations are not given, text is aligned as in training.

        log N(y; μ_x, I) of each token and frame = −½ (M log 2π + Σ (y − μ_x)²), and the best monotonic path through it.
        """
        if not self.whole:
            return found["mu"], found["spks"]
        model, y, package = self.model, found["x1"], theirs(self.model, "MatchaTTS")
        spks = model.spk_emb(found["spks"]) if model.n_spks > 1 else None
        mu_x, _, text_mask = model.encoder(found["x"], found["x_lengths"], spks)
        allowed = (text_mask.unsqueeze(-1) * found["mask"].to(text_mask).unsqueeze(2)).squeeze(1)
        if model.use_precomputed_durations:
            path = package.generate_path(found["durations"].squeeze(1), allowed)
        else:
            with torch.no_grad():
                squares = (mu_x**2).sum(1)[..., None] - 2 * mu_x.transpose(1, 2) @ y + (y**2).sum(1)[:, None]
                log_prior = -0.5 * (model.n_feats * math.log(2 * math.pi) + squares)
                path = package.monotonic_align.maximum_path(log_prior, allowed).detach()
        return (path.transpose(1, 2) @ mu_x.transpose(1, 2)).transpose(1, 2), spks
