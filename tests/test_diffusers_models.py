"""Diffusers' transformers: what each is given and gives is what its pipeline's scheduler gives and takes."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from diffusers_cases import TINY, Tiny
from torch import Tensor

import fog_a
from fog_a.blocks.calls import hooked
from fog_a.blocks.gate import gate
from fog_a.blocks.tap import tap
from fog_a.blocks.untouched import preserved, rng
from fog_a.errors import Unsupported
from fog_a.flows.noise import noise

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

_made: dict[str, Tiny] = {}


def tiny(name: str) -> Tiny:
    if name not in _made:
        with rng(0):
            _made[name] = TINY[name]()
    return _made[name]


@pytest.mark.parametrize("name", TINY)
def test_a_model_holds_the_contract(name: str) -> None:
    case = tiny(name)
    flow = fog_a.wrap(case.model, **case.options)
    assert type(flow).__name__ == "DiffusersAdapter"
    blocks = fog_a.find_blocks(flow, case.batch)
    assert blocks.main.names == case.blocks
    samples = flow.samples(case.batch)
    with preserved(case.model), tap(blocks) as heard:
        v = flow.velocity(case.batch, 0.4)
        for block in blocks.main:
            tokens, _ = flow.tokens(heard[block.name], block, samples)
            assert "context" in block.name or tokens.shape[:2] == (3, case.frames), (block.name, tokens.shape)
        with gate(blocks, 1):
            assert torch.equal(flow.velocity(case.batch, 0.4), v)
        few = flow.velocity(samples.rows([2]), 0.4)
    torch.testing.assert_close(few, v[2:], rtol=1e-4, atol=1e-4)
    scores = fog_a.attribute(flow, case.batch, times=[0.4])
    loop = fog_a.attribute(flow, case.batch, times=[0.4], how="loop")
    np.testing.assert_allclose(scores.values, loop.values, rtol=1e-3, atol=1e-4)
    c = flow.interface(case.batch)
    assert c is None or (c.ndim == 3 and len(c) == 3)
    assert (scores.values > 0).all() and flow.loss(case.batch).requires_grad


# As the pipelines make it; what becomes of its timestep; and whether the output's sign is turned.
LINES: dict[str, tuple[dict[str, Any], Any, int]] = {
    "wan": ({}, lambda at: at, 1),
    "hunyuan_video": ({}, lambda at: at, 1),
    "sana": ({}, lambda at: at, 1),
    "ltx2": ({}, lambda at: at, 1),
    "flux2": ({}, lambda at: at / 1000, 1),
    "chroma": ({}, lambda at: at / 1000, 1),
    "aura_flow": ({}, lambda at: at / 1000, 1),
    "qwen_image": ({}, lambda at: at / 1000, 1),
    "z_image": ({}, lambda at: (1000 - at) / 1000, -1),
    "ace_step": ({"num_train_timesteps": 1}, lambda at: at, 1),
    "stable_audio_3": ({"num_train_timesteps": 1}, lambda at: at, 1),
    "longcat_audio": ({"invert_sigmas": True}, lambda at: at / 1000, 1),
    "minimax_music": ({"num_train_timesteps": 1, "invert_sigmas": True}, lambda at: at, 1),
}


@pytest.mark.parametrize("name", LINES)
def test_a_step_of_its_scheduler_stays_on_the_line(name: str) -> None:
    """The scheduler's timestep is what the network gets at that t, and its step along the target ends on the path."""
    case, (config, given, sign) = tiny(name), LINES[name]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=[0.8, 0.5, 0.2])
    sigmas = scheduler.sigmas if config.get("invert_sigmas") else 1 - scheduler.sigmas  # share of data: fog_a's t
    flow: Any = fog_a.wrap(case.model, **case.options)
    x1, seen = case.batch[flow.data], called(flow, case, float(sigmas[1]))
    x0 = noise(x1, flow.samples(case.batch).ids, 0)
    torch.testing.assert_close(seen["timestep"], given(scheduler.timesteps[1]).expand(3), rtol=1e-5, atol=1e-6)
    x_t, target = flow.convention.predicted(x0, x1, sigmas[1].reshape(1, *[1] * (x1.ndim - 1)))
    torch.testing.assert_close(seen["x_t"], x_t, rtol=1e-4, atol=1e-5)
    end, _ = flow.convention.predicted(x0, x1, sigmas[2].reshape(1, *[1] * (x1.ndim - 1)))
    stepped = scheduler.step(sign * target, scheduler.timesteps[1], x_t).prev_sample
    torch.testing.assert_close(stepped, end, rtol=1e-4, atol=1e-5)
    toward = flow.convention.velocity(target, x_t, sigmas[1].reshape(1, *[1] * (x1.ndim - 1)))
    torch.testing.assert_close(toward, x1 - x0)  # velocity is dx_t/dt, from noise to data


