"""How well a network's predictions fit the convention it was wrapped with, and that convention's neighbours.

Each convention turns a prediction into an estimate x̂_1 of the clean data. At one ratio α/σ of data to noise no estimate
of any network is better than that of the posterior, in whatever convention it was trained; so the errors of all
conventions can be compared at the same ratios:

    fit = mean over ratios of  E‖x̂_1 − x_1‖² / e,      e = s² n² σ² / (s² α² + n² σ²)

e is the error of the best multiple of x_t, with s² the variance of the data and n² that of the noise. 0 is perfect, 1
is no better than x_t itself. A network fits the convention that it was trained in better than the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadBatch, Unsupported
from fog_a.flows.convention import TARGETS, Convention, TimeFunction
from fog_a.flows.generic import GenericAdapter, Prediction
from fog_a.flows.paths import DDPM, Cosine, Linear, Path

CLOCKS: dict[str, TimeFunction] = {
    "lambda t: t": lambda t: t,
    "lambda t: 1 - t": lambda t: 1 - t,
    "lambda t: 1000 * t": lambda t: 1000 * t,
    "lambda t: 1000 * (1 - t)": lambda t: 1000 * (1 - t),
}
PATHS: tuple[Path, ...] = (Linear(), Cosine(), DDPM())
WORST = 4.0
"""What an estimate at one ratio counts at most: a wrong convention may blow the error up without bound."""


@dataclass(frozen=True)
class Fit:
    """How well one convention fits.

    Attributes:
        name: what to type for it.
        changes: how many of time, target, path and mask differ from the declared convention.
        samples: the fit of each sample at each time (J, B).
    """

    name: str
    changes: int
    samples: Tensor

    @property
    def at(self) -> list[float]:
        """The fit at each time."""
        return self.samples.mean(1).tolist()

    @property
    def mean(self) -> float:
        """The fit over all times and samples."""
        return float(self.samples.mean())


class Trial(NamedTuple):
    """A convention to try; `name` and `changes` as in a `Fit`."""

    name: str
    changes: int
    convention: Convention


class Fits:
    """The fits of a flow's conventions on one batch.

    Args:
        shares: α/(α + σ), at which every path is tried, each at its own t.
    """

    def __init__(self, flow: GenericAdapter, batch: Any, shares: Sequence[float], seed: int) -> None:
        self.flow, self.batch, self.shares, self.seed = flow, batch, shares, seed
        self.times = [time_of(flow.convention.path, share) for share in shares]
        self.mask = flow.samples(batch).mask

    def all(self) -> list[Fit]:
        """The declared convention first, then its neighbours, the best first.

        Tried are, with every target: other times on the declared path; other paths with the declared time, their own
        and the time that fits best; and the inverted mask. The network runs once for each pair of path and time.
        """
        declared = self.flow.convention
        first, *others = self._targets(Trial(described(declared), 0, declared))
        others += [fit for trial in _clocks(declared) for fit in self._targets(trial)]
        best = min([first, *others], key=lambda fit: fit.mean)
        others += [fit for trial in _paths(declared, best.name) for fit in self._targets(trial)]
        return [first, *sorted([*others, *self._inverted()], key=lambda fit: fit.mean)]

    def constants(self) -> list[Fit]:
        """The fits of predicting zero, and of predicting the mean of the batch's targets."""
        convention = self.flow.convention
        pairs = [(p, convention.predicted(p.x0, p.x1, p.t)[1]) for p in self._predictions(convention)]
        zeros = [p._replace(output=torch.zeros_like(x)) for p, x in pairs]
        means = [p._replace(output=x.mean(0).expand_as(x)) for p, x in pairs]
        return [
            Fit("predicting zero", 0, self._errors(convention, zeros)),
            Fit("predicting the batch mean", 0, self._errors(convention, means)),
        ]

    def _targets(self, trial: Trial) -> list[Fit]:
        """A trial's fit, then that with every other target; none where the network does not take such times."""
        name, changes, convention = trial
        try:
            predictions = self._predictions(convention)
        except (RuntimeError, IndexError, TypeError, BadBatch):
            if not changes:
                raise
            return []
        prefix = f"{name}, " if changes else ""
        others = [
            Trial(f'{prefix}target="{target}"', changes + 1, replace(convention, target=target))
            for target in TARGETS
            if target != convention.target
        ]
        return [Fit(t.name, t.changes, self._errors(t.convention, predictions)) for t in (trial, *others)]

    def _predictions(self, convention: Convention) -> list[Prediction]:
        """What the network predicts at the times at which the path holds these shares of data."""
        times = [time_of(convention.path, share) for share in self.shares]
        return [self.flow.predict(self.batch, t, self.seed, convention) for t in times]

    def _inverted(self) -> list[Fit]:
        """The declared convention on what the mask calls padding, with the mask inverted."""
        mask, key = self.mask, self.flow.mask
        if mask is None or bool(mask.all()):
            return []
        other = {**self.batch, key: ~self.batch[key].bool()}
        predictions = [self.flow.predict(other, t, self.seed) for t in self.times]
        return [Fit(f"batch[{key!r}] = ~batch[{key!r}]", 1, self._errors(self.flow.convention, predictions, ~mask))]

    def _errors(
        self, convention: Convention, predictions: Sequence[Prediction], mask: Tensor | None = None
    ) -> Float[Tensor, "J B"]:
        """‖x̂_1 − x_1‖² of each sample over that of the best multiple of x_t, at most `WORST`."""
        mask, rows = self.mask if mask is None else mask, []
        for p in predictions:
            m = convention.path.mix(p.t.double().flatten()[:1])
            variance, noise = _variance(p.x1, mask), self.flow.sigma**2
            linear = variance / (1 + variance * (m.alpha / m.sigma).square() / noise)
            error = _mean_square(convention.clean(p.output, p.x_t, p.t) - p.x1, mask)
            rows.append((error / linear.clamp(min=1e-12)).clamp(max=WORST).cpu())
        return torch.stack(rows)


