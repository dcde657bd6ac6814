"""The adapter for any velocity network `net(x_t, t, **cond)`, in any convention.

    x_t = α(t) x_1 + σ(t) x_0,   x_0 ~ N(0, σ²),   L = mean over real frames of (prediction − target)²     Eq. 21–23

By default x_t = (1 − t) x_0 + t x_1 and the prediction is v* = x_1 − x_0. What a network has otherwise is declared:
`path=`, `target=` and `time=` (fog_a.flows.convention), `x=`, `t=`, `rename=`, `call=` and `out=`
(fog_a.flows.network), `channels=`, `stream=` and `tokens=` (fog_a.flows.frames).

A batch is a mapping with the data, the conditioning, and the keys of `fog_a.flows.dicts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.blocks.calls import unwrapped
from fog_a.errors import BadBatch, Unsupported
from fog_a.flows.convention import Convention, TargetFunction, TimeFunction, sample_times
from fog_a.flows.dicts import ABOUT, require_keys, samples_from, to_module
from fog_a.flows.flow import Flow
from fog_a.flows.frames import STREAMS, Which, as_tokens, check_stream, data_mask, data_tokens, patch_mask
from fog_a.flows.halves import check_halves
from fog_a.flows.network import CallFunction, NetworkCall, Out
from fog_a.flows.noise import noise
from fog_a.flows.paths import Path, PathFunction, path_of
from fog_a.flows.samples import Samples

Draw = Callable[[Tensor], Tensor]
"""Noise in the shape of what it is given."""


class Prediction(NamedTuple):
    """What a network predicted at x_t, and what x_t was made of."""

    output: Float[Tensor, "B ..."]
    x_t: Float[Tensor, "B ..."]
    x0: Float[Tensor, "B ..."]
    x1: Float[Tensor, "B ..."]
    t: Float[Tensor, "B ..."]


class GenericAdapter(Flow):
    """Adapter of a network that is called with x_t and a time, in any convention.

    Args:
        net: the velocity network; its prediction has the shape of x_t.
        x: name of its argument x_t, or None: it is the first positional one.
        t: name of its argument t (B,), or None: it is the positional one after x_t.
        time: what the network is given for fog_a's t, which runs from 0 (noise) to 1 (data): a function of t (B,), such
            as `lambda t: 1000 * (1 - t)`. None: t itself; with `path="ddpm"` the step, with `path="edm"` σ.
        target: what the network predicts: `"v"`, the slope of the path in the direction in which its time runs; `"-v"`,
            `"eps"`, the noise; `"x0"`, the clean data (fog_a's x_1); `"v_prediction"` (diffusers' name); or a function
            `(x_0, x_1, t) -> target`.
        path: `"linear"`, `"cosine"`, `"ddpm"`, `"edm"`, or a function `(x_0, x_1, t) -> (x_t, dx_t/dt)` with t of shape
            (B, 1, …).
        betas: of `path="ddpm"`, one for each step; by default 1000 from 1e-4 to 0.02.
        sigma: standard deviation of the noise x_0.
        call: a function `(net, x_t, t, cond) -> output` for networks that take nested or positional conditions; t is
            the network's, cond a dict of the batch's other keys. It replaces `x`, `t` and `rename`.
        out: where the prediction is in the output: a key or attribute, an index, or a function of the output.
        rename: key of the batch → name of the network's argument.
        data: key of the batch that holds x_1 (B, …).
        mask: key of a bool mask, True = real, (B, T) or in the axes of x_1; given to the network only if its forward
            names it.
        channels: the axis of D in x_1: `"last"` (B, T, D) or `"first"` (B, D, T). Four axes are (B, D, H, W).
        stream: the axes of the blocks' outputs: `"BTD"`, `"BDT"` or `"TBD"`; None: as `channels` says.
        tokens: which tokens of the stream are the data's, where others (time, class, text, registers) stand in the same
            sequence: `"last"` or `"first"`, as many as x_1 has frames, or a slice: `slice(2, None)`. None: all.
        shared: keys of the batch that belong to no sample, such as positions: a smaller batch has them whole.
        domains: one name for all samples, or a function `batch -> names`; by default the batch's key `domains`.
        interface: a function `(net, batch) -> (B, T, D)`, the conditioning embedding with its graph, for BiT-C.

    Every other key of the batch is conditioning, given to the network by its name. A bare tensor is `{data: tensor}`.

    Raises:
        Unsupported: conventions that contradict each other, or names that the network does not have.

    >>> net = lambda x_t, t: x_t * t[:, None]
    >>> flow = GenericAdapter(net)
    >>> flow.velocity({"x1": torch.ones(2, 3)}, t=0.5, seed=0).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        x: str | None = "x_t",
        t: str | None = "t",
        *,
        time: TimeFunction | None = None,
        target: str | TargetFunction = "v",
        path: str | PathFunction | Path = "linear",
        betas: Any = None,
        sigma: float = 1.0,
        call: CallFunction | None = None,
        out: Out = None,
        rename: Mapping[str, str] | None = None,
        data: str = "x1",
        mask: str = "mask",
        channels: str = "last",
        stream: str | None = None,
        tokens: Which = None,
        shared: Sequence[str] = (),
        domains: str | Callable[[Any], Sequence[str]] | None = None,
        interface: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        if channels not in ("first", "last"):
            raise Unsupported(f'channels is "first" or "last", got {channels!r}')
        if stream not in (None, *STREAMS):
            raise Unsupported(f'stream is "BTD", "BDT" or "TBD", got {stream!r}')
        if tokens not in (None, "first", "last") and not isinstance(tokens, slice):
            raise Unsupported(f'tokens is "first", "last" or a slice such as slice(2, None), got {tokens!r}')
        self.convention = Convention(path_of(path, betas), target, time)
        if sigma != 1 and self.convention.path.name in ("ddpm", "edm"):
            raise Unsupported(f'path="{path}" fixes the noise it adds: leave out sigma={sigma}')
        self.model = net  # its loss goes through DDP's or compiled forward, if such is around it; probes go past
        self.module = unwrapped(net) if isinstance(net, nn.Module) else net
        self.network = NetworkCall(x, t, mask, rename or {}, call, out)
        self.network.check(self.module)
        self.gives = () if call is not None else tuple(name for name in (x, t) if name not in (None, data))
        self.t, self.data, self.mask, self.shared = None if call is not None else t, data, mask, tuple(shared)
        self.sigma, self.channels, self.stream, self.domains = sigma, channels, stream, domains
        self.which: Which = tokens
        self._interface = interface

    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """v = dx_t/dt at (x_t, t, c), x_t from the noise that `seed` draws for each sample."""
        p = self.predict(batch, t, seed)
        return self.convention.velocity(p.output, p.x_t, p.t)

    def target(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """dx_t/dt of the path, from the noise that `seed` draws for each sample."""
        cond = self._read(batch)
        x1 = cond[self.data]
        x0 = self.sigma * noise(x1, self._described(batch, x1).ids, seed)
        return self.convention.path(x0, x1, spread(sample_times(t, x1), x1))[1]

    def predict(
        self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0, convention: Convention | None = None
    ) -> Prediction:
        """What the network itself predicts, as this or another convention calls it."""
        convention, cond = convention or self.convention, self._read(batch)
        x1 = cond.pop(self.data)
        ids, t = self._described(batch, x1).ids, sample_times(t, x1)
        x0 = self.sigma * noise(x1, ids, seed)
        cond = self.noised(cond, t, lambda x: self.sigma * noise(x, [f"{name}/beside" for name in ids], seed))
        x_t, _ = convention.path(x0, x1, spread(t, x1))
        return Prediction(self._call(self.module, x_t, t, cond, convention), x_t, x0, x1, spread(t, x1))

    def samples(self, batch: Any) -> Samples:
        """Ids (by default made of the data), domains, audio, the mask under the key `mask`, and `rows`."""
        cond = self._read(batch)
        x1, mask = cond[self.data], cond.get(self.mask)
        return self._described(batch, x1, None if mask is None else data_mask(mask, x1, self.channels))

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """What the option `interface` gives, or None."""
        return None if self._interface is None else self._interface(self.module, batch)

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """A block's output by its axes, of the data alone; (B, D, H, W) is H·W tokens, (B, D) is one."""
        stream = self.stream or ("BTD" if self.channels == "last" else "BDT")
        tokens = as_tokens(h, stream)
        if h.ndim == 3:
            x1 = self._data(samples)
            if self.stream is None:
                check_stream(h, x1, self.channels, stream)
            tokens = data_tokens(tokens, x1, self.channels, self.which)
        return tokens, patch_mask(samples.mask, h, tokens, self.channels)

    def doubt_tokens(self, outputs: Mapping[str, Sequence[Tensor]], samples: Samples, v: Tensor) -> None:
        """Raises ShapeMismatch where frames are on another axis than declared, though sizes do not show it."""
        x1, batch = self._data(samples), samples.rows(range(len(samples)))
        if x1.ndim == 3 and self.stream is None:
            stream = "BTD" if self.channels == "last" else "BDT"
            heard = lambda: [h for h, *_ in outputs.values()]  # noqa: E731
            check_halves(lambda part: self.velocity(part, 0.5), heard, batch, x1, self.channels, stream)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The mean square of (prediction − target) with t ~ U(0, 1) and the noise of torch's global generator."""
        cond = self._read(batch)
        x1, mask = cond.pop(self.data), self.samples(batch).mask
        t = torch.rand(len(x1), device=x1.device, dtype=x1.dtype)
        cond = self.noised(cond, t, lambda x: self.sigma * torch.randn_like(x))
        x_t, target = self.convention.predicted(self.sigma * torch.randn_like(x1), x1, spread(t, x1))
        error = (self._call(self.model, x_t, t, cond, self.convention) - target).square()
        return error.mean() if mask is None else error[mask.expand_as(error)].mean()

    def noised(self, cond: dict[str, Any], t: Float[Tensor, "B"], draw: Draw) -> dict[str, Any]:
        """The conditions at t, for a network with further streams of data; `draw` gives noise in the shape of x."""
        return cond

    def flow_time(self, tau: Tensor) -> Tensor:
        """The t in [0, 1] of the time that the network was given."""
        return tau if self.convention.plain else self.convention.flow_time(tau)

    def gain(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """How far the velocity moves with what the network predicts."""
        return self.convention.gain(t)

    def clock(self, t: Float[Tensor, "B"]) -> Tensor:
        """What the network is given for t in [0, 1]: `time=`, or the path's own clock."""
        return self.convention.clock(t)

    def _read(self, batch: Any) -> dict[str, Any]:
        batch = {self.data: batch} if isinstance(batch, Tensor) else batch
        require_keys(batch, (self.data,), f"the adapter of {type(self.module).__name__}", self._hint(batch))
        for name in self.gives:
            if name in batch:
                raise BadBatch(f"the batch holds {name!r}, which is set here, for each t: leave it out")
        return to_module({k: v for k, v in batch.items() if k not in ABOUT}, self.module, self.data)

    def _hint(self, batch: Any) -> str:
        """Which key might hold the data, where `data` is absent."""
        some = batch.items() if isinstance(batch, Mapping) else ()
        tensors = {k: v for k, v in some if isinstance(v, Tensor) and k not in ABOUT}
        names = [k for k, v in tensors.items() if v.is_floating_point() and v.ndim > 1]
        return f"x_1 is under {self.data!r}" + (f'; type fog_a.wrap(..., data="{names[0]}")' if names else "")

    def _described(self, batch: Any, x1: Tensor, mask: Tensor | None = None) -> Samples:
        batch = batch if isinstance(batch, Mapping) else {self.data: batch}
        return samples_from(batch, x1, mask=mask, named=self.domains, shared=self.shared)

    def _data(self, samples: Samples) -> Tensor:
        """x_1 of these samples."""
        batch = samples.rows(range(len(samples)))
        return batch[self.data]

    def _call(
        self, net: nn.Module, x_t: Tensor, t: Float[Tensor, "B"], cond: dict[str, Any], convention: Convention
    ) -> Tensor:
        """What the network predicts at fog_a's t."""
        tau = convention.clock(t if t.dtype == torch.float64 else t.float())
        return self.network(net, self.module, x_t, tau.to(x_t.dtype) if tau.is_floating_point() else tau, cond)


def spread(t: Float[Tensor, "B"], x: Tensor) -> Float[Tensor, "B ..."]:
    """Times in the axes of x: (B, 1, …)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))
