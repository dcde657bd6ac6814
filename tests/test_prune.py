"""Blocks taken out for good: the bits of their closed gates, or a refusal that leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_nets import Layer, Net, tokens
from test_uses import flux, sd3
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadArgument, BadBatch, UnknownBlock, Unsupported
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.data import load_corpus


def names(*numbers: int) -> list[str]:
    return [f"blocks.{i}" for i in numbers]


def trained_flow() -> FlowMatching:
    torch.manual_seed(0)
    flow = FlowMatching(DiTConfig.tiny(layers=4, dim=16))
    for p in flow.parameters():
        nn.init.normal_(p, std=0.2)
    return flow


def net(depth: int = 5) -> Net:
    torch.manual_seed(0)
    return Net(depth).eval()


@pytest.fixture
def unchanged() -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Models that must have their modules, weights and output after the test."""
    seen: list[tuple[nn.Module, list[tuple[str, nn.Module]], dict[str, Tensor]]] = []

    def watch(model: nn.Module) -> nn.Module:
        seen.append((model, list(model.named_modules()), copy.deepcopy(model.state_dict())))
        return model

    yield watch
    for model, modules, state in seen:
        now = list(model.named_modules())
        assert [n for n, _ in now] == [n for n, _ in modules]
        assert all(a is b for (_, a), (_, b) in zip(now, modules, strict=True))
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_pruned_model_has_the_bits_of_closed_gates() -> None:
    model, x = net(), tokens()
    with torch.no_grad(), fog_a.gate(fog_a.find_blocks(model, x).named(names(1, 3)), 0):
        want = model(x)
    second = model.blocks[2]
    pruned = fog_a.prune(model, drop=names(1, 3), batch=x)
    assert torch.equal(model(x), want) and len(model.blocks) == 3 and model.blocks[1] is second
    assert pruned.kept == {"blocks.0": "blocks.0", "blocks.2": "blocks.1", "blocks.4": "blocks.2"}
    assert pruned.dropped == ("blocks.1", "blocks.3") and pruned.depth == {"blocks": 3}
    fresh = Net(pruned.depth["blocks"]).eval()
    fresh.load_state_dict(pruned.state_dict)
    assert torch.equal(fresh(x), want)


def test_what_is_measured_afterwards_is_of_the_shorter_model() -> None:
    """Nothing that was remembered of the longer one is used."""
    model, x = net(), tokens(16)
    fog_a.attribute(model, x)
    pruned = fog_a.prune(model, names(0, 2), x)
    fresh = Net(3).eval()
    fresh.load_state_dict(pruned.state_dict)
    now, want = fog_a.attribute(model, x), fog_a.attribute(fresh, x)
    assert now.layers == want.layers and (now.values == want.values).all()


def test_one_block_or_its_name() -> None:
    for drop in (lambda model: "blocks.1", lambda model: fog_a.find_blocks(model, tokens())[1]):
        model = net()
        assert fog_a.prune(model, drop(model), tokens()).dropped == ("blocks.1",)
    model = net()
    with pytest.raises(UnknownBlock, match=r"Type selection\.layers"):
        fog_a.prune(model, fog_a.Selection.fixed(["blocks.1"]), tokens())  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadArgument, match="prune has no keyword 'keep'"):
        fog_a.prune(model, ["blocks.1"], tokens(), keep=3)  # pyright: ignore[reportCallIssue]


def test_a_selection_of_the_least_layers_in_training_mode() -> None:
    model, x = net().train(), tokens(16)
    least = fog_a.select(fog_a.attribute(model, x), 2, by="bottom")
    pruned = fog_a.prune(model, least.layers, x)
    assert len(model.blocks) == 3 and model.training and model.blocks[0].training
    assert set(pruned.kept) == {b for b in names(*range(5)) if b not in least.layers}


