"""Other people's flow models, tiny, with a batch of their own collate's shape and the names a reader would give.

Each case is built from the package's real classes, past what it imports for training alone; a case whose package is
absent skips its tests. Nothing is downloaded. Weights that start at zero are drawn anew, or nothing would depend on
them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import light_imports
from light_imports import stub

MEL = 16


@dataclass
class Case:
    """A model, a batch, the main blocks in order of execution, and a hand-written ablation of each.

    `closed(model, k)` changes a copy of the model so that block k adds nothing.
    """

    model: Any
    batch: dict[str, Any]
    blocks: tuple[str, ...]
    closed: Callable[[Any, str], None]
    options: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None
    """Real frames of each sample, where the batch is padded."""


# ---------------------------------------------------------------- importing past the heavy parts


def bare_package(name: str) -> None:
    """A package whose files can be imported without running its `__init__`."""
    _or_skip(lambda: light_imports.bare_package(name))


def import_f5() -> Any:
    return _or_skip(light_imports.import_f5)


def import_voicebox() -> Any:
    return _or_skip(light_imports.import_voicebox)


def _or_skip(imported: Callable[[], Any]) -> Any:
    try:
        return imported()
    except ImportError as error:
        if not str(error).endswith("is not installed"):
            raise
        pytest.skip(str(error))


def import_matcha() -> Any:
    bare_package("matcha.utils")
    stub("matcha.utils", get_pylogger=logging.getLogger)
    stub("matcha.utils.utils", plot_tensor=None)
    stub("matcha.utils.pylogger", get_pylogger=logging.getLogger)
    try:
        importlib.import_module("matcha.utils.monotonic_align")
    except (ImportError, ValueError):  # its C extension is built for another numpy; durations are given below
        stub("matcha.utils.monotonic_align", maximum_path=None)
    return importlib.import_module("matcha.models.components.flow_matching")


def noisy(model: nn.Module, seed: int = 0) -> None:
    """Draw anew what is initialized to zero or to one value: gates, output layers, adaptive norms."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel() > 1 and bool((p == p.flatten()[0]).all()):
                p.add_(0.1 * torch.randn(p.shape, generator=draw))


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(high: int, *shape: int, seed: int = 2) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- ablations by hand


class Skip(nn.Module):
    """In place of a block: gives back what `pick` takes of its arguments."""

    def __init__(self, pick: Callable[..., Any], block: nn.Module) -> None:
        super().__init__()
        self.pick = pick
        self.__dict__["block"] = block.eval()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)  # some parents read a block's parts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.pick(*args, **kwargs)


def skipping(prefix: str, pick: Callable[..., Any]) -> Callable[[Any, str], None]:
    """Replace the block's module."""

    def closed(model: Any, name: str) -> None:
        parent, _, child = f"{prefix}{name}".rpartition(".")
        setattr(model.get_submodule(parent), child, Skip(pick, model.get_submodule(f"{prefix}{name}")))

    return closed


def silencing(prefix: str, *parts: str) -> Callable[[Any, str], None]:
    """Set the last layers of the block's branches to zero."""

    def closed(model: Any, name: str) -> None:
        for part in parts:
            for p in model.get_submodule(f"{prefix}{name}.{part}").parameters():
                p.data.zero_()

    return closed


def unet_closed(prefix: str) -> Callable[[Any, str], None]:
    """Matcha's decoder: a transformer block is skipped; of a convolutional one only the shortcut stays."""

    def closed(model: Any, name: str) -> None:
        block = model.get_submodule(f"{prefix}{name}")
        if "Resnet" not in type(block).__name__:
            return skipping(prefix, lambda hidden_states, **_: hidden_states)(model, name)
        norm = next(m for m in block.block2.modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm)))
        norm.weight.data.zero_()
        norm.bias.data.zero_()  # Mish(0) = 0

    return closed


def unet_blocks(down: int, middle: int, transformers: int = 1) -> tuple[str, ...]:
    stages = [f"down_blocks.{i}" for i in range(down)] + [f"mid_blocks.{i}" for i in range(middle)]
    stages += [f"up_blocks.{i}" for i in range(down)]
    return tuple(n for s in stages for n in (f"{s}.0", *(f"{s}.1.{j}" for j in range(transformers))))


# ---------------------------------------------------------------- the cases


