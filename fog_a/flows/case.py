"""A case: one batch at one time, opened once. Everything that is measured runs the model through a case.

Every run sees the same batch and draws the same random numbers, so that an ablation differs from the base in its gate
alone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.blocks.block import Blocks
from fog_a.blocks.calls import unwrapped, watch
from fog_a.blocks.gate import gate
from fog_a.blocks.interrupts import alone
from fog_a.blocks.state import State, strided_parts
from fog_a.blocks.tree import leaves, replaced
from fog_a.blocks.untouched import preserved, rng, rng_state
from fog_a.errors import BadBatch, BadOutput, ZeroVelocity
from fog_a.flows.batches import check_tensors, check_weights, model_tensors, velocity_of
from fog_a.flows.flow import Flow
from fog_a.flows.noise import checked_seed, content
from fog_a.flows.samples import Inputs, Samples


class Case:
    """One batch at one time: `run()` gives v (B, …). Run it under `opened()`, or `preserved(*case.modules)`.

    Args:
        flow: from `flow_of`.
        batch: what the flow reads.
        t: the time in [0, 1], or None where there is no time axis.
        seed: of every random number that a run draws.
        start: the number of samples before this batch: samples without names are numbered from it.
        closed: blocks whose gates are closed in every run.

    Attributes:
        module: the velocity network, without wrappers: its blocks are gated.
        modules: all modules that a run may change.
        shape: the shape of v; known after the first run.

    Raises:
        BadBatch: an empty batch, or tensors that have no rows. BadArgument: a seed out of range.
        Unsupported: a model without weights.
    """

    def __init__(
        self,
        flow: Flow,
        batch: Any,
        t: float | None = None,
        seed: int = 0,
        start: int = 0,
        closed: Blocks | None = None,
    ) -> None:
        tensors = model_tensors(batch)
        check_tensors(tensors)
        check_weights(flow.modules)
        self.flow, self.batch, self.seed, self.start = flow, batch, checked_seed(seed), start
        self.t = 0.5 if t is None else t
        self.closed = closed
        self.module = unwrapped(flow.module)
        self.modules = (self.module, *(m for m in flow.modules if m is not self.module))
        self.shape: tuple[int, ...] | None = None
        self._one_number = False
        self._state: State | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Room for its runs, as `preserved` gives it, by the one state that every run is given back."""
        with alone():
            self._state = self._state or _remembered(self.batch, *self.modules)
            with preserved(*self.modules, state=self._state):
                yield

    def run(self, closing: bool = True) -> Tensor:
        """v (B, …); a model that gives one number is one sample, (1,). The batch and the
        model's state are restored afterwards. `closing=False`: who calls closes what is `closed`."""
        if self.closed is not None and closing:
            with gate(self.closed, 0.0):
                return self.run(closing=False)
        forward = self.flow.override.forward
        self._state = self._state or _remembered(self.batch, *self.modules)
        with rng(self.seed), self._state:
            if forward is None:
                v = velocity_of(self.flow.velocity(self.batch, self.t, self.seed))
            else:
                v = velocity_of(forward(self.flow.model, self.batch))
            self._one_number = v.ndim == 0 and forward is None
            v = v[None] if v.ndim == 0 else v
            v = v.clone() if self._in_batch(v) else v
        self.shape = tuple(v.shape)
        return v

    @property
    def samples(self) -> Samples:
        """The samples of the batch, with the caller's domains and mask. Runs the model where it has not run yet."""
        return self.flow.samples_of(self.batch, self.run().shape if self.shape is None else self.shape, self.start)

    def keep(self, v: Tensor) -> Tensor | None:
        """Where the base velocity v counts, as bool (B, n); None: everywhere.

        Raises:
            BadOutput: v is not finite where it counts. ZeroVelocity: it is zero there. BadBatch: the mask does not fit.
        """
        if self._one_number:
            raise BadOutput(
                "expected a velocity, got one number: a loss. Pass forward=lambda model, batch: ... that returns the "
                "velocity, or fog_a.output_of('the.network') where it is an inner module's output"
            )
        keep = _fitted(self.flow.samples_of(self.batch, v.shape, self.start).mask, v)
        flat = per_sample(v)
        flat = flat if keep is None else torch.where(keep, flat, torch.zeros_like(flat))
        if not bool(torch.isfinite(flat).all()):
            raise BadOutput(
                "the velocity has NaN or inf before anything is ablated. "
                "Check the batch and the precision: autocast, dtype"
            )
        if flat.numel() == 0 or not bool((flat != 0).any()):
            raise ZeroVelocity(
                "the velocity is zero everywhere: nothing can change it relative to itself. The output layer may still "
                "be at its zero initialisation: train the model first, or check the mask"
            )
        return keep

    @property
    def rows(self) -> int:
        """The number of samples; before the first run, the least that the batch's tensors allow for."""
        if self.shape is not None:
            return self.shape[0]
        return min((len(x) for x in model_tensors(self.batch) if x.ndim), default=1)

    @property
    def layout(self) -> Hashable:
        """The shapes and types of the batch's tensors: what tells batches of one layout from those of another."""
        tree = (self.batch.args, self.batch.kwargs) if isinstance(self.batch, Inputs) else self.batch
        return tuple((path, tuple(x.shape), x.dtype) for path, x in leaves(tree))

    @property
    def key(self) -> Hashable:
        """What a measurement of `module` depends on, beside its weights and the time: how it is run, on what layout.

        It keeps nothing alive: a flow or a forward that is gone equals no other.
        """
        return self.flow.key, self.layout

    @functools.cached_property
    def fingerprint(self) -> str:
        """A fingerprint of the batch's values, which every run finds as they were."""
        return fingerprint(self.batch)

    def generators(self) -> tuple[Any, ...]:
        """Where all generators stand, torch's, numpy's and Python's, and the model's own."""
        return (*rng_state(), () if self._state is None else self._state.positions)

    def draws(self, blocks: Blocks) -> list[str]:
        """The modules that draw random numbers in a run, innermost first."""
        names: list[str] = []
        states: list[Any] = []

        def leave(name: str, module: nn.Module, out: Any) -> None:
            if states.pop() != self.generators():
                names.append(name)

        with watch(blocks.model, lambda *call: states.append(self.generators()), leave):
            self.run()
        return names

    def closing(self, block: Blocks) -> Case:
        """The same case with these blocks closed too. Its runs share this one's memory of the model's state."""
        twin = copy.copy(self)
        twin.closed = Blocks([*(self.closed or ()), *block], block.model)
        return twin

    def close(self) -> None:
        """Forget the model's state; the next run remembers it anew."""
        self._state = None

    def _in_batch(self, v: Tensor) -> bool:
        """Whether v lies in the batch's own memory, which the next run finds as it was."""
        place = v.untyped_storage().data_ptr()
        return any(x.untyped_storage().data_ptr() == place for x in model_tensors(self.batch))


