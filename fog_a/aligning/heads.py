"""Projection heads φ_k: from a layer's stream of width D to a teacher's width.

    y_k = φ_k(h̄_k),   h̄_k the descriptor of Eq. 3                compared with the teacher by its cosine (Eq. 12)

"mlp" is Linear–GELU–Linear, "linear" one Linear; both read the pooled descriptor, or each token when the target has a
time axis. "conv1d" (kernel 3 over time) and "conv2d" (3 × 3 over a token grid of `grid` columns, as for spectrogram
patches or images; with grid = 1, frames, it sees what conv1d sees) read tokens and are pooled afterwards (Table 11).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.errors import ShapeMismatch, Unsupported


class Head(nn.Module):
    """One φ: `head(x)` for pooled (B, D) or tokens (B, T, D) → the teacher's width in place of D.

    Args:
        width: D of the layer's stream.
        dim: the teacher's.
        kind: "mlp", "linear", "conv1d" or "conv2d".
        hidden: width between the two maps; None: D.
        grid: columns of the token grid, for "conv2d".

    Example:
        >>> import torch
        >>> Head(8, 5)(torch.zeros(2, 8)).shape
        torch.Size([2, 5])
        >>> Head(8, 5, kind="conv1d")(torch.zeros(2, 7, 8)).shape
        torch.Size([2, 7, 5])
    """

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        kind: Literal["mlp", "linear", "conv1d", "conv2d"] = "mlp",
        hidden: int | None = None,
        grid: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.dim, self.kind, self.grid = width, dim, kind, grid
        middle = hidden or width
        if kind == "linear":
            self.inner, self.outer = None, nn.Linear(width, dim)
        else:
            self.inner, self.outer = _inner(kind, width, middle), nn.Linear(middle, dim)
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight) if weight.dim() > 1 else nn.init.zeros_(weight)

    @property
    def reads_tokens(self) -> bool:
        """Whether it looks at neighbouring tokens, so that pooling comes after it."""
        return self.kind in ("conv1d", "conv2d")

    def forward(self, x: Float[Tensor, "... D"], mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "... E"]:
        x = x.to(self.outer.weight.dtype)
        if self.inner is None:
            return self.outer(x)
        if not self.reads_tokens:
            return self.outer(F.gelu(self.inner(x)))
        if mask is not None:
            x = x * mask.unsqueeze(-1)  # what stands in the padding must not reach its neighbours
        return self.outer(F.gelu(self._convolve(x)))

    def _convolve(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        assert self.inner is not None
        if self.kind == "conv1d":
            return self.inner(x.transpose(1, 2)).transpose(1, 2)
        b, t, d = x.shape
        if t % self.grid:
            raise ShapeMismatch(f"conv2d head: {t} tokens do not fill rows of {self.grid}; set grid= to their columns")
        plane = x.transpose(1, 2).reshape(b, d, t // self.grid, self.grid)
        return self.inner(plane).flatten(2).transpose(1, 2)


def _inner(kind: str, width: int, middle: int) -> nn.Module:
    """The first of a head's two maps."""
    if kind == "mlp":
        return nn.Linear(width, middle)
    if kind == "conv1d":
        return nn.Conv1d(width, middle, kernel_size=3, padding=1)
    if kind == "conv2d":
        return nn.Conv2d(width, middle, kernel_size=3, padding=1)
    raise Unsupported(f"head {kind!r}: take 'mlp', 'linear', 'conv1d' or 'conv2d'")


def resample(features: Float[Tensor, "B S E"], length: int) -> Float[Tensor, "B length E"]:
    """A teacher's frames at another number of frames, linearly (edges aligned to the ends of the clip)."""
    if features.shape[1] == length:
        return features
    return F.interpolate(features.transpose(1, 2), size=length, mode="linear", align_corners=False).transpose(1, 2)
