"""Listening: the chosen layers' outputs in the user's own forward, as tokens; no second forward, no copy.

Autograd keeps h_k for the next block anyway; a reference to it costs nothing until `clear`. What eval forwards and
the recomputation of gradient checkpointing produce is not recorded. Under re-entrant checkpointing a block's output is
made without a graph and gets a graph on its way out of the checkpoint, so the graph is looked for when h_k is read.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Sequence
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from fog_a.aligning.schedules import flow_times
from fog_a.aligning.targets import TokensOfLayer
from fog_a.blocks.block import Blocks, ResidualBlock, TapPoint
from fog_a.blocks.calls import hooked, named_modules, unwrapped
from fog_a.blocks.local import check_local, local
from fog_a.blocks.tap import tap
from fog_a.errors import BadScores, NoActivations, ShapeMismatch, UnknownBlock
from fog_a.flows.flow import Flow
from fog_a.flows.network import argument, arguments
from fog_a.flows.samples import Samples

Local = bool | str | Collection[str]
"""The layers that are aligned locally: all, or those of these names."""

SAVED = ("name", "stack", "index", "form", "definition", "parts", "outputs")
"""What a checkpoint holds of a block that is listened to."""

points = TypeAdapter(tuple[TapPoint, ...])


class Listening:
    """A long-lived tap on a few blocks of a flow's network, and on its time.

    Args:
        clock: whether the flow times are needed: then they are heard before there are blocks to listen to, and checked.
    """

    def __init__(self, flow: Flow, clock: bool = False, local: Local = False) -> None:
        self.flow, self.clock = flow, clock
        self.local = {local} if isinstance(local, str) else local if isinstance(local, bool) else frozenset(local)
        self.blocks: Blocks | None = None
        self.t: Tensor | None = None
        """The flow times of the last forward, where the adapter names by `t` the network's argument that holds them."""
        self._tap: tap | None = None
        self._ignores = False  # whether the forward that runs now leaves nothing
        self._entrance = contextlib.ExitStack()
        self.open()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a regularizer listens to the copy of its model, once it is opened there."""
        return {"flow": self.flow, "clock": self.clock, "local": self.local, "blocks": self.state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["flow"], local=state["local"])
        self.clock, self.blocks = state["clock"], self._blocks(state["blocks"])

    def open(self, blocks: Blocks | None = None) -> None:
        """Listen to these blocks, or again to those of before. Raises Unsupported for one that cannot be local."""
        if blocks is not None:
            self.close()
            for block in filter(self._alone, blocks):
                check_local(block, named_modules(self.flow.module))
            self.blocks = blocks
        if self.blocks is not None and self._tap is None:
            self._tap = tap(self.blocks, when=self._hears).open()
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()  # code compiled before the hooks were there would never call them
        if self.clock or self.blocks is not None:
            self._stand_at_the_entrance()

    def close(self) -> None:
        """Take every hook away; the model is as if we had never been there."""
        self.clear()
        if self._tap is not None:
            self._tap.close()
            self._tap = None
        self._entrance.close()

    def clear(self) -> None:
        """Drop what was recorded."""
        self.t = None
        if self._tap is not None:
            self._tap.clear()

    def read(self, samples: Samples) -> dict[str, TokensOfLayer]:
        """Each block's tokens in the last forward, with their graph. Raises NoActivations, ShapeMismatch."""
        assert self.blocks is not None
        return {block.name: self._tokens(block, samples) for block in self.blocks}

    def times(self, t: Tensor | None, count: int) -> Tensor | None:
        """The flow times of `count` samples, from the caller or the network; None where nobody needs them."""
        heard = None if self.t is None else self.flow.flow_time(self.t)
        times = heard if t is None else torch.as_tensor(t)
        if self.clock or t is not None:
            return flow_times(times, count)
        return None if times is None or times.numel() not in (1, count) else times.float().reshape(-1).expand(count)

    def check(self, names: Sequence[str]) -> None:
        """That the local layers are among these. Raises UnknownBlock."""
        unknown = [] if isinstance(self.local, bool) else sorted({*self.local} - {*names})
        if unknown:
            raise UnknownBlock(
                f"local= names {unknown[0]!r}, and the layers to align are {', '.join(names)}. Type local=True for "
                "all, or names of theirs"
            )

    def _alone(self, block: ResidualBlock) -> bool:
        return self.local if isinstance(self.local, bool) else block.name in self.local

    def _tokens(self, block: ResidualBlock, samples: Samples) -> TokensOfLayer:
        if self._tap is None or block.name not in self._tap:
            raise NoActivations(
                f"nothing was recorded of {block.name!r} since the last call: expected one forward of the model in "
                "train mode, with grad, before reg(batch). Type loss = flow.loss(batch) + reg(batch); after "
                "reg.close(), reg.open()"
            )
        h = self._tap[block.name]
        if not h.requires_grad:
            raise NoActivations(
                f"{block.name!r} was recorded without a graph, so its alignment cannot train the model. Under "
                "re-entrant checkpointing: checkpoint(..., use_reentrant=False), or checkpoint each block alone. "
                "Otherwise: the forward ran under no_grad, or every parameter up to this block is frozen"
            )
        if self._alone(block):
            h = local(h, block, named_modules(self.flow.module))
        tokens, mask = self.flow.tokens(h, block, samples)
        if tokens.ndim != 3 or len(tokens) != len(samples):
            raise ShapeMismatch(
                f"{block.name!r}: the adapter's tokens are {tuple(tokens.shape)}, expected ({len(samples)}, T, D): "
                "one row per sample. Call reg with the batch of the last forward"
            )
        return tokens, mask

    def _hears(self) -> bool:
        """Whether a forward that runs now can be one of training: not evaluation, not recomputation."""
        if torch.compiler.is_compiling():
            return True  # traced once for all forwards; what an eval forward leaves is dropped at the next call
        backward = torch._C._current_graph_task_id() != -1  # what torch.utils.checkpoint itself asks
        return not self._ignores and not backward and (torch.is_grad_enabled() or self.flow.module.training)

    def _stand_at_the_entrance(self) -> None:
        """Keep the argument t of each training forward, and ignore one without grad that comes after one with it."""
        network, name = unwrapped(self.flow.module), self.flow.t
        names = arguments(network)

        def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not torch.compiler.is_compiling():
                trained = self._tap is not None and any(h.requires_grad for (h, *_) in self._tap.all.values())
                self._ignores = trained and not torch.is_grad_enabled()
            if self._hears():
                t = argument(names, args, kwargs, name)
                self.t = t.detach() if isinstance(t, Tensor) else None

        self._entrance.close()
        self._entrance.enter_context(hooked(network, before=enter))

    def state(self) -> list[dict[str, Any]] | None:
        """Where to listen, JSON-able: a resumed run listens from its first forward on."""
        if self.blocks is None:
            return None
        rows = [{field: getattr(block, field) for field in SAVED} for block in self.blocks]
        return [{**row, "outputs": points.dump_python(row["outputs"], mode="json")} for row in rows]

    def restore(self, state: Sequence[dict[str, Any]] | None) -> None:
        """The reverse of `state`. Raises BadScores where the model has no such modules."""
        self.close()
        self.blocks = self._blocks(state)
        self.open()

    def _blocks(self, state: Sequence[dict[str, Any]] | None) -> Blocks | None:
        if state is None:
            return None
        blocks, modules = [], named_modules(self.flow.module)
        for row in state:
            outputs = points.validate_python(row["outputs"])
            missing = [p.module for point in outputs for p in (point, point.plus) if p and p.module not in modules]
            if missing:
                raise BadScores(
                    f"this state was saved with another model: it aligns {row['name']!r}, and this one has no module "
                    f"{missing[0]!r}. Load it beside the model that it was trained with, or start AGREPA anew"
                )
            fields = {**row, "outputs": outputs, "parts": tuple(row["parts"])}
            blocks.append(ResidualBlock(inputs=frozenset(), **fields))
        return Blocks(blocks, unwrapped(self.flow.module))
