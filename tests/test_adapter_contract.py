"""What every adapter must hold, on its package's real classes: found, exact, repeatable, without a trace, trainable."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import flow_cases
import numpy as np
import pytest
import torch
from flow_cases import CASES, Case
from torch import Tensor, nn

import fog_a
from fog_a.blocks.calls import hooked
from fog_a.blocks.gate import gate
from fog_a.blocks.tap import tap
from fog_a.blocks.tree import leaves
from fog_a.blocks.untouched import preserved, rng
from fog_a.errors import BadBatch, ShapeMismatch, Unsupported
from fog_a.finding.blocks import find_blocks
from fog_a.flows.noise import noise, spans

pytestmark = [
    # Theirs, raised where our code calls them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore:.*LoRACompatible.*", "ignore:.*torch.cuda.amp.*", "ignore:.*hyperparameter.*"),
]

_made: dict[str, Case] = {}


@pytest.fixture(params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    if name not in _made:
        with rng(0):
            _made[name] = CASES[name]()
    return _made[name]


@pytest.fixture
def flow(case: Case) -> fog_a.Flow:
    return fog_a.wrap(case.model, **case.options)


def velocity(flow: fog_a.Flow, batch: Any, t: Any = 0.4, seed: int = 0) -> Tensor:
    with preserved(flow.model):
        return flow.velocity(batch, t, seed)


def test_is_a_flow(case: Case, flow: fog_a.Flow) -> None:
    assert isinstance(flow, fog_a.Flow) and flow.model is case.model and isinstance(flow.module, nn.Module)


def test_finds_the_labelled_blocks(case: Case, flow: fog_a.Flow) -> None:
    assert find_blocks(flow, case.batch).main.names == case.blocks


def test_calls_the_network_once(case: Case, flow: fog_a.Flow) -> None:
    calls = []
    with hooked(flow.module, before=lambda args, kwargs: calls.append(1)):
        velocity(flow, case.batch)
    assert len(calls) == 1


def test_gate_one_is_bit_equal(case: Case, flow: fog_a.Flow) -> None:
    v, blocks = velocity(flow, case.batch), find_blocks(flow, case.batch)
    with gate(blocks, 1):
        assert torch.equal(velocity(flow, case.batch), v)


def test_gate_zero_is_the_ablation_by_hand(case: Case, flow: fog_a.Flow) -> None:
    v, blocks = velocity(flow, case.batch), find_blocks(flow, case.batch)
    for name in case.blocks:
        with gate(blocks.named([name]), 0):
            ours = velocity(flow, case.batch)
        with flow_cases.closed_copy(case, name) as closed:
            theirs = velocity(fog_a.wrap(closed.model, **closed.options), case.batch)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours, v, rtol=1e-3, atol=1e-3), name


def test_the_seed_and_the_time_decide(case: Case, flow: fog_a.Flow) -> None:
    v = velocity(flow, case.batch)
    torch.rand(3)  # other draws in between change nothing
    np.random.rand(3)
    random.random()
    assert torch.equal(velocity(flow, case.batch), v)
    assert not torch.allclose(velocity(flow, case.batch, seed=1), v)
    assert not torch.allclose(velocity(flow, case.batch, t=0.7), v)
    torch.testing.assert_close(velocity(flow, case.batch, t=torch.full((3,), 0.4)), v)


def test_a_sample_is_the_same_in_another_batch(case: Case, flow: fog_a.Flow) -> None:
    samples, v = flow.samples(case.batch), velocity(flow, case.batch)
    for index in ([0, 1], [0], [1, 0, 1]):  # with the longest: some of these models let padding act on real frames
        fewer = samples.rows(index)
        assert flow.samples(fewer).ids == tuple(samples.ids[i] for i in index)
        torch.testing.assert_close(velocity(flow, fewer), v[index], rtol=1e-4, atol=1e-4)
    assert flow.samples(samples.rows([2])).ids == samples.ids[2:]
    assert velocity(flow, samples.rows([2])).shape[0] == 1


def test_three_lines_give_scores(case: Case) -> None:
    flow = fog_a.wrap(case.model, **case.options)
    scores = fog_a.attribute(flow, case.batch, times=2)
    assert (
        scores.layers == case.blocks and scores.values.shape == (3, 2, len(case.blocks)) and (scores.values > 0).all()
    )
    again = fog_a.attribute(flow, case.batch, times=2)
    assert np.array_equal(again.values, scores.values)
    loop = fog_a.attribute(flow, case.batch, times=2, how="loop")
    np.testing.assert_allclose(scores.values, loop.values, rtol=2e-4, atol=1e-5)
    assert not np.allclose(fog_a.attribute(flow, case.batch, times=2, seed=1).values, scores.values, rtol=1e-3)


def test_padding_is_masked(case: Case, flow: fog_a.Flow) -> None:
    samples, v = flow.samples(case.batch), velocity(flow, case.batch)
    if case.lengths is None:
        assert samples.mask is None
        return
    assert samples.mask is not None
    real = samples.mask.expand_as(v)
    per_frame = v[0].numel() // max(case.lengths)
    assert [int(row.sum()) // per_frame for row in real] == list(case.lengths)
    assert real.dtype == torch.bool


def test_leaves_no_trace(case: Case, flow: fog_a.Flow) -> None:
    flags = {name: i % 2 == 0 for i, (name, _) in enumerate(case.model.named_modules())}
    for name, module in case.model.named_modules():
        module.training = flags[name]
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    find_blocks(flow, case.batch)
    velocity(flow, case.batch)
    flow.samples(case.batch)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    flow.loss(case.batch)
    assert {name: module.training for name, module in case.model.named_modules()} == flags
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules() if kept(m))
    case.model.train()


def kept(module: nn.Module) -> bool:
    """Not one of theirs with hooks of its own."""
    return type(module).__module__.split(".")[0] != "lightning"


def test_tokens_are_frames(case: Case, flow: fog_a.Flow) -> None:
    blocks, samples = find_blocks(flow, case.batch).main, flow.samples(case.batch)
    with preserved(flow.module), tap(blocks) as heard:
        flow.velocity(case.batch, 0.4, 0)
        for block in blocks:
            h, mask = flow.tokens(heard[block.name], block, samples)
            assert h.ndim == 3 and len(h) == 3
            if case.lengths is not None:
                assert mask is not None, block.name
                step = -(-max(case.lengths) // h.shape[1])
                assert mask.sum(1).tolist() == [-(-n // step) for n in case.lengths]


@pytest.mark.parametrize(("kind", "count"), [("flux", 16), ("sd3", 16), ("stable_audio", 16), ("class_dit", 16)])
def test_tokens_are_the_latents_not_the_text(kind: str, count: int) -> None:
    """FLUX's single blocks join text and image and cut them again: both then depend on x_t."""
    case = CASES[kind]()
    flow = fog_a.wrap(case.model)
    blocks, samples = find_blocks(flow, case.batch).main, flow.samples(case.batch)
    with preserved(flow.module), tap(blocks) as heard:
        flow.velocity(case.batch, 0.4, 0)
        for block in blocks:
            assert flow.tokens(heard[block.name], block, samples)[0].shape == (3, count, 32), block.name


