"""A residual block, where a gate reaches it, and the sequence of a model's blocks.

Shape legend, used everywhere: B batch (samples), T tokens (frames), D width, L blocks, S scored samples, J times.

A residual block computes `h_l = h_{l-1} + g_l · f_l(h_{l-1}, t, c)` (Eq. 7) with g_l = 1. What follows names one such
block in somebody's model and says how its gate g_l is reached by hooks; nothing here touches a model.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, overload

from torch import Tensor, nn

from fog_a.blocks.coverage import Coverage
from fog_a.blocks.tree import LeafPath
from fog_a.errors import NotResidual, UnknownBlock, Unsupported, near


@dataclass(frozen=True)
class GatePoint:
    """One module call at which a gate acts: the `call`-th of `times` executions of `module` within a forward.

    `give` says for every output leaf that is replaced what stands there when the gate is closed: the path of the
    input leaf that carries the stream, with the index of each of its elements, or None for zeros.
    """

    module: str
    call: int
    give: Mapping[LeafPath, Source | None] = field(hash=False)
    times: int = 1
    order: int = 0
    """When it runs, among all module calls of the forward."""
    once: bool = True
    """Whether the model itself is called once in a forward: then its executions count from there."""
    scales: bool = True
    """Whether the update is halved where what is given out is: not where the model norms it before it adds it."""
    elements: int = field(default=0, compare=False)
    """Size of what it gives out, when the blocks were found."""


@dataclass(frozen=True)
class Source:
    """How an output leaf is made from the input leaves when the gate is closed.

    `sources` are input leaves: ("args", 0), ("kwargs", "x"). One source is taken as it is, its axes permuted by `dims`
    if given. With `broadcast` it is smaller than the output, and is expanded to its shape: a total that begins as a
    parameter. Where the streams are cut or joined, `index` gathers elements of all sources laid end to end, `size` in
    all, numbered from 1; 0 = computed by the block itself. Where no module gives out the update, but one inside the
    call gives its shortcut, `inside` is where that is read, and there are no `sources`.
    """

    sources: tuple[LeafPath, ...]
    dims: tuple[int, ...] | None = None
    index: Tensor | None = field(default=None, compare=False)
    size: int = 0
    inside: TapPoint | None = None
    broadcast: bool = False


@dataclass(frozen=True)
class TapPoint:
    """Where the block's output h_l can be read: a leaf of a module call's output or input, left by one forward.

    Where no module sees h_l, `plus` is where the other addend is read: h_l is their sum.
    """

    module: str
    call: int
    side: Literal["input", "output"]
    leaf: LeafPath
    times: int = 1
    overwritten: bool = False
    """Whether the model writes into it later: then it must be copied."""
    plus: TapPoint | None = None


@dataclass(frozen=True)
class ResidualBlock:
    """One residual layer (or branch) of a model, as `find_blocks` returns it.

    Attributes:
        name: dotted path as in `named_modules()`; for a layer without a module of its own, its container's;
            a module executed several times: `path@0`, `path@1`, …
        stack: the repeated stack it belongs to, e.g. `transformer_blocks`.
        index: its place in that stack, from 0.
        form: `"stream"`: a module takes the stream in and gives it out; `"branch"`: its modules return updates
            that the parent adds.
        definition: what gate 0 does: `"identity"` (output = input) or `"branches"` (the updates are zero).
        inputs: names of the model inputs that its update depends on.
        parts: the modules that do the work of its branches, as a reader would name them.
    """

    name: str
    stack: str
    index: int
    form: Literal["stream", "branch"]
    definition: Literal["identity", "branches"]
    inputs: frozenset[str]
    parts: tuple[str, ...]
    main: bool = field(default=True, repr=False)
    gate_points: tuple[GatePoint, ...] = field(default=(), repr=False)
    outputs: tuple[TapPoint, ...] = field(default=(), repr=False)

    @property
    def alone(self) -> bool:
        """Whether it can only be closed in a forward of its own: its gates lie inside each other, or read inside it."""
        sources = [source for point in self.gate_points for source in point.give.values()]
        nested = len(self.gate_points) > 1 and any(
            point.module == self.name.split("@")[0] for point in self.gate_points
        )
        return nested or any(source is not None and source.inside is not None for source in sources)

    def envoy(self, model: Any) -> Any:
        """This block in a model that is wrapped in nnsight: `blocks[3].envoy(nn_model)`.

        Of a layer that has no module of its own, its container: `parts` name the modules that are called.

        Raises:
            NotResidual: no such module there.
        """
        path = self.name.split("@")[0].split("[")[0]
        try:
            return model.get(path)
        except (AttributeError, KeyError, IndexError) as error:
            raise NotResidual(
                f"{path!r} is no envoy of this {type(model).__name__}: wrap the module that the blocks were found in"
            ) from error


class Blocks(Sequence[ResidualBlock]):
    """A read-only sequence of blocks in order of execution. Knows its model by a weak reference.

    Index by number, by slice (→ `Blocks`) or by name; `blocks.main` are those whose update depends on the attributed
    input, `blocks.stacks` groups them by stack. `blocks.coverage` says what became of every residual update of the
    forward in which they were found; a part of them (a slice, `main`) keeps it, and knows all as `among`.
    """

    def __init__(
        self,
        blocks: Sequence[ResidualBlock],
        model: nn.Module,
        coverage: Coverage | None = None,
        among: Sequence[ResidualBlock] = (),
    ) -> None:
        self._blocks = tuple(blocks)
        self._model = weakref.ref(model)
        self.coverage = Coverage() if coverage is None else coverage
        self.among = tuple(among) or self._blocks

    @property
    def model(self) -> nn.Module:
        """The model the blocks were found in."""
        model = self._model()
        if model is None:
            raise UnknownBlock("the model of these blocks is gone: keep it alive, or call find_blocks again")
        return model

    def _part(self, blocks: Sequence[ResidualBlock]) -> Blocks:
        return Blocks(blocks, self.model, self.coverage, self.among)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(b.name for b in self._blocks)

    @property
    def main(self) -> Blocks:
        """The blocks whose update depends on the attributed input (x_t)."""
        return self._part([b for b in self._blocks if b.main])

    @property
    def stacks(self) -> dict[str, Blocks]:
        """The blocks of each stack, stacks in order of first execution."""
        groups: dict[str, list[ResidualBlock]] = {}
        for b in self._blocks:
            groups.setdefault(b.stack, []).append(b)
        return {stack: self._part(members) for stack, members in groups.items()}

    def named(self, names: str | Sequence[str]) -> Blocks:
        """These blocks, each once, in the order asked for. Raises UnknownBlock with near matches."""
        table = {b.name: b for b in self._blocks}
        several = isinstance(names, (Collection, Iterator)) and not isinstance(names, str)
        names = list(names) if several else [cast(str, names)]
        for name in names:
            if not isinstance(name, str):
                raise UnknownBlock(
                    f"expected a block's name, got {name!r:.40}. Type selection.layers, or blocks[2:3] by number"
                )
            if name not in table:
                raise UnknownBlock(
                    f"no block is named {name!r} (there are {len(table)}: {', '.join(list(table)[:4])}, …)"
                    f"{near(name, table)}. find_blocks(model, batch).names lists them all"
                )
        return self._part([table[name] for name in dict.fromkeys(names)])

    @overload
    def __getitem__(self, key: int | str) -> ResidualBlock: ...
    @overload
    def __getitem__(self, key: slice) -> Blocks: ...
    def __getitem__(self, key: int | str | slice) -> ResidualBlock | Blocks:
        if isinstance(key, slice):
            return self._part(self._blocks[key])
        if isinstance(key, str):
            return self.named([key])[0]
        return self._blocks[key]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[ResidualBlock]:
        return iter(self._blocks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocks) and self._blocks == other._blocks

    def __hash__(self) -> int:
        return hash(self._blocks)

    def __deepcopy__(self, memo: Any) -> Blocks:
        return self  # read-only, and of the same model

    def __reduce__(self) -> Any:
        raise Unsupported(
            "Blocks cannot be pickled: they are of the model in this process. Keep blocks.names, and type "
            "find_blocks(model, batch).named(names) where the model is loaded"
        )

    def __repr__(self) -> str:
        return f"Blocks({', '.join(self.names)})"


def checked_blocks(blocks: object) -> Blocks:
    """Raises UnknownBlock for anything but Blocks, which alone know their model."""
    if not isinstance(blocks, Blocks):
        raise UnknownBlock(
            f"expected Blocks, got {str(blocks)[:60]!r}. Type find_blocks(model, batch).named([names]), or a slice: "
            "find_blocks(model, batch)[2:3]"
        )
    return blocks