def f5_batch() -> dict[str, Any]:
    """What F5-TTS's collate_fn gives of three utterances."""
    lengths = (24, 17, 20)
    mel = torch.zeros(3, MEL, max(lengths))
    for i, n in enumerate(lengths):
        mel[i, :, :n] = normal(MEL, n, seed=10 + i)
    text = ["and a longer text", "more of it", "a third one"]
    return {"mel": mel, "mel_lengths": torch.tensor(lengths), "text": text, "text_lengths": torch.tensor([17, 10, 11])}


def f5(kind: str, **extra: Any) -> Case:
    theirs = import_f5()
    backbone = getattr(sys.modules[f"f5_tts.model.backbones.{kind.lower()}"], kind)
    options = dict(dim=32, depth=4, heads=4, dim_head=8, ff_mult=2, mel_dim=MEL, text_num_embeds=256, dropout=0.0)
    if kind == "DiT":
        options |= dict(text_dim=16, conv_layers=1)
    cfm = theirs.CFM(backbone(**options, **extra), mel_spec_kwargs=dict(n_mel_channels=MEL))
    noisy(cfm)
    if kind == "UNetT":
        names, closed = "layers", silencing("transformer.", "2.to_out", "4.ff.2")
    elif kind == "DiT":
        names, closed = "transformer_blocks", skipping("transformer.", lambda x, *_, **__: x)
    else:
        names, closed = "transformer_blocks", skipping("transformer.", lambda x, c, *_, **__: (c, x))
    return Case(cfm, f5_batch(), tuple(f"{names}.{i}" for i in range(4)), closed, lengths=(24, 17, 20))


def voicebox(bare: bool = False, **extra: Any) -> Case:
    theirs = import_voicebox()
    net = theirs.VoiceBox(
        num_cond_tokens=30, dim_in=MEL, dim=32, dim_cond_emb=16, depth=4, dim_head=8, heads=4, ff_mult=2,
        num_register_tokens=4, conv_pos_embed_kernel_size=7, **extra,
    )  # fmt: skip
    noisy(net)
    model = net if bare else theirs.ConditionalFlowMatcherWrapper(voicebox=net)
    mask = torch.arange(24) < torch.tensor([24, 17, 20])[:, None]
    batch = {
        "x1": normal(3, 24, MEL) * mask[..., None], "phoneme_ids": ids(30, 3, 24), "cond": normal(3, 24, MEL, seed=3),
        "mask": mask,
    }  # fmt: skip
    parts = ("3.to_out", "5.3", *(("1.maybe_post_ln",) if extra else ()))
    prefix = "" if bare else "voicebox."
    names = tuple(f"transformer.layers.{i}" for i in range(4))
    return Case(model, batch, names, silencing(prefix, *parts), lengths=(24, 17, 20))


def cosyvoice_batch(ratio: int = 2) -> dict[str, Any]:
    """What CosyVoice's padding gives of three utterances."""
    tokens = torch.tensor([12, 8, 10])
    feat = normal(3, 12 * ratio, MEL)
    for i, n in enumerate(tokens):
        feat[i, ratio * n :] = 0
    return {
        "utts": ["a", "b", "c"], "speech_token": ids(30, 3, 12), "speech_token_len": tokens, "speech_feat": feat,
        "speech_feat_len": ratio * tokens, "embedding": normal(3, 12, seed=4),
    }  # fmt: skip


def cosyvoice(version: int, real: bool = False) -> Case:
    import_matcha()
    flow = real_cosyvoice(version) if real else stand_in(version)
    noisy(flow)
    prefix = "decoder.estimator."
    if version == 3:
        blocks = tuple(f"transformer_blocks.{i}" for i in range(3))
        return Case(flow, cosyvoice_batch(), blocks, skipping(prefix, lambda x, *_, **__: x), lengths=(24, 16, 20))
    blocks = unet_blocks(2 if version == 1 else 1, 2)
    return Case(flow, cosyvoice_batch(), blocks, unet_closed(prefix), lengths=(24, 16, 20))


def stand_in(version: int) -> nn.Module:
    from stand_ins import cosyvoice as ours

    return (ours.MaskedDiffWithXvec, ours.CausalMaskedDiffWithXvec, ours.CausalMaskedDiffWithDiT)[version - 1]()


