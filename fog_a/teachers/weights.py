"""A teacher's network: its weights fetched, known by their print, and run frozen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fog_a.errors import MissingDependency, NoWeights
from fog_a.flows.case import weights_mark


@contextmanager
def frozen(net: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The network as a teacher runs it: on `device`, in eval mode, no grad, no autocast, and no random number drawn.

    Some encoders call the generator even in eval mode (transformers' LayerDrop does), which would change the noise of
    the training that they only watch; so its state is put back. Training mode is switched off at each call: the owner
    of a model that was passed as an object may have called `.train()` in between.
    """
    net.to(device).eval().requires_grad_(False)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield net


def fingerprint(net: nn.Module) -> str:
    """Eight hex digits of a network's weights, which the feature cache keys on."""
    return weights_mark(net)[:8]


def loaded(load: Callable[[Any], Any], source: str | Path, teacher: str) -> Any:
    """`load(source)`, with an error that says which files go where when hub or folder have them not."""
    try:
        return load(source)
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise NoWeights(
            f"{teacher} could not load {str(source)!r}: {reason} With a connection, once: `hf download {source}`. "
            f"Without: copy config.json, preprocessor_config.json and model.safetensors of {source} from another "
            f"machine into a folder and type {teacher}('that/folder'). For a dry run without weights: SpectralTeacher()"
        ) from e


def short(source: str | Path) -> str:
    """A hub name as it is; of a folder its last part."""
    return Path(source).name if os.path.exists(source) else str(source)


def transformers_for(teacher: str) -> Any:
    try:
        import transformers
    except ImportError as e:
        raise MissingDependency(f"{teacher} needs transformers ({e}): pip install 'fog-a[teachers]'") from e
    return transformers
