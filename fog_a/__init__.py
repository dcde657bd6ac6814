"""fog_a: which layers of a generative network do the work, and how to train it better by knowing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fog_a.ablating.ablation import attribute as attribute
    from fog_a.aligning.alignment import AGREPA as AGREPA
    from fog_a.concepts import Adapter as Adapter
    from fog_a.concepts import Blocks as Blocks
    from fog_a.concepts import Inputs as Inputs
    from fog_a.concepts import ResidualBlock as ResidualBlock
    from fog_a.concepts import Samples as Samples
    from fog_a.concepts import Teacher as Teacher
    from fog_a.errors import FogError as FogError
    from fog_a.errors import NoBlocksFound as NoBlocksFound
    from fog_a.errors import NotResidual as NotResidual
    from fog_a.errors import ShapeMismatch as ShapeMismatch
    from fog_a.errors import UnknownAdapter as UnknownAdapter
    from fog_a.finding.blocks import find_blocks as find_blocks
    from fog_a.flows.adapters import Flow as Flow
    from fog_a.flows.adapters import wrap as wrap
    from fog_a.hooks import gate as gate
    from fog_a.hooks import tap as tap
    from fog_a.probing.bitc import BiTC as BiTC
    from fog_a.probing.gradients import gradnorm as gradnorm
    from fog_a.probing.storage import lasp as lasp
    from fog_a.scoring.scores import Scores as Scores
    from fog_a.scoring.selection import Selection as Selection
    from fog_a.scoring.selection import select as select
    from fog_a.showing.plot import plot_scd as plot_scd
    from fog_a.showing.plot import plot_scores as plot_scores

_HOME = {
    "AGREPA": "aligning.alignment",
    "Adapter": "concepts",
    "BiTC": "probing.bitc",
    "Blocks": "concepts",
    "Flow": "flows.adapters",
    "FogError": "errors",
    "Inputs": "concepts",
    "NoBlocksFound": "errors",
    "NotResidual": "errors",
    "ResidualBlock": "concepts",
    "Samples": "concepts",
    "Scores": "scoring.scores",
    "Selection": "scoring.selection",
    "ShapeMismatch": "errors",
    "Teacher": "concepts",
    "UnknownAdapter": "errors",
    "attribute": "ablating.ablation",
    "find_blocks": "finding.blocks",
    "gate": "hooks",
    "gradnorm": "probing.gradients",
    "lasp": "probing.storage",
    "plot_scd": "showing.plot",
    "plot_scores": "showing.plot",
    "select": "scoring.selection",
    "tap": "hooks",
    "wrap": "flows.adapters",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name's file when it is first asked for: `import fog_a` stays cheap."""
    if name not in _HOME:
        raise AttributeError(f"module 'fog_a' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fog_a.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
