"""Re-entrant checkpointing: a block is called by the forward of a torch.autograd.Function, and backward runs it again.

What runs again after a gate has gone is the ungated block, and its gradients are those of another network, without a
sound. So a gate counts such calls and their replays, and says at its end how many are still to come.
"""

from __future__ import annotations

import sys
import warnings
from types import FrameType

import torch
from torch.autograd.function import FunctionCtx


class Replays:
    """The calls of gated blocks that a later backward will run again."""

    def __init__(self) -> None:
        self.possible = torch.is_grad_enabled()  # outside the forward of a Function, which runs without gradients
        self.awaited: dict[str, int] = {}

    def see(self, block: str) -> None:
        """One gated call of a block."""
        if torch._C._current_graph_task_id() >= 0:  # autograd is at work: this is a replay
            self.awaited[block] = max(0, self.awaited.get(block, 0) - 1)
        elif self.possible and not torch.is_grad_enabled() and _in_function():
            self.awaited[block] = self.awaited.get(block, 0) + 1

    def warn(self) -> None:
        """Says which gated calls a backward from now on would run without their gate."""
        names = [name for name, count in self.awaited.items() if count]
        if names:
            warnings.warn(
                f"the gate of {', '.join(map(repr, names[:3]))} acted under re-entrant checkpointing, whose backward "
                "runs the block again: after the gate it gives the ungated network's gradients. Call backward() inside "
                "`with fog_a.gate(...)`, or use checkpoint(..., use_reentrant=False)",
                stacklevel=3,
            )


def _in_function() -> bool:
    """Is the caller run by a Function's forward? Its first argument is then the context that backward gets."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_argcount and isinstance(_first(frame), FunctionCtx):
            return True
        frame = frame.f_back
    return False


def _first(frame: FrameType) -> object:
    return frame.f_locals.get(frame.f_code.co_varnames[0])
