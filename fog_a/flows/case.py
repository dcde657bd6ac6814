"""One thing to be measured: a module, and a run of it that gives the velocity with everything else held fixed.

Every run of a probe draws the same random numbers, so that an ablation differs from the base in its gate alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import hooked, named_modules, unwrapped
from fog_a.blocks.tree import leaves
from fog_a.blocks.untouched import rng, rng_state
from fog_a.errors import BadBatch, BadOutput, UnknownBlock
from fog_a.flows.batches import Forward, call, model_tensors, velocity_of
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Inputs, Samples
from fog_a.flows.wrapping import knows


@dataclass(frozen=True)
class Probe:
    """`run()` gives v (B, …) of `module` inside. Always under `hooks.preserved`."""

    module: nn.Module
    run: Callable[[], Tensor]
    around: nn.Module | None = None
    """The whole model, where the velocity network is a part of it: it has dropout of its own."""

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What must be preserved while this runs."""
        return (self.module,) if self.around is None else (self.module, self.around)

    def __call__(self) -> Tensor:
        return self.run()


class Given:
    """A batch that a model may write into (`x += f(x)` without a stem): every run must get it as it was."""

    def __init__(self, batch: Any) -> None:
        self._kept = [(x, x.clone(), x._version) for x in model_tensors(batch) if not x.is_inference()]

    def holds(self, v: Tensor) -> bool:
        """Whether a velocity lies in the batch's own memory, which `put_back` writes to."""
        return any(x.untyped_storage().data_ptr() == v.untyped_storage().data_ptr() for x, _, _ in self._kept)

    def put_back(self) -> None:
        with torch.no_grad():
            for i, (x, value, version) in enumerate(self._kept):
                if x._version != version:
                    x.data.copy_(value)
                    self._kept[i] = (x, value, x._version)


def module_of(model: nn.Module | Flow) -> nn.Module:
    """Where the blocks are."""
    if not isinstance(model, (nn.Module, Flow)):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise BadBatch(f"expected an nn.Module, or a flow from fog_a.wrap, got {what}. Give the model object itself")
    return unwrapped(model.module if isinstance(model, Flow) else model)


def probe(
    model: nn.Module | Flow,
    batch: Any,
    t: float | None,
    seed: int,
    forward: Forward | None = None,
    output: str | None = None,
) -> Probe:
    """The velocity of `model` on `batch`, at time t where it has a time axis."""
    check_batch(batch)
    module = module_of(model)
    if isinstance(model, Flow) and forward is None:
        time = 0.5 if t is None else t

        def run() -> Any:
            return model.velocity(batch, time, seed)
    else:
        taken = model.model if isinstance(model, Flow) else model if forward is not None else module

        def run() -> Any:
            return _bare(taken, batch) if forward is None else call(taken, batch, forward)

    given, whole = Given(batch), model.model if isinstance(model, Flow) else model
    holder = whole if forward is not None and isinstance(whole, nn.Module) else module  # what `forward` calls

    def seeded() -> Tensor:
        with rng(seed):
            try:
                v = velocity_of(run()) if output is None else _caught(holder, output, run)
                return v.clone() if given.holds(v) else v
            finally:
                given.put_back()

    return Probe(module, seeded, whole if isinstance(whole, nn.Module) and whole is not module else None)


def _bare(model: nn.Module, batch: Any) -> Any:
    """The output of a model without an adapter; where it cannot be called and has one, that was forgotten."""
    try:
        return call(model, batch)
    except TypeError as error:
        if not knows(model):
            raise
        raise BadBatch(
            f"{type(model).__name__} cannot be called on the batch itself ({error}). An adapter reads it: type "
            "fog_a.wrap(model)"
        ) from error


def _caught(module: nn.Module, name: str, run: Callable[[], Any]) -> Tensor:
    """The output of one inner module during the user's own forward: a velocity that no call returns."""
    modules = named_modules(module)
    if name not in modules:
        near = [n for n in modules if n.split(".")[-1] == name.split(".")[-1]][:3]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UnknownBlock(f"output={name!r} is no module of {type(module).__name__}{hint}. named_modules() lists them")
    found: list[Any] = []
    with hooked(modules[name], after=lambda args, kwargs, out: found.append(out)):
        run()
    if not found:
        raise BadOutput(
            f"module {name!r} was not called in this forward. Pass output= a module that gives the velocity"
        )
    return velocity_of(found[-1])


