"""Paths from noise to data, by name.

    x_t = α(t) x_1 + σ(t) x_0,     v = dx_t/dt = α'(t) x_1 + σ'(t) x_0,     t = 0: noise x_0, t = 1: data x_1

| name | α | σ | the network is given |
|---|---|---|---|
| `linear` | t | 1 − t | t |
| `cosine` | sin ½πt | cos ½πt | t |
| `ddpm` | √ᾱ_n | √(1 − ᾱ_n) | the step n = ⌊N (1 − t)⌋, 0 … N − 1 |
| `edm` | 1 | (a + t (b − a))^ρ, a = σ_max^(1/ρ), b = σ_min^(1/ρ) | σ |

DDPM is arXiv 2006.11239 with ᾱ_n = Π (1 − β_i), its slope that of the flow between steps, d log ᾱ/dt = −N log(1 − β_n).
EDM is arXiv 2206.00364, Eq. 5, with σ from 80 to 0.002 and ρ = 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fog_a.errors import Unsupported

PathFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A path of the user's own: (x_0, x_1, t) → (x_t, dx_t/dt), with t of shape (B, 1, …)."""


class Mix(NamedTuple):
    """The shares of data and noise in x_t at some times, and their slopes over t."""

    alpha: Tensor
    sigma: Tensor
    alpha_slope: Tensor
    sigma_slope: Tensor


class Path:
    """How data and noise are mixed; a subclass gives the shares at t, and the clock that its networks know."""

    name = "path"

    def mix(self, t: Tensor) -> Mix:
        """The shares of data and noise at t, of the shape of t."""
        raise NotImplementedError

    def clock(self, t: Tensor) -> Tensor:
        """What a network is given for t, unless `time=` says otherwise."""
        return t

    def __call__(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and dx_t/dt, for t of shape (B, 1, …)."""
        m = Mix(*(share.to(x1.dtype) for share in self.mix(t)))
        return m.alpha * x1 + m.sigma * x0, m.alpha_slope * x1 + m.sigma_slope * x0


class Linear(Path):
    """Flow matching's: from noise to data at constant speed."""

    name = "linear"

    def mix(self, t: Tensor) -> Mix:
        return Mix(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


linear = Linear()


class Cosine(Path):
    """The quarter circle: α² + σ² = 1 at constant angular speed."""

    name = "cosine"

    def mix(self, t: Tensor) -> Mix:
        quarter = 0.5 * math.pi
        sin, cos = (quarter * t).sin(), (quarter * t).cos()
        return Mix(sin, cos, quarter * cos, -quarter * sin)


class DDPM(Path):
    """DDPM's steps, numbered from data (0) to noise (N − 1).

    Args:
        betas: β of each step (N,); by default 1000 from 1e-4 to 0.02.
    """

    name = "ddpm"

    def __init__(self, betas: Any = None) -> None:
        table = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu") if betas is None else _betas(betas)
        self.log_kept = (1 - table).log()  # log (1 − β_n)
        self.kept = self.log_kept.cumsum(0).exp()  # ᾱ_n

    def clock(self, t: Tensor) -> Tensor:
        count = len(self.kept)
        return (count * (1 - t.double())).floor().clamp(0, count - 1).long()

    def mix(self, t: Tensor) -> Mix:
        n = self.clock(t)
        kept = self.kept.to(t.device)[n]
        speed = -len(self.kept) * self.log_kept.to(t.device)[n]  # d log ᾱ / dt
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        shares = (alpha, sigma, 0.5 * alpha * speed, -0.5 * kept * speed / sigma)
        return Mix(*(share.to(t.dtype) for share in shares))


class EDM(Path):
    """EDM's noise levels: x_t = x_1 + σ x_0, and the network is given σ."""

    name = "edm"

    def __init__(self, lowest: float = 0.002, highest: float = 80.0, rho: float = 7.0) -> None:
        self.rho, self.start = rho, highest ** (1 / rho)
        self.rise = lowest ** (1 / rho) - self.start

    def clock(self, t: Tensor) -> Tensor:
        return (self.start + t * self.rise) ** self.rho

    def mix(self, t: Tensor) -> Mix:
        slope = self.rho * self.rise * (self.start + t * self.rise) ** (self.rho - 1)
        return Mix(torch.ones_like(t), self.clock(t), torch.zeros_like(t), slope)


class OwnPath(Path):
    """A function of the user's; its shares are what it gives for data alone and for noise alone."""

    def __init__(self, function: PathFunction) -> None:
        self.function, self.name = function, getattr(function, "__name__", type(function).__name__)

    def __call__(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        pair = self.function(x0, x1, t)
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
            raise Unsupported(
                f"path= must return two tensors, x_t and its slope dx_t/dt, got {type(pair).__name__}. Type e.g. "
                "path=lambda x0, x1, t: ((1 - t) * x0 + t * x1, x1 - x0)"
            )
        return pair

    def mix(self, t: Tensor) -> Mix:
        try:
            (alpha, sigma), slopes = (shares(lambda x0, x1, t, i=i: self(x0, x1, t)[i], t) for i in (0, 1))
        except ValueError:
            raise Unsupported(
                "path= gives an x_t that is no α(t) x_1 + σ(t) x_0, so a predicted noise or clean sample cannot be "
                'turned into a velocity. Type target="v" if the network predicts dx_t/dt, or another path'
            ) from None
        return Mix(alpha, sigma, *slopes)


def shares(function: Callable[[Tensor, Tensor, Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of a function (x_0, x_1, t) that gives a x_1 + b x_0. Raises ValueError for another function."""
    one, none = torch.ones_like(t), torch.zeros_like(t)
    a, b, both = function(none, one, t), function(one, none, t), function(2 * one, -3 * one, t)
    if not torch.allclose(both, 2 * b - 3 * a, rtol=1e-4, atol=1e-5):
        raise ValueError("it gives no a x_1 + b x_0")
    return a, b


NAMED: dict[str, type[Path]] = {"linear": Linear, "cosine": Cosine, "ddpm": DDPM, "edm": EDM}


def path_of(path: str | PathFunction | Path, betas: Any = None) -> Path:
    """The path of a name, or of a function. Raises Unsupported.

    >>> x_t, v = path_of("linear")(torch.zeros(1, 1), torch.ones(1, 1), torch.full((1, 1), 0.25))
    >>> x_t.item(), v.item()
    (0.25, 1.0)
    """
    if betas is not None and path != "ddpm":
        raise Unsupported(f'betas= belong to path="ddpm", got path={path!r}. Type path="ddpm", or leave betas out')
    if isinstance(path, Path):
        return path
    if callable(path):
        return OwnPath(path)
    if path not in NAMED:
        names = ", ".join(f'"{name}"' for name in NAMED)
        raise Unsupported(f"path is one of {names}, or a function (x_0, x_1, t) -> (x_t, dx_t/dt), got {path!r}")
    return DDPM(betas) if path == "ddpm" else NAMED[path]()


def _betas(betas: Any) -> Tensor:
    table = torch.as_tensor(betas).detach().double().cpu()
    if table.ndim != 1 or not len(table) or not bool(((table > 0) & (table < 1)).all()):
        raise Unsupported(f"betas= are numbers between 0 and 1, one for each step, got {tuple(table.shape)}")
    return table
