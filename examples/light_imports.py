"""F5-TTS and Voicebox imported for their networks, without what they import for training on a cluster.

Both packages import wandb, datasets, fairseq and the like at their top, which nothing here needs: those are replaced by
empty modules, where they are absent. For tiny models in tests and in `make paper`; a training of yours has them.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from typing import Any

from torch import nn


def stub(name: str, **attributes: Any) -> Any:
    """An empty module of this name, unless there is one."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
    for key, value in attributes.items():
        if not hasattr(sys.modules[name], key):
            setattr(sys.modules[name], key, value)
    return sys.modules[name]


def bare_package(name: str) -> None:
    """A package whose files can be imported without running its `__init__`. Raises ImportError where it is absent."""
    top = importlib.machinery.PathFinder.find_spec(name.split(".")[0])  # not a package made bare before
    if top is None or not top.submodule_search_locations:
        raise ImportError(f"{name.split('.')[0]} is not installed")
    stub(name).__path__ = [os.path.join(top.submodule_search_locations[0], *name.split(".")[1:])]


def cls(name: str) -> type:
    """A class of this name that does nothing: what another project only names in its annotations."""
    return type(name, (nn.Module,), {})


def import_f5() -> Any:
    """F5-TTS's `cfm`, past its trainer. Raises ImportError where f5-tts is absent."""
    if "f5_tts.model" not in sys.modules:
        bare_package("f5_tts.model")
    for name in ("dit", "unett", "mmdit"):
        importlib.import_module(f"f5_tts.model.backbones.{name}")
    return importlib.import_module("f5_tts.model.cfm")


def import_voicebox() -> Any:
    """voicebox-pytorch, past the codecs and tokenizers that it can use. Raises ImportError where it is absent."""
    if importlib.util.find_spec("voicebox_pytorch") is None:
        raise ImportError("voicebox-pytorch is not installed")
    stub("audiolm_pytorch", EncodecWrapper=cls("EncodecWrapper"), HubertWithKmeans=cls("HubertWithKmeans"))
    stub("spear_tts_pytorch", TextToSemantic=cls("TextToSemantic"))
    for name in ("", ".utils"):
        stub(f"naturalspeech2_pytorch{name}")
    aligner = {name: cls(name) for name in ("Aligner", "ForwardSumLoss", "BinLoss")}
    stub("naturalspeech2_pytorch.aligner", maximum_path=None, **aligner)
    stub("naturalspeech2_pytorch.utils.tokenizer", Tokenizer=cls("Tokenizer"))
    stub("naturalspeech2_pytorch.naturalspeech2_pytorch", generate_mask_from_repeats=None)
    return importlib.import_module("voicebox_pytorch")


def importable(name: str) -> None:
    """Make what the example `<name>_ag_repa.py` imports importable. Raises ImportError where the package is absent."""
    if name == "voicebox":
        import_voicebox()
    if name == "f5_tts":
        cfm = import_f5()
        stub("wandb")
        stub("datasets", Dataset=object, load_from_disk=None)
        dit = sys.modules["f5_tts.model.backbones.dit"].DiT
        stub("f5_tts.model", CFM=cfm.CFM, DiT=dit)