def test_a_flow_is_tried_at_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled DiT, its state dict that of the whole model; every time of the grid is compared."""
    flow, batch = trained_flow(), load_corpus(per_domain=2, held_out=2).held_out()[0]
    times: list[float] = []
    velocity = FlowMatching.velocity

    def noted(self: FlowMatching, batch: Any, t: float, seed: int = 0) -> Tensor:
        times.append(float(t))
        return velocity(self, batch, t, seed)

    monkeypatch.setattr(FlowMatching, "velocity", noted)
    pruned = fog_a.prune(fog_a.wrap(flow), ["blocks.1"], batch)
    assert set(times) >= set(fog_a.wrap(flow).grid(None)) and pruned.depth == {"blocks": 3}
    fresh = FlowMatching(DiTConfig.tiny(layers=3, dim=16))
    fresh.load_state_dict(pruned.state_dict)
    assert torch.equal(fresh.eval().velocity(batch, 0.5), flow.eval().velocity(batch, 0.5))


@pytest.mark.parametrize("name", ["transformer_blocks.0", "transformer_blocks.1"])
def test_blocks_of_two_streams_that_lie_in_one(name: str) -> None:
    """FLUX's and SD3's double blocks carry both streams: taking one out is closing it."""
    torch.manual_seed(0)
    text = {"encoder_hidden_states": torch.randn(2, 5, 16), "pooled_projections": torch.randn(2, 16)}
    ids = {"img_ids": torch.zeros(9, 3), "txt_ids": torch.zeros(5, 3)}
    image = {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([500.0, 500.0])}
    packed = {"hidden_states": torch.randn(2, 9, 4), "timestep": torch.tensor([0.5, 0.5])}
    assert fog_a.prune(flux(), [name], {**text, **ids, **packed}).depth == {"transformer_blocks": 2}
    assert fog_a.prune(sd3(), [name], {**text, **image}).depth == {"transformer_blocks": 3}


def test_the_last_block_of_sd3_has_no_second_stream(unchanged: Any) -> None:
    batch = {"encoder_hidden_states": torch.randn(2, 5, 16), "pooled_projections": torch.randn(2, 16)}
    image = {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([500.0, 500.0])}
    with pytest.raises(Unsupported, match="layer 2 would be layer 2 of 3, where a model of 3 layers has others"):
        fog_a.prune(unchanged(sd3()), ["transformer_blocks.3"], {**batch, **image})


class Numbered(Net):
    """Layers that keep their number, as transformers' attention does for its cache."""

    def __init__(self) -> None:
        super().__init__(4)
        for i, block in enumerate(self.blocks):
            block.fc1.layer_idx = i


class Handed(Net):
    """Layers that are told their number and shift by it."""

    class Layer(Layer):
        def forward(self, x: Tensor, number: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x) + 0 * number

    def __init__(self) -> None:
        super().__init__(4, layer=Handed.Layer)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for i, block in enumerate(self.blocks):
            h = block(h, i)
        return self.head(h)


class Typed(Net):
    """A window for each layer, of which this batch shows nothing (Gemma 2)."""

    def __init__(self) -> None:
        super().__init__(4)
        self.layer_types = ["sliding", "full", "sliding", "full"]


class First(Net):
    """A first layer that owns what the others do not have (T5, RWKV)."""

    def __init__(self) -> None:
        super().__init__(4)
        self.blocks[0].before = nn.LayerNorm(6)


class ByNumber(Net):
    """A parent that treats its second layer otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for i, block in enumerate(self.blocks):
            h = block(h) * (2 if i == 1 else 1)
        return self.head(h)


class Indexed(Net):
    """A parent that reads an entry of a table for each layer."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for i in range(3):
            h = self.blocks[i](h)
        return self.head(h)


class Zipped(Net):
    """Two lists that are walked together (Latte)."""

    def __init__(self) -> None:
        super().__init__(3)
        self.others = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block, other in zip(self.blocks, self.others, strict=False):
            h = other(block(h))
        return self.head(h)


