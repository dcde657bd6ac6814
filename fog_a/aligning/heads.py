"""Projection heads φ_k: from a layer's stream of width D to a teacher's width E.

    y_k = φ_k(h_k)                                     compared with the teacher's features by its cosine (Eq. 12)

A head is any module that is called `head(h, mask, t)`: the layer's tokens h (B, T, D), mask (B, T) True where they are
real, or None, and the flow times t (B,) in [0, 1], or None if the adapter does not name them. It gives a vector a
sample (B, E), or tokens (B, T, E), which are compared with the teacher's frames.

AGREPA makes its heads by a factory `(width, dim) -> nn.Module`. Those of this file take options by `partial`:

    AGREPA(flow, teachers, head=partial(heads.mlp, hidden=96))

`pool=False` keeps the tokens apart; `normalize` is what the vectors pass before the first map (Eq. 3: LayerNorm).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.aligning.schedules import flow_times
from fog_a.errors import ShapeMismatch
from fog_a.teachers.descriptors import standardized, temporal_mean

HeadFactory = Callable[[int, int], nn.Module]
"""(width of the stream, width of the teacher) → a head."""

Tokens = Float[Tensor, "B T D"]
Mask = Bool[Tensor, "B T"] | None
Normalize = Callable[[Tensor], Tensor]


class TokenHead(nn.Module):
    """A head that maps each token by itself. It pools first, so it costs one vector a sample, whatever the length."""

    def __init__(self, inner: nn.Linear | None, outer: nn.Linear, pool: bool, normalize: Normalize) -> None:
        super().__init__()
        self.inner, self.outer, self.pool, self.normalize = inner, outer, pool, normalize
        _initialize(self)

    def forward(self, h: Tokens, mask: Mask = None, t: Tensor | None = None) -> Float[Tensor, "B *T E"]:
        h = h.float()
        z = self.normalize(temporal_mean(h, mask) if self.pool else h).to(self.outer.weight.dtype)
        return self.outer(z if self.inner is None else F.gelu(self.inner(z)))


class ConvolutionHead(nn.Module):
    """A head that looks at neighbouring tokens, so it pools last. What stands in the padding reaches no real token.

    The tokens are laid out in rows of `grid`: 1 for frames, the number of columns for the patches of an image.
    """

    def __init__(
        self, inner: nn.Conv1d | nn.Conv2d, outer: nn.Linear, grid: int, pool: bool, normalize: Normalize
    ) -> None:
        super().__init__()
        self.inner, self.outer, self.grid, self.pool, self.normalize = inner, outer, grid, pool, normalize
        _initialize(self)

    def forward(self, h: Tokens, mask: Mask = None, t: Tensor | None = None) -> Float[Tensor, "B *T E"]:
        z = self.normalize(h.float()).to(self.outer.weight.dtype)
        if mask is not None:
            z = z * mask.unsqueeze(-1)
        y = self.outer(F.gelu(self._convolve(z.transpose(1, 2))))
        return temporal_mean(y, mask) if self.pool else y

    def _convolve(self, z: Float[Tensor, "B D T"]) -> Float[Tensor, "B T H"]:
        if isinstance(self.inner, nn.Conv2d):
            if z.shape[2] % self.grid:
                raise ShapeMismatch(
                    f"conv2d head: {z.shape[2]} tokens do not fill rows of {self.grid}: type partial(conv2d, grid=...) "
                    "with the number of columns"
                )
            z = z.unflatten(2, (-1, self.grid))
        return self.inner(z).flatten(2).transpose(1, 2)


class TimeHeads(nn.Module):
    """One head for each of so many equal parts of [0, 1] in t (Table 9)."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, h: Tokens, mask: Mask = None, t: Tensor | None = None) -> Float[Tensor, "B *T E"]:
        count = len(self.parts)
        times = flow_times(t, len(h))
        part_of = (times * count).long().clamp(max=count - 1)
        rows_of, outputs = [], []
        for part in part_of.unique().tolist():
            rows = (part_of == part).nonzero().flatten()
            outputs.append(self.parts[part](h[rows], None if mask is None else mask[rows], times[rows]))
            rows_of.append(rows)
        return torch.cat(outputs)[torch.cat(rows_of).argsort()]


def mlp(
    width: int, dim: int, *, hidden: int | None = None, pool: bool = True, normalize: Normalize = standardized
) -> TokenHead:
    """Linear, GELU, Linear: the default. `hidden`: the width between them (None: D).

    Example:
        >>> mlp(8, 5)(torch.zeros(2, 7, 8)).shape, mlp(8, 5, pool=False)(torch.zeros(2, 7, 8)).shape
        (torch.Size([2, 5]), torch.Size([2, 7, 5]))
    """
    middle = hidden or width
    return TokenHead(nn.Linear(width, middle), nn.Linear(middle, dim), pool, normalize)


def linear(width: int, dim: int, *, pool: bool = True, normalize: Normalize = standardized) -> TokenHead:
    """One Linear."""
    return TokenHead(None, nn.Linear(width, dim), pool, normalize)


def conv1d(
    width: int, dim: int, *, hidden: int | None = None, pool: bool = True, normalize: Normalize = standardized
) -> ConvolutionHead:
    """A convolution of 3 tokens, GELU, Linear (Table 11)."""
    middle = hidden or width
    inner = nn.Conv1d(width, middle, kernel_size=3, padding=1)
    return ConvolutionHead(inner, nn.Linear(middle, dim), 1, pool, normalize)


def conv2d(
    width: int,
    dim: int,
    *,
    grid: int = 1,
    hidden: int | None = None,
    pool: bool = True,
    normalize: Normalize = standardized,
) -> ConvolutionHead:
    """A convolution of 3 × 3 tokens in rows of `grid`, GELU, Linear (Table 11). Raises ShapeMismatch."""
    middle = hidden or width
    inner = nn.Conv2d(width, middle, kernel_size=3, padding=1)
    return ConvolutionHead(inner, nn.Linear(middle, dim), grid, pool, normalize)


def by_time(width: int, dim: int, *, bins: int = 4, head: HeadFactory = mlp) -> TimeHeads:
    """`bins` heads made by `head`; each sample goes through the one of its flow time. Needs t: `reg(batch, t=t)`."""
    return TimeHeads([head(width, dim) for _ in range(bins)])


def _initialize(head: nn.Module) -> None:
    for weight in head.parameters():
        nn.init.xavier_uniform_(weight) if weight.dim() > 1 else nn.init.zeros_(weight)
