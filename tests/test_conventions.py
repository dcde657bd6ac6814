"""Every convention that `wrap` takes, against references written by hand; contradictions; axes, masks and calls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadBatch, ShapeMismatch, Unsupported
from fog_a.flows.convention import TARGETS, Convention
from fog_a.flows.generic import GenericAdapter
from fog_a.flows.noise import content_ids, noise
from fog_a.flows.paths import DDPM, EDM, path_of

KEPT = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


class Seen(nn.Module):
    """Keeps what it was called with, and gives something that depends on all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls.append((x_t, t))
        return self.scale * x_t.tanh() + 0.1


@dataclass
class Reference:
    """One convention by hand: what is typed, and at t what the network gets and must predict, and v of its output."""

    options: dict[str, Any]
    x_t: Callable[[Tensor, Tensor, float], Tensor]
    time: Callable[[float], float]
    target: Callable[[Tensor, Tensor, float], Tensor]
    v: Callable[[Tensor, Tensor, float], Tensor]
    """Of (output, x_t, t)."""


def line(e: Tensor, x: Tensor, t: float) -> Tensor:
    return t * x + (1 - t) * e


def arc(e: Tensor, x: Tensor, t: float) -> Tensor:
    return math.sin(math.pi * t / 2) * x + math.cos(math.pi * t / 2) * e


def step(t: float) -> int:
    return int(1000 * (1 - t))


def ddpm(e: Tensor, x: Tensor, t: float) -> Tensor:
    return KEPT[step(t)].sqrt() * x + (1 - KEPT[step(t)]).sqrt() * e


