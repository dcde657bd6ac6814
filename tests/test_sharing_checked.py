"""Shared work is checked: what is remembered, what the batch decides, what moves between runs, what is on disk."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_flow import a_batch, a_flow
from small_nets import Net, tokens
from torch import Tensor, nn

import fog_a
from fog_a.attributing.sighting import Decisions
from fog_a.attributing.yardstick import norm
from fog_a.errors import BadScores, Unsupported
from fog_a.flows.bare import flow_of
from fog_a.flows.case import Case

CLOSE = dict(rtol=2e-5, atol=2e-6)


def both(model: nn.Module, batch: Any, **options: Any) -> tuple[fog_a.Scores, np.ndarray]:
    """As a user calls it, and one ablation at a time on a fresh copy."""
    loop = fog_a.attribute(copy.deepcopy(model), batch, how="loop", progress=False, **options).values
    return fog_a.attribute(model, batch, progress=False, **options), loop


class TwoHeads(Net):
    """A second output that the blocks reach in another measure."""

    def forward(self, x: Tensor) -> Any:
        h = self.stem(x)
        halves = []
        for i, block in enumerate(self.blocks):
            h = block(h)
            halves += [self.head(h)] if i == 1 else []
        return halves[0], self.head(h).tanh()


def test_a_second_output_is_not_the_first_ones() -> None:
    net, x = TwoHeads(), tokens()
    for i in (0, 1, 0):
        scores, loop = both(net, x, blocks=["blocks.0", "blocks.1"], forward=lambda m, b, i=i: m(b)[i])
        np.testing.assert_allclose(scores.values, loop, **CLOSE)


def test_a_second_inner_module_is_not_the_first_one() -> None:
    net, x = Net(), tokens()
    for name in ("blocks.2", "head", "blocks.2"):
        scores, loop = both(net, x, blocks=["blocks.0"], forward=fog_a.output_of(name))
        np.testing.assert_allclose(scores.values, loop, **CLOSE)


def test_a_network_of_which_only_parts_are_called() -> None:
    net, x = Net(), tokens()

    def parts(m: Any, b: Any) -> Tensor:
        h = m.stem(b)
        for block in m.blocks:
            h = block(h)
        return m.head(h)

    scores, loop = both(net, x, forward=parts)
    np.testing.assert_allclose(scores.values, loop, **CLOSE)
    assert "the parts of the velocity network are called, but not the network itself" in scores.info["notes"][0]


class Switch(Net):
    mix = False

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - 0.9 * y.mean(0, keepdim=True) if self.mix else y


def test_a_behaviour_that_was_switched_is_seen() -> None:
    net, x = Switch(), tokens()
    assert fog_a.attribute(net, x, progress=False).info["strategy"] == "fanout"
    net.mix = True
    scores, loop = both(net, x)
    np.testing.assert_allclose(scores.values, loop, **CLOSE)
    assert any("rows come out otherwise" in note for note in scores.info["notes"])


def test_one_out_of_memory_is_not_for_ever() -> None:
    net, x = Net(), tokens()

    def large(module: Any, args: Any) -> None:
        if len(args[0]) > len(x):
            raise torch.OutOfMemoryError("once")

    handle = net.blocks[0].register_forward_pre_hook(large)
    assert fog_a.attribute(net, x, progress=False).info["strategy"] == "prefix"
    handle.remove()
    assert fog_a.attribute(net, x, progress=False).info["strategy"] == "fanout"


class Placed(Net):
    """Pictures among the tokens, by the number of their row (OmniGen): a larger batch has them in its first rows."""

    def forward(self, x: Tensor, pictures: dict[int, Tensor]) -> Tensor:
        h = self.stem(x)
        for row, picture in pictures.items():
            h[row, : len(picture)] = picture
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def test_what_is_put_into_rows_by_number_reaches_the_first_layer() -> None:
    net, batch = Placed(), {"x": tokens(), "pictures": {0: torch.ones(2, 6)}}
    scores, loop = both(net, batch)
    assert scores.info["strategy"] == "fanout"
    np.testing.assert_allclose(scores.values, loop, **CLOSE)


class Capacity(Net):
    """Keeps the loudest tokens of the whole batch, as an expert with a capacity does."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        loud = h.square().sum(-1).flatten()
        kept = torch.zeros_like(loud).index_fill(0, loud.topk(len(loud) - 2).indices, 1)
        return self.head(h * kept.unflatten(0, h.shape[:2])[..., None])


