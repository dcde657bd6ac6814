"""What a network is given for x_t and t, and what it predicts: one convention, turned into fog_a's own.

    x_t = α x_1 + σ x_0                      (the path)
    p   = a x_1 + b x_0                      (the target: what the network predicts)
    v   = dx_t/dt = ((α'σ − σ'α) p + (σ'a − α'b) x_t) / (aσ − bα)

| target | a | b | |
|---|---|---|---|
| `"v"` | ±α' | ±σ' | the slope of the path, in the direction in which the network's time runs |
| `"-v"` | ∓α' | ∓σ' | the slope against that direction |
| `"eps"` | 0 | 1 | the noise |
| `"x0"` | 1 | 0 | the clean sample, x_1 in fog_a's letters |
| `"v_prediction"` | −σ | α | Salimans and Ho's v (arXiv 2202.00512), as diffusers has it |
| a function | | | of (x_0, x_1, t): any a x_1 + b x_0 |
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.flows.paths import Mix, Path, shares

TimeFunction = Callable[[Tensor], Tensor]
TargetFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
TARGETS = ("v", "-v", "eps", "x0", "v_prediction")
GRID = 4097
"""Times at which the clock of a network is read backwards."""


@dataclass(frozen=True)
class Convention:
    """A path, what the network predicts on it, and what the network is given for t.

    Args:
        path: of `fog_a.flows.paths`.
        target: a name of the table above, or a function (x_0, x_1, t) → what the network predicts.
        time: what the network is given for fog_a's t, a function of t (B,); None: the path's own clock.

    Raises:
        Unsupported: a target of no known name, or a time that does not run one way.
    """

    path: Path
    target: str | TargetFunction = "v"
    time: TimeFunction | None = None

    def __post_init__(self) -> None:
        if not callable(self.target) and self.target not in TARGETS:
            near = difflib.get_close_matches(str(self.target), TARGETS, n=1, cutoff=0.3)
            names = ", ".join(f'"{name}"' for name in TARGETS)
            raise Unsupported(
                f"target is one of {names}, or a function (x_0, x_1, t) -> what the network predicts, got "
                f"{self.target!r}" + (f'. Did you mean "{near[0]}"?' if near else "")
            )
        if self.time is not None and not callable(self.time):
            raise Unsupported(f"time is a function of fog_a's t, e.g. lambda t: 1000 * (1 - t), got {self.time!r}")
        self._check_time()
        if self.target not in ("v", "-v"):
            self._shares(torch.tensor([0.25, 0.5, 0.75], device="cpu").reshape(-1, 1))

    @property
    def plain(self) -> bool:
        """Whether the network is given t itself."""
        return self.time is None and type(self.path).clock is Path.clock

    @cached_property
    def direction(self) -> int:
        """1 where the network's time runs from noise to data, −1 where it runs from data to noise."""
        first, last = self.clock(torch.tensor([0.25, 0.75], device="cpu")).flatten().tolist()
        return 1 if last > first else -1

    def clock(self, t: Float[Tensor, "B"]) -> Tensor:
        """What the network is given for t."""
        tau = self.path.clock(t) if self.time is None else self.time(t)
        if not isinstance(tau, Tensor) or tau.shape[:1] != t.shape or tau.numel() != len(t):
            got = tuple(tau.shape) if isinstance(tau, Tensor) else type(tau).__name__
            raise Unsupported(
                f"time= must give one number for each of {len(t)} times, got {got}. Type e.g. lambda t: 1000 * (1 - t)"
            )
        return tau

    def flow_time(self, tau: Tensor) -> Float[Tensor, "B"]:
        """The reverse of `clock`: fog_a's t of what the network was given."""
        grid = torch.linspace(0, 1, GRID, dtype=torch.float64, device="cpu")
        ticks = self.clock(grid).double().reshape(GRID)
        if self.direction < 0:
            grid, ticks = grid.flip(0), ticks.flip(0)
        value = tau.detach().double().cpu().reshape(-1)
        right = torch.searchsorted(ticks, value).clamp(1, GRID - 1)
        low, high = ticks[right - 1], ticks[right]
        part = ((value - low) / (high - low).clamp(min=1e-12)).clamp(-1e6, 1e6)
        t = grid[right - 1] + part * (grid[right] - grid[right - 1])
        t = torch.where((t > -1e-4) & (t < 1 + 1e-4), t.clamp(0, 1), t)  # what rounding may have moved
        return t.to(tau.device, torch.float32)

    def predicted(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t, and what the network must predict, for t of shape (B, 1, …)."""
        x_t, slope = self.path(x0, x1, t)
        if callable(self.target):
            return x_t, self.target(x0, x1, t)
        if self.target == "v_prediction":
            m = self.path.mix(t)
            return x_t, m.alpha.to(x1.dtype) * x0 - m.sigma.to(x1.dtype) * x1
        return x_t, {"eps": x0, "x0": x1}.get(self.target, slope if self._sign() > 0 else -slope)

    def velocity(self, p: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt of a network that predicted p at x_t, for t of shape (B, 1, …).

        Raises:
            Unsupported: at a time at which the prediction says nothing of the velocity.
        """
        if self.target in ("v", "-v"):
            return p if self._sign() > 0 else -p
        m, a, b, turn = self._shares(t.double())
        of_p, of_x = m.alpha_slope * m.sigma - m.sigma_slope * m.alpha, m.sigma_slope * a - m.alpha_slope * b
        return self._solved(of_p, p, of_x, x_t, turn, t)

    def gain(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """dv/dp: v is a line in the prediction."""
        if self.target in ("v", "-v"):
            return torch.full_like(t, self._sign())
        m, _, _, turn = self._shares(t.double())
        return (m.alpha_slope * m.sigma - m.sigma_slope * m.alpha) / turn

    def clean(self, p: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_1 in a prediction: (σ p − b x_t) / (aσ − bα)."""
        m, _, b, turn = self._shares(t.double())
        return self._solved(m.sigma, p, -b, x_t, turn, t)

    def _solved(self, of_p: Tensor, p: Tensor, of_x: Any, x_t: Tensor, turn: Tensor, t: Tensor) -> Tensor:
        """(of_p p + of_x x_t) / turn."""
        with torch._C._DisableTorchDispatch():  # no decision of the network's
            blind = turn.abs() < 1e-9
            unsolvable = bool(blind.any())
        if unsolvable:
            name = self.target if isinstance(self.target, str) else "the function"
            raise Unsupported(
                f"target={name!r} on the path {self.path.name!r} tells no velocity at t = {float(t[blind][0]):g}: x_t "
                "holds all of it there. Ask for other times, e.g. times=8 or times=[0.1, 0.5, 0.9]"
            )
        return (of_p / turn).to(p.dtype) * p + (of_x / turn).to(x_t.dtype) * x_t

    def _sign(self) -> int:
        return self.direction if self.target == "v" else -self.direction

    def _shares(self, t: Tensor) -> tuple[Mix, Tensor, Tensor, Tensor]:
        """The path's shares at t, those of data and noise in what the network predicts, and aσ − bα."""
        m, one, none = self.path.mix(t), torch.ones_like(t), torch.zeros_like(t)
        slopes = self._sign() * m.alpha_slope, self._sign() * m.sigma_slope
        if callable(self.target):
            try:
                a, b = shares(self.target, t)
            except ValueError:
                raise Unsupported(
                    "target= is a function that gives no a x_1 + b x_0, so fog_a cannot turn what the network predicts "
                    'into a velocity. Type target="v", "eps" or "x0", or call= that returns the velocity'
                ) from None
        else:
            table = {"eps": (none, one), "x0": (one, none), "v_prediction": (-m.sigma, m.alpha)}
            a, b = table.get(self.target, slopes)
        return m, a, b, a * m.sigma - b * m.alpha

    def _check_time(self) -> None:
        ticks = self.clock(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], device="cpu")).double()
        steps = ticks.reshape(-1).diff()
        if not bool(torch.isfinite(steps).all()) or not (bool((steps > 0).all()) or bool((steps < 0).all())):
            raise Unsupported(
                "time= must run one way as t runs from noise (0) to data (1); at t = .05, .25, .5, .75, .95 it gives "
                f"{', '.join(f'{x:g}' for x in ticks.reshape(-1).tolist())}. Type e.g. lambda t: 1 - t"
            )


def sample_times(t: float | Tensor, like: Tensor) -> Float[Tensor, "B"]:
    """One time per sample, in the dtype and on the device of `like`."""
    t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    if t.ndim > 1 or t.numel() not in (1, len(like)):
        raise ShapeMismatch(f"expected one time, or one for each of {len(like)} samples, got {tuple(t.shape)}")
    return t.expand(len(like))