def described(convention: Convention) -> str:
    """A convention as it is typed, as far as that can be told."""
    target = f'"{convention.target}"' if isinstance(convention.target, str) else "…"
    time = next((name for name, clock in CLOCKS.items() if _same(convention.clock, clock)), "…")
    return f'path="{convention.path.name}", target={target}' + ("" if convention.time is None else f", time={time}")


def time_of(path: Path, share: float) -> float:
    """The time at which a path holds this share of data, α/(α + σ)."""
    grid = torch.linspace(0, 1, 4097, dtype=torch.float64, device="cpu")[1:-1]
    m = path.mix(grid.reshape(-1, 1))
    return float(grid[(m.alpha / (m.alpha + m.sigma) - share).abs().reshape(-1).argmin()])


def _same(a: TimeFunction, b: TimeFunction) -> bool:
    t = torch.linspace(0.1, 0.9, 9, device="cpu")
    first, second = a(t).float().flatten(), b(t).float().flatten()
    return bool((first - second).abs().max() <= 2e-3 * second.abs().max())


def _clocks(declared: Convention) -> Iterator[Trial]:
    """Other times on the declared path."""
    table = dict(CLOCKS)
    if not any(_same(declared.clock, clock) for clock in CLOCKS.values()):
        table["yours at 1 - t"] = lambda t: declared.clock(1 - t)
        table["1000 times yours"] = lambda t: 1000 * declared.clock(t)
    whole = not declared.clock(torch.tensor([0.5], device="cpu")).is_floating_point()  # an embedding takes nothing else
    for name, clock in table.items():
        if not _same(declared.clock, clock):
            with contextlib.suppress(Unsupported):  # a time from 0 to 1 in whole numbers
                yield Trial(f"time={name}", 1, replace(declared, time=_rounded(clock) if whole else clock))


def _rounded(clock: TimeFunction) -> TimeFunction:
    return lambda t: clock(t).round().long()


def _paths(declared: Convention, best: str) -> Iterator[Trial]:
    """Other paths, with the declared time, their own, and the one that fits best on the declared path."""
    for path in PATHS:
        if path.name == declared.path.name:
            continue
        yield Trial(f'path="{path.name}"', 1, replace(declared, path=path, time=declared.clock))
        if not _same(path.clock, declared.clock):
            yield Trial(f'path="{path.name}", time=None', 2, replace(declared, path=path, time=None))
        for name, clock in CLOCKS.items():
            if best.startswith(f"time={name}"):
                yield Trial(f'path="{path.name}", time={name}', 2, replace(declared, path=path, time=clock))


def _variance(x: Tensor, mask: Tensor | None) -> Tensor:
    """The variance of the data's entries, about the mean of the batch where that is of enough samples."""
    x = x.detach().double()
    count = len(x)
    if count >= 4:
        x = (x - x.mean(0, keepdim=True)) * (count / (count - 1)) ** 0.5
    return _mean_square(x, mask).mean()


def _mean_square(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of x² over each sample's real frames."""
    square = x.detach().double().square()
    real = torch.ones_like(square, dtype=torch.bool) if mask is None else mask.expand_as(square)
    count = real.flatten(1).sum(1).clamp(min=1)
    return torch.where(real, square, 0.0).flatten(1).sum(1) / count
