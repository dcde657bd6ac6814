"""Did I wrap it right? A minute's answer, measured on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fog_a.blocks.untouched import preserved
from fog_a.errors import BadBatch
from fog_a.flows.flow import Flow
from fog_a.flows.generic import GenericAdapter
from fog_a.probing.conventions import Fit, Fits
from fog_a.probing.remarks import remarks

MARGIN = 0.9
"""A convention fits better than another if its fit is this much smaller; and it fits at all if it is below this."""
GAP = 0.02
"""… and smaller by this much."""
ROWS = 12


@dataclass(frozen=True)
class Check:
    """The report of `fog_a.check`; its text is the table.

    Attributes:
        fits: the declared convention first, then its neighbours, the best first; empty where an adapter fixes it.
        constants: the same of predicting zero, and of predicting the mean of the batch.
        verdict: which fits best, and what to type if it is not the declared one.
        notes: subject → remark: blocks, what stays open, padding, repeats, dtype, device.
        times: at which the fits were taken.
        title: what was checked.
    """

    fits: tuple[Fit, ...]
    constants: tuple[Fit, ...]
    verdict: str
    notes: dict[str, str]
    times: tuple[float, ...]
    title: str

    @property
    def declared(self) -> Fit | None:
        """The fit of the convention that the flow was wrapped with."""
        return self.fits[0] if self.fits else None

    @property
    def best(self) -> Fit | None:
        """The convention that fits best."""
        return min(self.fits, key=lambda fit: fit.mean) if self.fits else None

    @property
    def ok(self) -> bool:
        """Whether no other convention fits better."""
        return not self.fits or (min(self.fits[0].at) < MARGIN and not better(self.fits[0], self.fits[1:]))

    def __str__(self) -> str:
        width = max(map(len, self.notes))
        below = "\n" + " " * (width + 2)
        notes = [f"{subject:<{width}}  {text}".replace("\n", below) for subject, text in self.notes.items()]
        return "\n".join([self.title, "", *self._table(), self.verdict, "", *notes])

    __repr__ = __str__

    def _table(self) -> list[str]:
        if not self.fits:
            return []
        near = [fit for fit in self.fits[1:] if fit.changes == 1 or fit is self.best][:ROWS]
        table = [*self.fits[:1], *near, *self.constants]
        names = [f"declared: {self.fits[0].name}", *(fit.name for fit in table[1:])]
        width = max(map(len, names))
        head = f"{'error (1: no better than x_t)':<{width}}   mean" + "".join(f"  t={t:.2f}" for t in self.times)
        rows = [
            f"{name:<{width}}  {fit.mean:5.3f}" + "".join(f"  {x:6.3f}" for x in fit.at)
            for name, fit in zip(names, table, strict=True)
        ]
        return [head, *rows, ""]


SHARES = (0.2, 0.4, 0.6, 0.8)
"""Shares of data in x_t at which predictions are compared: where a prediction says neither nothing nor everything."""


def check(flow: Any, batch: Any, *, samples: int = 16, seed: int = 0) -> Check:
    """Whether a flow was wrapped rightly: which convention its predictions fit, and what else may mislead.

    A network wrapped by the names of its arguments is run under the declared convention and under its neighbours: other
    times, other targets, other paths, the mask inverted. A trained network fits its own far better than any other. The
    convention of an adapter's model is fixed by the adapter and is not tried.

    Args:
        flow: a wrapped flow.
        batch: one batch, best of data that the network was trained on.
        samples: at most so many samples of the batch.
        seed: of the noise.

    Raises:
        BadBatch: a batch that the flow does not read, or whose mask looks inverted.

    >>> import fog_a, torch
    >>> flow = fog_a.wrap(torch.nn.Linear(3, 3), call=lambda net, x_t, t, cond: net(x_t))
    >>> fog_a.check(flow, torch.randn(8, 5, 3)).verdict[:13]                       # it is untrained
    'Nothing fits:'
    """
    if not isinstance(flow, Flow):
        raise BadBatch(
            f"check reads a wrapped flow, got {type(flow).__name__}. Type fog_a.check(fog_a.wrap(net, x=…, t=…), batch)"
        )
    described = flow.samples(batch)
    count = len(described)
    batch = batch if count <= samples else described.rows(range(samples))
    with preserved(*flow.modules):
        fits = Fits(flow, batch, SHARES, seed) if isinstance(flow, GenericAdapter) else None
        rows = [] if fits is None else fits.all()
        plain = [] if fits is None else fits.constants()
        notes = remarks(flow, batch, seed)
    title = f"{type(flow.module).__name__}: {min(samples, count)} of {count} samples"
    times = () if fits is None else tuple(fits.times)
    return Check(tuple(rows), tuple(plain), verdict(rows), notes, times, title)


def better(declared: Fit, others: Sequence[Fit]) -> list[Fit]:
    """The conventions that fit clearly better than the declared one, the best first."""
    rows = []
    for fit in others:
        gain = (declared.samples - fit.samples).mean(0)
        noise = gain.std() / len(gain) ** 0.5 if len(gain) > 1 else 0.0
        if _clear(fit, declared) and float(gain.mean()) > 2 * float(noise):
            rows.append(fit)
    return rows


def _clear(fit: Fit, other: Fit) -> bool:
    """Whether the first fit is clearly smaller."""
    return fit.mean < MARGIN * other.mean and fit.mean < other.mean - GAP


def verdict(fits: Sequence[Fit]) -> str:
    """Which convention fits best, in words, and what to type if it is not the declared one."""
    if not fits:
        return "The adapter fixes the convention: path, target and time are those of its package."
    declared, *others = fits
    best = min(fits, key=lambda fit: fit.mean)
    if min(best.at) > MARGIN:
        return (
            f"Nothing fits: the best of {len(fits)} conventions has {best.mean:.3f} of the error of x_t. The "
            "network is untrained, or was trained on other data, or its convention is none of these."
        )
    clearly = better(declared, others)
    if clearly:
        what = f"type {clearly[0].name}" if "=" in clearly[0].name else clearly[0].name
        return f"Another convention fits better, {clearly[0].mean:.3f} against {declared.mean:.3f}: {what}"
    nearest = min(others, key=lambda fit: fit.mean)
    if not _clear(declared, nearest):
        return (
            f"The declared convention fits as well as {nearest.name} ({declared.mean:.3f}, {nearest.mean:.3f}). "
            "Give more samples, or a network that is trained longer."
        )
    return f"The declared convention fits best: {declared.mean:.3f}, the next {nearest.mean:.3f} ({nearest.name})."
