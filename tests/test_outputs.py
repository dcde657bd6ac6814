"""Which tensor of a bare module's output is measured, and what is refused with a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import small_nets
import torch
from own_zoo.case import WIDTH, Chain, tokens
from torch import Tensor, nn

import fog_a
from fog_a.blocks.calls import hooked
from fog_a.errors import BadOutput, NoBlocksFound, Untrained


class Giving(Chain):
    """A chain whose output is shaped by a function."""

    def __init__(self, shaped: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.shaped = shaped

    def forward(self, x: Tensor) -> Any:
        return self.shaped(super().forward(x))


def made(shaped: Callable[[Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Giving(shaped).eval()


def scores(net: nn.Module, **options: Any) -> np.ndarray:
    return fog_a.attribute(net, tokens(), progress=False, **options).values


def test_one_number_is_a_loss() -> None:
    net = made(lambda v: v.square().mean())
    with pytest.raises(BadOutput, match=r"got one number: a loss. Pass forward="):
        scores(net)


def test_complex_numbers_are_named() -> None:
    net = made(lambda v: torch.complex(v, v))
    with pytest.raises(BadOutput, match=r"complex ones. Pass forward=.*view_as_real"):
        scores(net)


def test_samples_on_another_axis_are_asked_for() -> None:
    net = made(lambda v: v.transpose(0, 1))
    with pytest.raises(BadOutput, match=r"samples on the first axis of the output, got \(6, 2, 16\) for a batch of 2"):
        scores(net)
    turned = scores(net, forward=lambda m, b: m(b).transpose(0, 1))
    np.testing.assert_allclose(turned, scores(made(lambda v: v)), rtol=1e-5)


@pytest.mark.parametrize("out", [lambda hs, v: {"aux": hs, "v": v}, lambda hs, v: (hs, None, v), lambda hs, v: ([], v)])
def test_beside_a_list_of_layers_outputs_stands_the_velocity(out: Any) -> None:
    """Deep supervision: the first layer's output is not the network's."""

    class Deep(Mixing):
        def forward(self, h: Tensor) -> Any:
            states = []
            for layer in self.layers:
                h = h + layer(h)
                states.append(h[..., :8].tanh())
            return out(states, h)

    net, batch = Deep().eval(), torch.randn(3, 4, 16)
    plain = fog_a.attribute(net, batch, forward=lambda m, b: next(reversed(fields(m(b)))), progress=False)
    np.testing.assert_allclose(fog_a.attribute(net, batch, progress=False).values, plain.values, rtol=1e-5)
    assert plain.values.min() > 0


def test_an_output_that_no_block_reaches_is_not_the_only_one() -> None:
    class Masked(Mixing):
        def forward(self, h: Tensor) -> Any:
            return torch.ones(len(h), 4), super().forward(h)

    net, batch = Masked().eval(), torch.randn(3, 4, 16)
    with pytest.raises(Untrained, match="the first is measured: to measure another, return it from forward="):
        fog_a.attribute(net, batch, progress=False)
    assert fog_a.attribute(net, batch, forward=lambda m, b: m(b)[1], progress=False).values.min() > 0


def fields(output: Any) -> list[Any]:
    return list(output.values() if isinstance(output, dict) else output)


def test_time_first_is_asked_for() -> None:
    """torch's default: a batch of 2 samples is no batch of 40."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False)
    batch = torch.randn(40, 2, 16)
    with pytest.raises(
        BadOutput, match=r"got time: of \(40, 2, 16\) a row of the first axis depends.*transpose\(0, 1\)"
    ):
        fog_a.attribute(net, batch)
    turned = fog_a.attribute(net, batch, forward=lambda m, b: m(b).transpose(0, 1), progress=False)
    assert turned.values.shape == (2, 1, 2)


class Mixing(nn.Module):
    """Each frame of (T, B, D) reads the mean of all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = h + layer(h + h.mean(0))
        return h


@pytest.mark.parametrize("how", ["auto", "loop", fog_a.Shared(rows=5), fog_a.Shared(memory="1MiB")])
@pytest.mark.parametrize(("frames", "samples"), [(2, 2), (5, 2), (5, 1)])
def test_time_first_is_measured(frames: int, samples: int, how: Any) -> None:
    """Of any network, also with as many frames as samples, and where there is room for one ablation at a time."""
    net, batch = Mixing().eval(), torch.randn(frames, samples, 16)
    with pytest.raises(BadOutput, match=rf"got time: of \({frames}, {samples}, 16\) a row of the first axis depends"):
        fog_a.attribute(net, batch, how=how)
    with pytest.raises(BadOutput, match=r"got time"):
        fog_a.attribute(net, fog_a.Inputs(batch), how=how)
    with pytest.raises(BadOutput, match=r"got time"):
        fog_a.remove(net, batch, keep=1)
    assert fog_a.attribute(net, batch, forward=lambda m, b: m(b), progress=False).values.shape == (frames, 1, 3)
    turned = fog_a.attribute(net, batch, forward=lambda m, b: m(b).transpose(0, 1), progress=False)
    assert turned.values.shape == (samples, 1, 3)


class Depth(Mixing):
    """Drops updates at random, another number for each row, in eval mode too; frames do not mix."""

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = h + layer(h) * (torch.rand(len(h), 1, 1) + 0.5)
        return h


def test_what_is_drawn_for_each_sample_is_no_time() -> None:
    """Fewer samples would draw other numbers."""
    net, batch = Depth().eval(), torch.randn(5, 4, 16)
    scores = fog_a.attribute(net, batch, progress=False)
    assert scores.values.shape == (5, 1, 3)
    same = fog_a.attribute(net, batch, forward=lambda m, b: m(b), progress=False)
    np.testing.assert_array_equal(scores.values, same.values)


def test_time_first_is_measured_in_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are ablated one at a time by themselves; once for each shape of the batch."""
    monkeypatch.setattr("fog_a.attributing.variants.LAUNCH_BOUND", 0)
    with pytest.raises(BadOutput, match=r"got time: of \(5, 2, 16\)"):
        fog_a.attribute(Mixing().eval(), torch.randn(5, 2, 16))
    net, sizes = Chain().eval(), list[int]()
    fog_a.attribute(net, tokens(), progress=False)
    with hooked(net, before=lambda args, kwargs: sizes.append(len(args[0]))):
        fog_a.attribute(net, tokens(), progress=False)
    assert set(sizes) == {len(tokens())}


