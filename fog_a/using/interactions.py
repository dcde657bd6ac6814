"""Two blocks at once: what closing both changes, beyond the sum of what closing each changes.

    I_jk = FoG-A_jk − FoG-A_j − FoG-A_k,    FoG-A_jk = ‖v^{\\jk} − v‖ / (‖v‖ + ε)

Above 0: either makes up for the other. Below 0 says little: changes add up as vectors, and two that have nothing to do
with each other stand at right angles, so both give √(FoG-A_j² + FoG-A_k²): `beyond` is what differs from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.attributing.along import Along
from fog_a.attributing.yardstick import Metric, metric_kind
from fog_a.blocks.block import Blocks
from fog_a.blocks.interrupts import unbroken
from fog_a.blocks.untouched import preserved
from fog_a.errors import BadArgument, known_keywords
from fog_a.flows.bare import flow_of
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow
from fog_a.flows.override import Forward
from fog_a.scores import canvas
from fog_a.scores.scores import Scores
from fog_a.scores.statistics import Array
from fog_a.using.trial import Closing, Level, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Interactions:
    """What pairs of blocks do together. Made by `interactions`.

    Attributes:
        blocks: the k blocks, in order of execution.
        pairs: their names, in the order of `scores.layers`.
        scores: Scores of kind "interaction", samples × times × pairs: joint − sum, signed, in ‖v‖ or the metric.
        beyond: the same, joint − √(j² + k²): 0 where the two changes stand at right angles, above 0 where they go the
            same way or make up for each other, below 0 where they overlap or undo each other. By a metric: joint − sum.
        joint: Scores of both closed, samples × times × pairs. singles: of each block alone, samples × times × blocks.
    """

    blocks: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    scores: Scores
    beyond: Scores
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

    __repr__ = table

    def plot(self, *, domain: str | None = None, level: float = 0.95) -> Figure:
        """`beyond` of all pairs; a dot where its interval leaves 0 out. MissingDependency without matplotlib."""
        mean = self._square(self.beyond.mean(domain))
        interval = self._square(self.beyond.interval(level, domain, warn=False))
        size, count = float(np.nanmax(np.abs(mean))) or 1.0, len(self.blocks)
        name, side = 0.06 * max(map(len, self.blocks)), 0.34 * count
        fig, ((ax,),) = canvas.panels(name + max(side + 1.3, 2.9), name + max(side + 0.9, 1.7))
        ax.grid(False)
        mesh = ax.imshow(mean, cmap="RdBu_r", vmin=-size, vmax=size)
        sure = (interval[..., 0] > 0) | (interval[..., 1] < 0)
        ax.scatter(*np.nonzero(sure)[::-1], s=9, color=canvas.INK)
        ax.set_yticks(range(count), self.blocks, fontsize=7)
        ax.set_xticks(range(count), self.blocks, fontsize=7, rotation=90)
        canvas.title(ax, "interactions")
        canvas.colorbar(mesh, "joint − sum" if "metric" in self.beyond.info else "joint − √(j² + k²)", ax)
        return fig

    def _square(self, values: Float[Array, "P *rest"]) -> Float[Array, "k k *rest"]:
        first, second = np.triu_indices(len(self.blocks), 1)
        square = np.full((len(self.blocks), len(self.blocks), *values.shape[1:]), np.nan)
        square[first, second] = square[second, first] = values
        return square


@known_keywords
@unbroken()
def interactions(
    model: nn.Module | Flow,
    batch: Any,
    blocks: Blocks | Sequence[str] | None = None,
    *,
    level: Level = "layer",
    forward: Forward | None = None,
    times: int | Sequence[float] | Along | None = None,
    domains: Sequence[str] | None = None,
    mask: Bool[Tensor, "B ..."] | None = None,
    metric: Metric = None,
    seed: int = 0,
) -> Interactions:
    """What closing two blocks changes beyond the sum of what closing each changes, for all pairs of `blocks`.

    k blocks take the clean run and at most k(k + 1)/2 runs of what comes after a block.

    Args:
        model, batch, level, forward, times, domains, mask, metric, seed: as in `attribute`.
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
    trial = Trial(flow_of(model, forward, domains, mask), batch, blocks, level, times, metric, seed)
    names = trial.blocks.names
    if len(names) < 2:
        raise BadArgument(f"expected two or more blocks, got {len(names)}. Leave blocks= out for all of them")
    singles, joint = zip(*(_pairs(trial, case) for case in trial.cases), strict=True)
    first, second = np.triu_indices(len(names), 1)
    two = [(alone[:, first], alone[:, second]) for alone in singles]
    unrelated = np.hypot if metric is None else np.add
    pairs = tuple((names[i], names[j]) for i, j in zip(first, second, strict=True))
    layers = [" × ".join(pair) for pair in pairs]
    return Interactions(
        names,
        pairs,
        trial.scores([both - np.add(*each) for both, each in zip(joint, two, strict=True)], layers, "interaction"),
        trial.scores([both - unrelated(*each) for both, each in zip(joint, two, strict=True)], layers, "interaction"),
        trial.scores(joint, layers, metric_kind(metric)),
        trial.scores(singles, names, metric_kind(metric)),
    )


def _pairs(trial: Trial, case: Case) -> tuple[Float[Array, "B k"], Float[Array, "B P"]]:
    """The change without each block, and without each pair: the first in order is closed, then each that follows."""
    singles, pairs, clean = list[Array](), list[Array](), Closing(case, trial)
    with preserved(*case.modules):
        clean.changes(trial.blocks)
        for i, block in enumerate(trial.blocks):
            shut = clean.without(block)
            both = shut.changes(trial.blocks[i + 1 :])
            singles.append(shut.measure(shut.base, block.name))
            pairs += both
    case.close()
    return np.stack(singles, axis=1), np.stack(pairs, axis=1)
