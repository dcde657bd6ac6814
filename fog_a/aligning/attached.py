"""AG-REPA in a model's own forward, for trainers that cannot be edited.

The trainer calls the model and gets a loss: a hook on the model adds the term. The trainer's optimizer takes
`model.parameters()`: the heads are among them. Its checkpoints hold `model.state_dict()`: one key, `ag_repa.state`,
holds all that `reg.state_dict()` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from fog_a.aligning.progress import Progress
from fog_a.blocks.calls import hooked
from fog_a.blocks.tree import LeafPath, leaf, replaced
from fog_a.errors import BadOutput, Unsupported

NAME = "ag_repa"
"""The submodule of the model that holds the heads, and the start of its key in a checkpoint."""


class Attached(nn.Module):
    """The submodule by which a model carries a regularizer; a copy of the model carries none. See `AGREPA.attach`."""

    def __init__(self, reg: Progress, model: nn.Module, batch: Callable[..., Any]) -> None:
        super().__init__()
        if hasattr(model, NAME):
            raise Unsupported(
                f"{type(model).__name__} has an attribute {NAME!r}: it carries another AGREPA, or something of its "
                "own. Detach that one first: reg.detach()"
            )
        self._reg, self._model, self._batch = [reg], [model], batch  # in lists: they are no submodules
        for name, p in reg.named_parameters():
            self.register_parameter(name.replace(".", "_"), p)
        self._stack = contextlib.ExitStack()
        add: Any = torch.compiler.disable(self._add)  # where the model is compiled, its graph ends before the term
        self._stack.enter_context(hooked(model, after=add))
        model.add_module(NAME, self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reg": [], "_model": [], "_batch": None, "_stack": contextlib.ExitStack()}

    @property
    def live(self) -> bool:
        """Whether the model carries the regularizer now."""
        return bool(self._reg)

    def detach(self) -> None:
        """Take the hook and the submodule off the model."""
        self._stack.close()
        for model in self._model:
            delattr(model, NAME)
        self._reg, self._model = [], []

    def _add(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """The output with the term added to its loss, in training."""
        model, reg = self._model[0], self._reg[0]
        if not model.training or not torch.is_grad_enabled():
            return None
        path = loss_path(out, type(model).__name__)
        loss = leaf(out, path)
        return replaced(out, {path: loss + reg(self._batch(*args, **kwargs)).to(loss.device)})

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for reg in self._reg:
            tensors = {name: t.detach().cpu().contiguous() for name, t in reg.state_dict().items()}
            destination[f"{prefix}state"] = torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state = state_dict.get(f"{prefix}state")
        for reg in self._reg:
            if state is None:
                reg._begin_late(f"{prefix}state")
            else:
                reg.load_state_dict(load(bytes(state.cpu().numpy())))


def loss_path(out: Any, model: str) -> LeafPath:
    """Where the loss is in what a model's forward gives: the output itself, its `loss`, or its first item.

    >>> loss = torch.ones(1, requires_grad=True).sum()
    >>> loss_path({"loss": loss}, "Model"), loss_path((loss, None), "Model")
    (('loss',), (0,))
    """
    named = "loss" in out if isinstance(out, Mapping) else hasattr(out, "loss")
    path: LeafPath = ("loss",) if named else (0,) if isinstance(out, (tuple, list)) and out else ()
    value = leaf(out, path)
    if isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad:
        return path
    raise BadOutput(
        f"expected a training loss from the forward of {model}: a scalar, an output with a `loss`, or a tuple that "
        f"begins with it; got {type(out).__name__}. Attach to the module whose forward gives the loss, or edit the "
        "loop: loss = loss + reg(batch)"
    )
