"""A probe must leave no trace: what it may touch is put back, also after an exception.

`preserved(model)` puts back training flags, requires_grad, gradients, buffers (BatchNorm statistics too) and every
random number generator; `rng(seed)` draws from fixed seeds inside and gives the generators back as they were. Both
leave nothing after Ctrl-C, and let the probes of several threads take turns.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fog_a.blocks.interrupts import alone
from fog_a.blocks.state import State


@contextlib.contextmanager
def rng(seed: int | None = None) -> Iterator[None]:
    """Inside, torch (CPU and CUDA), numpy and Python's `random` start from `seed` (None: go on as they are).

    Afterwards all are as they were before, to the bit: models draw from Python's and numpy's generators too.

    >>> with rng(0):
    ...     a = torch.rand(1)
    >>> with rng(0):
    ...     b = torch.rand(1)
    >>> bool(a == b)
    True
    """
    with alone():
        before = rng_state()
        try:
            if seed is not None:
                _seed_torch(seed)
                np.random.seed(seed % 2**32)
                random.seed(seed)
            yield
        finally:
            set_rng(before)


def rng_state() -> tuple[Any, ...]:
    """Where all generators stand: equal before and after what draws nothing."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    name, key, *rest = np.random.get_state(legacy=True)
    with torch._C._DisableFuncTorch():
        torches = tuple(state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda))
    return torches, random.getstate(), (name, np.asarray(key).tobytes(), *rest)


def set_rng(state: tuple[Any, ...]) -> None:
    """Set all generators to where they stood."""
    (cpu, *cuda), pythons, (name, key, *rest) = state
    torch.set_rng_state(_bytes(cpu))
    np.random.set_state((name, np.frombuffer(key, np.uint32), *rest))
    random.setstate(pythons)
    if cuda:
        torch.cuda.set_rng_state_all([_bytes(x) for x in cuda])


def _bytes(x: bytes) -> Tensor:
    return torch.frombuffer(bytearray(x), dtype=torch.uint8)


def _seed_torch(seed: int) -> None:
    """`torch.manual_seed`; without an accelerator the CPU's generator alone.

    For each kind of device that is absent, `torch.manual_seed` writes down the stack, half a millisecond in every run.
    """
    if torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def preserved(
    *modules: nn.Module, grad: bool = False, seed: int | None = None, state: State | None = None
) -> Iterator[None]:
    """A probe's room: eval mode, no grad (unless `grad`), compiled code off; afterwards everything is as before.

    Eval is set flag by flag: a model's own `train()` may do more than that (merge LoRA weights, say). `state`: of these
    modules, where it is remembered already.
    """
    with alone():
        parts = [m for module in modules for m in module.modules()]
        flags = [(m, m.training) for m in parts]
        params = [(p, p.requires_grad, p.grad) for m in parts for p in m._parameters.values() if p is not None]
        state = state or State(*modules)
        try:
            with rng(seed), torch.set_grad_enabled(grad), eager():
                for m, training in flags:
                    if training:
                        m.training = False
                yield
        finally:
            state.restore()
            for m, training in flags:
                if m.training is not training:
                    m.training = training
            for p, requires_grad, g in params:
                if p.requires_grad is not requires_grad:
                    p.requires_grad_(requires_grad)
                if p.grad is not g:
                    p.grad = g


def eager() -> contextlib.AbstractContextManager[Any]:
    """A hook set after a compiled call is silently ignored by torch: inside this, nothing compiled runs."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return _Uncompiled()  # nothing can have been compiled, and the import takes a second


class _Uncompiled(contextlib.AbstractContextManager[None]):
    """While one of these is open, the first `torch.compile` (`flex_attention` and `torch.cond` compile themselves) sees
    to it that nothing compiled runs."""

    _open = 0
    _compile: Any = None
    _stance = contextlib.ExitStack()

    def __enter__(self) -> None:
        if not _Uncompiled._open:
            _Uncompiled._compile, torch.compile = torch.compile, self._late
        _Uncompiled._open += 1

    def __exit__(self, *exc: object) -> None:
        _Uncompiled._open -= 1
        if not _Uncompiled._open:
            torch.compile = _Uncompiled._compile
            _Uncompiled._stance.close()

    @staticmethod
    def _late(*args: Any, **options: Any) -> Any:
        _Uncompiled._stance.enter_context(torch.compiler.set_stance("force_eager"))
        return _Uncompiled._compile(*args, **options)


def keep_memory() -> None:
    """Let malloc keep what a forward frees for the next one, as it does once a large piece of memory was freed.

    Else the pages are given back and fetched again: 1,500 faults a run, 5 % of the time. This piece is never touched.
    """
    torch.UntypedStorage(2**25 - 2**14)


def with_data() -> contextlib.AbstractContextManager[Any]:
    """Inside, new tensors hold data, also where torch's default device is meta: then they are on the CPU."""
    meta = torch.get_default_device().type == "meta"
    return torch.device("cpu") if meta else contextlib.nullcontext()
