"""The words: a block, the sequence of them, a batch, its samples, an adapter, a teacher.

Shape legend, used everywhere: B batch (samples), T tokens (frames), D width, L blocks, S scored samples, J times.

A residual block computes `h_l = h_{l-1} + g_l · f_l(h_{l-1}, t, c)` (Eq. 7) with g_l = 1. What follows names one such
block in somebody's model and says how its gate g_l is reached by hooks; nothing here touches a model.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, overload, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.errors import NotResidual, UnknownBlock

LeafPath = tuple[Any, ...]
"""Where a tensor sits in nested arguments or outputs: keys, indices and attribute names from the outside in."""


@dataclass(frozen=True)
class Site:
    """One module call at which a gate acts: the `call`-th of `times` executions of `module` within a forward.

    `give` says for every output leaf that is replaced what stands there when the gate is closed: the path of the
    input leaf that carries the stream, with the index of each of its elements, or None for zeros.
    """

    module: str
    call: int
    give: Mapping[LeafPath, Passage | None] = field(hash=False)
    times: int = 1
    order: int = 0
    """When it runs, among all module calls of the forward."""
    once: bool = True
    """Whether the model itself is called once in a forward: then its executions count from there."""
    elements: int = field(default=0, compare=False)
    """Size of what it gives out, when the blocks were found."""


@dataclass(frozen=True)
class Passage:
    """How an output leaf is made from the input leaves when the gate is closed.

    `sources` are input leaves: ("args", 0), ("kwargs", "x"). One source is taken as it is, its axes permuted by `dims`
    if given. Where the streams are cut or joined, `index` gathers elements of all sources laid end to end, `size` in
    all, numbered from 1; 0 = computed by the block itself.
    """

    sources: tuple[LeafPath, ...]
    dims: tuple[int, ...] | None = None
    index: Tensor | None = field(default=None, compare=False)
    size: int = 0


@dataclass(frozen=True)
class Spot:
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
    plus: Spot | None = None


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
    sites: tuple[Site, ...] = field(default=(), repr=False)
    outputs: tuple[Spot, ...] = field(default=(), repr=False)

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
    input, `blocks.stacks` groups them by stack.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], model: nn.Module) -> None:
        self._blocks = tuple(blocks)
        self._model = weakref.ref(model)

    @property
    def model(self) -> nn.Module:
        """The model the blocks were found in."""
        model = self._model()
        if model is None:
            raise UnknownBlock("the model of these blocks is gone: keep it alive, or call find_blocks again")
        return model

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(b.name for b in self._blocks)

    @property
    def main(self) -> Blocks:
        """The blocks whose update depends on the attributed input (x_t)."""
        return Blocks([b for b in self._blocks if b.main], self.model)

    @property
    def stacks(self) -> dict[str, Blocks]:
        """The blocks of each stack, stacks in order of first execution."""
        groups: dict[str, list[ResidualBlock]] = {}
        for b in self._blocks:
            groups.setdefault(b.stack, []).append(b)
        return {stack: Blocks(members, self.model) for stack, members in groups.items()}

    def named(self, names: Sequence[str]) -> Blocks:
        """These blocks, in the order asked for. Raises UnknownBlock with near matches."""
        table = {b.name: b for b in self._blocks}
        for name in names:
            if name not in table:
                near = difflib.get_close_matches(name, table, n=3, cutoff=0.3)
                hint = f"; near: {', '.join(near)}" if near else ""
                raise UnknownBlock(
                    f"no block is named {name!r} (there are {len(table)}: {', '.join(list(table)[:4])}, …){hint}. "
                    "find_blocks(model, batch).names lists them all"
                )
        return Blocks([table[name] for name in names], self.model)

    @overload
    def __getitem__(self, key: int | str) -> ResidualBlock: ...
    @overload
    def __getitem__(self, key: slice) -> Blocks: ...
    def __getitem__(self, key: int | str | slice) -> ResidualBlock | Blocks:
        if isinstance(key, slice):
            return Blocks(self._blocks[key], self.model)
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

    def __repr__(self) -> str:
        return f"Blocks({', '.join(self.names)})"


class Inputs:
    """A batch of positional and keyword arguments: `model(*args, **kwargs)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"Inputs(*{self.args!r}, **{self.kwargs!r})"


@dataclass(frozen=True)
class Samples:
    """What an adapter knows of a batch's samples.

    Attributes:
        ids: a stable name for each sample (the key of cached features).
        domains: one name per sample, e.g. "speech", "sound".
        audio: waveforms (B, N), or None where the batch holds none.
        rate: their sample rate in Hz, or None.
        lengths: valid audio samples of each, or None: all.
        mask: True where v counts, broadcastable to v, or None: everywhere.
        rows: gives a smaller batch of the same kind, of the samples at these indices.
    """

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    rows: Callable[[Sequence[int]], Any]
    audio: Float[Tensor, "B N"] | None = None
    rate: int | None = None
    lengths: Tensor | None = None
    mask: Bool[Tensor, "B ..."] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@runtime_checkable
class Adapter(Protocol):
    """What fog_a must know of a flow-matching model. A third party implements this; see docs/write-an-adapter.md."""

    module: nn.Module
    """The velocity network: where the blocks are, and where rows are fanned out."""

    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int) -> Float[Tensor, "B ..."]:
        """v(x_t, t, c) at time t, with the noise that `seed` draws: same seed, same x_t. Module calls `module` once."""
        ...

    def samples(self, batch: Any) -> Samples:
        """The batch's samples: ids, domains, audio, mask of v, and `rows`."""
        ...

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """The conditioning (token) embedding with its graph, for BiT-C; None where there is none."""
        ...

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """A block's output as tokens, channels last, without register or time tokens, and which of them are real."""
        ...

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The model's own training loss."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """A frozen feature extractor: one pooled vector per sample."""

    name: str
    dim: int
    domain: str | None

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """Features pooled over the real frames; no grad."""
        ...


def default_mask(v: Tensor) -> Bool[Tensor, "..."]:
    """True everywhere: what a missing mask means."""
    return torch.ones((), dtype=torch.bool, device=v.device).expand(v.shape)