def real_cosyvoice(version: int) -> nn.Module:
    """The repository's own classes, of the checkout that FOG_A_COSYVOICE names."""
    root = os.environ.get("FOG_A_COSYVOICE")
    if not root:
        pytest.skip("FOG_A_COSYVOICE names no checkout of github.com/FunAudioLLM/CosyVoice")
    sys.path.insert(0, root) if root not in sys.path else None
    stub("onnxruntime")
    omegaconf = pytest.importorskip("omegaconf")
    flow: Any = importlib.import_module("cosyvoice.flow.flow")
    cfm: Any = importlib.import_module("cosyvoice.flow.flow_matching")
    encoder: Any = importlib.import_module("cosyvoice.transformer.encoder")
    upsample: Any = importlib.import_module("cosyvoice.transformer.upsample_encoder")
    decoder: Any = importlib.import_module("cosyvoice.flow.decoder")
    params = omegaconf.DictConfig(
        dict(sigma_min=1e-6, solver="euler", t_scheduler="cosine", training_cfg_rate=0.2, inference_cfg_rate=0.7,
             reg_loss_type="l1")
    )  # fmt: skip
    unet = dict(in_channels=4 * MEL, out_channels=MEL, dropout=0.0, attention_head_dim=8, n_blocks=1,
                num_mid_blocks=2, num_heads=2, act_fn="gelu")  # fmt: skip
    shared = dict(output_size=MEL, spk_embed_dim=12, vocab_size=30)
    made = dict(in_channels=3 * MEL, cfm_params=params, n_spks=1, spk_emb_dim=MEL)
    blocks = dict(attention_heads=2, linear_units=32, num_blocks=1, dropout_rate=0.0, positional_dropout_rate=0.0,
                  attention_dropout_rate=0.0)  # fmt: skip
    if version == 1:
        regulator = importlib.import_module("cosyvoice.flow.length_regulator")
        text = encoder.ConformerEncoder(
            input_size=32, output_size=32, use_cnn_module=False, macaron_style=False,
            selfattention_layer_type="rel_selfattn", pos_enc_layer_type="rel_pos_espnet",
            input_layer="linear", **blocks,
        )  # fmt: skip
        lengths = regulator.InterpolateRegulator(channels=MEL, sampling_ratios=[1, 1])
        estimator = decoder.ConditionalDecoder(channels=[32, 32], **unet)
        fm = cfm.ConditionalCFM(estimator=estimator, **made)
        return flow.MaskedDiffWithXvec(input_size=32, encoder=text, length_regulator=lengths, decoder=fm, **shared)
    if version == 2:
        text = upsample.UpsampleConformerEncoder(
            input_size=512, output_size=512, use_cnn_module=False, macaron_style=False, static_chunk_size=4,
            selfattention_layer_type="rel_selfattn", pos_enc_layer_type="rel_pos_espnet",
            input_layer="linear", **blocks,
        )  # fmt: skip
        estimator = decoder.CausalConditionalDecoder(channels=[32], static_chunk_size=8, **unet)
        fm = cfm.CausalConditionalCFM(estimator=estimator, **made)
        return flow.CausalMaskedDiffWithXvec(input_size=512, encoder=text, decoder=fm, **shared)
    dit: Any = importlib.import_module("cosyvoice.flow.DiT.dit")
    estimator = dit.DiT(
        dim=32, depth=3, heads=4, dim_head=8, ff_mult=2, mel_dim=MEL, mu_dim=MEL, spk_dim=MEL, out_channels=MEL,
        static_chunk_size=8, dropout=0.0,
    )  # fmt: skip
    fm = cfm.CausalConditionalCFM(estimator=estimator, **made)
    ahead = upsample.PreLookaheadLayer(in_channels=MEL, channels=32, pre_lookahead_len=3)
    return flow.CausalMaskedDiffWithDiT(input_size=MEL, pre_lookahead_layer=ahead, decoder=fm, **shared)