def level(t: float) -> float:
    return (80 ** (1 / 7) + t * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def ddpm_flow(p: Tensor, x_t: Tensor, t: float) -> Tensor:
    """The probability flow per unit of t, dx/dt = ½ (d log ᾱ/dt) (x − ε/√(1 − ᾱ)), of a predicted noise."""
    n = step(t)
    rate = -1000 * torch.log(KEPT[n] / (KEPT[n - 1] if n else 1.0))
    return 0.5 * rate * (x_t - p / (1 - KEPT[n]).sqrt())


REFERENCES = {
    "flow matching": Reference({}, line, lambda t: t, lambda e, x, t: x - e, lambda p, x_t, t: p),
    "minRF": Reference(
        {"time": lambda t: 1 - t}, line, lambda t: 1 - t, lambda e, x, t: e - x, lambda p, x_t, t: -p
    ),
    "SD3": Reference(
        {"time": lambda t: 1000 * (1 - t)}, line, lambda t: 1000 * (1 - t), lambda e, x, t: e - x, lambda p, x_t, t: -p
    ),
    "against its time": Reference(
        {"time": lambda t: 1 - t, "target": "-v"}, line, lambda t: 1 - t, lambda e, x, t: x - e, lambda p, x_t, t: p
    ),
    "clean": Reference({"target": "x0"}, line, lambda t: t, lambda e, x, t: x, lambda p, x_t, t: (p - x_t) / (1 - t)),
    "noise in [0, 1000]": Reference(
        {"target": "eps", "time": lambda t: 1000 * (1 - t)},
        line, lambda t: 1000 * (1 - t), lambda e, x, t: e, lambda p, x_t, t: (x_t - p) / t,
    ),
    "GVP": Reference(
        {"path": "cosine"},
        arc, lambda t: t,
        lambda e, x, t: math.pi / 2 * (math.cos(math.pi * t / 2) * x - math.sin(math.pi * t / 2) * e),
        lambda p, x_t, t: p,
    ),
    "Stable Audio": Reference(
        {"path": "cosine", "target": "v_prediction", "time": lambda t: 1 - t},
        arc, lambda t: 1 - t,
        lambda e, x, t: math.sin(math.pi * t / 2) * e - math.cos(math.pi * t / 2) * x,
        lambda p, x_t, t: -math.pi / 2 * p,
    ),
    "DDPM": Reference({"path": "ddpm", "target": "eps"}, ddpm, step, lambda e, x, t: e, ddpm_flow),
    "EDM": Reference(
        {"path": "edm", "target": "x0"},
        lambda e, x, t: x + level(t) * e, level, lambda e, x, t: x,
        lambda p, x_t, t: 7 * (0.002 ** (1 / 7) - 80 ** (1 / 7)) * level(t) ** (6 / 7) * (x_t - p) / level(t),
    ),
    "a function": Reference(
        {"target": lambda e, x, t: 2 * x - t * e}, line, lambda t: t, lambda e, x, t: 2 * x - t * e,
        lambda p, x_t, t: (p + (t - 2) * x_t) / (2 * (1 - t) + t * t),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
@given(t=st.integers(1, 39).map(lambda k: (k + 0.25) / 40.5), seed=st.integers(0, 99))
def test_a_convention_is_its_closed_form(name: str, t: float, seed: int) -> None:
    ref, net = REFERENCES[name], Seen()
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    flow = fog_a.wrap(net, x="x_t", t="t", **ref.options)
    v = flow.velocity({"x1": x}, t, seed)
    e = noise(x, content_ids(x), seed)
    x_t, tau = net.calls[-1]
    torch.testing.assert_close(x_t, ref.x_t(e, x, t))
    assert tau.shape == (3,)
    torch.testing.assert_close(tau.double(), torch.full((3,), ref.time(t), dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(v, ref.v(net(x_t, tau), x_t, t))


@pytest.mark.parametrize("name", REFERENCES)
def test_the_loss_is_that_of_the_hand_written_loop(name: str) -> None:
    ref, net = REFERENCES[name], Seen()
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    flow = fog_a.wrap(net, x="x_t", t="t", **ref.options)
    torch.manual_seed(3)
    loss = flow.loss({"x1": x})
    torch.manual_seed(3)
    times, e = torch.rand(4, dtype=torch.float64), torch.randn_like(x)
    rows = []
    for i, t in enumerate(times.tolist()):
        p = net(ref.x_t(e[i], x[i], t), torch.tensor(0.0))
        rows.append((p - ref.target(e[i], x[i], t)).square().mean())
    torch.testing.assert_close(loss, torch.stack(rows).mean())


@given(
    path=st.sampled_from(["linear", "cosine", "ddpm", "edm"]),
    target=st.sampled_from([*TARGETS, lambda e, x, t: x * (1 + t) - e]),
    time=st.sampled_from([None, lambda t: 1 - t, lambda t: 1000 * t, lambda t: (t + 1).log()]),
    t=st.floats(0.02, 0.98),
)
def test_a_perfect_prediction_gives_the_slope_of_the_path(path: str, target: Any, time: Any, t: float) -> None:
    convention = Convention(path_of(path), target, time)
    e, x = torch.randn(2, 1, 6, dtype=torch.float64)
    at = torch.tensor([[t]], dtype=torch.float64)
    x_t, p = convention.predicted(e, x, at)
    torch.testing.assert_close(convention.velocity(p, x_t, at), convention.path(e, x, at)[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(convention.clean(p, x_t, at), x, rtol=1e-3, atol=1e-4)
    back = convention.flow_time(convention.clock(at[:, 0]))
    assert abs(float(back) - t) < 2e-3


@pytest.mark.parametrize("path", ["linear", "cosine", "edm", lambda e, x, t: ((1 - t) * e + t * x, x - e)])
@given(t=st.floats(0.05, 0.95))
def test_slopes_are_derivatives(path: Any, t: float) -> None:
    path = path_of(path)
    e, x = torch.randn(2, 1, 3, dtype=torch.float64)
    at = torch.tensor([[t]], dtype=torch.float64, requires_grad=True)
    rows = torch.autograd.functional.jacobian(lambda at: path(e, x, at)[0].flatten(), at).flatten()
    torch.testing.assert_close(rows, path(e, x, at.detach())[1].flatten())


def test_ideal_networks_of_all_conventions_flow_from_noise_to_the_same_data() -> None:
    """Data N(2, ¼): each convention's best predictor, integrated over t, moves noise to it."""

    def flow_of(path: str, target: str, time: Any) -> fog_a.Flow:
        convention = Convention(path_of(path), target, time)

        def net(x_t: Tensor, t: Tensor) -> Tensor:
            at = state["t"]
            m = convention.path.mix(at)
            total = (m.alpha * 0.5) ** 2 + m.sigma**2
            x1 = 2 + m.alpha * 0.25 / total * (x_t - 2 * m.alpha)  # E[x_1 | x_t]
            return convention.predicted((x_t - m.alpha * x1) / m.sigma, x1, at)[1]

        return GenericAdapter(net, path=path, target=target, time=time)

    state: dict[str, Tensor] = {}
    for path, target, time in [
        ("linear", "v", None), ("linear", "v", lambda t: 1 - t), ("linear", "eps", lambda t: 1000 * (1 - t)),
        ("cosine", "v_prediction", lambda t: 1 - t), ("cosine", "x0", None),
    ]:  # fmt: skip
        flow = flow_of(path, target, time)
        convention: Convention = flow.convention  # pyright: ignore[reportAttributeAccessIssue]
        x = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        grid = torch.linspace(0.002, 0.998, 200, dtype=torch.float64)
        for t, following in itertools.pairwise(grid):
            state["t"] = t.reshape(1, 1)
            p = flow.module(x, t)
            x = x + (following - t) * convention.velocity(p, x, state["t"])
        assert abs(float(x.mean()) - 2) < 0.05 and abs(float(x.std()) - 0.5) < 0.05, (path, target)


def test_ddpm_steps_are_uniform_and_its_betas_are_taken() -> None:
    t = (torch.arange(1000) + 0.5) / 1000
    assert torch.equal(DDPM().clock(t).sort().values, torch.arange(1000))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 50) ** 2
    flow = fog_a.wrap(Seen(), x="x_t", t="t", path="ddpm", target="eps", betas=betas)
    x = torch.randn(2, 3, dtype=torch.float64)
    flow.velocity(x, 0.5)
    kept = (1 - betas.double()).cumprod(0)[25]
    e = noise(x, content_ids(x), 0)
    torch.testing.assert_close(flow.module.calls[-1][0], kept.sqrt() * x + (1 - kept).sqrt() * e)
    assert flow.module.calls[-1][1].tolist() == [25, 25]


def test_defaults_have_their_old_bits() -> None:
    net = Seen()
    x = torch.randn(3, 4, dtype=torch.float64)
    v = fog_a.wrap(net, x="x_t", t="t").velocity(x, 0.3, 5)
    e, t = noise(x, content_ids(x), 5), torch.full((3,), 0.3, dtype=torch.float64)
    assert torch.equal(net.calls[-1][0], (1 - t[:, None]) * e + t[:, None] * x) and torch.equal(net.calls[-1][1], t)
    assert torch.equal(v, net(net.calls[-1][0], t))


# ---------------------------------------------------------------- contradictions


def curved(e: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return (1 - t) * e + t * x + (e * x).sin(), x - e


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"target": "noise"}, r'target is one of "v", "-v", "eps", "x0", "v_prediction", or a function'),
    ({"target": "epsilon"}, r'Did you mean "eps"\?'),
    ({"path": "ddim"}, r'path is one of "linear", "cosine", "ddpm", "edm", or a function'),
    ({"path": curved, "target": "eps"}, r'no α\(t\) x_1 \+ σ\(t\) x_0.*Type target="v"'),
    ({"target": lambda e, x, t: e * x}, r'gives no a x_1 \+ b x_0.*Type target="v", "eps" or "x0"'),
    ({"time": 1000}, r"time is a function of fog_a's t, e.g. lambda t: 1000 \* \(1 - t\), got 1000"),
    ({"time": lambda t: 0 * t}, r"time= must run one way .* it gives 0, 0, 0, 0, 0. Type e.g. lambda t: 1 - t"),
    ({"time": lambda t: (t - 0.5) ** 2}, r"time= must run one way"),
    ({"time": lambda t: 0.5}, r"must give one number for each of 5 times|one number for each of"),
    ({"betas": [0.1]}, r'betas= belong to path="ddpm", got path=\'linear\''),
    ({"path": "ddpm", "betas": [2.0]}, r"betas= are numbers between 0 and 1"),
    ({"path": "edm", "sigma": 0.5}, r'path="edm" fixes the noise it adds: leave out sigma=0.5'),
    ({"x": "xt"}, r"x='xt' names no argument of Seen, which takes x_t, t. Did you mean 'x_t'\?"),
    ({"rename": {"text": "txt"}}, r"rename\['text'\]='txt' names no argument of Seen"),
    ({"x": "x", "call": lambda net, x_t, t, cond: x_t}, r"call= says itself where .* contradict it. Type call="),
    ({"call": "forward"}, r"call is a function \(net, x_t, t, cond\) -> output"),
    ({"channels": "middle"}, r'channels is "first" or "last"'),
    ({"stream": "TDB"}, r'stream is "BTD", "BDT" or "TBD", got \'TDB\''),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message[:32] for _, message in WRONG])
def test_what_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        fog_a.wrap(Seen(), **{"x": "x_t", "t": "t", **options})


def test_a_path_that_gives_one_thing_is_refused() -> None:
    flow = fog_a.wrap(Seen(), x="x_t", t="t", path=lambda e, x, t: t * x)
    with pytest.raises(Unsupported, match=r"path= must return two tensors, x_t and its slope.*got Tensor"):
        flow.velocity(torch.ones(2, 3, dtype=torch.float64), 0.5)


def test_a_time_at_which_nothing_is_told_is_refused() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(Unsupported, match=r"target='eps' on the path 'linear' tells no velocity at t = 0"):
        fog_a.wrap(Seen(), x="x_t", t="t", target="eps").velocity(x, 0.0)
    with pytest.raises(Unsupported, match=r"target='x0' on the path 'linear' tells no velocity at t = 1"):
        fog_a.wrap(Seen(), x="x_t", t="t", target="x0").velocity(x, 1.0)


# ---------------------------------------------------------------- calls and outputs


class Nested(nn.Module):
    """Takes one dict, gives one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)) for _ in range(3))

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        h = inputs["noisy"] + inputs["cond"]["text"].mean(1, keepdim=True) * inputs["time"][:, None, None]
        for block in self.blocks:
            h = h + block(h)
        return {"hidden": h * 2, "prediction": h}


@dataclass
class Answer:
    sample: Tensor
    extra: int = 0


class Tuples(Nested):
    def forward(self, x_t: Tensor, t: Tensor, text: Tensor | None = None) -> Any:  # pyright: ignore
        return self.answer(super().forward({"noisy": x_t, "time": t, "cond": {"text": text}})["prediction"])

    def answer(self, h: Tensor) -> Any:
        return (h, 1)


class Dataclasses(Tuples):
    def answer(self, h: Tensor) -> Any:
        return Answer(h)


def dict_call(net: Any, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Any:
    return net({"noisy": x_t, "time": t, "cond": cond})


def test_a_network_of_dicts_is_called_and_its_blocks_keep_their_names() -> None:
    batch = {"x1": torch.randn(3, 5, 4), "text": torch.randn(3, 2, 4)}
    torch.manual_seed(0)
    net = Nested()
    flow = fog_a.wrap(net, call=dict_call, out="prediction")
    assert fog_a.find_blocks(flow, batch).names == ("blocks.0", "blocks.1", "blocks.2")
    torch.manual_seed(0)
    plain, by_class = Tuples(), Dataclasses()
    by_class.load_state_dict(net.state_dict())
    for other in (
        fog_a.wrap(plain, x="x_t", t="t", out=0),
        fog_a.wrap(by_class, x="x_t", t="t", out="sample"),
        fog_a.wrap(by_class, x="x_t", t="t", out=lambda out: out.sample),
        fog_a.wrap(plain, x=None, t=None, out=0),
        fog_a.wrap(plain, call=lambda net, x_t, t, cond: net(x_t, t, cond["text"]), out=0),
    ):
        assert torch.equal(other.velocity(batch, 0.3, 1), flow.velocity(batch, 0.3, 1))
    renamed = fog_a.wrap(plain, x="x_t", t="t", out=0, rename={"caption": "text"})
    caption = {"x1": batch["x1"], "caption": batch["text"]}
    assert torch.equal(renamed.velocity(caption, 0.3, 1), flow.velocity(batch, 0.3, 1))
    scores = fog_a.attribute(flow, batch, times=2)
    assert scores.layers == ("blocks.0", "blocks.1", "blocks.2") and scores.values.min() > 0


def test_an_output_that_is_no_tensor_names_what_to_type() -> None:
    batch = {"x1": torch.randn(2, 5, 4), "text": torch.randn(2, 2, 4)}
    with pytest.raises(ShapeMismatch, match=r"Tuples gave a tuple of 2. Type out=0"):
        fog_a.wrap(Tuples(), x="x_t", t="t").velocity(batch, 0.5)
    with pytest.raises(ShapeMismatch, match=r'Dataclasses gave a Answer with .sample.. Type out="sample"'):
        fog_a.wrap(Dataclasses(), x="x_t", t="t").velocity(batch, 0.5)
    with pytest.raises(ShapeMismatch, match=r"call= gave a dict with 'hidden', 'prediction'. Type out=\"hidden\""):
        fog_a.wrap(Nested(), call=dict_call).velocity(batch, 0.5)
    with pytest.raises(ShapeMismatch, match=r"call= gave a tuple of 2. Type out=0"):
        fog_a.wrap(Nested(), call=lambda net, x_t, t, cond: (x_t, t)).velocity(batch, 0.5)
    with pytest.raises(ShapeMismatch, match=r"call= gave a list of 2. Type out=torch.stack"):
        fog_a.wrap(Nested(), call=lambda net, x_t, t, cond: [*x_t]).velocity(batch, 0.5)
    with pytest.raises(ShapeMismatch, match=r"out='v' names nothing in the network's output, a dict with"):
        fog_a.wrap(Nested(), call=dict_call, out="v").velocity(batch, 0.5)
    with pytest.raises(BadBatch, match=r"type rename={'key in the batch': 'argument'}; another call: call="):
        fog_a.wrap(Tuples(), x="x_t", t="t", out=0).velocity({**batch, "caption": 1}, 0.5)


def test_rows_cut_conditions_in_nested_dicts() -> None:
    batch = {
        "x1": torch.randn(3, 5, 4),
        "cond": {
            "text": torch.arange(3),
            "deep": {"mask": torch.eye(3)[:, :2], "names": [*"abc"]},
            "scale": 2.0,
        },
        "pair": (torch.arange(3) + 5, torch.arange(3) + 9),
        "table": torch.zeros(7, 3),
    }
    flow = fog_a.wrap(Nested(), call=dict_call, out="prediction")
    fewer = flow.samples(batch).rows([2, 0])
    assert fewer["cond"]["text"].tolist() == [2, 0] and fewer["cond"]["deep"]["names"] == ["c", "a"]
    assert fewer["cond"]["deep"]["mask"].tolist() == [[0.0, 0.0], [1.0, 0.0]] and fewer["cond"]["scale"] == 2.0
    assert [x.tolist() for x in fewer["pair"]] == [[7, 5], [11, 9]] and fewer["table"] is batch["table"]
    assert batch["cond"]["text"].tolist() == [0, 1, 2]


# ---------------------------------------------------------------- axes and masks


class Trunk(nn.Module):
    """(B, C, T) data, blocks over (B, T, D), or (T, B, D)."""

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.stream = stream
        self.inp, self.out = nn.Linear(4, 6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(3))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = self.inp(x_t.transpose(1, 2)) + t[:, None, None]
        h = h.transpose(0, 1) if self.stream == "TBD" else h
        for block in self.blocks:
            h = h + block(h)
        h = h.transpose(0, 1) if self.stream == "TBD" else h
        return self.out(h).transpose(1, 2)


@pytest.mark.parametrize("stream", ["BTD", "TBD"])
def test_features_of_a_trunk_are_pooled_over_frames(stream: str) -> None:
    batch = {"x1": torch.randn(3, 4, 9), "mask": torch.arange(9) < torch.tensor([[9], [5], [7]])}
    torch.manual_seed(0)
    flow = fog_a.wrap(Trunk(stream), x="x_t", t="t", channels="first", stream=stream)
    torch.manual_seed(0)
    plain = fog_a.wrap(Trunk("BTD"), x="x_t", t="t", channels="first", stream="BTD")
    samples = flow.samples(batch)
    assert samples.mask is not None and samples.mask.shape == (3, 1, 9)
    got = {}
    for which in (flow, plain):
        blocks = fog_a.find_blocks(which, batch)
        with torch.no_grad(), fog_a.tap(blocks) as h:
            which.velocity(batch, 0.5)
        tokens, mask = which.tokens(h[blocks[1].name], blocks[1], samples)
        assert tokens.shape == (3, 9, 6) and mask is not None and mask.sum(1).tolist() == [9, 5, 7]
        got[which] = tokens
    assert torch.equal(got[flow], got[plain])
    a, b = (fog_a.attribute(which, batch, times=2).values for which in (flow, plain))
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b))


def test_axes_that_do_not_fit_are_named() -> None:
    batch = {"x1": torch.randn(3, 4, 9)}
    for stream, options in (("BTD", {"channels": "first"}), ("TBD", {"channels": "first"})):
        flow = fog_a.wrap(Trunk(stream), x="x_t", t="t", **options)
        blocks = fog_a.find_blocks(flow, batch)
        with torch.no_grad(), fog_a.tap(blocks) as h:
            flow.velocity(batch, 0.5)
        with pytest.raises(ShapeMismatch, match=rf'fits the axes {stream}, not BDT: type .*stream="{stream}"'):
            flow.tokens(h[blocks[0].name], blocks[0], flow.samples(batch))


def test_patches_of_images_are_tokens_however_wide_they_are() -> None:
    """Sixteen patches of 64 channels, of images of 64 pixels."""
    flow = fog_a.wrap(Seen(), x="x_t", t="t")
    samples = flow.samples({"x1": torch.randn(2, 1, 8, 8).double()})
    tokens, mask = flow.tokens(torch.zeros(2, 16, 64), None, samples)  # pyright: ignore[reportArgumentType]
    assert tokens.shape == (2, 16, 64) and mask is None
    with pytest.raises(ShapeMismatch, match=r'fits the axes BDT, not BTD: type fog_a.wrap\(..., stream="BDT"\)'):
        flow.tokens(torch.zeros(2, 48, 16), None, samples)  # pyright: ignore[reportArgumentType]


MASKS = {
    "first": [lambda m: m, lambda m: m[:, None], lambda m: m[:, None].expand(-1, 4, -1)],
    "last": [lambda m: m, lambda m: m[..., None], lambda m: m[..., None].expand(-1, -1, 4)],
}


@pytest.mark.parametrize("channels", MASKS)
@pytest.mark.parametrize("shape", [0, 1, 2])
def test_a_mask_is_right_in_every_shape(channels: str, shape: int) -> None:
    real = torch.arange(8) < torch.tensor([[8], [5], [2]])
    x1 = torch.randn(3, 8, 4) if channels == "last" else torch.randn(3, 4, 8)
    flow = fog_a.wrap(Seen(), x="x_t", t="t", channels=channels)
    samples = flow.samples({"x1": x1.double(), "mask": MASKS[channels][shape](real)})
    assert samples.mask is not None
    expected = real[..., None] if channels == "last" else real[:, None]
    assert torch.equal(samples.mask.expand_as(x1), expected.expand_as(x1))
    h = torch.zeros(3, 8, 6) if channels == "last" else torch.zeros(3, 6, 8)
    tokens, mask = flow.tokens(h, None, samples)  # pyright: ignore[reportArgumentType]
    assert tokens.shape == (3, 8, 6) and mask is not None and torch.equal(mask, real)
    half = torch.zeros(3, 4, 6) if channels == "last" else torch.zeros(3, 6, 4)
    _, mask = flow.tokens(half, None, samples)  # pyright: ignore[reportArgumentType]
    assert mask is not None and mask.sum(1).tolist() == [4, 3, 1]


def test_a_mask_of_images_is_laid_over_patches() -> None:
    real = torch.zeros(2, 8, 8, dtype=torch.bool)
    real[0], real[1, :4, :5] = True, True
    x1 = torch.randn(2, 3, 8, 8).double()
    for mask in (real, real[:, None]):
        flow = fog_a.wrap(Seen(), x="x_t", t="t")
        samples = flow.samples({"x1": x1, "mask": mask})
        _, tokens = flow.tokens(torch.zeros(2, 16, 6), None, samples)  # pyright: ignore[reportArgumentType]
        assert tokens is not None and tokens[0].all()
        assert tokens[1].reshape(4, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4, [0] * 4]
        _, tokens = flow.tokens(torch.zeros(2, 6, 4, 4), None, samples)  # pyright: ignore[reportArgumentType]
        assert tokens is not None and int(tokens[1].sum()) == 6
    flow = fog_a.wrap(Seen(), x="x_t", t="t", tokens=slice(None))
    with pytest.raises(ShapeMismatch, match=r"a mask of \(8, 8\) cannot be laid over 7 tokens"):
        flow.tokens(torch.zeros(2, 7, 6), None, samples)  # pyright: ignore[reportArgumentType]


def test_a_mask_that_looks_inverted_is_named() -> None:
    real = torch.arange(8) < torch.tensor([[8], [5]])
    x1 = torch.randn(2, 8, 4).double() * real[..., None]
    flow = fog_a.wrap(Seen(), x="x_t", t="t")
    with pytest.raises(BadBatch, match=r"the mask looks inverted: sample 0 has no True.*type batch\['mask'\] = ~mask"):
        flow.samples({"x1": torch.randn(2, 8, 4).double(), "mask": ~real})
    late = torch.arange(8) < torch.tensor([[6], [5]])
    with pytest.raises(BadBatch, match=r"the mask looks inverted: the data is zero wherever the mask is True"):
        flow.samples({"x1": torch.randn(2, 8, 4).double() * late[..., None], "mask": ~late})
    with pytest.raises(ShapeMismatch, match=r'got \(2, 9, 1\). If T is the other axis, type channels="first"'):
        flow.samples({"x1": x1, "mask": torch.ones(2, 9, dtype=torch.bool)})


def test_where_the_data_are_is_named() -> None:
    flow = fog_a.wrap(Seen(), x="x_t", t="t")
    with pytest.raises(BadBatch, match=r'lacks x1 \(it has mel\).*; type fog_a.wrap\(..., data="mel"'):
        flow.velocity({"mel": torch.zeros(2, 4)}, 0.5)


def test_edm_levels() -> None:
    assert EDM().clock(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([80.0, 0.002], rel=1e-4)