class Early(Net):
    """Ends when all samples are sure: Python reads a number off the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            y = block(h)
            if bool((y - h).abs().max() > 1e6):
                break
            h = y
        return self.head(h)


class Router(Net):
    """Chooses among experts for each token alone: that may share a forward."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h * h.topk(2, dim=-1).values.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Capacity, "chooses among the rows|depend on each other"), (Early, "Python reads a number off the whole batch")],
)
def test_a_decision_of_the_whole_batch_is_not_shared(kind: type[Net], why: str) -> None:
    scores, loop = both(kind(), tokens())
    np.testing.assert_allclose(scores.values, loop, **CLOSE)
    assert scores.info["strategy"] != "fanout"
    assert any(re.search(why, note) for note in scores.info["notes"]), scores.info["notes"]


class Adaptive(Net):
    """One block again and again until all samples are sure: how often depends on what is closed."""

    def forward(self, x: Tensor, skip: int | None = None) -> Tensor:
        h, sure, turn = self.stem(x), torch.zeros(len(x)), 0
        while bool((sure < 1).any()) and turn < 9:
            h = h if turn == skip else self.blocks[0](h)
            sure, turn = sure + torch.sigmoid(self.head(h)).mean((1, 2)) * self.step, turn + 1
        return self.head(h)


@pytest.mark.parametrize("step", [0.3, 0.5, 0.7])
def test_adaptive_depth(step: float) -> None:
    """Each turn of the block closed alone, by hand; a closed turn may bring another one."""
    net, x = Adaptive().eval(), tokens()
    net.step = step  # type: ignore[assignment]
    scores = fog_a.attribute(net, x, progress=False)
    with torch.no_grad():
        base = net(x).flatten(1)
        hand = [(net(x, k).flatten(1) - base).norm(dim=1) / base.norm(dim=1) for k in range(len(scores.layers))]
    assert scores.layers == tuple(f"blocks.0@{k}" for k in range(len(scores.layers))) and len(scores.layers) > 1
    np.testing.assert_allclose(scores.values[:, 0], torch.stack(hand, 1), **CLOSE)


def test_a_decision_for_each_token_is_shared() -> None:
    scores, loop = both(Router(), tokens())
    np.testing.assert_allclose(scores.values, loop, **CLOSE)
    assert scores.info["strategy"] == "fanout"


def test_the_state_that_is_put_back_decides_nothing() -> None:
    """Whether the batch is as it was is our own comparison: the model looked at no number."""
    case = Case(flow_of(Net()), tokens())
    with Decisions() as seen:
        seen.begun = True
        for _ in range(2):
            case.run()
    assert not seen.reads and not seen.picks


def test_decisions_are_noted_from_the_gated_calls_on() -> None:
    with Decisions() as seen:
        h = torch.ones(3, 4)
        bool((h * 2).sum() > 0)
        assert not seen.reads
        seen.begun = True
        for pick in (lambda: h.sort(dim=0), lambda: h.topk(2), lambda: torch.maximum(h, h), lambda: h.argmax()):
            pick()
        assert seen.picks == [3, 4, 12]
        bool(h.sum() > 0)
    assert seen.reads


class Counting(Net):
    """Another velocity in every run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(1)
        return super().forward(x + 0.1 * len(self.runs))


def test_a_velocity_that_moves_from_run_to_run_is_refused_or_restored() -> None:
    net, x = Counting(), tokens()
    try:
        scores = fog_a.attribute(net, x, how="loop", progress=False)
    except Unsupported as refusal:
        assert "gave another velocity after the ablations" in str(refusal) and "keeps state" in str(refusal)
    else:
        plain = Net()
        plain.load_state_dict(net.state_dict())
        np.testing.assert_allclose(scores.values, fog_a.attribute(plain, x + 0.1, progress=False).values, **CLOSE)


class Further(Net):
    """Adds something to rows that no batch of three has, behind the first block."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks[0](self.stem(x))
        h = h + 0.3 * (torch.arange(len(x)) >= 3)[:, None, None]
        for block in self.blocks[1:]:
            h = block(h)
        return self.head(h)


