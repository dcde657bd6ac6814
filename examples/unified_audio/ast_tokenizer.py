"""The AudioSet tokenizer: a VQ-VAE over frame features, by the description of RepCodec (arXiv 2309.00169).

    F = frames(x) ∈ R^{T×D}     z_e = Proj(Enc(F))     s = VQ(z_e)     F̂ = Dec(z_q)                       (Eq. 13)
    L_AST = λ_rec ‖F − F̂‖² + λ_vq ‖sg[z_q] − z_e‖²        λ_rec = 1, λ_vq = 10                            (Eq. 14)

Means over real frames and channels. The codebook follows by moving averages (unified_audio.code_book). One code a
frame: nothing is down-sampled. Encoder: convolution (kernel 3, no bias), then stages of residual units
(ELU, conv 3, ELU, conv 1, skip) closed by a convolution; the decoder mirrors it. Every convolution sees zeros after a
clip's end, so a padded clip has the codes of the bare one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fog_a.errors import ShapeMismatch
from unified_audio.code_book import CodeBook


@dataclass(frozen=True)
class ASTConfig:
    """Sizes. The defaults are the paper's, over BEATs; `tiny()` is for tests and a CPU, over log-mel."""

    input_dim: int = 768
    hidden_dim: int = 1024
    vocab: int = 4096
    stages: int = 2
    units: int = 2
    decay: float = 0.8
    dead: float = 0.01
    rec: float = 1.0
    vq: float = 10.0

    @classmethod
    def tiny(cls, input_dim: int = 100, vocab: int = 64, **options: Any) -> ASTConfig:
        """A codebook that some minutes of audio can fill."""
        return cls(input_dim, **{"hidden_dim": 64, "vocab": vocab, "stages": 1, "units": 1, **options})

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's JSON; `ASTConfig(**…)` reads it back."""
        return asdict(self)


class Tokenized(NamedTuple):
    """What a forward pass gives: the loss of Eq. 14, its two unweighted terms, codes, F̂ and the perplexity."""

    loss: Float[Tensor, ""]
    rec: Float[Tensor, ""]
    vq: Float[Tensor, ""]
    codes: Int[Tensor, "B T"]
    features: Float[Tensor, "B T D"]
    perplexity: Float[Tensor, ""]


class MaskedConv(nn.Module):
    """A convolution over time, length kept, whose input is zero where the mask is False."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Float[Tensor, "B C T"], mask: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B D T"]:
        return self.conv(x * mask)


class Residual(nn.Module):
    """x + conv₁(ELU(conv₃(ELU(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = MaskedConv(width, width, 3), MaskedConv(width, width, 1)

    def forward(self, x: Float[Tensor, "B C T"], mask: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B C T"]:
        return x + self.narrow(F.elu(self.wide(F.elu(x), mask)), mask)


class Chain(nn.ModuleList):
    """Modules that all take (x, mask), one after the other."""

    def forward(self, x: Float[Tensor, "B C T"], mask: Float[Tensor, "B 1 T"]) -> Float[Tensor, "B D T"]:
        for module in self:
            x = module(x, mask)
        return x


class ASTTokenizer(nn.Module):
    """Frame features ↔ codes.

    >>> tokenizer = ASTTokenizer(ASTConfig.tiny())
    >>> out = tokenizer(torch.randn(2, 50, 100))
    >>> out.codes.shape, tokenizer.decode(out.codes).shape
    (torch.Size([2, 50]), torch.Size([2, 50, 100]))

    Raises:
        ShapeMismatch: features that are not (B, T, input_dim).
    """

    def __init__(self, config: ASTConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or ASTConfig()
        h = c.hidden_dim
        units = [[Residual(h) for _ in range(c.units)] for _ in range(2 * c.stages)]
        down = [m for u in units[: c.stages] for m in (*u, MaskedConv(h, h, 3))]
        up = [m for u in units[c.stages :] for m in (MaskedConv(h, h, 3), *u)]
        self.encoder = Chain([MaskedConv(c.input_dim, h, 3, bias=False), *down])
        self.projector = MaskedConv(h, h, 3, bias=False)
        self.book = CodeBook(c.vocab, h, decay=c.decay, dead=c.dead)
        self.decoder = Chain([*up, MaskedConv(h, c.input_dim, 3)])

    def forward(self, features: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Tokenized:
        """The loss of a batch, over frames that the mask calls real; in training the codebook moves too."""
        q = self.book(self.latent(features, mask), mask)
        back = self._decoded(q.z, mask)
        error = (back - features).float().square().mean(-1)
        rec = error.mean() if mask is None else (error * mask).sum() / mask.sum().clamp(min=1)
        loss = self.config.rec * rec + self.config.vq * q.loss
        return Tokenized(loss, rec, q.loss, q.codes, back, q.perplexity)

    def loss(self, features: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, ""]:
        """L_AST (Eq. 14)."""
        return self(features, mask).loss

    def latent(self, features: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """z_e (B, T, H)."""
        if features.ndim != 3 or features.shape[-1] != self.config.input_dim:
            raise ShapeMismatch(
                f"this tokenizer reads features (B, T, {self.config.input_dim}), got {tuple(features.shape)}; it was "
                "made for other frames: ASTConfig(input_dim=frames.dim)"
            )
        real = _real(features, mask)
        return self.projector(self.encoder(features.transpose(1, 2), real), real).transpose(1, 2)

    @torch.no_grad()
    def encode(self, features: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None) -> Int[Tensor, "B T"]:
        """Codes, one a frame; those after a clip's end are 0."""
        codes = self.book.nearest(self.latent(features, mask))
        return codes if mask is None else codes * mask

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B T D"]:
        """F̂ from codes."""
        return self._decoded(self.book.codes[codes], mask)

    def _decoded(self, z: Float[Tensor, "B T H"], mask: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B T D"]:
        return self.decoder(z.transpose(1, 2), _real(z, mask)).transpose(1, 2)


def _real(x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B 1 T"]:
    return x.new_ones(len(x), 1, x.shape[1]) if mask is None else mask[:, None].to(x.dtype)