class Beside(Net):
    """Layers that give a second tensor, which the parent adds up (WaveNet's skip)."""

    class Layer(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
            h = super().forward(x)
            return h, self.aside(torch.tanh(h - x))

    def __init__(self) -> None:
        super().__init__(4, layer=Beside.Layer)

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.stem(x), torch.zeros(())
        for block in self.blocks:
            h, aside = block(h)
            total = total + aside
        return self.head(h + total)


class Looped(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(2):
            for block in self.blocks:
                h = block(h)
        return self.head(h)


@pytest.mark.parametrize(
    ("kind", "dropped", "reason"),
    [
        (Numbered, names(1), r"each layer keeps its number in fc1\.layer_idx"),
        (Handed, names(1), r"the model hands each layer its number \(args\.1\)"),
        (Typed, names(1), "layer_types has an entry for each layer, by its number"),
        (First, names(0), "its layers have parameters of different names or shapes: layer 1 would be layer 0 of 3"),
        (ByNumber, names(0), "the output differs: the model goes by the number of its layers"),
        (Indexed, names(1), "the model does not run without them"),
        (Zipped, names(1), "the output differs"),
        (Beside, names(1), "blocks.1 gives something beside its stream"),
        (Looped, ["blocks.1@0"], "one execution of a module that runs several times"),
    ],
)
def test_a_trap_is_refused_with_its_reason(kind: Any, dropped: list[str], reason: str, unchanged: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises((Unsupported, BadArgument), match=reason):
        fog_a.prune(unchanged(kind().eval()), dropped, tokens())


def test_numbers_do_not_matter_where_none_changes() -> None:
    """The last layers may go: those before keep their numbers."""
    assert fog_a.prune(Numbered().eval(), names(2, 3), tokens()).depth == {"blocks": 2}


def test_what_names_no_part_of_a_list(unchanged: Any) -> None:
    model, x = unchanged(net()), tokens()
    with pytest.raises(BadArgument, match="names all 5 blocks of blocks: keep at least one"):
        fog_a.prune(model, names(*range(5)), x)
    with pytest.raises(UnknownBlock, match=r"near: blocks\.1"):
        fog_a.prune(model, ["block.1"], x)
    with pytest.raises(UnknownBlock, match="at least one, got none"):
        fog_a.prune(model, [], x)
    with pytest.raises(UnknownBlock, match=r"got Selection\(.*Type selection\.layers"):
        fog_a.prune(model, fog_a.Selection.fixed(names(1)), x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadBatch, match=r"got list. It holds several batches: give one, next\(iter\(batches\)\)"):
        fog_a.prune(model, names(1), [x, x])
    other = net()
    with pytest.raises(UnknownBlock, match="of this model in drop=, at least one, got 1 of another model"):
        fog_a.prune(model, fog_a.find_blocks(other, x)[:1], x)

    class Attributes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = nn.Linear(4, 6), Layer(), Layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(self.stem(x)))

    with pytest.raises(BadArgument, match="got 'first', which is no item of a list"):
        fog_a.prune(unchanged(Attributes()), ["first"], x)


def test_compiled_and_sharded_models(unchanged: Any) -> None:
    model = unchanged(net())
    with pytest.raises(Unsupported, match=r"the model is compiled or wrapped \(OptimizedModule\)"):
        fog_a.prune(torch.compile(model), names(1), tokens())  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unsupported, match=r"wrapped \(DataParallel\)"):
        fog_a.prune(nn.DataParallel(model), names(1), tokens())
    inner = net()
    inner.blocks[0].compile()
    with pytest.raises(Unsupported, match=r"compiled or wrapped \(Layer\)"):
        fog_a.prune(inner, names(1), tokens())


def test_an_interrupt_half_way_leaves_the_model(unchanged: Any) -> None:
    model = unchanged(net())

    def forward(model: Any, x: Tensor) -> Tensor:
        if len(model.blocks) == 4:
            raise KeyboardInterrupt
        return model(x)

    with pytest.raises(KeyboardInterrupt):
        fog_a.prune(model, names(1), tokens(), forward=forward)


def test_lists_in_lists_are_renamed() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 4)
            self.stages = nn.ModuleList(nn.ModuleList(Layer() for _ in range(3)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            for stage in self.stages:
                for block in stage.children():
                    h = block(h)
            return self.head(h)

    pruned = fog_a.prune(Deep(), ["stages.0.1", "stages.1.0"], tokens())
    assert pruned.depth == {"stages.0": 2, "stages.1": 2}
    assert pruned.kept == {
        "stages.0.0": "stages.0.0",
        "stages.0.2": "stages.0.1",
        "stages.1.1": "stages.1.0",
        "stages.1.2": "stages.1.1",
    }