def test_interface_has_a_graph(case: Case, flow: fog_a.Flow) -> None:
    c = flow.interface(case.batch)
    if c is not None:
        given = case.batch.get("mu")  # a decoder alone gets it from outside
        assert c.ndim == 3 and len(c) == 3 and (c.requires_grad or given is not None)
    else:
        assert type(flow).__name__ in ("FlowMatchingAdapter", "DiffusersAdapter")


def test_loss_trains_and_repeats(case: Case, flow: fog_a.Flow) -> None:
    with rng(3):
        a = flow.loss(case.batch)
    with rng(3):
        b = flow.loss(case.batch)
    assert a.ndim == 0 and a.requires_grad and float(a.detach()) > 0 and torch.equal(a, b)


def entering(case: Case, flow: fog_a.Flow, t: float, shape: torch.Size) -> list[Tensor]:
    """What the network is given in v's shape."""
    seen: list[Tensor] = []

    def before(args: Any, kwargs: Any) -> None:
        seen.extend(x.detach().double() for _, x in leaves((args, kwargs)) if x.shape == shape)

    with preserved(*flow.modules), hooked(flow.module, before=before):
        flow.velocity(case.batch, t, 3)
    return seen


def test_the_target_is_how_x_t_moves(case: Case, flow: fog_a.Flow) -> None:
    """metric="loss" measures v against it."""
    target, h = flow.target(case.batch, 0.4, 3).double(), 1e-3
    assert target.shape == velocity(flow, case.batch).shape
    if "convention" in vars(flow) and flow.convention.path.name == "ddpm":  # type: ignore[attr-defined]
        return  # x_t moves from step to step
    moves = [
        (b - a) / (2 * h)
        for a, b in zip(*(entering(case, flow, t, target.shape) for t in (0.4 - h, 0.4 + h)), strict=True)
    ]
    mask = flow.samples(case.batch).mask
    keep = torch.ones_like(target) if mask is None else mask.to(target.device).expand_as(target)
    off = [float(((move - target) * keep).norm() / (target * keep).norm()) for move in moves]
    assert min(off) < 0.02


