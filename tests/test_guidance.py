"""Skip guidance: v + s (v − v_skip) in one forward, inside any sampler, with the model as it was afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from row_counter import rows
from small_nets import Layer, Net, TwoStreams, tokens
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadArgument, UnknownBlock
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import load_corpus


def pushed(net: Any, blocks: Any, scale: float, *args: Any) -> Tensor:
    """By two forwards."""
    with torch.no_grad():
        v = net(*args)
        with fog_a.gate(blocks, 0):
            return v + scale * (v - net(*args))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net(4).eval()


@pytest.mark.parametrize("shape", [(3, 5), (4, 8), (1, 2), (5, 5)])
@pytest.mark.parametrize("names", [["blocks.1"], ["blocks.0", "blocks.3"]])
def test_one_forward_gives_what_two_give(net: Net, shape: tuple[int, int], names: list[str]) -> None:
    """Also where another axis has twice as many entries as there are samples."""
    x = tokens(*shape)
    blocks = fog_a.find_blocks(net, tokens()).named(names)
    with torch.no_grad(), fog_a.skip_guidance(net, blocks, 1.5) as guided:
        v = net(x)
    assert torch.allclose(v, pushed(net, blocks, 1.5, x), atol=1e-6)
    assert guided.calls == 1 and guided.doubled
    assert torch.equal(net(x), Net.forward(net, x)) and not net._forward_hooks and not net._forward_pre_hooks


def test_the_network_runs_once_on_twice_the_rows(net: Net) -> None:
    x = tokens(6)
    blocks = fog_a.find_blocks(net, x)
    guided = fog_a.skip_guidance(net, blocks[1:2], 1.0)
    with torch.no_grad(), guided:
        net(x)  # measures where the rows are
        twice = rows(lambda: net(x), [[block] for block in net.blocks])
    assert twice == [2 * n for n in rows(lambda: net(x), [[block] for block in net.blocks])]


def test_nothing_is_guided_at_scale_0(net: Net) -> None:
    x = tokens()
    with torch.no_grad(), fog_a.skip_guidance(net, fog_a.find_blocks(net, x), 0.0) as guided:
        assert torch.equal(net(x), net.forward(x)) and guided.calls == 0


def test_which_calls_and_which_rows(net: Net) -> None:
    x = tokens(4)
    blocks = fog_a.find_blocks(net, x)[:1]
    want, plain = pushed(net, blocks, 2.0, x), net(x)
    chosen = torch.tensor([True, False, False, True])
    with torch.no_grad(), fog_a.skip_guidance(net, blocks, 2.0, when=lambda call: chosen):
        v = net(x)
    assert torch.allclose(v[[0, 3]], want[[0, 3]], atol=1e-6) and torch.allclose(v[1:3], plain[1:3], atol=1e-6)
    with torch.no_grad(), fog_a.skip_guidance(net, blocks, 2.0, when=lambda call: call.args[0].mean() > 9) as guided:
        assert torch.equal(net(x), plain) and guided.calls == 0


class Talking(Net):
    """Samples that depend on each other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def test_samples_that_talk_are_guided_by_two_forwards() -> None:
    torch.manual_seed(0)
    net, x = Talking(3).eval(), tokens()
    blocks = fog_a.find_blocks(net, x)[1:2]
    with torch.no_grad(), fog_a.skip_guidance(net, blocks, 1.0) as guided:
        v = net(x)
    assert torch.equal(v, pushed(net, blocks, 1.0, x)) and not guided.doubled and guided.calls == 1