def test_what_came_out_otherwise_once_is_not_shared_the_next_time() -> None:
    """Only the first block's ablation differs in a larger batch, and it may not be the one that is drawn."""
    net, x = Further(), tokens()
    loop = fog_a.attribute(net, x, progress=False, how="loop").values
    for _ in range(3):
        scores = fog_a.attribute(net, x, progress=False)
        np.testing.assert_allclose(scores.values, loop, **CLOSE)
        assert "rows come out otherwise in a larger batch" in str(scores.info["notes"])


class Clock:
    """State that no module holds."""

    ticks = 0


class Late(Net):
    """Another velocity from its seventh run on."""

    def forward(self, x: Tensor) -> Tensor:
        Clock.ticks += 1
        return super().forward(x + (Clock.ticks > 6))


@pytest.mark.parametrize("how", ["loop", fog_a.Shared(rows=3)])
def test_a_velocity_that_moved_meanwhile_is_refused_however_ablations_are_run(how: Any) -> None:
    net, x = Late(), tokens()
    blocks = fog_a.find_blocks(Net(), x)
    Clock.ticks = 0
    with pytest.raises(Unsupported, match="gave another velocity after the ablations"):
        fog_a.attribute(net, x, blocks=list(blocks.names), how=how, progress=False)


@pytest.mark.parametrize("options", [{"forward": lambda m, b: m(3 * b)}, {"domains": ["a", "b", "c"]}])
def test_a_checkpoint_of_another_forward(tmp_path: Path, options: dict[str, Any]) -> None:
    net, x = Net(), tokens()
    fog_a.attribute(net, x, checkpoint=tmp_path, forward=lambda m, b: m(b), progress=False)
    if "forward" not in options:  # names of domains are not what was measured
        fog_a.attribute(net, x, checkpoint=tmp_path, progress=False, **options)
        return
    with pytest.raises(BadScores, match=r"measured from another velocity \(another sigma, path, forward="):
        fog_a.attribute(net, x, checkpoint=tmp_path, progress=False, **options)


def test_a_checkpoint_of_other_samples(tmp_path: Path) -> None:
    batch = a_batch(3)
    fog_a.attribute(a_flow(), batch, times=1, checkpoint=tmp_path, progress=False)
    with pytest.raises(BadScores, match="of samples with other ids"):
        fog_a.attribute(a_flow(), {**batch, "ids": ["x", "y", "z"]}, times=1, checkpoint=tmp_path, progress=False)


def test_every_flipped_bit_of_a_cell_is_noticed(tmp_path: Path) -> None:
    net, x = Net(), tokens()
    fog_a.attribute(net, x, checkpoint=tmp_path, progress=False)
    cell = next(tmp_path.glob("*.npy"))
    content = cell.read_bytes()
    assert np.load(cell).shape == (3, len(fog_a.find_blocks(net, x)))  # numpy reads it
    for place in range(0, len(content), 29):
        broken = bytearray(content)
        broken[place] ^= 1 << place % 8
        cell.write_bytes(bytes(broken))
        with pytest.raises(BadScores, match=rf"{cell.name} is corrupt"):
            fog_a.attribute(net, x, checkpoint=tmp_path, progress=False)


@pytest.mark.parametrize("size", [1e19, 1e25, 1e-25])
def test_norms_neither_overflow_nor_vanish(size: float) -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(norm(x * size), x.norm(dim=1).double() * size, rtol=1e-6)
    assert (norm(torch.zeros(2, 3)) == 0).all()


@pytest.mark.parametrize("how", ["loop", "auto"])
def test_scores_of_huge_velocities(how: Any) -> None:
    net, x = Net(), tokens()
    huge = fog_a.attribute(net, x, forward=lambda m, b: 1e19 * m(b), how=how, progress=False)
    np.testing.assert_allclose(huge.values, fog_a.attribute(net, x, progress=False).values, rtol=1e-4)