def test_an_output_that_no_module_sees_is_read_from_its_addends() -> None:
    case = CASES["flow_matching"]()
    flow = fog_a.wrap(case.model)
    with preserved(flow.model), tap(find_blocks(flow, case.batch)) as heard:
        v = flow.velocity(case.batch, 0.4, 0)
    assert torch.equal(heard["model.layers.2"], v)


# ---------------------------------------------------------------- with their noise and time, their numbers


@pytest.mark.parametrize("kind", ["f5_dit", "f5_unett", "f5_mmdit"])
def test_f5_velocity_and_loss_are_theirs(kind: str) -> None:
    case = CASES[kind]()
    cfm, flow = case.model, fog_a.wrap(case.model)
    cfm.audio_drop_prob = cfm.cond_drop_prob = 0.0
    x1, lengths = case.batch["mel"].transpose(1, 2), case.batch["mel_lengths"]
    with rng(5):
        loss, _, v = cfm(x1, text=case.batch["text"], lens=lengths)
    with rng(5):
        fraction = torch.zeros(3).uniform_(*cfm.frac_lengths_mask)
        start, x0, t = torch.rand(3), torch.randn_like(x1), torch.rand(3)
    span = spans(lengths, fraction, start, x1.shape[1])
    ours = flow.field(case.batch, x0, t, span)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(ours, v)
    assert torch.equal((ours - (x1 - x0)).square()[span].mean(), loss)


def test_f5_drops_conditions_by_the_seed_if_asked() -> None:
    case = CASES["f5_dit"]()
    with_drop, without = fog_a.wrap(case.model, drop=True), fog_a.wrap(case.model)
    same = [
        torch.equal(velocity(with_drop, case.batch, seed=s), velocity(without, case.batch, seed=s)) for s in range(12)
    ]
    assert any(same) and not all(same)
    assert torch.equal(velocity(with_drop, case.batch, seed=3), velocity(with_drop, case.batch, seed=3))


@pytest.mark.parametrize("kind", ["voicebox", "voicebox_gateloop"])
def test_voicebox_velocity_and_loss_are_theirs(kind: str) -> None:
    case = CASES[kind]()
    wrapper, flow = case.model, fog_a.wrap(case.model)
    heard: list[Tensor] = []
    with rng(5), hooked(wrapper.voicebox.to_pred, after=lambda args, kwargs, out: heard.append(out)):
        loss = wrapper(**case.batch)
    x1, mask = case.batch["x1"], case.batch["mask"]
    with rng(5):
        x0, t = torch.randn_like(x1), torch.rand(3)
        fraction, start = torch.zeros(3).uniform_(*wrapper.voicebox.frac_lengths_mask), torch.zeros(3).uniform_(0, 1)
    span = spans(torch.full((3,), 24), fraction, start, 24)
    ours = flow.field(case.batch, x0, t, span)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(ours, heard[0])
    error = (ours - (x1 - x0)).square().mean(-1)
    counted = span & mask
    torch.testing.assert_close(((error * counted).sum(1) / counted.sum(1)).mean(), loss)


