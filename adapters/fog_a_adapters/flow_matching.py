"""Meta's `flow_matching`: anything in a `ModelWrapper`.

Repository: https://github.com/facebookresearch/flow_matching, read at 1.0.10.
Install: `pip install flow_matching==1.0.10`. Paper: Flow Matching Guide and Code, arXiv 2412.06264.

A batch is a dict with the data x_1 under `x1` and the wrapper's `**extras` by their names. The training's path:
`fog_a.wrap(wrapper, path=AffineProbPath(scheduler=CondOTScheduler()))`; the default, the linear one, is the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fog_a.errors import Unsupported
from fog_a.flows.generic import GenericAdapter
from fog_a.flows.register import is_a


class FlowMatchingAdapter(GenericAdapter):
    """Adapter of `flow_matching.utils.ModelWrapper`, which is called `wrapper(x, t, **extras)`.

    Args:
        model: the wrapper.
        path: one of the package's `ProbPath`s, or what `GenericAdapter` takes.
        options: of `GenericAdapter`: `sigma`, `data`, `mask`, `domains`, `channels`, `interface`.
    """

    package = "flow_matching"
    version = "1.0.10"

    def __init__(self, model: Any, path: Any = "linear", **options: Any) -> None:
        super().__init__(model, x="x", t="t", path=along_path(path) if hasattr(path, "sample") else path, **options)

    @staticmethod
    def matches(model: object) -> bool:
        """True for a ModelWrapper."""
        return is_a(model, "flow_matching", "ModelWrapper")


def along_path(path: Any) -> Any:
    """A ProbPath as a function (x_0, x_1, t) -> (x_t, dx_t / dt)."""

    def at(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        sample = path.sample(x_0=x0, x_1=x1, t=t.flatten())
        if not hasattr(sample, "dx_t"):
            raise Unsupported(f"{type(path).__name__} has no velocity dx_t: fog_a reads continuous paths")
        return sample.x_t, sample.dx_t

    return at