def samples_of(model: nn.Module | Flow, batch: Any, v: Tensor, first: int) -> Samples:
    """Ids, domains and mask of a batch's samples; a bare module's are numbered from `first`."""
    if isinstance(model, Flow):
        samples = model.samples(batch)
        if len(samples) != len(v):
            raise BadBatch(
                f"expected one velocity per sample, got {len(samples)} samples and an output of {tuple(v.shape)}. "
                "Its first axis must be the samples: see the adapter's velocity() and samples()"
            )
        return samples
    n = len(v) if v.ndim else 1
    ids = tuple(str(i) for i in range(first, first + n))
    return Samples(ids=ids, domains=("all",) * n, rows=lambda i: batch)


def check_batch(batch: Any) -> None:
    """An empty batch is refused before the model sees it."""
    tensors = model_tensors(batch)
    if any(t.ndim and t.shape[0] == 0 for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors[:4])
        raise BadBatch(f"expected at least one sample, got tensors of shape {shapes}. Give a batch that is not empty")


def shape_of(batch: Any) -> Any:
    """What tells batches of one layout from those of another: shapes and types of its tensors."""
    tree = (batch.args, batch.kwargs) if isinstance(batch, Inputs) else batch
    return tuple((path, tuple(x.shape), x.dtype) for path, x in leaves(tree))


def digest(batch: Any) -> bytes:
    """A fingerprint of a batch's tensors."""
    mark = hashlib.sha256()
    for x in model_tensors(batch):
        mark.update(repr((tuple(x.shape), str(x.dtype))).encode())
        mark.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return mark.digest()


def weights_mark(module: nn.Module) -> str:
    """A fingerprint of a model's parameters and buffers, about 64 numbers of each: a training step changes it."""
    mark = hashlib.sha256()
    for x in itertools.chain(module.parameters(), module.buffers()):
        flat = x.detach().reshape(-1)
        few = flat[:: max(len(flat) // 64, 1)].cpu()
        mark.update(
            repr((tuple(x.shape), str(x.dtype))).encode() + few.contiguous().view(torch.uint8).numpy().tobytes()
        )
    return mark.hexdigest()


def per_sample(v: Tensor) -> Tensor:
    """v as (B, n) in float32; a scalar output is one sample."""
    v = v.detach().float()
    return v.reshape(1, -1) if v.ndim == 0 else v.reshape(len(v), -1)


def mask_of(mask: Tensor | None, v: Tensor) -> Tensor | None:
    """A mask broadcast to v, as (B, n)."""
    if mask is None:
        return None
    mask = torch.as_tensor(mask, dtype=torch.bool, device=v.device)
    if mask.ndim < v.ndim:
        mask = mask.reshape(*mask.shape, *[1] * (v.ndim - mask.ndim))
    try:
        return mask.expand(v.shape).reshape(len(v), -1)
    except RuntimeError:
        raise BadBatch(
            f"expected a mask that broadcasts to the velocity {tuple(v.shape)}, got {tuple(mask.shape)}. "
            "Give bool, True = counts, e.g. (B, T, 1)"
        ) from None


def checked(v: Tensor, keep: Tensor | None) -> None:
    """The base velocity must be finite and not zero where it counts."""
    flat = per_sample(v)
    flat = flat if keep is None else torch.where(keep, flat, torch.zeros_like(flat))
    if not bool(torch.isfinite(flat).all()):
        raise BadOutput(
            "the velocity has NaN or inf before anything is ablated. Check the batch and the precision: autocast, dtype"
        )
    if flat.numel() == 0 or not bool((flat != 0).any()):
        raise BadOutput(
            "the velocity is zero everywhere: nothing can change it relative to itself. The output layer may still be "
            "at its zero initialisation: train the model first, or check the mask"
        )


@contextlib.contextmanager
def draws(blocks: Blocks) -> Iterator[list[str]]:
    """Which modules draw random numbers while this lasts: a list that fills, innermost first."""
    found: list[str] = []
    open_calls: list[Any] = []
    with contextlib.ExitStack() as stack:
        for name, module in named_modules(blocks.model).items():

            def before(args: Any, kwargs: Any) -> None:
                open_calls.append(rng_state())

            def after(args: Any, kwargs: Any, out: Any, name: str = name) -> None:
                if open_calls.pop() != rng_state():
                    found.append(name)

            stack.enter_context(hooked(module, before=before, after=after))
        yield found
