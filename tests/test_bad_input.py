"""What goes wrong says what was expected, what was got and what to type next; the model's own error stays visible."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import Net, tokens
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadBatch, BadOutput, FogError, NoBlocksFound, ShapeMismatch, UnknownBlock, Unsupported


@pytest.fixture
def net() -> Net:
    return Net()


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Plain(nn.Module):
    """No residual anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4)) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Concatenating(nn.Module):
    """U-shaped, skips by concatenation only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return self.c(torch.cat((torch.relu(self.b(a)), a), -1))


class Conditioned(nn.Module):
    """x ← tanh(W x) + c: a sum, but no stream passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.c = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        c = self.c(x.mean(1, keepdim=True))
        for layer in self.layers:
            x = torch.tanh(layer(x)) + c
        return x


@pytest.mark.parametrize("kind", [Plain, Concatenating, Conditioned])
def test_no_blocks(kind: type[nn.Module]) -> None:
    model = kind()
    for probe in (fog_a.find_blocks, fog_a.attribute):
        with pytest.raises(
            NoBlocksFound, match=rf"expected modules that compute h \+ f\(h\).*{kind.__name__}.*include="
        ):
            probe(model, tokens())


def test_a_list_of_arguments_is_not_taken_for_batches(net: Net) -> None:
    with pytest.raises(BadBatch, match=r"number of axes in a list of batches, got \{1, 3\}\. Type a tuple, \(x, t\)"):
        fog_a.attribute(net, [tokens(), torch.rand(3)], progress=False)


def test_include_that_matches_nothing_lists_what_there_is(net: Net) -> None:
    with pytest.raises(NoBlocksFound, match=r"blocks\.0, blocks\.1, blocks\.2.*include="):
        fog_a.find_blocks(net, tokens(), include="layers.*")


@pytest.mark.parametrize(
    ("batch", "theirs"),
    [
        (torch.randn(3, 5, 7), "mat1 and mat2 shapes cannot be multiplied"),
        ((tokens(), tokens(), tokens()), "positional argument"),
        ({"y": tokens()}, "unexpected keyword argument 'y'"),
        (torch.zeros(3, 5, 4, dtype=torch.int64), "must have the same dtype|expected .* same dtype"),
    ],
)
def test_a_batch_the_model_cannot_take(net: Net, batch: Any, theirs: str) -> None:
    """The model's own exception is seen, in the message or above it."""
    for probe in (fog_a.find_blocks, fog_a.attribute):
        with pytest.raises((FogError, RuntimeError, TypeError)) as raised:
            probe(net, batch)
        assert any(re.search(theirs, str(e)) for e in chain(raised.value)), raised.value


class Timed(Net):
    def forward(self, x: Tensor, *, t: Tensor) -> Tensor:
        return super().forward(x + t[:, None, None])


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ([tokens(), torch.ones(3)], r"missing .*'t'.*a tuple, \(x, t\), or a dict by name; a list is several batches"),
        ((tokens(), torch.ones(3)), r"too many positional arguments.*fog_a\.Inputs\(\*args, \*\*kwargs\)"),
        ({"x": tokens(), "time": torch.ones(3)}, r"missing .*'t'.*fog_a\.Inputs"),
    ],
)
def test_a_batch_that_is_not_the_arguments_of_the_forward(batch: Any, told: str) -> None:
    with pytest.raises(BadBatch, match=rf"Timed cannot be called on this batch: {told}"):
        fog_a.attribute(Timed(), batch)
    right = fog_a.attribute(Timed(), fog_a.Inputs(tokens(), t=torch.ones(3)))
    assert len(right.layers) == 3


def test_blocks_are_not_pickled(net: Net) -> None:
    blocks = fog_a.find_blocks(net, tokens())
    with pytest.raises(Unsupported, match=r"Blocks cannot be pickled.*find_blocks\(model, batch\)\.named\(names\)"):
        pickle.dumps(blocks)
    assert copy.deepcopy(blocks).model is net
    assert fog_a.find_blocks(net, tokens()).named(pickle.loads(pickle.dumps(blocks.names))) == blocks


class TheirOwn(RuntimeError):
    """Raised by a model on purpose."""