def _remembered(*roots: Any) -> State:
    """Their state; the measuring modes that are open around a first run do not see the copies."""
    with torch._C._DisableTorchDispatch():
        return State(*roots)


def picked(batch: Any, axis: int, size: int, rows: Sequence[int]) -> Any:
    """A batch with these rows of all that is `size` long along an axis."""
    if isinstance(batch, Inputs):
        args, kwargs = picked((batch.args, batch.kwargs), axis, size, rows)
        return Inputs(*args, **kwargs)
    long = {path: x for path, x in leaves(batch) if x.ndim > axis and x.shape[axis] == size}
    return replaced(batch, {path: x.index_select(axis, torch.tensor(rows).to(x.device)) for path, x in long.items()})


def fingerprint(batch: Any, most: int | None = None) -> str:
    """A fingerprint of a batch's tensors; of `most`, about so many numbers of each."""
    mark = hashlib.sha256()
    for x in model_tensors(batch):
        mark.update(repr((tuple(x.shape), str(x.layout), str(x.dtype))).encode())
        for part in strided_parts(x.detach()):
            flat = part.reshape(-1)
            mark.update(content(flat if most is None else flat[:: max(len(flat) // most, 1)]))
    return mark.hexdigest()


def weights_mark(module: nn.Module) -> str:
    """A fingerprint of a model's parameters and buffers: a training step changes it."""
    return fingerprint([*module.parameters(), *module.buffers()], most=64)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two velocities are equal, NaN in the same places."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def per_sample(v: Tensor) -> Tensor:
    """v as (B, n) in float32."""
    return v.detach().float().reshape(len(v), -1)


def _fitted(mask: Tensor | None, v: Tensor) -> Tensor | None:
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
