"""Did I wrap it right? A minute's answer, measured on a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fog_a.blocks.calls import hooked, unwrapped
from fog_a.blocks.tree import leaf, leaves, replaced
from fog_a.blocks.untouched import preserved, rng
from fog_a.errors import BadBatch, FogError
from fog_a.finding.blocks import find_blocks
from fog_a.flows.flow import Flow
from fog_a.flows.generic import GenericAdapter
from fog_a.probing.conventions import Fit, Fits
from fog_a.scores.tables import Table

MARGIN, GAP = 0.9, 0.02
"""A convention fits better than another if its fit is smaller by this factor and difference; at all, below MARGIN."""
SHARES = (0.2, 0.4, 0.6, 0.8)
"""Shares of data in x_t at which predictions are compared: where a prediction says neither nothing nor everything."""
ROWS = 12


@dataclass(frozen=True, repr=False)
class Check:
    """The report of `fog_a.check`; its text is the table.

    Attributes:
        fits: the declared convention first, then its neighbours, the best first; empty where an adapter fixes it.
        constants: the same of predicting zero, and of predicting the mean of the batch.
        verdict: which fits best, and what to type if it is not the declared one.
        notes: subject → remark: blocks, what stays open, padding, repeats, dtype, device.
        times: of the fits. title: what was checked.
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
        columns = ("error (1: no better than x_t)", "mean", *(f"t={t:.2f}" for t in self.times))
        rows = [[name, *(f"{x:.3f}" for x in (fit.mean, *fit.at))] for name, fit in zip(names, table, strict=True)]
        return [Table("", columns, rows, right=range(1, len(columns))).text(), ""]


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
    return [fit for fit in others if _clear(fit, declared) and _beyond_noise(fit, declared)]


def _clear(fit: Fit, other: Fit) -> bool:
    """Whether the first fit is clearly smaller."""
    return fit.mean < MARGIN * other.mean and fit.mean < other.mean - GAP


def _beyond_noise(fit: Fit, other: Fit) -> bool:
    """Whether the samples agree that the first fit is smaller: by two standard errors."""
    gain = (other.samples - fit.samples).mean(0)
    return float(gain.mean()) > 2 * float(gain.std() / len(gain) ** 0.5 if len(gain) > 1 else 0.0)


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


def remarks(flow: Flow, batch: Any, seed: int) -> dict[str, str]:
    """What else may mislead, subject → remark. Run it where the model's state is preserved."""
    mask = flow.samples(batch).mask

    def velocity() -> Tensor:
        return flow.velocity(batch, 0.5, seed)

    v = velocity()
    texts = {
        **_blocks(flow, batch),
        "repeats": _repeats(velocity),
        "padding": _padding(flow.module, velocity, v, mask),
        "mask": _polarity(mask),
        "dtype": _types(flow, v),
        "device": str(v.device),
    }
    return {subject: text for subject, text in texts.items() if text}


def _blocks(flow: Flow, batch: Any) -> dict[str, str]:
    """How many blocks there are, and what closing them all leaves open."""
    try:
        blocks = find_blocks(flow, batch)
    except FogError as error:
        return {"blocks": f"none: {error}"}
    stacks = Counter(block.stack for block in blocks.main)
    beside = len(blocks) - len(blocks.main)
    text = ", ".join(f"{stack} {count}" for stack, count in stacks.items())
    text = f"{len(blocks.main)} ({text})" + (f", and {beside} that x_t does not reach" if beside else "")
    coverage = getattr(blocks, "coverage", None)
    return {"blocks": text} if coverage is None else {"blocks": text, "open": str(coverage)}


def _repeats(velocity: Callable[[], Tensor]) -> str:
    """Whether the velocity depends on random numbers of the network's own."""
    velocities = []
    for seed in (0, 0, 1):
        with rng(seed):
            velocities.append(velocity())
    if not torch.equal(velocities[0], velocities[1]):
        return "two runs differ though every generator starts alike: the network keeps a state, or is not deterministic"
    if not torch.equal(velocities[0], velocities[2]):
        return "the network draws random numbers in eval mode (dropped conditions, say); a probe holds them fixed"
    return "the same bits"


def _padding(
    network: nn.Module, velocity: Callable[[], Tensor], before: Tensor, mask: Bool[Tensor, "B ..."] | None
) -> str:
    """Whether what x_t holds in the padding changes the velocity of real frames."""
    if mask is None or bool(mask.all()):
        return ""
    real = mask.expand_as(before)
    changed: list[Any] = []

    def disturb(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tree = {"args": args, "kwargs": kwargs}
        like = [path for path, x in leaves(tree) if x.shape == before.shape and x.is_floating_point()]
        changed.extend(like)
        tree = replaced(tree, {path: torch.where(real, leaf(tree, path), 3.0) for path in like})
        return tree["args"], tree["kwargs"]

    with hooked(unwrapped(network), before=disturb):
        after = velocity()
    if not changed:
        return "not tried: no argument of the network has the shape of the velocity"
    moved = torch.where(real, after - before, 0).norm() / torch.where(real, before, 0).norm().clamp(min=1e-12)
    if float(moved) < 1e-5:
        return "does not reach the velocity of real frames"
    return f"leaks: other numbers in the padding move the velocity of real frames by {float(moved):.1%}"


def _polarity(mask: Bool[Tensor, "B ..."] | None) -> str:
    """A mask whose samples begin with False and end with True."""
    if mask is None:
        return ""
    flat = mask.reshape(len(mask), -1)
    late = ~flat[:, 0] & flat[:, -1]
    if bool(late.any()) and bool((late | flat.all(1)).all()):
        return "looks inverted: samples begin with False and end with True. True is for real frames; or left padding"
    return f"{float(flat.float().mean()):.0%} of the entries are real"


def _types(flow: Flow, v: Tensor) -> str:
    weights = sorted({str(p.dtype).removeprefix("torch.") for p in flow.module.parameters()})
    return f"weights {', '.join(weights) or 'none'}; velocity {str(v.dtype).removeprefix('torch.')}"
