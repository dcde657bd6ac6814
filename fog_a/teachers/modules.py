"""Teachers that read a tensor of the batch: any frozen torch module, or the clean data itself.

T(x) = pool( layer_of_module( input(batch) ) )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fog_a.blocks.calls import hooked, named_modules
from fog_a.blocks.tree import leaves
from fog_a.errors import BadBatch, BadFeatures, BadOutput, UnknownBlock, Unsupported
from fog_a.flows.frames import as_tokens
from fog_a.flows.samples import Samples
from fog_a.teachers.weights import fingerprint, frozen

Pool = Literal["mean", "first"] | Callable[[Tensor], Tensor]
WIDTHS = ("out_features", "out_channels", "num_features", "normalized_shape", "embed_dim", "embedding_dim")
"""Attributes by which torch's modules tell how wide their output is."""


class ModuleTeacher:
    """Any frozen torch module on any tensor of the batch: an image encoder, a classifier, a codec.

    It runs in eval mode without gradients, on the device of its input. Its features are one vector per sample.

    Args:
        module: the network. Its parameters are frozen.
        input: key of the batch that the module reads, or a function batch → what it is called with.
        layer: name of the inner module whose output is the feature; None: the module's own output.
        pool: `"mean"` over tokens or pixels, `"first"` for a class token, or a function output → (B, D).
        dim: width of the features. None: read from the layer's own attributes, such as `out_features`.
        channels: the axis of D in an output of three axes: `"last"` (B, T, D) or `"first"` (B, D, T). An output of
            four axes is (B, D, H, W).

    Raises:
        UnknownBlock: no inner module is named `layer`.
        Unsupported: the width cannot be read, or `pool` or `channels` is unknown.
        BadBatch: at a call, the batch lacks the key. BadFeatures: the features are of another width.

    >>> teacher = ModuleTeacher(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), input="image")
    >>> images = {"image": torch.zeros(2, 3, 2, 2)}
    >>> teacher(Samples(ids=("a", "b"), domains=("all",) * 2, rows=lambda index: images)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        module: nn.Module,
        input: str | Callable[[Any], Any] = "x1",
        layer: str | None = None,
        pool: Pool = "mean",
        *,
        dim: int | None = None,
        channels: Literal["last", "first"] = "last",
    ) -> None:
        if not callable(pool) and pool not in ("mean", "first"):
            raise Unsupported(f'pool is "mean", "first" or a function output -> (B, D), got {pool!r}')
        if channels not in ("last", "first"):
            raise Unsupported(f'channels is "last" or "first", got {channels!r}')
        self.layer, modules = layer or "", named_modules(module)
        if self.layer not in modules:
            near = [name for name in modules if name.split(".")[-1] == self.layer.split(".")[-1]] or [*modules][1:]
            raise UnknownBlock(
                f"layer={layer!r} is no module of {type(module).__name__}; it has "
                f"{', '.join(near[:3]) or 'none inside'}. named_modules() lists them"
            )
        self.module, self.input, self.reduce, self.channels = module, input, pool, channels
        self.dim = dim or _width(modules[self.layer])
        self.name = f"module:{type(module).__name__}:{named(input)}"
        self.pool = named(pool) + (f"-{layer}" if layer else "")
        self.fingerprint = fingerprint(module)

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The pooled features, float32, no gradient."""
        out = self._output(samples)
        if callable(self.reduce):
            return self._fitting(self.reduce(out), samples)
        tokens = self._tokens(out)
        return self._fitting(tokens[:, 0] if self.reduce == "first" else tokens.mean(1), samples)

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The features of each token or pixel, one (T, D) per sample, for heads that do not pool."""
        return list(self._fitting(self._tokens(self._output(samples)), samples))

    def _output(self, samples: Samples) -> Tensor:
        """What the layer gives for these samples."""
        value = self._value(samples.rows(range(len(samples))))
        tensor = next((x for _, x in leaves(value)), None)
        device = torch.device("cpu") if tensor is None else tensor.device
        outputs: list[Any] = []
        hook = hooked(named_modules(self.module)[self.layer], after=lambda args, kwargs, out: outputs.append(out))
        with frozen(self.module, device) as net, hook:
            try:
                net(**value) if isinstance(value, Mapping) else net(value)
            except (RuntimeError, TypeError, ValueError) as error:
                shapes = ", ".join(str(tuple(x.shape)) for _, x in leaves(value)) or type(value).__name__
                raise BadBatch(
                    f"teacher {self.name!r} does not take {shapes}, which input= gives it: {error}. Type a function "
                    "of the batch, such as input=lambda batch: batch['x1'].transpose(1, 2)"
                ) from error
        features = next((x for _, x in leaves(outputs[-1:]) if x.is_floating_point()), None)
        if features is None:
            raise BadOutput(
                f"teacher {self.name!r}: {self.layer or 'the module'} gave no floating-point tensor. Name another layer"
            )
        return features.float()

    def _value(self, batch: Any) -> Any:
        """What the module is called with."""
        if callable(self.input):
            return self.input(batch)
        if isinstance(batch, Tensor):
            return batch
        if not isinstance(batch, Mapping) or self.input not in batch:
            keys = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise BadBatch(
                f"teacher {self.name!r} reads the batch's {self.input!r}, which it lacks (it has {keys}). Type "
                "input= with a key of the batch, or input=lambda batch: ..."
            )
        return batch[self.input]

    def _tokens(self, out: Tensor) -> Shaped[Tensor, "B T D"]:
        return as_tokens(out, "BDT" if self.channels == "first" else "BTD")

    def _fitting(self, features: Tensor, samples: Samples) -> Tensor:
        if len(features) != len(samples) or features.shape[-1] != self.dim:
            raise BadFeatures(
                f"teacher {self.name!r} gave {tuple(features.shape)} for {len(samples)} samples, expected width "
                f"{self.dim}. Type dim={features.shape[-1]}, or channels= if that is the axis of frames"
            )
        return features.float()


class LatentTeacher(ModuleTeacher):
    """The clean data itself as the target, the latent that the flow is trained on (SRA 2's target).

    Args:
        dim: its channels.
        input: key of the batch that holds it, or a function of the batch.
        pool: `"mean"` over the real frames, or a function (B, …) → (B, D).
        channels: the axis of D in data of three axes; data of four is (B, D, H, W).

    >>> teacher = LatentTeacher(4)
    >>> latents = {"x1": torch.ones(2, 7, 4)}
    >>> teacher(Samples(ids=("a", "b"), domains=("all",) * 2, rows=lambda index: latents)).tolist()[0]
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        dim: int,
        input: str | Callable[[Any], Any] = "x1",
        pool: Pool = "mean",
        *,
        channels: Literal["last", "first"] = "last",
    ) -> None:
        super().__init__(nn.Identity(), input, None, pool, dim=dim, channels=channels)
        self.name = f"latent:{named(input)}"

    def __call__(self, samples: Samples) -> Float[Tensor, "B D"]:
        """The data pooled over its real frames."""
        if callable(self.reduce) or self.reduce == "first" or samples.mask is None:
            return super().__call__(samples)
        return torch.stack([frames.mean(0) for frames in self.frames(samples)])

    def frames(self, samples: Samples) -> list[Float[Tensor, "_ D"]]:
        """The real frames of each sample."""
        data = self._output(samples)
        tokens = self._fitting(self._tokens(data), samples)
        if samples.mask is None:
            return list(tokens)
        real = samples.mask.to(data.device)
        if real.flatten(1).shape[1] == max(real.shape[1:]) > 1:  # of frames, in whatever axes v has them
            real = real.flatten(1)[:, : tokens.shape[1]]  # a batch of fewer samples may be cut to its longest
        else:
            real = self._tokens(real.expand_as(data)).any(-1)
        return [x[keep] for x, keep in zip(tokens, real, strict=True)]


def named(value: Any) -> str:
    """A string as it is, a function by its name: a part of the key under which features are kept."""
    return value if isinstance(value, str) else getattr(value, "__qualname__", "function")


def _width(module: nn.Module) -> int:
    """The width of a module's output, by its last part that has a width. Raises Unsupported."""
    for part in reversed(list(module.modules())):
        for attribute in WIDTHS:
            value = getattr(part, attribute, None)
            value = value[-1] if isinstance(value, tuple) and value else value
            if type(value) is int:
                return value
    raise Unsupported(
        f"the width of what {type(module).__name__} gives is not told by its parts: type ModuleTeacher(..., dim=...)"
    )