def test_the_models_own_exception_type_is_seen() -> None:
    class Refusing(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise TheirOwn("tokens must be even")

    for probe in (fog_a.find_blocks, fog_a.attribute):
        with pytest.raises(Exception, match="tokens must be even") as raised:
            probe(Refusing(), tokens())
        assert any(type(e) is TheirOwn for e in chain(raised.value))


@pytest.mark.parametrize("batch", [None, "tokens", 3, {1, 2}, object()])
def test_something_that_is_no_batch(net: Net, batch: Any) -> None:
    for probe in (fog_a.find_blocks, fog_a.attribute):
        with pytest.raises(BadBatch, match=r"expected .*(Tensor|batch).*(forward=|got)"):
            probe(net, batch)


@pytest.mark.parametrize("batch", [torch.zeros(0, 5, 4), (torch.zeros(0, 5, 4),), {"x": torch.zeros(0, 5, 4)}])
def test_an_empty_batch(net: Net, batch: Any) -> None:
    with pytest.raises(BadBatch, match=r"at least one sample.*\(0, 5, 4\)"):
        fog_a.attribute(net, batch)
    with pytest.raises(BadBatch, match=r"at least one sample.*\(0, 5, 4\)"):
        fog_a.find_blocks(net, batch)


@pytest.mark.parametrize("batches", [[], iter([]), torch.utils.data.DataLoader([], batch_size=2)])
def test_no_batches_at_all(net: Net, batches: Any) -> None:
    with pytest.raises(BadBatch, match="at least one batch"):
        fog_a.attribute(net, batches)


@pytest.mark.parametrize("out", [None, 3.0, "done", {"loss": 1.0}, torch.arange(3), (torch.ones(3, dtype=torch.bool),)])
def test_an_output_without_a_float_tensor(out: Any) -> None:
    class Returning(Net):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)
            return out

    with pytest.raises(BadOutput, match=r"floating-point tensor.*forward="):
        fog_a.attribute(Returning(), tokens())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_or_inf_in_v(net: Net, bad: float) -> None:
    nn.init.constant_(net.head.bias, bad)
    with pytest.raises(BadOutput, match="NaN or inf before anything is ablated"):
        fog_a.attribute(net, tokens())
    x = tokens()
    x[1, 2, 3] = bad
    with pytest.raises(BadOutput, match="NaN or inf"):
        fog_a.attribute(Net(), x)


def test_all_zero_v(net: Net) -> None:
    """A zero-initialised head, as DiTs have before training."""
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    with pytest.raises(BadOutput, match=r"velocity is zero everywhere.*train"):
        fog_a.attribute(net, tokens())


def test_all_scores_zero_says_untrained(net: Net) -> None:
    """Identity-initialised blocks: nothing is wrong with the probe, the model has not been trained."""
    for block in net.blocks:
        nn.init.zeros_(block.fc2.weight)  # type: ignore[union-attr,arg-type]
        nn.init.zeros_(block.fc2.bias)  # type: ignore[union-attr,arg-type]
    with pytest.raises(BadOutput, match=r"all scores are zero.*untrained"):
        fog_a.attribute(net, tokens())


def test_nan_in_every_ablation_of_all_blocks() -> None:
    """Nothing finite is left to score: that is said, and not that all scores are zero."""

    class Brittle(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            for block in self.blocks:
                y = block(h)
                moved = (y - h).abs().sum((1, 2), keepdim=True)
                h = y * (moved / moved)
            return self.head(h)

    with pytest.raises(BadOutput, match=r"NaN|finite"):
        fog_a.attribute(Brittle(), tokens())


@pytest.mark.parametrize(
    ("name", "near"),
    [("blocks.9", "blocks.0"), ("block.1", r"blocks\.1"), ("bloks.2", r"blocks\.2"), ("head", "blocks")],
)
def test_unknown_names_list_near_matches(net: Net, name: str, near: str) -> None:
    with pytest.raises(UnknownBlock, match=rf"no block is named '{name}'.*{near}.*find_blocks"):
        fog_a.attribute(net, tokens(), blocks=[name])
    with pytest.raises(UnknownBlock, match=name):
        fog_a.attribute(net, tokens(), blocks=name)
    with pytest.raises(UnknownBlock, match=near):
        fog_a.find_blocks(net, tokens())[name]


def test_no_names_at_all(net: Net) -> None:
    with pytest.raises(FogError, match="at least one block"):
        fog_a.attribute(net, tokens(), blocks=[])


def test_blocks_of_another_model(net: Net) -> None:
    other = Net()
    blocks = fog_a.find_blocks(other, tokens())
    with pytest.raises(FogError, match=r"another model|find_blocks"):
        fog_a.attribute(net, tokens(), blocks=blocks)


def test_blocks_whose_model_is_gone() -> None:
    blocks = fog_a.find_blocks(Net(), tokens())
    with pytest.raises(UnknownBlock, match=r"gone.*find_blocks"), fog_a.gate(blocks, 0):
        pass


def test_times_of_a_bare_module(net: Net) -> None:
    with pytest.raises(BadBatch, match=r"no time axis.*wrap"):
        fog_a.attribute(net, tokens(), times=4)


@pytest.mark.parametrize("times", [[], [1.5], [-0.1, 0.5], [float("nan")], 0, -1])
def test_times_outside_the_flow(net: Net, times: Any) -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x + t[:, None, None])

    flow = fog_a.wrap(Timed(), x="x", t="t")
    with pytest.raises(BadBatch, match=r"expected (times in \[0, 1\]|at least one time).*got"):
        fog_a.attribute(flow, {"x": tokens()}, times=times)


