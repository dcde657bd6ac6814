"""Which tokens of a stream are the data's: at its rate or a lower one, among others, on other axes."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fog_a
from fog_a.errors import ShapeMismatch, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers import LatentTeacher


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.scale * x_t


class Prefixed(nn.Module):
    """Tokens of the time in one sequence with the frames: before them, and perhaps behind."""

    def __init__(self, before: int, behind: int = 0) -> None:
        super().__init__()
        self.before, self.behind = before, behind
        self.inp, self.out, self.time = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(1, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(2))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time, frames = self.time(t[:, None])[:, None], self.inp(x_t)
        h = torch.cat([time.expand(-1, self.before, -1), frames, time.expand(-1, self.behind, -1)], 1)
        for block in self.blocks:
            h = h + block(h)
        return self.out(h[:, self.before : self.before + x_t.shape[1]])


@pytest.mark.parametrize("channels", ["last", "first"])
@pytest.mark.parametrize("before", [1, 3, 9, 18])
def test_only_the_data_s_tokens_are_aligned(before: int, channels: str) -> None:
    """As many as the data has frames, of (B, T + k, D): a mask of T is never stretched over T + k tokens."""
    real = torch.arange(9) < torch.tensor([[9], [5], [7]])
    batch = {"x1": torch.randn(3, 9, 4), "mask": real}
    wrap = partial(fog_a.wrap, Prefixed(before), x="x_t", t="t", stream="BTD")
    samples = wrap().samples(batch)
    blocks = fog_a.find_blocks(wrap(tokens="last"), batch)
    with torch.no_grad(), fog_a.tap(blocks) as taps:
        wrap().velocity(batch, 0.5)
    h, block = taps[blocks[0].name], blocks[0]
    if channels == "first":  # the same stream, told apart by stream= alone
        h, wrap = h.transpose(1, 2), partial(wrap, stream="BDT")
    for which in ("last", slice(before, None)):
        tokens, mask = wrap(tokens=which).tokens(h, block, samples)
        assert torch.equal(tokens, taps[block.name][:, before:]) and mask is not None and torch.equal(mask, real)
    tokens, _ = wrap(tokens="first").tokens(h, block, samples)
    assert torch.equal(tokens, taps[block.name][:, :9])
    what = rf"give {9 + before} tokens for data of 9 frames"
    advice = (
        rf'{what}.*tokens=\): "last" or "first".*slice\({before}, None\) without the first {before}.*channels="first"'
    )
    with pytest.raises(ShapeMismatch, match=advice):
        wrap().tokens(h, block, samples)
    with pytest.raises(ShapeMismatch, match=advice):
        fog_a.lasp(wrap(stream="BTD"), batch, LatentTeacher(4), times=1)
    whole, _ = wrap(tokens=slice(None)).tokens(h, block, samples)
    assert whole.shape[1] == 9 + before


def test_alignment_of_a_prefixed_net_is_that_of_its_frames() -> None:
    """Tokens that no frame reads change nothing, wherever they stand."""
    batch, got = {"x1": torch.randn(16, 9, 4)}, []
    for before, behind, which in ((0, 0, None), (5, 0, "last"), (5, 2, slice(5, -2)), (0, 2, "first")):
        torch.manual_seed(0)
        flow = fog_a.wrap(Prefixed(before, behind), x="x_t", t="t", tokens=which)
        got.append(fog_a.lasp(flow, batch, LatentTeacher(4), times=1).values)
    for values in got[1:]:
        np.testing.assert_allclose(values, got[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_tokens_beside_patches_are_named(width: int) -> None:
    """U-ViT: 16 patches of 8 × 8 pixels, and two tokens. 16, 32 and 64 divide 64 by chance: they are the width."""
    samples = fog_a.wrap(Whole(), x="x_t", t="t").samples({"x1": torch.randn(2, 1, 8, 8)})
    h = torch.randn(2, 18, width)
    with pytest.raises(
        ShapeMismatch, match=r"tokens=" if width == 32 else r'If BTD is right, type stream="BTD".*tokens='
    ):
        fog_a.wrap(Whole(), x="x_t", t="t").tokens(h, None, samples)  # pyright: ignore[reportArgumentType]
    for which in (None, "last"):
        flow = fog_a.wrap(Whole(), x="x_t", t="t", stream="BTD", tokens=which)
        with pytest.raises(
            ShapeMismatch,
            match=r"give 18 tokens for data of 8 × 8 pixels.*tokens=\): a slice, such as tokens=slice\(2, None\)",
        ):
            flow.tokens(h, None, samples)  # pyright: ignore[reportArgumentType]
    flow = fog_a.wrap(Whole(), x="x_t", t="t", stream="BTD", tokens=slice(2, None))
    assert torch.equal(flow.tokens(h, None, samples)[0], h[:, 2:])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("frames", "tokens"), [(9, 9), (9, 5), (9, 4), (9, 3), (9, 1), (32, 11), (32, 10), (64, 8), (100, 13)]
)
def test_lower_rates_are_no_tokens_beside(frames: int, tokens: int) -> None:
    flow = fog_a.wrap(Whole(), x="x_t", t="t", stream="BTD")
    samples = flow.samples({"x1": torch.randn(2, frames, 4)})
    assert flow.tokens(torch.zeros(2, tokens, 6), None, samples)[0].shape == (2, tokens, 6)  # pyright: ignore


def test_samples_on_another_axis_are_named() -> None:
    """(T, B, D) with T = B: only the layers at half the rate tell it."""
    flow = fog_a.wrap(Whole(), x="x_t", t="t")
    samples = flow.samples({"x1": torch.randn(8, 8, 4)})
    with pytest.raises(ShapeMismatch, match=r'fits the axes TBD, not BTD: type fog_a.wrap\(..., stream="TBD"\)'):
        flow.tokens(torch.zeros(4, 8, 6), None, samples)  # pyright: ignore[reportArgumentType]


class TimeFirst(nn.Module):
    """(T, B, D), at half the rate or (`every` = 1) at the data's."""

    def __init__(self, every: int = 2) -> None:
        super().__init__()
        self.every = every
        self.inp, self.out = nn.Linear(4, 6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(2))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = (self.inp(x_t) + t[:, None, None]).transpose(0, 1)[:: self.every]
        for block in self.blocks:
            h = h + block(h)
        return self.out(h.repeat_interleave(self.every, 0).transpose(0, 1))


