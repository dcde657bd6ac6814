"""Two blocks at once: what closing both changes, beyond the sum of what closing each changes.

    I_jk = FoG-A_jk − FoG-A_j − FoG-A_k,    FoG-A_jk = ‖v^{\\jk} − v‖ / (‖v‖ + ε)

Below 0: they overlap, and what one changes the other changes too. Above 0: either makes up for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from torch import nn

from fog_a.attributing.along import Along
from fog_a.attributing.variants import Variants, variants
from fog_a.blocks.block import Blocks
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadArgument, known_keywords
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow, Forward
from fog_a.scores import canvas
from fog_a.scores.scores import Scores
from fog_a.using.trial import measured, trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray


@dataclass(frozen=True, repr=False)
class Interactions:
    """What pairs of blocks do together. Made by `interactions`.

    Attributes:
        blocks: the k blocks, in order of execution.
        pairs: their names, in the order of `scores.layers`.
        scores: Scores of kind "interaction", samples × times × pairs: joint − sum, signed, in units of ‖v‖.
        joint: Scores of both closed, samples × times × pairs. singles: of each block alone, samples × times × blocks.
    """

    blocks: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    scores: Scores
    joint: Scores
    singles: Scores

    def mean(self, domain: str | None = None) -> Float[Array, "k k"]:
        """Joint − sum of each pair, symmetric; NaN on the diagonal."""
        return self._square(self.scores.mean(domain))

    def interval(
        self, level: float = 0.95, domain: str | None = None, *, seed: int = 0, warn: bool = True
    ) -> Float[Array, "k k 2"]:
        """Interval of `mean` per pair: whole groups of samples are resampled, the same for all pairs."""
        return self._square(self.scores.interval(level, domain, seed=seed, warn=warn))

    def table(self, k: int | None = None, *, level: float = 0.95) -> str:
        """The k pairs of largest joint − sum, or all."""
        return self.scores.table(k, level=level)

    def plot(self, *, domain: str | None = None, level: float = 0.95) -> Figure:
        """All pairs as one picture; a dot where the interval leaves 0 out.

        Raises:
            MissingDependency: without matplotlib.
        """
        mean, interval = self.mean(domain), self.interval(level, domain, warn=False)
        size, count = float(np.nanmax(np.abs(mean))) or 1.0, len(self.blocks)
        fig = canvas.figure(1.6 + 0.34 * count, 1.2 + 0.34 * count)
        ax = fig.subplots()
        mesh = ax.imshow(mean, cmap="RdBu_r", vmin=-size, vmax=size)
        sure = (interval[..., 0] > 0) | (interval[..., 1] < 0)
        ax.scatter(*np.nonzero(sure)[::-1], s=9, color=canvas.INK)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(range(count), [f"L{i + 1}" for i in range(count)], fontsize=7)
        canvas.title(ax, "both closed, less the sum of each")
        canvas.colorbar(ax, mesh, "change of v, relative")
        return fig

    def __repr__(self) -> str:
        return self.table()

    def _square(self, values: Float[Array, "P *rest"]) -> Float[Array, "k k *rest"]:
        place = {name: i for i, name in enumerate(self.blocks)}
        square = np.full((len(place), len(place), *values.shape[1:]), np.nan)
        for (a, b), value in zip(self.pairs, values, strict=True):
            square[place[a], place[b]] = square[place[b], place[a]] = value
        return square


@known_keywords
@unbroken()
def interactions(
    model: nn.Module | Flow,
    batch: Any,
    blocks: Blocks | Sequence[str] | None = None,
    *,
    level: Literal["layer", "branch"] = "layer",
    forward: Forward | None = None,
    times: int | Sequence[float] | Along | None = None,
    seed: int = 0,
) -> Interactions:
    """What closing two blocks changes beyond the sum of what closing each changes, for all pairs of `blocks`.

    k blocks take the clean run and at most k(k + 1)/2 runs of what comes after a block.

    Args:
        model, batch, level, forward, times, seed: as in `attribute`.
        blocks: `Blocks` or names, two or more. None: those of `find_blocks` whose update depends on x_t.

    Raises:
        BadArgument: fewer than two blocks. UnknownBlock, BadBatch, BadOutput, Unsupported: as in `attribute`.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> pairs = fog_a.interactions(net, torch.randn(4, 5, 8), ["layers.0", "layers.2"])
        >>> pairs.pairs, pairs.mean().shape
        ((('layers.0', 'layers.2'),), (2, 2))
    """
    run = trial(model, batch, blocks, level, forward, times, seed)
    ordered = sorted(run.blocks, key=lambda b: min(p.order for p in b.gate_points))
    chosen = Blocks(ordered, run.blocks.model)
    if len(chosen) < 2:
        raise BadArgument(f"expected two or more blocks, got {len(chosen)}. Leave blocks= out for all of them")
    singles, joint = [], []
    for case in run.cases:
        with preserved(*case.modules):
            alone, both = _pairs(case, chosen)
        case.close()
        singles.append(alone)
        joint.append(both)
    place = [(i, j) for i in range(len(chosen)) for j in range(i + 1, len(chosen))]
    names = tuple((chosen[i].name, chosen[j].name) for i, j in place)
    first, second = ([p[side] for p in place] for side in (0, 1))
    beyond = [both - alone[:, first] - alone[:, second] for alone, both in zip(singles, joint, strict=True)]
    layers = [f"{a} × {b}" for a, b in names]
    return Interactions(
        chosen.names,
        names,
        run.scores(beyond, layers, "interaction"),
        run.scores(joint, layers, "contribution"),
        run.scores(singles, chosen.names, "contribution"),
    )


def _pairs(case: Case, blocks: Blocks) -> tuple[Array, Array]:
    """FoG-A of each block (B, k), and of each pair (B, P): the first in order is closed, then each that follows."""
    clean = variants(case, blocks, how="prefix")
    measure = measured(case, clean.base)
    singles, pairs = list[Array](), list[Array]()
    for i, block in enumerate(blocks):
        alone = _closed(case, blocks, i, clean)
        singles.append(measure(alone.base, block.name))
        pairs += [measure(v, block.name) for v in alone.ablated]
    return np.stack(singles, axis=1), np.stack(pairs, axis=1)


def _closed(case: Case, blocks: Blocks, i: int, clean: Variants) -> Variants:
    """The ablations of all blocks after block i, with it closed."""
    rest, shut = blocks[i + 1 :], case.closing(blocks[i : i + 1])
    if clean.prefix is None:
        return variants(shut, rest, how="loop")
    prefix = clean.prefix.closing(blocks[i])
    return Variants(prefix.v, "prefix", (prefix.variant(b, 0.0) for b in rest), prefix=prefix)
