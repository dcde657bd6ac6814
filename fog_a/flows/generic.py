"""The adapter for any velocity network `net(x_t, t, **cond)`.

    x_t = (1 − t) x_0 + t x_1,   v* = x_1 − x_0,   L_FM = mean over real frames of (v − v*)²          Eq. 21–23

with x_0 ~ N(0, σ²). Another path is a function `(x_0, x_1, t) -> (x_t, v*)`.

A batch is a mapping with the data, the conditioning, and the keys of `fog_a.flows.dicts`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.blocks.calls import unwrapped
from fog_a.errors import BadBatch, ShapeMismatch, Unsupported
from fog_a.flows.dicts import ABOUT, require_keys, samples_from, to_module
from fog_a.flows.flow import Flow
from fog_a.flows.frames import as_tokens, mask_along, token_mask
from fog_a.flows.noise import noise
from fog_a.flows.samples import Samples

Path = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class GenericAdapter(Flow):
    """Adapter of a network that is called `net(x_t, t, **cond)`.

    Args:
        net: the velocity network; its output has the shape of x_t.
        x: name of its argument x_t, or None: it is the first positional one.
        t: name of its argument t (B,), or None: it is the positional one after x_t.
        path: `"linear"`, or a function `(x_0, x_1, t) -> (x_t, v*)` with t of shape (B, 1, …).
        sigma: standard deviation of the noise x_0.
        data: key of the batch that holds x_1 (B, …).
        mask: key of a bool mask (B, T) or (B, T, …), True = real; given to the network only if its forward names it.
        shared: keys of the batch that belong to no sample, such as positions: a smaller batch has them whole.
        domains: one name for all samples, or a function `batch -> names`; by default the batch's key `domains`.
        channels: the axis of D in x_1 and in block outputs of three axes: `"last"` (B, T, D) or `"first"` (B, D, T).
        interface: a function `(net, batch) -> (B, T, D)`, the conditioning embedding with its graph, for BiT-C.

    Every other key of the batch is conditioning, given to the network by its name. A bare tensor is `{data: tensor}`.

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
        path: str | Path = "linear",
        sigma: float = 1.0,
        data: str = "x1",
        mask: str = "mask",
        shared: Sequence[str] = (),
        domains: str | Callable[[Any], Sequence[str]] | None = None,
        channels: str = "last",
        interface: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        if not callable(path) and path != "linear":
            raise Unsupported(f'path is "linear" or a function (x_0, x_1, t) -> (x_t, v*), got {path!r}')
        if channels not in ("first", "last"):
            raise Unsupported(f'channels is "first" or "last", got {channels!r}')
        self.model = net  # its loss goes through DDP's or compiled forward, if such is around it; probes go past
        self.module = unwrapped(net) if isinstance(net, nn.Module) else net
        self.gives = tuple(name for name in (x, t) if name not in (None, data))
        self.x, self.t, self.data, self.mask, self.shared = x, t, data, mask, tuple(shared)
        self.path: Path = path if callable(path) else linear
        self.sigma, self.channels, self.domains, self._interface = sigma, channels, domains, interface

    def velocity(self, batch: Any, t: float | Float[Tensor, "B"], seed: int = 0) -> Float[Tensor, "B ..."]:
        """v(x_t, t, c), x_t from the noise that `seed` draws for each sample."""
        cond = self._read(batch)
        x1, samples = cond.pop(self.data), self.samples(batch)
        t = sample_times(t, x1)
        x_t, _ = self.path(self.sigma * noise(x1, samples.ids, seed), x1, t.reshape(-1, *[1] * (x1.ndim - 1)))
        return self._call(self.module, x_t, t, cond)

    def samples(self, batch: Any) -> Samples:
        """Ids (by default made of the data), domains, audio, the mask under the key `mask`, and `rows`."""
        cond = self._read(batch)
        x1, mask = cond[self.data], cond.get(self.mask)
        if mask is not None:
            axis = 1 if self.channels == "last" else x1.ndim - 1
            mask = mask.bool() if mask.ndim == x1.ndim else mask_along(mask.bool(), x1.ndim, axis)
        batch = batch if isinstance(batch, Mapping) else {self.data: batch}
        return samples_from(batch, x1, mask=mask, named=self.domains, shared=self.shared)

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """What the option `interface` gives, or None."""
        return None if self._interface is None else self._interface(self.module, batch)

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """(B, T, D) as it is, (B, D, T) if `channels="first"`, (B, D, H, W) as H·W tokens, (B, D) as one."""
        h = as_tokens(h, first=self.channels == "first")
        return h, token_mask(samples.mask, h)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """L_FM with t ~ U(0, 1) and the noise of torch's global generator."""
        cond = self._read(batch)
        x1, mask = cond.pop(self.data), self.samples(batch).mask
        t = torch.rand(len(x1), device=x1.device, dtype=x1.dtype)
        x_t, target = self.path(self.sigma * torch.randn_like(x1), x1, t.reshape(-1, *[1] * (x1.ndim - 1)))
        error = (self._call(self.model, x_t, t, cond) - target).square()
        return error.mean() if mask is None else error[mask.expand_as(error)].mean()

    def _read(self, batch: Any) -> dict[str, Any]:
        batch = {self.data: batch} if isinstance(batch, Tensor) else batch
        require_keys(batch, (self.data,), f"the adapter of {type(self.module).__name__}", f"x_1 is under {self.data!r}")
        for name in self.gives:
            if name in batch:
                raise BadBatch(f"the batch holds {name!r}, which is set here, for each t: leave it out")
        return to_module({k: v for k, v in batch.items() if k not in ABOUT}, self.module, self.data)

    def _call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        named = {name: value for name, value in ((self.x, x_t), (self.t, t)) if name is not None}
        v = self._run(net, *(value for name, value in ((self.x, x_t), (self.t, t)) if name is None), **named, **cond)
        if not isinstance(v, Tensor) or v.shape != x_t.shape:
            got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ShapeMismatch(
                f"the velocity has the shape of x_t, {tuple(x_t.shape)}; {type(net).__name__} gave {got}. "
                "Wrap a module that returns the velocity tensor"
            )
        return v

    def _run(self, net: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The network's output; where it does not run on the batch, the error names the arguments that it lacks."""
        names = arguments(self.module)
        if self.mask not in names:
            kwargs.pop(self.mask, None)
        try:
            return net(*args, **kwargs)
        except (TypeError, AttributeError) as error:
            lacking = [name for name in names[len(args) :] if kwargs.get(name) is None]
            extra = [name for name in kwargs if name not in names]
            if not lacking and not extra:
                raise
            raise BadBatch(
                f"{type(self.module).__name__} does not run on this batch: {error}. Of its arguments the batch lacks "
                f"{', '.join(lacking) or 'none'}; it gives besides {', '.join(extra) or 'none'}"
            ) from error


def linear(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = (1 − t) x_0 + t x_1 and its derivative."""
    return (1 - t) * x0 + t * x1, x1 - x0


def sample_times(t: float | Tensor, like: Tensor) -> Float[Tensor, "B"]:
    """One time per sample, in the dtype and on the device of `like`."""
    t = torch.as_tensor(t, device=like.device).to(like.dtype)
    if t.ndim > 1 or t.numel() not in (1, len(like)):
        raise ShapeMismatch(f"expected one time, or one for each of {len(like)} samples, got {tuple(t.shape)}")
    return t.expand(len(like))


def arguments(net: Any) -> list[str]:
    """The names of the arguments of a network's forward, without `*args` and `**kwargs`."""
    parameters = inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters
    return [name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