@pytest.mark.parametrize("kind", [name for name in CASES if name.startswith("cosyvoice")])
@pytest.mark.parametrize("seed", range(4))
def test_cosyvoice_velocity_and_loss_are_theirs(kind: str, seed: int) -> None:
    case = CASES[kind]()
    model = case.model
    model.decoder.training_cfg_rate = 0.0
    heard: list[Tensor] = []
    with rng(seed), hooked(model.decoder.estimator, after=lambda args, kwargs, out: heard.append(out)):
        loss = model(case.batch, torch.device("cpu"))["loss"]
    draw = random.Random(seed)
    streaming = draw.random() < 0.5 if "cosyvoice1" not in kind else False
    prefix = [0 if draw.random() < 0.5 else draw.randint(0, int(0.3 * n)) for n in case.batch["speech_feat_len"]]
    x1 = case.batch["speech_feat"].transpose(1, 2)
    with rng(seed):
        t, x0 = torch.rand(3, 1, 1), torch.randn(x1.shape)
    flow = fog_a.wrap(model, streaming=streaming)
    ours = flow.field(case.batch, x0, t.flatten(), torch.tensor(prefix))  # pyright: ignore
    assert torch.equal(ours, heard[0])
    mask = flow.samples(case.batch).mask
    assert mask is not None
    target = x1 - (1 - model.decoder.sigma_min) * x0
    torch.testing.assert_close((ours - target).square()[mask.expand_as(ours)].mean(), loss)


def test_chatterbox_is_read_as_its_s3gen_and_its_meanflow_refused() -> None:
    case = CASES["chatterbox"]()
    whole = type("S3Token2Mel", (nn.Module,), {"__module__": "chatterbox.models.s3gen.s3gen"})()
    whole.flow = case.model
    assert fog_a.wrap(whole).model is case.model
    with pytest.raises(Unsupported, match=r"meanflow decoder predicts the mean velocity .* S3Gen\(meanflow=False\)"):
        fog_a.wrap(flow_cases.chatterbox(meanflow=True).model)


@pytest.mark.parametrize("kind", ["matcha_cfm", "matcha_tts"])
def test_matcha_velocity_is_theirs(kind: str) -> None:
    case = CASES[kind]()
    flow = fog_a.wrap(case.model.eval())
    heard: list[Tensor] = []
    with rng(5), hooked(flow.module, after=lambda args, kwargs, out: heard.append(out)):
        flow.loss(case.batch)
    x1 = case.batch["x1" if kind == "matcha_cfm" else "y"]
    with rng(5):
        t, x0 = torch.rand(3, 1, 1), torch.randn_like(x1)
    ours = flow.field(case.batch, x0, t.flatten())  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(ours, heard[0], rtol=1e-5, atol=1e-6)


def given(flow: fog_a.Flow, case: Case, t: float) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """What the network is called with at time t, its output, x_1 and the noise that the adapter drew."""
    calls: list[Any] = []
    with hooked(flow.module, after=lambda args, kwargs, out: calls.append((kwargs, out[0]))):
        velocity(flow, case.batch, t)
    x1 = case.batch["hidden_states"]
    return *calls[0], x1, noise(x1, flow.samples(case.batch).ids, 0)