@pytest.mark.parametrize("mask", [torch.ones(2, 5, 4), torch.ones(3, 7, 1), torch.ones(1, 2, 3, 5, 4)])
def test_a_mask_that_does_not_fit(net: Net, mask: Tensor) -> None:
    with pytest.raises(BadBatch, match=r"mask that broadcasts to the velocity \(3, 5, 4\)"):
        fog_a.attribute(net, tokens(), mask=mask.bool())


def test_a_mask_that_counts_nothing(net: Net) -> None:
    with pytest.raises(BadOutput, match="mask"):
        fog_a.attribute(net, tokens(), mask=torch.zeros(3, 5, 1, dtype=torch.bool))


def test_one_sample_without_a_valid_entry(net: Net) -> None:
    """0/0 is no score of 0: the sample is missing, and that is said."""
    keep = torch.ones(3, 5, 1, dtype=torch.bool)
    keep[1] = False
    with pytest.warns(UserWarning, match="sample"):
        scores = fog_a.attribute(net, tokens(), mask=keep, progress=False)
    assert np.isnan(scores.values[1]).all() and np.isfinite(scores.values[[0, 2]]).all()


@pytest.mark.parametrize("domains", [["speech"], ["speech"] * 4, []])
def test_domains_of_another_number(net: Net, domains: list[str]) -> None:
    with pytest.raises(ShapeMismatch, match="one domain per sample, 3 of them"):
        fog_a.attribute(net, tokens(), domains=domains)


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(4), torch.ones(3, 5)])
def test_a_gate_for_another_number_of_samples(net: Net, value: Tensor) -> None:
    blocks = fog_a.find_blocks(net, tokens())
    with torch.no_grad(), pytest.raises(ShapeMismatch, match=r"one|per sample"), fog_a.gate(blocks, value):
        net(tokens())
    with torch.no_grad():
        assert net(tokens()).isfinite().all()


@pytest.mark.parametrize("level", ["attention", "", "LAYER"])
def test_an_unknown_level(net: Net, level: Any) -> None:
    for probe in (fog_a.find_blocks, fog_a.attribute):
        with pytest.raises((FogError, ValueError), match=r"layer.*branch"):
            probe(net, tokens(), level=level)


def test_something_that_is_no_model() -> None:
    for model in (None, "net", Net, lambda x: x):
        for probe in (fog_a.find_blocks, fog_a.attribute):
            with pytest.raises((FogError, TypeError), match=r"nn\.Module"):
                probe(model, tokens())  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["loop", "prefix"])
def test_an_output_whose_length_depends_on_a_layer(strategy: Any) -> None:
    class Shorter(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            g = self.blocks[0](h)
            y = g
            for block in list(self.blocks)[1:]:
                y = block(y)
            return self.head(y)[:, int(torch.equal(g, h)) :]

    with pytest.raises(ShapeMismatch, match=r"changed the output's shape from \(3, 5, 4\) to \(3, 4, 4\).*forward="):
        fog_a.attribute(Shorter(), tokens(), how="loop" if strategy == "loop" else fog_a.Shared(rows=3))


def test_after_every_refusal_the_model_still_works(net: Net) -> None:
    v = net(tokens()).detach()
    wrong: list[dict[str, Any]] = [{"batch": None}, {"blocks": ["x"]}, {"mask": torch.ones(1, 9, 9)}, {"times": 3}]
    for options in wrong:
        with pytest.raises(FogError):
            fog_a.attribute(net, **{"batch": tokens(), **options})
    assert torch.equal(net(tokens()), v)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
