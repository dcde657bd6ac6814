"""Flow matching on log-mel: the path, the loss, the sampler.

    x_t = (1 − t) x₀ + t x₁,   x₀ ~ N(0, σ²I),   t ~ U(0, 1)
    L_FM = E‖v_θ(x_t, t, c) − (x₁ − x₀)‖²                                                  (Eq. 23)

Mean over the real frames and mel bins. t = 0 is noise, t = 1 is data. The condition c is the token feature (dropped
with probability `drop` while training) and a clean prefix of the mel, of random length below 30 % of the clip (dropped
with `drop` too). The sampler is Euler's over `sway`-warped times with classifier-free guidance
v = v_u + w (v_c − v_u), where the unconditional pass drops the tokens and keeps the reference.
"""

from __future__ import annotations

import itertools
import math
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fog_a.flows.noise import noise, uniform
from fog_a_adapters.dit.model.dit import DiT, DiTConfig
from fog_a_adapters.dit.model.interface import TokenInterface, frame_mask

REFERENCE = 0.3
"""The reference mel is shorter than this share of the clip as it is cropped."""


class MelBatch(TypedDict):
    """A batch of clips: a plain dict, so that any loop can move or save it. `audio` and `crops` may be absent.

    mel (B, T, M) float, normalised log-mel, zero after the end; lengths (B,) real frames; tokens (B, N) long;
    token_lengths (B,); domain (B,) long, index in `DiTConfig.domains`; ids, one string per clip;
    crops (B, 2) start and end in the clip, in seconds; audio (B, n) float at `rate` Hz; audio_lengths (B,).
    """

    mel: Tensor
    lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    domain: Tensor
    ids: list[str]
    crops: NotRequired[Tensor]
    audio: NotRequired[Tensor]
    audio_lengths: NotRequired[Tensor]
    rate: NotRequired[int]


def sway(t: Float[Tensor, "N"], s: float = -1.0) -> Float[Tensor, "N"]:
    """Warp of the sampler's times, t + s (cos(πt/2) − 1 + t); s = −1 gives 1 − cos(πt/2), finer near the noise.

    >>> round(sway(torch.tensor([0.5])).item(), 5)
    0.29289
    """
    return t + s * (torch.cos(math.pi / 2 * t) - 1 + t)