@pytest.mark.parametrize(("kind", "scale"), [("sd3", 1.0), ("flux", 1e-3)])
def test_flow_transformers_see_what_diffusers_scheduler_makes(kind: str, scale: float) -> None:
    """The pipelines' scheduler: sigma τ noises the data, the timestep is 1000 τ; FLUX's pipeline divides it by 1000."""
    schedulers = pytest.importorskip("diffusers")
    case = CASES[kind]()
    kwargs, v, x1, x0 = given(fog_a.wrap(case.model), case, t=0.6)
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler()
    at = scheduler.timesteps[600]  # of 1000, from noise to data
    torch.testing.assert_close(kwargs["timestep"], (at * scale).expand(3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kwargs["hidden_states"], scheduler.scale_noise(x1, at[None], x0), rtol=1e-4, atol=1e-4)
    scheduler.set_timesteps(1000)
    scheduler._step_index = 600
    end = x1 + scheduler.sigmas[601] * (x0 - x1)  # a step along ε − x_1 stays on the line
    stepped = scheduler.step(x0 - x1, at, kwargs["hidden_states"]).prev_sample
    torch.testing.assert_close(stepped, end, rtol=1e-4, atol=1e-4)
    assert v.shape == x1.shape


def test_the_noise_prediction_is_that_of_ddpm() -> None:
    schedulers = pytest.importorskip("diffusers")
    case = CASES["class_dit"]()
    kwargs, _, x1, x0 = given(fog_a.wrap(case.model), case, t=0.25)
    scheduler = schedulers.DDPMScheduler()  # linear betas from 1e-4 to 0.02, as DiT's pipeline has them
    at = kwargs["timestep"]
    assert at.tolist() == [750] * 3
    torch.testing.assert_close(kwargs["hidden_states"], scheduler.add_noise(x1, x0, at), rtol=1e-4, atol=1e-5)


def test_stable_audios_v_is_that_of_its_scheduler() -> None:
    """EDM with σ = tan(½πτ): its preconditioned input is our x_τ, and its denoised of our target is the data.

    The pipeline's own CosineDPMSolverMultistepScheduler has these lines too, and needs torchsde.
    """
    schedulers = pytest.importorskip("diffusers")
    case = CASES["stable_audio"]()
    kwargs, _, x1, x0 = given(fog_a.wrap(case.model), case, t=0.4)
    scheduler = schedulers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0)
    sigma = torch.tensor(0.6 * torch.pi / 2).tan()
    torch.testing.assert_close(kwargs["timestep"], (sigma.atan() / torch.pi * 2).expand(3))
    noised = x1 + sigma * x0
    torch.testing.assert_close(kwargs["hidden_states"], scheduler.precondition_inputs(noised, sigma))

    _, target = fog_a.wrap(case.model).convention.predicted(x0, x1, torch.tensor(0.4))  # pyright: ignore
    torch.testing.assert_close(scheduler.precondition_outputs(noised, target, sigma), x1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flow_matching_path", "sd3", "flux", "stable_audio", "class_dit"])
def test_the_loss_is_the_mean_square_to_the_target(kind: str) -> None:
    """With the times and noise of one draw, by the network's own call."""
    case = CASES[kind]()
    flow = fog_a.wrap(case.model.eval(), **case.options)
    calls: list[Any] = []
    with rng(4), hooked(flow.module, after=lambda args, kwargs, out: calls.append(out)):
        loss = flow.loss(case.batch)
    key = "x1" if kind == "flow_matching_path" else "hidden_states"
    x1 = case.batch[key]
    with rng(4):
        t = torch.rand(3).reshape(-1, *[1] * (x1.ndim - 1))
        x0 = torch.randn(x1.shape)
    angle = torch.pi / 2 * (1 - t)
    target = {"flow_matching_path": x1 - x0, "stable_audio": angle.cos() * x0 - angle.sin() * x1, "class_dit": x0}
    out = calls[0] if isinstance(calls[0], Tensor) else calls[0][0]
    out = out[:, : x1.shape[1]] if kind == "class_dit" else out
    torch.testing.assert_close((out - target.get(kind, x0 - x1)).square().mean(), loss)


# ---------------------------------------------------------------- bad batches


def without(batch: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in batch:
        yield key, {k: v for k, v in batch.items() if k != key}


def test_a_batch_of_another_model_names_the_missing_keys(case: Case, flow: fog_a.Flow) -> None:
    with pytest.raises(BadBatch, match=r"lacks .*it has spam"):
        flow.velocity({"spam": torch.ones(2, 3)}, 0.5)
    with pytest.raises(BadBatch, match=r"reads a dict with .*got list"):
        flow.samples([1, 2])


def test_another_dtype_is_refused_with_what_to_type(case: Case, flow: fog_a.Flow) -> None:
    batch = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in case.batch.items()}
    with pytest.raises(BadBatch, match=r"is torch.float64, the model's weights are torch.float32. Type batch\["):
        flow.velocity(batch, 0.5)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("voicebox", "cond"),
        ("cosyvoice2", "embedding"),
        ("cosyvoice3_real", "embedding"),
        ("matcha_cfm", "mu"),
    ],
)
def test_a_condition_of_another_dtype_is_refused_by_name(kind: str, key: str) -> None:
    case = CASES[kind]()
    with pytest.raises(BadBatch, match=rf"'{key}' is torch.float64, the model's weights are torch.float32"):
        fog_a.wrap(case.model).velocity({**case.batch, key: case.batch[key].double()}, 0.5)


