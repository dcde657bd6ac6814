"""What a user meets who declares a convention: which stacks count, which words errors find, what pictures say of t."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_flow import CHANNELS, Net
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadBatch, UnknownAdapter, Unsupported


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, h: Tensor) -> Tensor:
        return h + self.f(h)


class Training(nn.Module):
    """A loss as its forward, an encoder of the data, and the network under the name `estimator`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.estimator = nn.Sequential(Layer(), Layer()), Net()
        self.into = nn.Linear(8, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.into(self.encoder(x))
        x0, t = torch.randn_like(x1), torch.rand(len(x1))
        v = self.estimator((1 - t)[:, None, None] * x0 + t[:, None, None] * x1, t)
        return (v - (x1 - x0)).square().mean()


def data() -> dict[str, Tensor]:
    return {"x1": torch.randn(16, 5, CHANNELS, generator=torch.Generator().manual_seed(0))}


def test_output_of_names_the_network_and_its_stacks_alone_are_main(capsys: pytest.CaptureFixture[str]) -> None:
    """A replay of the training forward: the encoder sees the data too, and is none of the network's layers."""
    torch.manual_seed(0)
    model, x, replay = Training(), torch.randn(16, 5, 8), fog_a.output_of("estimator")
    blocks = fog_a.find_blocks(model, x, forward=replay)
    assert {b.stack for b in blocks.main} == {"estimator.blocks"} and len(blocks) > len(blocks.main)
    scores = fog_a.attribute(model, x, forward=replay)
    assert scores.layers == blocks.main.names
    assert "are outside of estimator: left out" in capsys.readouterr().err
    head = fog_a.find_blocks(model, x, forward=fog_a.output_of("estimator.out"))  # a module without blocks of its own
    assert head.main.names == blocks.names


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_network_inside_is_named_however_deep(depth: int) -> None:
    model: nn.Module = Training()
    for _ in range(depth - 1):
        outer = nn.Module()
        outer.add_module("model", model)
        model = outer
    path = "model." * (depth - 1) + "estimator"
    with pytest.raises(UnknownAdapter) as error:
        fog_a.wrap(model)
    assert f'It holds .{path} (Net): type fog_a.wrap(model.{path}, x="x_t", t="t")' in str(error.value)
    assert f'forward=fog_a.output_of("{path}")' in str(error.value)


def test_what_is_no_module_is_not_to_be_attributed_itself() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.training = Training()

    with pytest.raises(UnknownAdapter, match=r"It holds \.training\.estimator \(Net\)") as error:
        fog_a.wrap(Trainer())
    assert "fog_a.attribute(model" not in str(error.value)


def test_a_call_of_three_arguments_is_refused_at_once() -> None:
    with pytest.raises(Unsupported, match=r"call is a function of four arguments, \(net, x_t, t, cond\)"):
        fog_a.wrap(Net(), call=lambda net, x_t, t: net(x_t, t))


def test_a_table_of_steps_wants_whole_numbers() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.table = Net(), nn.Embedding(1000, 1)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return self.net(sample, self.table(timestep)[:, 0])

    options: dict[str, Any] = {"x": "sample", "t": "timestep", "target": "eps"}
    flow = fog_a.wrap(Steps(), time=lambda t: 1000 * (1 - t), **options)
    with pytest.raises(BadBatch, match=r"wants whole numbers .* type time=lambda t: \(999 \* \(1 - t\)\)"):
        fog_a.attribute(flow, data(), times=2)
    flow = fog_a.wrap(Steps(), time=lambda t: (999 * (1 - t)).round().long(), **options)
    assert fog_a.attribute(flow, data(), times=2).info["network_time"] == [999.0, 0.0]


def test_a_network_whose_time_runs_to_noise_is_fanned_out_too() -> None:
    """minRF's gives −v: all ablations still fit in one forward, with the scores of the loop."""
    flow = fog_a.wrap(Net(), x="x_t", t="t", time=lambda t: 1 - t)
    scores = fog_a.attribute(flow, data(), times=2, how=fog_a.Shared(rows=10**9))
    loop = fog_a.attribute(flow, data(), times=2, how="loop")
    assert scores.info["strategy"] == "fanout"
    assert np.allclose(scores.values, loop.values, rtol=1e-4, atol=1e-5)


def test_an_adapters_own_arithmetic_is_no_open_update(capsys: pytest.CaptureFixture[str]) -> None:
    """v of a prediction of noise is a p + b x_t: a sum beside the network, not a skip inside it."""
    blocks = fog_a.find_blocks(
        fog_a.wrap(Net(), x="x_t", t="t", path="ddpm", target="eps", time=lambda t: 999 * (1 - t)), data()
    )
    assert not blocks.coverage.note and "(the model)" not in str(blocks.coverage)


@pytest.mark.parametrize(
    "options",
    [
        {"path": "ddpm", "target": "eps", "time": lambda t: 999 * (1 - t)},
        {"path": "cosine", "target": "v_prediction"},
        {"path": "edm", "target": "x0"},
        {"path": "linear", "target": lambda x0, x1, t: 0.5 * x1 - 2 * x0},
    ],
)
def test_samples_share_a_forward_whatever_is_predicted(options: dict[str, Any]) -> None:
    """v is a line in the prediction: what the network gives out without a block tells the velocity without it."""
    flow, times = fog_a.wrap(Net(), x="x_t", t="t", **options), [0.1, 0.5, 0.9]
    scores = fog_a.attribute(flow, data(), times=times)
    loop = fog_a.attribute(flow, data(), times=times, how="loop")
    assert scores.info["strategy"] == "fanout" and not scores.info["notes"]
    assert np.allclose(scores.values, loop.values, rtol=1e-4, atol=1e-5)


def test_pictures_say_which_way_the_networks_time_runs() -> None:
    pytest.importorskip("matplotlib")
    from fog_a.scores.curves import plot_curves
    from fog_a.scores.plots import plot_scd

    def words(figure: Any) -> str:
        figure.draw_without_rendering()
        return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))

    steps = fog_a.attribute(fog_a.wrap(Net(), x="x_t", t="t", time=lambda t: 1000 * (1 - t)), data(), times=2)
    plain = fog_a.attribute(fog_a.wrap(Net(), x="x_t", t="t"), data(), times=2)
    assert "network_time" not in plain.info
    for draw in (lambda s: s.plot(), lambda s: plot_curves(s), lambda s: plot_scd(s, s)):
        assert "network: 1000 … 0" in words(draw(steps)) and "0: noise, 1: data" in words(draw(steps))
        assert "0: noise, 1: data" in words(draw(plain)) and "network:" not in words(draw(plain))
    stored = fog_a.lasp(
        fog_a.wrap(Net(), x="x_t", t="t", path="ddpm", target="eps", time=lambda t: 999 * (1 - t)),
        data(),
        features=data()["x1"].mean(1),
        times=2,
    )
    assert np.allclose(stored.info["network_time"], [999, 0])
