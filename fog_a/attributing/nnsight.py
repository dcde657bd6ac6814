"""The same ablations through nnsight, for models that are wrapped in it already.

    with nn_model.trace(...):
        envoy.output = what a closed gate gives, made of envoy.inputs and envoy.output
        v = nn_model.output.save()

One trace per ablation, each of the network's own call as the base made it, with the random numbers of that call. What
is written to an envoy is computed by the code of `fog_a.blocks.gate`, so both engines agree. nnsight is imported only
when asked for: it mounts `save` on `object`, which packages with beartype (voicebox-pytorch) do not survive if they are
imported later.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from fog_a.attributing.variants import Variants
from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.calls import hooked
from fog_a.blocks.gate import closed, kept_inputs
from fog_a.blocks.untouched import preserved, rng, rng_state, set_rng
from fog_a.errors import MissingDependency, Unsupported
from fog_a.flows.bare import flow_of
from fog_a.flows.batches import velocity_of
from fog_a.flows.case import Case
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Inputs

Call = tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]


class Envoys:
    """A model as nnsight sees it.

    Args:
        model: an `nnsight.NNsight` or `LanguageModel`; a module or flow is wrapped here.
        remote: passed to nnsight's `trace`; only its wrappers of hub models (LanguageModel, …) run remotely.

    Raises:
        MissingDependency: nnsight is absent. Unsupported: `remote` for a private module, weights that are not loaded.
    """

    def __init__(self, model: Any, remote: bool = False) -> None:
        try:
            import nnsight
            from nnsight.intervention.envoy import Envoy
        except ImportError as error:
            raise MissingDependency("fog_a.NNsight() needs nnsight: pip install 'fog-a[nnsight]'") from error
        wrapped = isinstance(model, Envoy)
        self.traced: Any = model if wrapped else nnsight.NNsight(flow_of(model).module)
        self.model: nn.Module | Flow = model._module if wrapped else model
        if remote and not hasattr(self.traced, "_remoteable_model_key"):
            raise Unsupported(
                f"nnsight runs hub models remotely (LanguageModel, DiffusionModel, …), not a private "
                f"{type(self.traced._module).__name__}. Leave remote=False"
            )
        if any(p.is_meta for p in self.traced._module.parameters()):
            raise Unsupported("the blocks are found in one local forward: load the weights, with dispatch=True")
        self.remote = {"remote": True} if remote else {}

    def batch(self, batch: Any) -> Any:
        """Text for a language model becomes what nnsight calls its module with; anything else is left as it is."""
        texts = [batch] if isinstance(batch, str) else batch
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            return batch
        calls: list[Inputs] = []
        module = self.traced._module
        with (
            preserved(module),
            hooked(module, before=lambda args, kwargs: calls.append(Inputs(*args, **kwargs))),
            self.traced.trace(texts),
        ):
            self.traced.output.save()
        return calls[0]

    def variants(self, case: Case, blocks: Blocks, value: float = 0.0) -> Variants:
        """The base velocity and, for each block, the ablated one."""
        for block in blocks:
            check(block)
        call, v = self._call(case)

        traced = self._traced(call)
        if torch.equal(traced, -v):
            v = -v  # its time runs to noise; a relative change has no sign
        if traced.shape != v.shape or not torch.allclose(traced, v, rtol=1e-5, atol=1e-5, equal_nan=True):
            raise Unsupported(
                "the velocity is not what the network itself gives out, and nnsight sees only that. Leave how= out"
            )
        return Variants(traced, "nnsight", (self._traced(call, block, value) for block in blocks))

    def _call(self, case: Case) -> tuple[Call, Tensor]:
        """What the network is called with in a run of the case, and the velocity of that run."""
        calls: list[Call] = []

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, dict(kwargs), rng_state()))

        with hooked(case.module, before=before):
            v = case.run()
        if len(calls) != 1:
            raise Unsupported(f"nnsight traces one call of the network; this velocity makes {len(calls)}")
        return calls[0], v

    def _traced(self, call: Call, block: ResidualBlock | None = None, value: float = 0.0) -> Tensor:
        (args, kwargs, random), found = call, []
        plan = [] if block is None else [(block, point) for point in block.gate_points]
        with contextlib.ExitStack() as stack:
            stack.enter_context(rng(None))
            set_rng(random)
            with self.traced.trace(*args, **kwargs, **self.remote):
                for block, point in plan:
                    at = self.traced.get(point.module) if point.module else self.traced
                    inputs = at.inputs
                    kept = kept_inputs(point, inputs[0], inputs[1])
                    at.output = closed(point, block, kept, at.output, value)
                found.append(self.traced.output.save())
        return velocity_of(found[0])


def check(block: ResidualBlock) -> None:
    """Unsupported if nnsight cannot reach this block's calls."""
    if block.alone:
        raise Unsupported(
            f"{block.name!r}: its gates lie inside each other, and an envoy is reached once, in order. "
            "Leave how= out, or leave this block out with blocks="
        )
    for point in block.gate_points:
        if point.times > 1:
            raise Unsupported(
                f"{block.name!r}: {point.module!r} is called {point.times} times in one forward, and an envoy "
                "stands for one call. Leave how= out, or leave this block out with blocks="
            )