@pytest.mark.filterwarnings("ignore:the head of")  # too few samples to fit a head, and none is asked for
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("stream", [None, "BTD"])
def test_as_many_samples_as_frames_on_another_axis(stream: str | None, every: int) -> None:
    flow = fog_a.wrap(TimeFirst(every), x="x_t", t="t", stream=stream)
    with pytest.raises(ShapeMismatch, match=r'type fog_a.wrap\(..., stream="TBD"\)'):
        fog_a.lasp(flow, {"x1": torch.randn(8, 8, 4)}, LatentTeacher(4), times=1)
    declared = fog_a.wrap(TimeFirst(every), x="x_t", t="t", stream="TBD")
    assert fog_a.lasp(declared, {"x1": torch.randn(8, 8, 4)}, LatentTeacher(4), times=1).layers


class AtItsLength(TimeFirst):
    """(T, B, D), with positions for just so many frames."""

    def __init__(self, frames: int) -> None:
        super().__init__(1)
        self.positions = nn.Parameter(torch.randn(frames, 1, 6))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = (self.inp(x_t) + t[:, None, None]).transpose(0, 1) + self.positions
        for block in self.blocks:
            h = h + block(h)
        return self.out(h.transpose(0, 1))


@pytest.mark.parametrize("size", [2, 4])
def test_as_many_samples_as_frames_of_a_fixed_length(size: int) -> None:
    """A run on fewer frames fails, or gives as many (1 + 2 are 2): one on fewer samples tells."""
    flow = fog_a.wrap(AtItsLength(size), x="x_t", t="t")
    with pytest.raises(ShapeMismatch, match=r'type fog_a.wrap\(..., stream="TBD"\)'):
        fog_a.AGREPA(flow, LatentTeacher(4), ["blocks.1"], batch={"x1": torch.randn(size, size, 4)})