def test_diffusers_names_the_arguments_it_cannot_do_without() -> None:
    case = CASES["sd3"]()
    flow = fog_a.wrap(case.model)
    for key in ("encoder_hidden_states", "pooled_projections"):
        fewer = {k: v for k, v in case.batch.items() if k != key}
        with pytest.raises(
            BadBatch, match=rf"SD3Transformer2DModel does not run on this batch.*the batch lacks .*{key}"
        ):
            flow.velocity(fewer, 0.5)
    with pytest.raises(BadBatch, match=r"it gives besides spam"):
        flow.velocity({**case.batch, "spam": torch.ones(3)}, 0.5)


@pytest.mark.parametrize(("kind", "count"), [("stable_audio", 2), ("flux", 5)])
def test_what_belongs_to_no_sample_stays_whole(kind: str, count: int) -> None:
    """Stable Audio's rotary pair and FLUX's ids of five text tokens, in batches of as many samples."""
    case = CASES[kind]()
    whole = {"rotary_embedding", "img_ids", "txt_ids"}
    batch = {k: v if k in whole else torch.cat([v, v])[:count] for k, v in case.batch.items()}
    flow = fog_a.wrap(case.model)
    v, one = velocity(flow, batch), flow.samples(batch).rows([1])
    torch.testing.assert_close(velocity(flow, one), v[1:2], rtol=1e-4, atol=1e-4)


def test_cosyvoice_frames_and_tokens_must_fit() -> None:
    case = CASES["cosyvoice2"]()
    feat = torch.nn.functional.pad(case.batch["speech_feat"], (0, 0, 0, 1))
    with pytest.raises(ShapeMismatch, match=r"the tokens stand for 24 frames, speech_feat has 25: cut the longer one"):
        fog_a.wrap(case.model).velocity({**case.batch, "speech_feat": feat}, 0.5)


def test_voicebox_reads_audio_in_both_shapes_of_its_wrapper() -> None:
    flow_cases.import_voicebox()
    pytest.importorskip("soundfile")
    from voicebox_ag_repa import new_model

    flow, audio = fog_a.wrap(new_model(depth=2, dim=32)), torch.randn(2, 4096)
    for x1 in (audio, audio[:, None]):
        samples = flow.samples(x1)
        assert samples.audio is not None and torch.equal(samples.audio, audio) and samples.rate == 16_000
    assert flow.velocity(audio, 0.5).shape == flow.velocity(audio[:, None], 0.5).shape


@pytest.mark.parametrize("kind", ["f5_dit", "voicebox", "cosyvoice3", "sd3"])
def test_a_model_without_its_adapter_is_told_of_it(kind: str) -> None:
    case = CASES[kind]()
    batch = case.batch if kind != "sd3" else {"spam": torch.ones(3, 4)}
    with pytest.raises(BadBatch, match=r"(cannot be called on this batch|gives one number, its loss).*fog_a.wrap"):
        fog_a.attribute(case.model, batch)


# ---------------------------------------------------------------- alignment


def test_agrepa_lowers_its_loss(name: str) -> None:
    with rng(0):  # it is trained: a model of its own. Matcha-TTS keeps attention's graph, so a used one has no copies
        case = CASES[name]()
    flow = fog_a.wrap(case.model.train(), **case.options)
    names = [case.blocks[0], case.blocks[len(case.blocks) // 2], case.blocks[-1]]
    reg = fog_a.AGREPA(flow, 8, names, batch=case.batch)
    features = torch.randn(3, 8)
    optimizer = torch.optim.Adam([*case.model.parameters(), *reg.parameters()], lr=3e-3)
    terms = []
    for step in range(8):
        with rng(step):
            loss = flow.loss(case.batch)
        term = reg(case.batch, features=features)
        optimizer.zero_grad()
        (loss + term).backward()
        if step == 0:
            first = dict(case.model.named_parameters())
            assert any(p.grad is not None and bool(p.grad.any()) for p in first.values())
        optimizer.step()
        terms.append(float(term.detach()))
    assert terms[-1] < terms[0]
    assert set(reg.metrics()) >= {f"ag_repa/all/{name}" for name in names}
    reg.close()
