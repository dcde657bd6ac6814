"""Diffusers' transformers that are called `(hidden_states, timestep, …)`: SD3, FLUX and their kin, Stable Audio, DiT.

Repository: https://github.com/huggingface/diffusers, read at 0.42.1. Install: `pip install diffusers==0.42.1`.
Papers: SD3, arXiv 2403.03206; Stable Audio Open, 2407.14358; DiT, 2212.09748.

A batch is a dict of the transformer's own keywords, with the clean latents x_1 under `hidden_states` and no `timestep`.
In fog_a t runs from noise (0) to data (1); with τ = 1 − t, and ε the noise,

    flow (SD3, FLUX, …)   x = (1 − τ) x_1 + τ ε,                    target ε − x_1,                    timestep n τ
    v (Stable Audio)      x = cos(½πτ) x_1 + sin(½πτ) ε,            target cos(½πτ) ε − sin(½πτ) x_1,  timestep τ
    noise (DiT)           x = √ᾱ x_1 + √(1 − ᾱ) ε, ᾱ of step 999 τ, target ε,                          timestep ⌊999 τ⌉
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.flows.convention import Convention
from fog_a.flows.frames import as_tokens, token_mask
from fog_a.flows.generic import GenericAdapter
from fog_a.flows.network import arguments
from fog_a.flows.samples import Samples
from fog_a.flows.wrapping import is_a

# What a flow transformer's pipeline gives as timestep at τ = 1.
FLOWS = {
    "SD3Transformer2DModel": 1000,
    "WanTransformer3DModel": 1000,
    "FluxTransformer2DModel": 1,
    "Flux2Transformer2DModel": 1,
    "ChromaTransformer2DModel": 1,
    "AuraFlowTransformer2DModel": 1,
    "QwenImageTransformer2DModel": 1,
}
SHARED = ("img_ids", "txt_ids", "rotary_embedding", "image_rotary_emb")
EMBEDDERS = ("context_embedder", "cross_attention_proj", "txt_in")


class DiffusersAdapter(GenericAdapter):
    """Adapter of diffusers' transformers, or of a pipeline that has one; velocities have the shape of the latents.

    Args:
        model: the transformer, or the pipeline.
        scale: for a flow transformer that is not listed here: what it takes as timestep for pure noise, 1 or 1000.
        options: of `GenericAdapter`: `mask`, `domains`.

    Raises:
        Unsupported: a class whose timestep is not known, without `scale`.
    """

    package = "diffusers"
    version = "0.42.1"

    def __init__(self, model: Any, scale: float | None = None, **options: Any) -> None:
        net: Any = model if isinstance(model, nn.Module) else model.transformer
        kind = type(net).__name__
        self.prefix = 1 if kind == "StableAudioDiTModel" else 0  # its time and duration stand in front as a token
        self.scale = FLOWS.get(kind, 1 if self.prefix else None) if scale is None else scale
        path = v_prediction if self.prefix else flow
        if scale is None and kind == "DiTTransformer2DModel":
            self.scale, path = 999, noise_prediction
        if self.scale is None:
            raise Unsupported(
                f"the timestep of {kind} is not known here: type fog_a.wrap(model, scale=1000), or scale=1 if its "
                f"pipeline divides t by 1000. Known: {', '.join(FLOWS)}, StableAudioDiTModel, DiTTransformer2DModel"
            )
        channels = "first" if self.prefix else "last"
        super().__init__(net, None, None, path=path, data="hidden_states", channels=channels, shared=SHARED, **options)
        self.path = path
        self.gives = ("timestep", "return_dict")

    @staticmethod
    def matches(model: object) -> bool:
        """True for a diffusers model with these arguments, and for a pipeline whose transformer is one."""
        net = getattr(model, "transformer", model) if is_a(model, "diffusers", "DiffusionPipeline") else model
        names = ("hidden_states", "timestep")
        return isinstance(net, nn.Module) and is_a(net, "diffusers", "ModelMixin") and set(names) <= set(arguments(net))

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """The model's own embedding of `encoder_hidden_states`; None for a model without text."""
        name = next((name for name in EMBEDDERS if hasattr(self.module, name)), None)
        text = self._read(batch).get("encoder_hidden_states")
        return None if name is None or text is None else getattr(self.module, name)(text)

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """A block's output is tokens; Stable Audio's first one is no frame and is dropped."""
        h = as_tokens(h)[:, self.prefix :]
        return h, token_mask(samples.mask, h)

    def _call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: dict[str, Any], convention: Convention) -> Tensor:
        step = (1 - t) * (self.scale or 1)
        step = step.round().long() if self.path is noise_prediction else step
        v = self.network.run(net, self.module, hidden_states=x_t, timestep=step, return_dict=False, **cond)[0]
        if self.path is noise_prediction and v.shape[1] == 2 * x_t.shape[1]:
            v = v.chunk(2, dim=1)[0]  # the other half is the learned variance
        if v.shape != x_t.shape:
            raise ShapeMismatch(
                f"expected a velocity in the shape of the latents, {tuple(x_t.shape)}, got {tuple(v.shape)}: "
                "give as hidden_states the latents alone, without condition or mask channels"
            )
        return v


def flow(noise: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_τ on the straight line from data to noise, and its slope."""
    return t * x1 + (1 - t) * noise, noise - x1


def v_prediction(noise: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_τ on the quarter circle from data to noise, and its tangent."""
    angle = 0.5 * math.pi * (1 - t)
    return angle.cos() * x1 + angle.sin() * noise, angle.cos() * noise - angle.sin() * x1


def noise_prediction(noise: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_τ of DDPM with betas from 1e-4 to 0.02 in 1000 steps, and the noise."""
    betas = torch.linspace(1e-4, 0.02, 1000, device=x1.device, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)[((1 - t) * 999).round().long()].to(x1.dtype)
    return kept.sqrt() * x1 + (1 - kept).sqrt() * noise, noise