def test_tokens_are_a_word_or_a_slice() -> None:
    with pytest.raises(Unsupported, match=r'tokens is "first", "last" or a slice such as slice\(2, None\), got 2'):
        fog_a.wrap(Whole(), x="x_t", t="t", tokens=2)


class Turned(nn.Module):
    """Takes (B, T, D), gives (B, D, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.out(self.inp(x_t)).transpose(1, 2)


def test_an_output_with_exchanged_axes_is_named() -> None:
    x1 = torch.randn(2, 9, 4)
    advice = r"gave \(2, 4, 9\). Type out=lambda out: out.transpose\(1, 2\)"
    with pytest.raises(ShapeMismatch, match=advice):
        fog_a.wrap(Turned(), x="x_t", t="t").velocity(x1, 0.5)
    flow = fog_a.wrap(Turned(), x="x_t", t="t", out=lambda out: out.transpose(1, 2))
    assert flow.velocity(x1, 0.5).shape == x1.shape


class Texted(nn.Module):
    """Its text comes as lists of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.inp, self.out = nn.Linear(4, 6), nn.Linear(6, 4)
        self.text, self.blocks = (
            nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(n))
            for n in (2, 3)
        )

    def forward(self, x_t: Tensor, t: Tensor, words: list[list[int]]) -> Tensor:
        c = self.words(torch.tensor(words))
        for block in self.text:
            c = c + block(c)
        h = self.inp(x_t) + c.mean(1, keepdim=True) + t[:, None, None]
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


def test_what_depends_on_lists_alone_is_said() -> None:
    flow = fog_a.wrap(Texted(), x="x_t", t="t")
    batch = {"x1": torch.randn(16, 9, 4), "words": torch.randint(0, 20, (16, 5)).tolist()}
    scores = fog_a.attribute(flow, batch, times=1, progress=False)
    assert scores.layers == ("blocks.0", "blocks.1", "blocks.2")
    said = "2 blocks of text depend on no tensor that the model is given: left out"
    assert any(said in note for note in scores.info["notes"])


def test_rows_that_are_no_samples_are_told_of_a_bare_module_too() -> None:
    forward = TimeFirst(1)
    with pytest.raises(ShapeMismatch, match=r"'blocks.0' gave 8 rows for 7 samples: if its axes are \(T, B, D\)"):
        fog_a.lasp(forward, fog_a.Inputs(torch.randn(8, 8, 4), torch.ones(8)), features=torch.randn(8, 4))


class Adapter(fog_a.Flow):
    """The defaults of an adapter, with a mask of whichever axes."""

    def __init__(self, before: int, mask: Tensor | None) -> None:
        super().__init__(Prefixed(before))
        self.mask = mask

    def velocity(self, batch: Tensor, t: float | Tensor, seed: int = 0) -> Tensor:
        return self.module(batch, torch.full((len(batch),), 0.5))

    def samples(self, batch: Tensor) -> Samples:
        names = tuple(map(str, range(len(batch))))
        return Samples(names, ("all",) * len(names), lambda index: batch[list(index)], mask=self.mask)


REAL = torch.arange(9) < torch.tensor([[9], [5]])


@pytest.mark.parametrize(
    "mask", [REAL, REAL[..., None], REAL[:, None], REAL[..., None].expand(-1, -1, 4)], ids=["BT", "BT1", "B1T", "BTD"]
)
def test_a_mask_is_never_stretched_over_more_tokens_than_frames(mask: Tensor) -> None:
    blocks = fog_a.find_blocks(Prefixed(1), fog_a.Inputs(torch.randn(2, 9, 4), torch.ones(2)))
    plain, longer = Adapter(0, mask), Adapter(3, mask)
    tokens, real = plain.tokens(torch.randn(2, 9, 6), blocks[0], plain.samples(torch.randn(2, 9, 4)))
    assert tokens.shape == (2, 9, 6) and real is not None and torch.equal(real, REAL)
    with pytest.raises(ShapeMismatch, match=r"a mask of 9 says nothing of 12 tokens.*leave them out by fog_a.wrap"):
        fog_a.lasp(longer, torch.randn(2, 9, 4), features=torch.randn(2, 5), blocks=blocks.names, times=[0.5])