class Named(nn.Module):
    """Takes one text per sample beside x; no token reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, x: Tensor, texts: list[str]) -> Tensor:
        h = x + torch.tensor([[[float(len(text))]] for text in texts])
        for layer in self.layers:
            h = h + layer(h)
        return h


def test_a_list_that_is_not_cut_with_the_samples_is_no_time_axis() -> None:
    batch = {"x": torch.randn(3, 5, 16), "texts": ["a", "bb", "cccc"]}
    for how in ("auto", "loop"):
        assert fog_a.attribute(Named().eval(), batch, how=how, progress=False).values.shape == (3, 1, 3)


def test_a_list_of_one_tensor_per_sample_is_measured_per_sample() -> None:
    net = made(lambda v: [v[0], v[1, :4]])
    got = scores(net)
    alone = scores(made(lambda v: v[:1]), forward=lambda m, b: m(b))
    assert got.shape[0] == 2
    np.testing.assert_allclose(got[0], alone[0], rtol=1e-5)


class PerSample(small_nets.Net):
    """A list of (C, T) in, a list of (C, T) out, as Wan's own forward has it."""

    def forward(self, xs: list[Tensor]) -> Any:
        padded = nn.utils.rnn.pad_sequence([x.T for x in xs], batch_first=True)
        return [y[: x.shape[1]].T for x, y in zip(xs, super().forward(padded), strict=True)]


@pytest.mark.parametrize("frames", [(6, 6, 6), (6, 4, 5), (4, 4, 3)])
def test_a_list_of_one_tensor_per_sample_in_and_out(frames: tuple[int, ...]) -> None:
    net = PerSample()
    batch = [torch.randn(4, n) for n in frames]
    got = fog_a.attribute(net, fog_a.Inputs(batch), how="loop", progress=False).values
    alone = [fog_a.attribute(net, fog_a.Inputs([x]), how="loop", progress=False).values for x in batch]
    np.testing.assert_allclose(got, np.concatenate(alone), rtol=1e-5)


class Resolutions(small_nets.Net):
    """A list of two resolutions in, a list of two out, as Matryoshka diffusion has it."""

    def forward(self, xs: list[Tensor], t: Tensor) -> list[Tensor]:
        low = super().forward(xs[1]) + t[:, None, None]
        return [super().forward(xs[0] + low.repeat(1, 2, 1)), low]


@pytest.mark.parametrize("rows", [2, 3])
def test_a_list_of_resolutions_is_no_list_of_samples(rows: int) -> None:
    batch = {"xs": [torch.randn(rows, 8, 4), torch.randn(rows, 4, 4)], "t": torch.rand(rows)}
    with pytest.raises(BadOutput, match="expected one velocity, got 2; pass forward="):
        fog_a.attribute(Resolutions(), batch, progress=False)
    got = fog_a.attribute(Resolutions(), batch, forward=lambda m, b: m(**b)[0], progress=False)
    assert got.values.shape[0] == rows


def test_of_a_list_of_layers_the_last_is_measured() -> None:
    net = made(lambda v: [0 * v, v])
    np.testing.assert_allclose(scores(net), scores(made(lambda v: v)), rtol=1e-5)


def test_of_a_list_of_layers_of_several_widths_the_last_is_measured() -> None:
    net = made(lambda v: [v[..., :3], v])
    np.testing.assert_allclose(scores(net), scores(made(lambda v: v)), rtol=1e-5)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, WIDTH, WIDTH, dtype=torch.cfloat) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.complex(x, x)
        for w in self.w:
            h = h + torch.tanh(h @ w) @ w
        return h.real


def test_complex_streams_are_named() -> None:
    net = Complex()
    with pytest.raises(NoBlocksFound, match="complex numbers"):
        fog_a.find_blocks(net, tokens())


def test_a_run_for_each_sample_is_said() -> None:
    """A list of samples of unlike lengths: an execution is one sample's, and its mean says little."""
    net = Mixing().eval()
    samples = [torch.randn(n, 1, 16) for n in (3, 5)]

    def forward(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return torch.stack([model(x).mean(0)[0] for x in batch])

    with pytest.warns(UserWarning, match=r"run once for each sample: the mean of layers.0@0 .* batches of one sample"):
        scores = fog_a.attribute(net, {"x": samples}, forward=lambda m, b: forward(m, b["x"]), progress=False)
    apart = [{"x": samples[:1]}, {"x": samples[1:]}]
    each = fog_a.attribute(net, apart, forward=lambda m, b: forward(m, b["x"]), progress=False)
    assert each.layers == ("layers.0", "layers.1", "layers.2")
    np.testing.assert_allclose(each.values[:, 0], [scores.values[0, 0, :3], scores.values[1, 0, 3:]], rtol=1e-5)
