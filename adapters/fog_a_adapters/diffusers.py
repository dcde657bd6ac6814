"""Diffusers' transformers by their pipelines' own conventions: images, video, audio.

Repository: https://github.com/huggingface/diffusers, read at 0.42.1. Install: `pip install diffusers==0.42.1`.

A batch is a dict of the transformer's own keywords, with the clean latents x_1 under `hidden_states` (Z-Image: `x`) and
no `timestep`. Each row of `ROWS` is what the pipeline of that class does: what it gives as timestep for noise and for
data, and what it takes the output for. FlowMatchEuler's step x += (σ' − σ) v makes v the slope of the straight line in
the direction in which σ runs; DDIM's and DPM's read noise, or v, of DDPM's steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.blocks.block import ResidualBlock
from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.flows.convention import Convention
from fog_a.flows.frames import as_tokens, token_mask
from fog_a.flows.generic import Draw, GenericAdapter, spread
from fog_a.flows.network import arguments
from fog_a.flows.paths import DDPM
from fog_a.flows.register import is_a
from fog_a.flows.samples import Samples


class Row(NamedTuple):
    """One class's convention.

    Attributes:
        noise, data: what it is given as timestep at noise and at data, in between on a line. None: DDPM's whole steps.
        path, target: of `fog_a.wrap`. "scheduler": those of the scheduler, which checkpoints set.
        channels: the axis of the latents' channels, where there are three axes.
        front: how many tokens stand before the frames, or the config's name for that number.
        also: arguments that are given the timestep too.
        beside: a second stream of latents, which is noised as well.
    """

    noise: float | None
    data: float = 0.0
    path: str = "linear"
    target: str = "v"
    channels: str = "last"
    front: int | str = 0
    also: tuple[str, ...] = ()
    beside: str | None = None


ROWS = {
    "SD3Transformer2DModel": Row(1000),
    "WanTransformer3DModel": Row(1000),
    "HunyuanVideoTransformer3DModel": Row(1000),
    "SanaTransformer2DModel": Row(1000),  # times config.timestep_scale
    "LTX2VideoTransformer3DModel": Row(1000, also=("sigma",), beside="audio_hidden_states"),
    "FluxTransformer2DModel": Row(1),
    "Flux2Transformer2DModel": Row(1),
    "ChromaTransformer2DModel": Row(1),
    "AuraFlowTransformer2DModel": Row(1),
    "QwenImageTransformer2DModel": Row(1),
    "ZImageTransformer2DModel": Row(0, 1),  # its pipeline gives 1 − σ and turns the output's sign
    "AceStepTransformer1DModel": Row(1, also=("timestep_r",)),
    "StableAudio3DiTModel": Row(1, channels="first", front="num_memory_tokens"),
    "LongCatAudioDiTTransformer": Row(0, 1),  # inverted sigmas
    "MiniMaxMusic3Transformer1DModel": Row(0, 1, channels="first", front=1),  # inverted sigmas
    "StableAudioDiTModel": Row(1, path="cosine", target="v_prediction", channels="first", front=1),
    "DiTTransformer2DModel": Row(None, path="ddpm", target="eps"),
    "PixArtTransformer2DModel": Row(None, path="ddpm", target="eps"),
    "CogVideoXTransformer3DModel": Row(None, path="scheduler"),
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v_prediction"}
SHARED = ("img_ids", "txt_ids", "rotary_embedding", "image_rotary_emb")
EMBEDDERS = ("context_embedder", "cross_attention_proj", "txt_in")


class DiffusersAdapter(GenericAdapter):
    """Adapter of diffusers' transformers, or of a pipeline that has one.

    Args:
        model: the transformer, or the pipeline.
        scale: for a flow transformer that is not listed here: what it takes as timestep for pure noise, 1 or 1000.
        scheduler: of a model that is trained on DDPM's steps: its steps and what it predicts; a pipeline has its own.
        data: the key of the latents whose velocity counts; with two streams (LTX-2) the other is noised as well.
        options: of `GenericAdapter`: `mask`, `domains`.

    Raises:
        Unsupported: a class whose timestep is not known, without `scale`; one that needs its scheduler, without it.
    """

    package = "diffusers"
    version = "0.42.1"

    def __init__(
        self, model: Any, scale: float | None = None, scheduler: Any = None, data: str | None = None, **options: Any
    ) -> None:
        net: Any = model if isinstance(model, nn.Module) else model.transformer
        scheduler = scheduler or (None if net is model else getattr(model, "scheduler", None))
        kind = type(net).__name__
        self.row = row = ROWS.get(kind, Row(scale)) if scale is None else Row(scale)
        if kind not in ROWS and scale is None:
            raise Unsupported(
                f"the timestep of {kind} is not known here: type fog_a.wrap(model, scale=1000), or scale=1 if its "
                f"pipeline divides t by 1000. Known: {', '.join(ROWS)}"
            )
        self.front = row.front if isinstance(row.front, int) else int(net.config[row.front])
        options |= {"channels": row.channels, "stream": "BTD", "shared": SHARED, **options}
        path, target = _steps(kind, scheduler) if row.noise is None else (row.path, row.target)
        rate = 1.0 if row.noise is None else getattr(net.config, "timestep_scale", 1.0)
        first, last = row.noise or 0.0, row.data
        time = None if row.noise is None else lambda t: rate * (first + (last - first) * t)
        data = data or ("x" if "cap_feats" in arguments(net) else "hidden_states")
        super().__init__(net, None, None, path=path, target=target, time=time, data=data, **options)
        self.gives = ("timestep", "return_dict", *row.also)

    @staticmethod
    def matches(model: object) -> bool:
        """True for a diffusers model with these arguments, and for a pipeline whose transformer is one."""
        net = getattr(model, "transformer", model) if is_a(model, "diffusers", "DiffusionPipeline") else model
        if not isinstance(net, nn.Module) or not is_a(net, "diffusers", "ModelMixin"):
            return False
        return type(net).__name__ in ROWS or {"hidden_states", "timestep"} <= set(arguments(net))

    def interface(self, batch: Any) -> Float[Tensor, "B T D"] | None:
        """The model's own embedding of `encoder_hidden_states`; None for a model without text."""
        parts = [getattr(self.module, name, None) for name in EMBEDDERS]
        embed = next((part for part in parts if isinstance(part, nn.Linear | nn.Sequential)), None)
        text = self._read(batch).get("encoder_hidden_states")
        return None if embed is None or text is None else embed(text)

    def tokens(
        self, h: Tensor, block: ResidualBlock, samples: Samples
    ) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"] | None]:
        """The latents' tokens of a block's output: without time and memory, and text where both are one sequence."""
        if self.which is not None:
            return super().tokens(h, block, samples)
        h = as_tokens(h)[:, self.front :]
        x1 = self._data(samples)
        patch = int(getattr(self.module.config, "patch_size", 2)) if x1.ndim == 4 else 1
        count = x1.shape[1] if x1.ndim == 3 else x1.shape[-1] * x1.shape[-2] // patch**2
        if h.shape[1] > count and self.row.channels == "last" and x1.ndim < 5:
            h = h[:, :count] if self.data == "x" else h[:, -count:]  # Z-Image puts the text behind
        return h, token_mask(samples.mask, h)

    def noised(self, cond: dict[str, Any], t: Float[Tensor, "B"], draw: Draw) -> dict[str, Any]:
        """The conditions, with the other stream of latents at the same t."""
        streams = {"hidden_states", self.row.beside} if self.row.beside else set()
        for name in streams - {self.data}:
            x1 = cond[name]
            cond = {**cond, name: self.convention.path(draw(x1), x1, spread(t, x1))[0]}
        return cond

    def _call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: dict[str, Any], convention: Convention) -> Tensor:
        tau = convention.clock(t)
        tau = tau.to(x_t.dtype) if tau.is_floating_point() else tau
        if self.data == "x":  # Z-Image: lists of samples, with an axis of frames
            rows = list(x_t.unsqueeze(2)), tau, list(cond["cap_feats"])
            rest = {name: value for name, value in cond.items() if name != "cap_feats"}
            return torch.stack(self.network.run(net, self.module, *rows, return_dict=False, **rest)[0]).squeeze(2)
        given = {self.data: x_t, **dict.fromkeys(("timestep", *self.row.also), tau)}
        out = self.network.run(net, self.module, return_dict=False, **given, **cond)
        p = out[1 if self.data == self.row.beside else 0]
        if p.ndim > 3 and p.shape[1] == 2 * x_t.shape[1]:
            p = p.chunk(2, dim=1)[0]  # the other half is the learned variance
        if p.shape != x_t.shape:
            raise ShapeMismatch(
                f"expected a velocity in the shape of the latents, {tuple(x_t.shape)}, got {tuple(p.shape)}: "
                f"give as {self.data} the latents alone, without condition or mask channels"
            )
        return p


class Steps(DDPM):
    """The steps of a scheduler, by its ᾱ_n; 0 at the last one (zero terminal SNR) is taken for 1e-12."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept.double().cpu().clamp(min=1e-12)
        self.log_kept = self.kept.log().diff(prepend=torch.zeros(1, dtype=torch.float64, device="cpu"))


def _steps(kind: str, scheduler: Any) -> tuple[Any, str]:
    """Path and target of a model trained on DDPM's steps: those of its scheduler, else those of its row."""
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is not None:
        return Steps(kept), PREDICTIONS[scheduler.config.prediction_type]
    if ROWS[kind].path == "scheduler":
        raise Unsupported(
            f"what {kind} predicts, and at which steps, is set by its scheduler: wrap the pipeline, or type "
            "fog_a.wrap(model, scheduler=pipeline.scheduler)"
        )
    return ROWS[kind].path, ROWS[kind].target