def test_a_mask_of_pixels_is_laid_over_patches_in_adapters_too() -> None:
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[:, :, :2, 3] = True
    flow = Adapter(0, mask)
    block = fog_a.find_blocks(Prefixed(1), fog_a.Inputs(torch.randn(2, 9, 4), torch.ones(2)))[0]
    _, real = flow.tokens(torch.randn(2, 4, 6), block, flow.samples(torch.randn(2, 9, 4)))
    assert real is not None and real.tolist() == [[False, True, False, False]] * 2


@pytest.mark.parametrize("bare", [True, False])
def test_more_tokens_than_frames_without_a_mask_are_doubted(bare: bool) -> None:
    """The defaults cannot tell tokens of a class from frames: they say so."""

    def read(before: int) -> None:
        flow = Prefixed(before) if bare else Adapter(before, None)
        batch = fog_a.Inputs(torch.randn(32, 9, 4), torch.ones(32)) if bare else torch.randn(32, 9, 4)
        fog_a.lasp(flow, batch, features=torch.randn(32, 2), **({} if bare else {"times": [0.5]}))

    with pytest.warns(
        UserWarning, match=r"'blocks.0' gives 12 tokens for a velocity of \(32, 9, 4\), and all are taken"
    ):
        read(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tokens for a velocity.*")
        warnings.filterwarnings("ignore", message=".*tells nothing.*")
        read(0)


def test_alignment_doubts_more_tokens_than_frames() -> None:
    with pytest.warns(UserWarning, match=r"gives 11 tokens for a velocity of \(2, 9, 4\)"):
        fog_a.AGREPA(Adapter(2, None), 3, ["blocks.1"], batch=torch.randn(4, 9, 4))


class Convolved(nn.Module):
    """(B, D, T), D = 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.Tanh()) for _ in range(2))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        for layer in self.layers:
            x_t = x_t + layer(x_t)
        return x_t


class Aside(nn.Module):
    """Data (B, 4, T), blocks (B, T, 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 9), nn.Linear(9, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 9)) for _ in range(2))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = self.into(x_t.transpose(1, 2))
        for layer in self.layers:
            h = h + layer(h)
        return self.out(h).transpose(1, 2)


@pytest.mark.parametrize(
    ("net", "shape", "declared", "right", "words"),
    [
        (Convolved, (16, 8, 8), {}, {"channels": "first"}, "takes fewer entries along axis 2 .*channels=.first"),
        (Convolved, (16, 8, 12), {}, {"channels": "first"}, "takes fewer entries along axis 2 .*channels=.first"),
        (Aside, (16, 4, 9), {"channels": "first"}, {"channels": "first", "stream": "BTD"}, 'type .*stream="BTD"'),
    ],
    ids=["as many frames as channels", "channels first", "as many frames as the width"],
)
def test_which_axis_the_frames_are_on_is_measured(net: Any, shape: Any, declared: Any, right: Any, words: str) -> None:
    batch, features = {"x1": torch.randn(shape)}, torch.randn(16, 2)

    def aligned(**options: Any) -> None:
        flow = fog_a.wrap(net(), x="x_t", t="t", **options)
        fog_a.AGREPA(flow, 3, fog_a.find_blocks(flow, batch).names[:1], batch=batch)

    def read(**options: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tells nothing.*")
            fog_a.lasp(fog_a.wrap(net(), x="x_t", t="t", **options), batch, features=features, times=[0.5])

    for use in (aligned, read):
        with pytest.raises(ShapeMismatch, match=words):
            use(**declared)
        use(**right)