def called(flow: Any, case: Tiny, t: float) -> dict[str, Tensor]:
    """What the network is given for x_t and the timestep at t."""
    calls: list[Any] = []
    with preserved(case.model), hooked(flow.module, before=lambda args, kwargs: calls.append((args, kwargs))):
        flow.velocity(case.batch, t)
    args, kwargs = calls[0]
    if args:  # Z-Image
        return {"x_t": torch.stack(args[0]).squeeze(2), "timestep": args[1]}
    for name in ("timestep_r", "sigma"):
        assert name not in kwargs or torch.equal(kwargs[name], kwargs["timestep"])
    return {"x_t": kwargs[flow.data], "timestep": kwargs["timestep"]}


@pytest.mark.parametrize("name", ["pixart", "cogvideox"])
def test_steps_of_ddpm_are_those_of_the_scheduler(name: str) -> None:
    case = tiny(name)
    flow: Any = fog_a.wrap(case.model, **case.options)
    scheduler = case.options.get("scheduler") or diffusers.DDPMScheduler()
    seen = called(flow, case, 0.3005)
    x1 = case.batch["hidden_states"]
    x0, at = noise(x1, flow.samples(case.batch).ids, 0), seen["timestep"]
    assert at.tolist() == [699] * 3
    torch.testing.assert_close(seen["x_t"], scheduler.add_noise(x1, x0, at), rtol=1e-4, atol=1e-5)
    _, target = flow.convention.predicted(x0, x1, torch.full((3, *[1] * (x1.ndim - 1)), 0.3005))
    theirs = scheduler.get_velocity(x1, x0, at) if name == "cogvideox" else x0
    torch.testing.assert_close(target, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_step_of_cogvideoxs_scheduler_stays_on_its_path(prediction: str, zero: bool) -> None:
    """Whatever a checkpoint sets: a step along what the network must predict ends on the path, at its next step."""
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type=prediction, rescale_betas_zero_snr=zero, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(4)
    case = tiny("cogvideox")
    flow: Any = fog_a.wrap(case.model, scheduler=scheduler)
    x1 = case.batch["hidden_states"]
    x0 = noise(x1, flow.samples(case.batch).ids, 0)
    at, to = scheduler.timesteps[1:3]
    (x_t, target), (end, _) = (
        flow.convention.predicted(x0, x1, torch.full((3, 1, 1, 1, 1), 1 - (float(n) + 0.5) / 1000)) for n in (at, to)
    )
    assert called(flow, case, 1 - (float(at) + 0.5) / 1000)["timestep"].tolist() == [int(at)] * 3
    torch.testing.assert_close(scheduler.step(target, at, x_t).prev_sample, end, rtol=1e-3, atol=1e-4)


def test_the_pipelines_scheduler_says_what_cogvideox_predicts() -> None:
    case = tiny("cogvideox")
    with pytest.raises(Unsupported, match=r"is set by its scheduler: wrap the pipeline, or type .*scheduler="):
        fog_a.wrap(case.model)
    other = diffusers.CogVideoXDDIMScheduler(prediction_type="epsilon")
    assert fog_a.wrap(case.model, scheduler=other).convention.target == "eps"  # pyright: ignore


def test_sanas_scale_of_time_is_its_configs() -> None:
    case = tiny("sana")
    config = dict(case.model.config) | {"timestep_scale": 0.001}
    model = type(case.model)(**{k: v for k, v in config.items() if not k.startswith("_")})
    assert fog_a.wrap(model).network_time == [1.0, 0.0] and fog_a.wrap(case.model).network_time == [1000.0, 0.0]


def test_ltx2_has_a_velocity_of_each_stream() -> None:
    """Both streams are noised at the same t; which one is scored is said by `data`."""
    case = tiny("ltx2")
    video, audio = fog_a.wrap(case.model), fog_a.wrap(case.model, data="audio_hidden_states")
    calls: list[Any] = []
    with preserved(case.model), hooked(case.model, before=lambda args, kwargs: calls.append(kwargs)):
        shapes = [flow.velocity(case.batch, 0.9).shape for flow in (video, audio)]
    assert shapes == [(3, 8, 4), (3, 6, 4)]
    for kwargs in calls:  # at t = .9 both are mostly data, and neither is clean
        for name in ("hidden_states", "audio_hidden_states"):
            moved = (kwargs[name] - 0.9 * case.batch[name]).std() / 0.1
            assert 0.7 < float(moved) < 1.3
    assert fog_a.attribute(audio, case.batch, times=2).layers == case.blocks
    for flow, frames in ((video, 8), (audio, 6)):  # alignment and storage read the stream that is scored
        blocks = fog_a.find_blocks(flow, case.batch).main
        with preserved(case.model), tap(blocks) as heard:
            flow.velocity(case.batch, 0.4)
        tokens = [flow.tokens(heard[block.name], block, flow.samples(case.batch))[0] for block in blocks]
        assert [x.shape for x in tokens] == [(3, frames, 16)] * 2


def test_a_class_that_is_not_listed_is_refused() -> None:
    kind = importlib.import_module("diffusers").Lumina2Transformer2DModel
    model = kind(
        hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=1, num_kv_heads=1, cap_feat_dim=8,
        axes_dim_rope=(8, 8, 8), axes_lens=(8, 8, 8), in_channels=4,
    )  # fmt: skip
    with pytest.raises(
        Unsupported, match=r"the timestep of Lumina2Transformer2DModel is not known here: type .*scale="
    ):
        fog_a.wrap(model)
