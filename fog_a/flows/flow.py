"""A flow: a model that gives a velocity for a batch, a time and a seed. The base class of every adapter.

    x_t = α(t) x_1 + σ(t) x_0,    v = v_θ(x_t, t, c),    t = 0 is noise, t = 1 is data

A subclass says how one kind of model is read: `velocity` and `samples` are its own; `interface`, `tokens` and `loss`
have defaults. See docs/write-an-adapter.md.
"""

from __future__ import annotations

import abc
import copy
import numbers
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.errors import BadBatch, ShapeMismatch, Unsupported
from fog_a.flows.frames import as_tokens, counts_more, token_mask
from fog_a.flows.override import Forward, Override, reference
from fog_a.flows.samples import Samples


class Flow(abc.ABC):
    """A model that fog_a can read, and the base class of adapters.

    Attributes:
        model: the model object that the adapter reads.
        module: the velocity network: its blocks are found, and rows of its batch are multiplied.
        t: the name of the network's argument that holds the flow time, for what depends on the time in training.
        package, version: what the adapter was read at; another installed version warns.
        checkout: in place of `package`, the name by which a repository without a package is imported.

    Raises:
        Unsupported: a subclass without `velocity` or `samples` is made.
    """

    package: ClassVar[str | None] = None
    checkout: ClassVar[str | None] = None
    version: ClassVar[str | None] = None
    t: str | None = None
    model: Any
    module: nn.Module
    override: Override = Override()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls.__abstractmethods__:
            missing = " and ".join(sorted(cls.__abstractmethods__))
            raise Unsupported(
                f"{cls.__name__} is no adapter yet: it lacks {missing}. A subclass of fog_a.Flow defines "
                "velocity(self, batch, t, seed=0) and samples(self, batch): see docs/write-an-adapter.md"
            )
        return super().__new__(cls)

    def __init__(self, model: Any) -> None:
        self.model = self.module = model

    @staticmethod
    def matches(model: object) -> bool:
        """Whether `wrap(model)` chooses this adapter; it looks at names and imports nothing."""
        return False

    @abc.abstractmethod
    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """v(x_t, t, c) at t in [0, 1], with the noise that `seed` draws: same seed, same x_t. Calls `module` once."""

    @abc.abstractmethod
    def samples(self, batch: Any) -> Samples:
        """Ids, domains, audio and mask of the batch's samples, and `rows` for a smaller batch."""

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """The conditioning (token) embedding with its graph, for BiT-C; None where there is none."""
        return None

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """A block's output as tokens, channels last, without register or time tokens, and which of them are real.

        By default (B, T, D) as it is, (B, D) as one token, (B, D, H, W) as H·W tokens.
        """
        h = as_tokens(h)
        return h, token_mask(samples.mask, h)

    def doubt_tokens(self, outputs: Mapping[str, Sequence[Tensor]], samples: Samples, v: Tensor) -> None:
        """Warns where the default `tokens`, without a mask, takes more tokens for the data's than v has frames.

        It is called once, while outputs are recorded: an adapter may run the model on other batches to see more.
        `outputs`: block → its streams in the forward that gave v, the first of which is read.
        """
        plain = type(self).tokens is Flow.tokens and samples.mask is None
        more = next((name for name, (h, *_) in outputs.items() if plain and counts_more(h, v)), None)
        if more is not None:
            warnings.warn(
                f"{more!r} gives {outputs[more][0].shape[1]} tokens for a velocity of {tuple(v.shape)}, and all are "
                "taken for frames. Where tokens of the time, the class or the text stand among them, leave those out: "
                'fog_a.wrap(net, ..., tokens="last"), or tokens() of your adapter',
                stacklevel=4,
            )

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The model's own training loss.

        Raises:
            Unsupported: the adapter defines none.
        """
        raise Unsupported(
            f"{type(self).__name__} has no loss, and this call needs the model's own. Define loss(self, batch) in "
            "the adapter: see docs/write-an-adapter.md"
        )

    def batch_of(self, *args: Any, **kwargs: Any) -> Any:
        """The batch of a call of the model's own forward, for `AGREPA.attach`: its one argument, or its keywords.

        Raises:
            Unsupported: several arguments, of which an adapter must make the batch.
        """
        if len(args) == 1 and not kwargs:
            return args[0]
        if args:
            raise Unsupported(
                f"the forward of {type(self.model).__name__} got {len(args)} arguments and keywords "
                f"{', '.join(kwargs) or 'none'}, and {type(self).__name__} does not say which batch they are. Type "
                "reg.attach(model, batch=lambda *args, **kwargs: ...)"
            )
        return kwargs

    def target(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """What `velocity` of the same batch, t and seed is trained towards, in its shape: mostly dx_t/dt.

        Raises:
            Unsupported: the adapter defines none.
        """
        raise Unsupported(
            f"{type(self).__name__} gives no target, and metric='loss' needs one. Define target(self, batch, t, seed) "
            "in the adapter, or pass metric= a function (v, v_k, batch) -> (B,)"
        )

    def flow_time(self, tau: Tensor) -> Tensor:
        """The t in [0, 1] of what the network's argument `t` holds; by default it holds t itself."""
        return tau

    def clock(self, t: Float[Tensor, "B"]) -> Tensor:
        """What the network is given for fog_a's t, the reverse of `flow_time`; by default t itself."""
        return t

    def gain(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B"] | None:
        """dv/dp at t, where `velocity` makes v of the network's output p, and v is a line in p; None elsewhere."""
        return None

    @property
    def network_time(self) -> list[float] | None:
        """What the network is given at noise (t = 0) and at data (t = 1), where that is not t itself."""
        ends = self.clock(torch.tensor([0.0, 1.0], device="cpu")).double().reshape(-1).tolist()
        return None if ends == [0.0, 1.0] or self.override.forward is not None else ends

    @property
    def modules(self) -> list[nn.Module]:
        """The network, and the model around it where that is another module: their state is restored after a probe."""
        around = isinstance(self.model, nn.Module) and self.model is not self.module
        return [self.module, self.model] if around else [self.module]

    def overridden(
        self, forward: Forward | None = None, domains: Sequence[str] | None = None, mask: Tensor | None = None
    ) -> Self:
        """This flow, with the caller's own forward, domains or mask in place of the adapter's."""
        if forward is None and domains is None and mask is None:
            return self
        flow = copy.copy(self)
        flow.override = Override(forward, None if domains is None else tuple(domains), mask)
        return flow

    def grid(self, times: int | Sequence[float] | None) -> tuple[float | None, ...]:
        """The times to measure at: None → 8 midpoints, n → n midpoints (j + ½)/n, a list → exactly those.

        Without a time axis: (None,).

        Raises:
            BadBatch: times out of [0, 1], or any times where there is no time axis.
        """
        if self.timeless is not None:
            if times is not None:
                raise BadBatch(
                    f"{self.timeless} has no time axis, so times= means nothing to it. "
                    "Wrap it: fog_a.wrap(net, x='x', t='t'), or put t into the batch"
                )
            return (None,)
        if times is None or isinstance(times, int | numbers.Integral):
            n = 8 if times is None else int(times)
            if n < 1:
                raise BadBatch(f"expected at least one time, got times={n}. Give a number of midpoints or a list")
            return tuple((j + 0.5) / n for j in range(n))
        try:
            grid = tuple(float(t) for t in times)
        except TypeError:
            raise BadBatch(
                f"expected times= as a number of midpoints or a list of times in [0, 1], got {times!r}. "
                f"For one time type times=[{times!r}]"
            ) from None
        if not grid or any(not 0 <= t <= 1 for t in grid):
            raise BadBatch(f"expected times in [0, 1], at least one, got {list(times)}. t = 0 is noise, t = 1 is data")
        return grid

    @property
    def timeless(self) -> str | None:
        """What has no time axis here, in words, if there is none."""
        return None if self.override.forward is None else "a forward= of your own"

    def samples_of(self, batch: Any, shape: Sequence[int], start: int = 0) -> Samples:
        """The samples of a batch whose velocity has this shape, with the caller's domains and mask.

        Args:
            start: the number of samples before this batch: samples without names are numbered from it.

        Raises:
            BadBatch: another number of samples than of velocities. ShapeMismatch: another number of domains.
        """
        samples = self._samples_of(batch, shape, start)
        domains, mask = self.override.domains, self.override.mask
        if domains is not None and len(domains) != len(samples):
            raise ShapeMismatch(
                f"expected one domain per sample, {len(samples)} of them, got {len(domains)}. "
                "Give domains= as many names"
            )
        samples = samples if domains is None else replace(samples, domains=domains)
        return samples if mask is None else replace(samples, mask=mask)

    def _samples_of(self, batch: Any, shape: Sequence[int], start: int) -> Samples:
        samples = self.samples(batch)
        if len(samples) != shape[0]:
            raise BadBatch(
                f"expected one velocity per sample, got {len(samples)} samples and an output of {tuple(shape)}. "
                "Its first axis must be the samples: see the adapter's velocity() and samples()"
            )
        return samples

    @property
    def key(self) -> Hashable:
        """Tells this way to run the model from every other; it keeps neither a flow nor a forward alive."""
        return reference(self.override.forward or self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"