class Doubled(nn.Module):
    """In place of S3Gen's encoder, which is 512 wide: two frames a token, and their mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def output_size(self) -> int:
        return self.linear.out_features

    def forward(self, token: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        real = torch.arange(2 * token.shape[1]) < 2 * lengths[:, None]
        return self.linear(token).repeat_interleave(2, dim=1), real[:, None]


def chatterbox(meanflow: bool = False) -> Case:
    """S3Gen's flow of chatterbox-tts, past what its packages import for speech and watermarks."""
    import_matcha()
    for package in ("chatterbox", "chatterbox.models", "chatterbox.models.s3gen"):
        bare_package(package)
    stub("omegaconf", DictConfig=lambda x: x)  # wraps the defaults of a signature
    parts: Any = [
        importlib.import_module(f"chatterbox.models.s3gen.{name}") for name in ("flow", "flow_matching", "decoder")
    ]
    estimator = parts[2].ConditionalDecoder(
        in_channels=4 * MEL, out_channels=MEL, channels=[32], attention_head_dim=8, n_blocks=1, num_mid_blocks=2,
        num_heads=2, meanflow=meanflow,
    )  # fmt: skip
    fm = parts[1].CausalConditionalCFM(in_channels=3 * MEL, spk_emb_dim=MEL, estimator=estimator)
    flow = parts[0].CausalMaskedDiffWithXvec(
        input_size=32, output_size=MEL, spk_embed_dim=12, vocab_size=30, encoder=Doubled(32), decoder=fm
    )
    noisy(flow)
    return Case(flow, cosyvoice_batch(), unet_blocks(1, 2), unet_closed("decoder.estimator."), lengths=(24, 16, 20))


DECODER = dict(channels=[32, 32], dropout=0.0, attention_head_dim=8, n_blocks=1, num_mid_blocks=2, num_heads=2,
               act_fn="snakebeta")  # fmt: skip


def matcha_cfm() -> Case:
    theirs = import_matcha()
    params = types.SimpleNamespace(solver="euler", sigma_min=1e-4)
    cfm = theirs.CFM(2 * MEL, MEL, params, DECODER, n_spks=1, spk_emb_dim=8)
    noisy(cfm)
    mask = (torch.arange(24) < torch.tensor([24, 16, 20])[:, None]).float()[:, None]
    batch = {"x1": normal(3, MEL, 24) * mask, "mask": mask, "mu": normal(3, MEL, 24, seed=5) * mask}
    return Case(cfm, batch, unet_blocks(2, 2), unet_closed("estimator."), lengths=(24, 16, 20))


def matcha_tts() -> Case:
    import_matcha()
    pytest.importorskip("lightning")
    theirs: Any = importlib.import_module("matcha.models.matcha_tts")
    space = types.SimpleNamespace
    encoder = space(
        encoder_type="RoPE Encoder",
        encoder_params=space(n_feats=MEL, n_channels=16, filter_channels=32, filter_channels_dp=16, n_heads=2,
                             n_layers=1, kernel_size=3, p_dropout=0.0, spk_emb_dim=8, n_spks=1, prenet=True),
        duration_predictor_params=space(filter_channels_dp=16, kernel_size=3, p_dropout=0.0),
    )  # fmt: skip
    model = theirs.MatchaTTS(
        n_vocab=30, n_spks=1, spk_emb_dim=8, n_feats=MEL, encoder=encoder, decoder=DECODER,
        cfm=space(solver="euler", sigma_min=1e-4), data_statistics={"mel_mean": 0.0, "mel_std": 1.0}, out_size=None,
        use_precomputed_durations=True,
    )  # fmt: skip
    noisy(model)
    lengths = torch.tensor([24, 16, 20])
    mel = normal(3, MEL, 24) * (torch.arange(24) < lengths[:, None])[:, None]
    batch = {"x": ids(30, 3, 8), "x_lengths": torch.tensor([8, 5, 6]), "y": mel, "y_lengths": lengths, "spks": None}
    batch["durations"] = torch.tensor([[3] * 8, [4, 4, 4, 2, 2, 0, 0, 0], [4, 4, 4, 4, 2, 2, 0, 0]])[:, None]
    return Case(model, batch, unet_blocks(2, 2), unet_closed("decoder.estimator."), lengths=(24, 16, 20))


