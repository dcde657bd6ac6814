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


class Head(nn.Module):
    """Linear maps of each token, or a convolution over neighbouring tokens and a linear map.

    Linear maps pool first, so they cost one vector a sample, whatever the length. A convolution pools last; what stands
    in the padding reaches no real token. Its tokens are laid out in rows of `grid`: 1 for frames, the number of columns
    for the patches of an image.
    """

    def __init__(
        self, inner: nn.Module | None, outer: nn.Linear, pool: bool, normalize: Normalize, grid: int = 1
    ) -> None:
        super().__init__()
        self.inner, self.outer, self.pool, self.normalize, self.grid = inner, outer, pool, normalize, grid
        self.convolves = isinstance(inner, nn.Conv1d | nn.Conv2d)
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight) if weight.dim() > 1 else nn.init.zeros_(weight)

    def forward(self, h: Tokens, mask: Mask = None, t: Tensor | None = None) -> Float[Tensor, "B *T E"]:
        h = temporal_mean(h.float(), mask) if self.pool and not self.convolves else h.float()
        z = self.normalize(h).to(self.outer.weight.dtype)
        if self.convolves:
            z = F.gelu(self._convolved(z if mask is None else z * mask.unsqueeze(-1)))
        elif self.inner is not None:
            z = F.gelu(self.inner(z))
        y = self.outer(z)
        return temporal_mean(y, mask) if self.pool and self.convolves else y

    def _convolved(self, z: Tokens) -> Float[Tensor, "B T H"]:
        z = z.transpose(1, 2)
        if isinstance(self.inner, nn.Conv2d):
            if z.shape[2] % self.grid:
                raise ShapeMismatch(
                    f"conv2d head: {z.shape[2]} tokens do not fill rows of {self.grid}: type partial(conv2d, grid=...) "
                    "with the number of columns"
                )
            z = z.unflatten(2, (-1, self.grid))
        assert self.inner is not None
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
) -> Head:
    """Linear, GELU, Linear: the default. `hidden`: the width between them (None: D).

    Example:
        >>> mlp(8, 5)(torch.zeros(2, 7, 8)).shape, mlp(8, 5, pool=False)(torch.zeros(2, 7, 8)).shape
        (torch.Size([2, 5]), torch.Size([2, 7, 5]))
    """
    middle = hidden or width
    return Head(nn.Linear(width, middle), nn.Linear(middle, dim), pool, normalize)


def linear(width: int, dim: int, *, pool: bool = True, normalize: Normalize = standardized) -> Head:
    """One Linear."""
    return Head(None, nn.Linear(width, dim), pool, normalize)


def conv1d(
    width: int, dim: int, *, hidden: int | None = None, pool: bool = True, normalize: Normalize = standardized
) -> Head:
    """A convolution of 3 tokens, GELU, Linear (Table 11)."""
    middle = hidden or width
    inner = nn.Conv1d(width, middle, kernel_size=3, padding=1)
    return Head(inner, nn.Linear(middle, dim), pool, normalize)


def conv2d(
    width: int,
    dim: int,
    *,
    grid: int = 1,
    hidden: int | None = None,
    pool: bool = True,
    normalize: Normalize = standardized,
) -> Head:
    """A convolution of 3 × 3 tokens in rows of `grid`, GELU, Linear (Table 11). Raises ShapeMismatch."""
    middle = hidden or width
    inner = nn.Conv2d(width, middle, kernel_size=3, padding=1)
    return Head(inner, nn.Linear(middle, dim), pool, normalize, grid)


def by_time(width: int, dim: int, *, bins: int = 4, head: HeadFactory = mlp) -> TimeHeads:
    """`bins` heads made by `head`; each sample goes through the one of its flow time. Needs t: `reg(batch, t=t)`."""
    return TimeHeads([head(width, dim) for _ in range(bins)])
