"""AG-REPA and scores in seven training loops that others wrote: how many lines change, and whether they run.

    python benchmarks/training_loops.py CHECKOUTS    # minRF, conditional-flow-matching, flow_matching, SiT, diffusers

f5-tts and matcha-tts are read where they are installed. `benchmarks/loops/*.diff` are what a user changes. Each loop is
put on a CPU with a few steps of random data (`stage`), as it was and with the diff. At the end of the warm-up the
weights must have the same bits in both; afterwards the term must be there, and the scores must have been written.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from loop_stages import LOOPS
from torch import Tensor

DIFFS = Path(__file__).parent / "loops"
WARMUP, EVERY = 4, 2
STUBS = ("wandb", "hydra", "omegaconf", "rootutils", "torchdyn", "torchvision", "ot", "download", "datasets")
"""What the loops import and a few steps do not need."""


class Stubs(MetaPathFinder, Loader):
    """Gives an object that takes any use for these packages and all that is in them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in STUBS else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock()

    def exec_module(self, module: Any) -> None:
        pass


def staged(name: str, checkouts: Path, folder: Path, edited: bool) -> Path:
    """A copy of the loop's repository on this machine, as it was or as the diff changes it."""
    loop, copy = LOOPS[name], folder / str(edited) / name
    if (checkouts / loop.repository).exists():
        shutil.copytree(checkouts / loop.repository, copy, ignore=shutil.ignore_patterns(".git"))
    else:
        spec = importlib.util.find_spec(loop.repository)
        assert spec is not None and spec.submodule_search_locations, f"{loop.repository} is not installed"
        shutil.copytree(spec.submodule_search_locations[0], copy / loop.repository)
    if edited:
        diff = (DIFFS / f"{name}.diff").resolve()
        subprocess.run(["git", "apply", "--unidiff-zero", "--unsafe-paths", diff], cwd=copy, check=True)
    for file in copy.rglob("*.py"):
        text = file.read_text()
        for old, new in loop.stage:
            text = text.replace(old, new)
        file.write_text(text)
    return copy


@contextlib.contextmanager
def watched(model_parameters: list[str], terms: list[float]) -> Iterator[None]:
    """Fingerprints of the optimizer's parameters at the end of the warm-up; what the term is from then on."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import fog_a

    count = 0

    def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == WARMUP:
            tensors = [p for group in optimizer.param_groups for p in group["params"]]
            model_parameters.extend(hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for p in tensors)

    class Short(fog_a.AGREPA):
        """A warm-up of a few steps."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{"warmup": WARMUP, "every": EVERY, **options})

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            term = super().forward(*args, **kwargs)
            terms.append(float(term))
            return term

    fog_a.AGREPA = Short  # pyright: ignore
    hook = register_optimizer_step_post_hook(after)
    try:
        yield
    finally:
        hook.remove()


def run(name: str, copy: Path) -> dict[str, Any]:
    """Run the staged loop in this process."""
    loop = LOOPS[name]
    os.chdir(copy)
    os.environ |= {"ENTITY": "", "PROJECT": "", "WANDB_MODE": "disabled"}
    for folder in ("contents", "out"):
        Path(folder).mkdir(exist_ok=True)
    sys.path[:0] = [str(copy / path) for path in loop.paths]
    sys.meta_path.insert(0, Stubs())
    sys.modules.update({name: importlib.import_module(name) for name in ("torchvision", "hydra")})
    for name in ("transformers.utils", "transformers.utils.import_utils"):  # the stand-in has no version to compare
        vars(importlib.import_module(name))["is_torchvision_greater_or_equal"] = lambda version: False
    sys.argv = [loop.script, *loop.argv]
    for prepare in (loop.before, lambda: None):  # data and weights are drawn alike with and without the diff
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        prepare()
    parameters: list[str] = []
    terms: list[float] = []
    with watched(parameters, terms), contextlib.suppress(SystemExit):
        runpy.run_path(loop.script, run_name="__main__")
    return {"parameters": parameters, "terms": terms, "scores": bool(list(copy.parent.rglob("foga.npz")))}


def measured(name: str, checkouts: Path) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for edited in (False, True):
            copy = staged(name, checkouts, Path(folder), edited)
            command = [sys.executable, __file__, str(checkouts), "--child", name, str(copy)]
            child = subprocess.run(command, capture_output=True, text=True, check=False)
            if child.returncode:
                errors = [line for line in child.stderr.splitlines() if "Error" in line or line.startswith("fog_a.")]
                return f"| {name} | does not run: {errors[-1:]} | | | |"
            results.append(json.loads(child.stdout.splitlines()[-1]))
        lines = len((Path(folder) / "False" / name / LOOPS[name].script).read_text().splitlines())
    plain, edited = results
    same = plain["parameters"] == edited["parameters"][: len(plain["parameters"])] and bool(plain["parameters"])
    text = (DIFFS / f"{name}.diff").read_text().splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++") and len(line) > 1 for line in text)
    removed = sum(line.startswith("-") and not line.startswith("---") for line in text)
    before, after = edited["terms"][:WARMUP], edited["terms"][WARMUP:]
    term = "0" if not any(before) else "not 0"
    shown = f"{term}, then {after[0]:.3f} … {after[-1]:.3f}" if after else term
    same_bits, written = ("the same" if same else "OTHERS"), ("yes" if edited["scores"] else "NO")
    return f"| {name} {LOOPS[name].commit} | {lines} | {added} ({removed}) | {same_bits} | {shown} | {written} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("--only", nargs="*", default=list(LOOPS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        print(json.dumps(run(options.child[0], Path(options.child[1]))))
        return
    print("| loop | lines of its script | added (replaced) | weights after the warm-up | the term | scores |")
    print("|---|---|---|---|---|---|")
    for name in options.only:
        print(measured(name, options.checkouts.resolve()), flush=True)


if __name__ == "__main__":
    main()
