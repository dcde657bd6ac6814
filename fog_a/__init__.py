"""fog_a: which layers of a generative network do the work, and how to train it better by knowing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fog_a.ablation import attribute as attribute
    from fog_a.adapters import Flow as Flow
    from fog_a.adapters import wrap as wrap
    from fog_a.alignment import AGREPA as AGREPA
    from fog_a.bitc import BiTC as BiTC
    from fog_a.blocks import find_blocks as find_blocks
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
    from fog_a.gradients import gradnorm as gradnorm
    from fog_a.hooks import gate as gate
    from fog_a.hooks import tap as tap
    from fog_a.plot import plot_scd as plot_scd
    from fog_a.plot import plot_scores as plot_scores
    from fog_a.probing import lasp as lasp
    from fog_a.scores import Scores as Scores
    from fog_a.selection import Selection as Selection
    from fog_a.selection import select as select

_HOME = {
    "AGREPA": "alignment",
    "Adapter": "concepts",
    "BiTC": "bitc",
    "Blocks": "concepts",
    "Flow": "adapters",
    "FogError": "errors",
    "Inputs": "concepts",
    "NoBlocksFound": "errors",
    "NotResidual": "errors",
    "ResidualBlock": "concepts",
    "Samples": "concepts",
    "Scores": "scores",
    "Selection": "selection",
    "ShapeMismatch": "errors",
    "Teacher": "concepts",
    "UnknownAdapter": "errors",
    "attribute": "ablation",
    "find_blocks": "blocks",
    "gate": "hooks",
    "gradnorm": "gradients",
    "lasp": "probing",
    "plot_scd": "plot",
    "plot_scores": "plot",
    "select": "selection",
    "tap": "hooks",
    "wrap": "adapters",
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