class FlowMatching(nn.Module):
    """The model: a conditioning interface, a velocity network, the loss and the sampler around them.

    `model(batch)` is the training loss, so that a wrapper such as DistributedDataParallel sees one forward.

    Args:
        config: sizes, a `DiTConfig`.
        sigma: standard deviation σ of x₀.
        drop: probability of dropping the tokens, and of dropping the reference, in training.
    """

    def __init__(self, config: DiTConfig | None = None, *, sigma: float = 0.5, drop: float = 0.1) -> None:
        super().__init__()
        self.config = config or DiTConfig.tiny()
        self.sigma, self.drop = sigma, drop
        self.interface = TokenInterface(self.config)
        self.net = DiT(self.config)

    @torch.no_grad()
    def start_at(self, frame: Float[Tensor, "M"]) -> None:
        """Let the untrained velocity be E[x₁ − x₀] = this mean frame: layers then need not learn an offset."""
        self.net.outlet.bias.copy_(frame)

    def forward(self, batch: MelBatch) -> Float[Tensor, ""]:
        """The training loss; same as `loss`."""
        return self.loss(batch)

    def tokens(self, batch: MelBatch) -> Float[Tensor, "B T C"]:
        """The conditioning (token) features at mel length, with their graph, nothing dropped."""
        frames = batch["mel"].shape[1]
        return self.interface(batch["tokens"], batch["token_lengths"], batch["domain"], batch["lengths"], frames)

    def loss(
        self,
        batch: MelBatch,
        *,
        x0: Float[Tensor, "B T M"] | None = None,
        t: Float[Tensor, "B"] | None = None,
        prefix: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, ""]:
        """L_FM, mean over samples of the mean over their real frames and bins.

        What is not given is drawn: the noise `x0` ~ N(0, σ²I), `t`, and the reference's `prefix` in frames.
        """
        return self.losses(batch, x0=x0, t=t, prefix=prefix).mean()

    def losses(
        self,
        batch: MelBatch,
        *,
        x0: Float[Tensor, "B T M"] | None = None,
        t: Float[Tensor, "B"] | None = None,
        prefix: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B"]:
        """L_FM of each sample."""
        x1, lengths = batch["mel"], batch["lengths"]
        B, T, _ = x1.shape
        x0 = self.sigma * torch.randn_like(x1) if x0 is None else x0
        t = torch.rand(B, device=x1.device) if t is None else t
        v = self.predict(batch, torch.lerp(x0, x1, t[:, None, None].to(x1.dtype)), t, prefix)
        error = (v - (x1 - x0)).float().square().mean(-1) * frame_mask(lengths, T)
        return error.sum(1) / lengths

    def draws(self, batch: MelBatch, seed: int) -> tuple[Float[Tensor, "B T M"], Int[Tensor, "B"]]:
        """The noise x₀ (zero after each clip's end) and the reference's frames, from the seed and each clip's id.

        They depend on nothing else: not on a clip's neighbours, their padding, or the device.
        """
        lengths = batch["lengths"]
        u = uniform(batch["ids"], seed, "reference")[:, 0].to(lengths.device)
        return self.sigma * noise(batch["mel"], batch["ids"], seed, lengths.tolist()), prefixes(u, lengths)

    def velocity(self, batch: MelBatch, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B T M"]:
        """v_θ(x_t, t, c) at any t in [0, 1], with the noise and reference length that `seed` draws for each clip."""
        x1 = batch["mel"]
        x0, prefix = self.draws(batch, seed)
        t = torch.as_tensor(t, dtype=torch.float32, device=x1.device).expand(len(x1))
        x_t = torch.lerp(x0, x1, t[:, None, None].to(x1.dtype))
        return self.predict(batch, x_t, t, prefix)

    def predict(
        self, batch: MelBatch, x_t: Float[Tensor, "B T M"], t: Float[Tensor, "B"], prefix: Int[Tensor, "B"] | None
    ) -> Float[Tensor, "B T M"]:
        """v_θ at any (x_t, t) under the batch's condition; in training, parts of the condition drop at random.

        `prefix`: frames of the reference mel; None draws them.
        """
        lengths, T = batch["lengths"], x_t.shape[1]
        condition = self.tokens(batch)
        if prefix is None:
            prefix = prefixes(torch.rand(len(lengths), device=lengths.device), lengths)
        reference = batch["mel"] * frame_mask(prefix, T)[..., None]
        if self.training and self.drop > 0:
            keep = torch.rand(2, len(lengths), 1, 1, device=lengths.device) >= self.drop
            condition, reference = condition * keep[0], reference * keep[1]
        return self.net(x_t, t, condition, reference, frame_mask(lengths, T))

    @torch.no_grad()
    def sample(
        self,
        batch: MelBatch,
        *,
        steps: int = 32,
        cfg: float = 3.0,
        s: float = -1.0,
        seed: int = 0,
        prefix: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B T M"]:
        """Mels from noise, for the batch's tokens, lengths and reference prefix (its `mel` is read nowhere else).

        Args:
            steps: points of the time grid: steps − 1 Euler intervals.
            cfg: guidance weight w; 1 switches guidance off and halves the cost.
            s: sway; 0 is a uniform grid.
            prefix: frames of the reference; None draws them, as in training.
        """
        x, drawn = self.draws(batch, seed)
        prefix = drawn if prefix is None else prefix
        T, lengths = x.shape[1], batch["lengths"]
        condition, mask = self.tokens(batch), frame_mask(lengths, T)
        reference = batch["mel"] * frame_mask(prefix, T)[..., None]
        times = sway(torch.linspace(0, 1, steps, device=x.device), s)
        training = self.training
        self.eval()
        try:
            for a, b in itertools.pairwise(times):
                t = a.expand(len(x))
                v = self.net(x, t, condition, reference, mask)
                if cfg != 1.0:
                    v_u = self.net(x, t, torch.zeros_like(condition), reference, mask)
                    v = v_u + cfg * (v - v_u)
                x = x + (b - a) * v
        finally:
            self.train(training)
        return x * mask[..., None]


def prefixes(u: Float[Tensor, "B"], lengths: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Reference lengths, uniform over [1, max(1, ⌊0.3 · length⌋)) for u in [0, 1); one frame where that is empty.

    >>> prefixes(torch.tensor([0.0, 0.999, 0.999]), torch.tensor([100, 100, 3])).tolist()
    [1, 29, 1]
    """
    return 1 + (u * ((REFERENCE * lengths).long() - 1).clamp(min=1)).long()