class Velocity(nn.Module):
    """A residual net of x, t and a condition, for the packages that bring none."""

    def __init__(self, width: int = MEL, depth: int = 3) -> None:
        super().__init__()
        self.time = nn.Linear(1, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(depth)
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.time(t.reshape(-1, 1))[:, None]
        h = h if label is None else h + label[:, None, None]
        x = x + h
        for layer in self.layers:
            x = x + layer(x)
        return x


def flow_matching(path: bool = False) -> Case:
    theirs = pytest.importorskip("flow_matching.utils")
    options = {}
    if path:
        paths = importlib.import_module("flow_matching.path")
        scheduler = importlib.import_module("flow_matching.path.scheduler")
        options["path"] = paths.AffineProbPath(scheduler=scheduler.CondOTScheduler())
    batch = {"x1": normal(3, 6, MEL), "label": torch.tensor([0.0, 1.0, 2.0])}
    closed = silencing("model.", "1")
    names = tuple(f"model.layers.{i}" for i in range(3))
    return Case(
        theirs.ModelWrapper(Velocity()), batch, names, lambda m, n: closed(m, n.removeprefix("model.")), options
    )


def diffusers(
    kind: str, closed: Callable[[Any, str], None], blocks: tuple[str, ...], batch: Any, **config: Any
) -> Case:
    pytest.importorskip("diffusers")
    model = getattr(importlib.import_module("diffusers"), kind)(**config)
    noisy(model)
    return Case(model, batch, blocks, closed)


def hidden(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def joint(hidden_states: Tensor, encoder_hidden_states: Any = None, *_: Any, **__: Any) -> Any:
    return encoder_hidden_states, hidden_states


def named(stack: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stack}.{i}" for i in range(count))


def sd3() -> Case:
    batch = {
        "hidden_states": normal(3, 4, 8, 8), "encoder_hidden_states": normal(3, 5, 24),
        "pooled_projections": normal(3, 16),
    }  # fmt: skip
    return diffusers(
        "SD3Transformer2DModel", skipping("", joint), named("transformer_blocks", 3), batch, sample_size=8,
        patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24,
        caption_projection_dim=32, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip


def flux() -> Case:
    at = torch.arange(16)
    batch = {
        "hidden_states": normal(3, 16, 4), "encoder_hidden_states": normal(3, 5, 24),
        "pooled_projections": normal(3, 16), "img_ids": torch.stack([torch.zeros(16), at // 4, at % 4], -1).float(),
        "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip
    blocks = named("transformer_blocks", 2) + named("single_transformer_blocks", 2)
    return diffusers(
        "FluxTransformer2DModel", skipping("", joint), blocks, batch, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24, pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def stable_audio() -> Case:
    batch = {
        "hidden_states": normal(3, 4, 16), "encoder_hidden_states": normal(3, 5, 24),
        "global_hidden_states": normal(3, 1, 20), "rotary_embedding": (torch.ones(17, 4), torch.zeros(17, 4)),
    }  # fmt: skip
    return diffusers(
        "StableAudioDiTModel", skipping("", hidden), named("transformer_blocks", 3), batch, sample_size=16,
        in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4, num_key_value_attention_heads=2,
        out_channels=4, cross_attention_dim=24, time_proj_dim=16, global_states_input_dim=20,
        cross_attention_input_dim=24,
    )  # fmt: skip


def class_dit() -> Case:
    batch = {"hidden_states": normal(3, 4, 8, 8), "class_labels": torch.tensor([1, 2, 3])}
    return diffusers(
        "DiTTransformer2DModel", skipping("", hidden), named("transformer_blocks", 3), batch, num_attention_heads=4,
        attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip


CASES: dict[str, Callable[[], Case]] = {
    "f5_dit": lambda: f5("DiT"),
    "f5_dit_checkpointed": lambda: f5("DiT", checkpoint_activations=True),
    "f5_unett": lambda: f5("UNetT"),
    "f5_mmdit": lambda: f5("MMDiT"),
    "voicebox": voicebox,
    "voicebox_gateloop": lambda: voicebox(use_gateloop_layers=True),
    "voicebox_bare": lambda: voicebox(bare=True),
    "matcha_cfm": matcha_cfm,
    "matcha_tts": matcha_tts,
    "cosyvoice1": lambda: cosyvoice(1),
    "cosyvoice2": lambda: cosyvoice(2),
    "cosyvoice3": lambda: cosyvoice(3),
    "cosyvoice1_real": lambda: cosyvoice(1, real=True),
    "cosyvoice2_real": lambda: cosyvoice(2, real=True),
    "cosyvoice3_real": lambda: cosyvoice(3, real=True),
    "chatterbox": chatterbox,
    "flow_matching": flow_matching,
    "flow_matching_path": lambda: flow_matching(path=True),
    "sd3": sd3,
    "flux": flux,
    "stable_audio": stable_audio,
    "class_dit": class_dit,
}


@contextlib.contextmanager
def closed_copy(case: Case, name: str) -> Iterator[Case]:
    """The case with a copy of its model in which one block is closed by hand."""
    import copy

    model = copy.deepcopy(case.model)
    case.closed(model, name)
    yield Case(model, case.batch, case.blocks, case.closed, case.options)
