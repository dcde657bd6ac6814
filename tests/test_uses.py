"""What other tools make of a selection, run against diffusers and PEFT themselves."""

from __future__ import annotations

import re
from typing import Any

import diffusers as package
import pytest
import torch
from diffusers.hooks.layer_skip import apply_layer_skip
from torch import Tensor, nn

import fog_a
from fog_a.errors import NoBlocksFound, UnknownBlock

diffusers: Any = package  # it exports its names lazily
SIZES = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16}


def sd3() -> nn.Module:
    kind = diffusers.SD3Transformer2DModel
    return kind(sample_size=8, in_channels=4, num_layers=4, caption_projection_dim=16, out_channels=4, **SIZES).eval()


def pixart() -> nn.Module:
    kind = diffusers.PixArtTransformer2DModel
    size = {"attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16, "caption_channels": 16}
    return kind(sample_size=8, in_channels=4, out_channels=4, num_layers=4, **size).eval()


def flux() -> nn.Module:
    kind = diffusers.FluxTransformer2DModel
    return kind(in_channels=4, num_layers=3, num_single_layers=3, axes_dims_rope=(2, 2, 4), **SIZES).eval()


@pytest.fixture(scope="module", autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def sd3_batch() -> dict[str, Tensor]:
    text = {"encoder_hidden_states": torch.randn(16, 5, 16), "pooled_projections": torch.randn(16, 16)}
    return {"hidden_states": torch.randn(16, 4, 8, 8), "timestep": torch.full((16,), 500.0), **text}


@pytest.fixture(scope="module")
def pixart_batch() -> dict[str, Any]:
    data = {"hidden_states": torch.randn(16, 4, 8, 8), "encoder_hidden_states": torch.randn(16, 5, 16)}
    return {**data, "timestep": torch.full((16,), 500), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


@pytest.fixture(scope="module")
def flux_batch() -> dict[str, Tensor]:
    """As many image tokens as text tokens."""
    text = {"encoder_hidden_states": torch.randn(2, 9, 16), "pooled_projections": torch.randn(2, 16)}
    ids = {"img_ids": torch.zeros(9, 3), "txt_ids": torch.zeros(9, 3)}
    return {"hidden_states": torch.randn(2, 9, 4), "timestep": torch.tensor([0.5, 0.5]), **text, **ids}


def skipped(net: Any, batch: Any, indices: dict[str, list[int]]) -> Tensor:
    """Its output with diffusers' own skips."""
    for path, numbers in indices.items():
        apply_layer_skip(net, diffusers.LayerSkipConfig(indices=numbers, fqn=path))
    with torch.no_grad():
        return net(**batch).sample


def gated(net: Any, batch: Any, names: tuple[str, ...]) -> Tensor:
    with torch.no_grad(), fog_a.gate(fog_a.find_blocks(net, batch).named(names), 0):
        return net(**batch).sample


def test_diffusers_skips_what_was_selected(pixart_batch: Any) -> None:
    net = pixart()
    least = fog_a.select(fog_a.attribute(net, pixart_batch), 1, by="bottom")
    want = gated(net, pixart_batch, least.layers)
    assert torch.equal(skipped(net, pixart_batch, least.indices()), want)
    config = [diffusers.LayerSkipConfig(indices=n, fqn=path) for path, n in least.indices().items()]
    assert diffusers.SkipLayerGuidance(skip_layer_config=config).skip_layer_config == config


def test_diffusers_guider_skips_what_was_selected(pixart_batch: Any) -> None:
    """Its third condition runs with the skips, its first without."""
    net, skip = pixart(), fog_a.Selection.fixed(["transformer_blocks.1"])
    config = [diffusers.LayerSkipConfig(indices=n, fqn=path) for path, n in skip.indices().items()]
    guider = diffusers.SkipLayerGuidance(skip_layer_config=config)
    guider.set_state(step=1, num_inference_steps=10, timestep=torch.tensor(500))
    outputs = []
    for condition in ("pred_cond", "pred_uncond", "pred_cond_skip"):
        guider.prepare_models(net)
        with torch.no_grad():
            outputs.append(net(**pixart_batch).sample)
        guider.cleanup_models(net)
        assert condition in guider._input_predictions
    assert torch.equal(outputs[2], gated(net, pixart_batch, skip.layers))
    assert torch.equal(outputs[0], net(**pixart_batch).sample)


def test_the_pipeline_of_sd3_skips_what_was_selected() -> None:
    net, skip = sd3(), fog_a.Selection.fixed(["transformer_blocks.1", "transformer_blocks.2"])
    parts = dict.fromkeys(["vae", *(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))])
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **parts
    )
    pipe.set_progress_bar_config(disable=True)
    calls: list[tuple[dict[str, Any], Tensor]] = []
    net.register_forward_hook(lambda m, args, kwargs, out: calls.append((kwargs, out[0])), with_kwargs=True)
    text = {"prompt_embeds": torch.randn(1, 5, 16), "pooled_prompt_embeds": torch.randn(1, 16)}
    negative = {f"negative_{key}": torch.zeros_like(value) for key, value in text.items()}
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    when = {"skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 1.0}
    pipe(**text, **negative, **options, **when, skip_guidance_layers=skip.indices()["transformer_blocks"])
    kwargs, out = next((k, out) for k, out in calls if k.pop("skip_layers", None))
    assert torch.equal(gated(net, {**kwargs, "return_dict": True}, skip.layers), out)


def test_cache_dit_gives_what_a_replayed_schedule_gives(pixart_batch: Any) -> None:
    cache_dit: Any = pytest.importorskip("cache_dit")
    net = pixart()
    blocks = fog_a.find_blocks(net, pixart_batch)
    compute = fog_a.CacheSchedule.every(2, blocks.names, steps=6).compute.copy()
    compute[:, 0] = True
    schedule = fog_a.CacheSchedule(blocks.names, compute)
    steps = [{**pixart_batch, "hidden_states": torch.randn(16, 4, 8, 8)} for _ in range(6)]
    with torch.no_grad(), schedule.replay(net, blocks):
        replayed = [net(**step).sample for step in steps]
    mask = schedule.compute[:, 1:].any(axis=1).astype(int).tolist()
    pattern = cache_dit.ForwardPattern.Pattern_3
    adapter = cache_dit.BlockAdapter(transformer=net, blocks=net.transformer_blocks, forward_pattern=pattern)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, num_inference_steps=6, max_warmup_steps=0, enable_separate_cfg=False,
        steps_computation_mask=mask, steps_computation_policy="static",
    )  # fmt: skip
    cache_dit.enable_cache(adapter, cache_config=config)
    with torch.no_grad():
        cached = [net(**step).sample for step in steps]
    torch.testing.assert_close(torch.stack(cached), torch.stack(replayed))


def test_diffusers_swaps_the_streams_of_a_block(sd3_batch: Any, flux_batch: Any) -> None:
    """What docs/uses.md says of 0.42.1: of SD3 one skip fails and two cancel; of FLUX the output is another one."""
    skip = fog_a.Selection.fixed
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        skipped(sd3(), sd3_batch, skip(["transformer_blocks.1"]).indices())
    net = sd3()
    two = skip(["transformer_blocks.1", "transformer_blocks.2"])
    assert torch.equal(gated(net, sd3_batch, two.layers), skipped(net, sd3_batch, two.indices()))
    for name in ("transformer_blocks.1", "single_transformer_blocks.1"):
        net = flux()
        want = gated(net, flux_batch, (name,))
        assert not torch.allclose(skipped(net, flux_batch, skip([name]).indices()), want, atol=1e-3), name


def test_peft_adapts_what_was_selected(sd3_batch: Any) -> None:
    peft = pytest.importorskip("peft")
    scores = fog_a.attribute(sd3(), sd3_batch)
    ((path, numbers),) = fog_a.select(scores, 2).indices().items()
    config = peft.LoraConfig(r=4, target_modules=["to_q"], layers_to_transform=numbers, layers_pattern=path)
    names = [n for n, _ in peft.get_peft_model(sd3(), config).named_parameters() if "lora_A" in n]
    adapted = [int(found[1]) for n in names if (found := re.search(r"transformer_blocks\.(\d+)\.", n))]
    assert sorted(adapted) == numbers
    ranks = scores.ranks(total=22)
    config = peft.LoraConfig(r=1, target_modules=["to_q", "to_v"], rank_pattern=ranks)
    given = {n: p.shape[0] for n, p in peft.get_peft_model(sd3(), config).named_parameters() if "lora_A" in n}
    for layer, rank in zip(scores.layers, ranks.values(), strict=True):
        assert {r for n, r in given.items() if f".{layer}." in n} == {rank}
    assert sum(given.values()) == 2 * 22


def test_a_bare_number_is_no_other_modules(sd3_batch: Any) -> None:
    """The pattern of block `0` of a Sequential does not match `…to_out.0` of another block."""
    get_pattern_key = pytest.importorskip("peft.utils.other").get_pattern_key
    scores = fog_a.Scores([[3.0, 1.0]], layers=("0", "1"))
    keys = list(scores.ranks(8))
    assert [get_pattern_key(keys, n) for n in ("0", "0.f", "1.to_out.0", "10")] == [keys[0], keys[0], keys[1], "10"]


def test_names_that_match_nothing(sd3_batch: Any) -> None:
    net = sd3()
    with pytest.raises(UnknownBlock, match=r"no block is named 'transformer_block\.1'.*near: transformer_blocks\.1"):
        fog_a.find_blocks(net, sd3_batch).named("transformer_block.1")
    with pytest.raises(NoBlocksFound, match=r"no block's name matches 'transformer_block\.1'.*near: transformer_bl"):
        fog_a.find_blocks(net, sd3_batch, include=["transformer_blocks.0", "transformer_block.1"])
