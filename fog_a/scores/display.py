"""What Scores show of themselves: text on a terminal, a picture and a table in a notebook, scalars to a logger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fog_a.errors import MissingDependency
from fog_a.scores import notebook, text
from fog_a.scores.image import png
from fog_a.scores.plots import plot_scores
from fog_a.scores.ranking import Ranked, rankings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Displayed:
    """The base of what has rankings and shows them."""

    def plot(self: Ranked, **options: Any) -> Figure:
        """A matplotlib Figure: see `fog_a.plot_scores`, which takes the same options."""
        return plot_scores(self, **options)

    def table(self: Ranked, k: int | None = None, *, level: float = 0.95) -> str:
        """Means and intervals as text: the best k layers of each domain, or all layers in order of execution."""
        return text.table(rankings(self), k, level)

    def metrics(self: Ranked, k: int = 3) -> dict[str, float]:
        """Scalars for any logger (W&B, TensorBoard, Lightning, Trainer): each layer's mean, and how sure the top k is.

        Names are `contribution/blocks.0`, or `contribution/speech/blocks.0` where there are domains.
        `contribution/top3_certainty` is `top_probability(3)`. A layer without a value is left out.
        """
        return {name: value for ranking in rankings(self) for name, value in ranking.metrics(k).items()}

    def __repr__(self: Ranked) -> str:
        return text.summary(rankings(self))

    def _repr_png_(self: Ranked) -> bytes | None:
        """What a notebook shows: the picture. None without matplotlib."""
        return _picture(self)

    def _repr_html_(self: Ranked) -> str:
        """What a notebook shows: the picture and the tables."""
        return notebook.html(rankings(self), _picture(self))


def _picture(scores: Ranked) -> bytes | None:
    try:
        return png(plot_scores(scores))
    except MissingDependency:
        return None