class Structured(nn.Module):
    """Folded rows, keyword arguments, tensors without rows, and an output with something beside the velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer(4) for _ in range(3))

    def forward(self, x: Tensor, *, scale: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        h = x.flatten(0, 1)  # (B·T, D)
        for block in self.blocks:
            h = block(h)
        return {"sample": h.view_as(x) * scale, "names": ["a"], "mask": mask}


def test_keyword_arguments_folded_rows_and_structured_outputs() -> None:
    torch.manual_seed(0)
    net = Structured().eval()
    inputs = fog_a.Inputs(tokens(3), scale=torch.tensor([1.0, 2.0, 3.0, 4.0]), mask=torch.ones(3, 5, dtype=torch.bool))
    blocks = fog_a.find_blocks(net, inputs)[1:2]
    with torch.no_grad(), fog_a.skip_guidance(net, blocks, 1.0) as guided:
        out = net(*inputs.args, **inputs.kwargs)
    with torch.no_grad(), fog_a.gate(blocks, 0):
        skipped = net(*inputs.args, **inputs.kwargs)["sample"]
    plain = net(*inputs.args, **inputs.kwargs)["sample"]
    assert torch.allclose(out["sample"], 2 * plain - skipped, atol=1e-5)
    assert guided.doubled and out["names"] == ["a"]


def test_inside_the_bundled_sampler() -> None:
    """Its guidance calls the network with and without tokens; only the conditional call is pushed."""
    torch.manual_seed(0)
    model, batch = FlowMatching(DiTConfig.tiny(layers=3, dim=16)), load_corpus(per_domain=2, held_out=2).held_out()[0]
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    blocks = fog_a.find_blocks(fog_a.wrap(model), batch).named("blocks.1")
    plain = model.sample(batch, steps=3, cfg=2.0)
    with fog_a.skip_guidance(fog_a.wrap(model), blocks, 1.0, when=lambda call: call.args[2].any()) as guided:
        x = model.sample(batch, steps=3, cfg=2.0)
    assert guided.calls == 2 and guided.doubled
    assert not torch.allclose(x, plain, atol=1e-3) and torch.equal(model.sample(batch, steps=3, cfg=2.0), plain)


def test_what_cannot_be_guided(net: Net) -> None:
    x = tokens()
    blocks = fog_a.find_blocks(net, x)
    others = fog_a.find_blocks(other := Net(2), x)
    for given, got in (
        (["blocks.1"], r"\['blocks.1'\]"),
        (blocks[:0], r"Blocks\(\)"),
        (others, "those of another model"),
    ):
        with pytest.raises(UnknownBlock, match=rf"got {got}. Type find_blocks\(flow, batch\)\.named"):
            fog_a.skip_guidance(net, given, 1.0)  # pyright: ignore[reportArgumentType]
    assert other is not net
    for scale in (float("nan"), "1", True):
        with pytest.raises(BadArgument, match="expected scale= as a finite number"):
            fog_a.skip_guidance(net, blocks, scale)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, "expected when= to give True or False"),
        (0.3, "expected when= to give True or False"),
        (torch.tensor([True, False]), "gave 2 bools for a call on 3 rows"),
        (torch.ones(3), "a bool for each row"),
    ],
)
def test_when_gives_bools(net: Net, told: Any, words: str) -> None:
    blocks = fog_a.find_blocks(net, tokens())
    guided = fog_a.skip_guidance(net, blocks, 1.0, when=lambda call: told)
    with pytest.raises(BadArgument, match=words), torch.no_grad(), guided:
        net(tokens())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with pytest.raises(BadArgument, match="expected when= as a function"):
        fog_a.skip_guidance(net, blocks, 1.0, when=told if told is not None else "x")


@pytest.mark.parametrize("way", ["a compiled model", "a compiled block", "DataParallel"])
def test_compiled_and_wrapped_models_are_guided(net: Net, way: str) -> None:
    """Inside, nothing compiled runs; what is wrapped is guided inside the wrapper."""
    torch.manual_seed(0)
    plain, x = Net(4).eval(), tokens()
    want = pushed(plain, fog_a.find_blocks(plain, x)[1:2], 1.5, x)
    model: Any = torch.compile(plain) if way == "a compiled model" else plain
    if way == "a compiled block":
        plain.blocks[1].compile()
    if way == "DataParallel":
        model = nn.DataParallel(plain)
    with torch.no_grad(), fog_a.skip_guidance(model, fog_a.find_blocks(model, x)[1:2], 1.5) as guided:
        assert torch.allclose(model(x), want, atol=1e-6) and guided.calls == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


def test_an_exception_leaves_no_hook(net: Net) -> None:
    blocks = fog_a.find_blocks(net, tokens())
    with pytest.raises(RuntimeError), fog_a.skip_guidance(net, blocks, 1.0):
        net(torch.randn(2, 3, 9))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("off", [[(1, 0)], [(1, 1)], [(1, 0), (1, 1)]])
def test_branches_with_their_gates_at_one_call(off: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    net, x = TwoStreams().eval(), torch.randn(4, 5, 6)
    blocks = fog_a.find_blocks(net, x, level="branch").named([f"attends.{i}[{j}]" for i, j in off])
    with torch.no_grad(), fog_a.skip_guidance(net, blocks, 2.0) as guided:
        v = net(x)
        assert guided.doubled
    with torch.no_grad():
        torch.testing.assert_close(v, net(x) + 2.0 * (net(x) - net(x, off)))


def euler(velocity: Any, x: Tensor) -> Tensor:
    for _ in range(2):
        x = x + 0.5 * velocity(x)
    return x


def heun(velocity: Any, x: Tensor) -> Tensor:
    v = velocity(x)
    return x + 0.25 * (v + velocity(x + 0.5 * v))


@pytest.mark.parametrize("solver", [euler, heun])
def test_the_steps_of_a_solver_in_forward_are_no_blocks(solver: Any) -> None:
    """Its blocks are those of the network, at each of its calls."""
    net, x = Net(), tokens()
    scores = fog_a.attribute(net, x, forward=solver, progress=False)
    assert scores.layers == tuple(f"blocks.{i}@{call}" for call in range(2) for i in range(3))
    v = solver(net, x)
    for call in range(2):
        for i in range(3):
            calls = iter(range(2))

            def velocity(x: Tensor, calls: Any = calls, call: int = call, i: int = i) -> Tensor:
                off = next(calls) == call
                h = net.stem(x)
                for k, block in enumerate(net.blocks):
                    h = h if off and k == i else block(h)
                return net.head(h)

            moved = (solver(velocity, x) - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
            assert scores.values[:, 0, 3 * call + i].tolist() == pytest.approx(moved.tolist(), abs=1e-6)
