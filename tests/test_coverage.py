"""Every residual update of a forward is accounted for, and a closed block is deaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from own_zoo.case import WIDTH, Attention, Chain, Ends, Layer, Mlp, tokens
from own_zoo.couplings import Heads
from own_zoo.shortcuts import TwoProjections
from own_zoo.sums import GoesOn
from own_zoo.wirings import MixedValues, Recursive
from torch import Tensor, nn

import fog_a
from fog_a.errors import NoActivations, NotResidual
from fog_a.finding import recording
from fog_a.teachers import LatentTeacher


def found(net: nn.Module, **options: Any) -> fog_a.Blocks:
    torch.manual_seed(0)
    return fog_a.find_blocks(net.eval(), tokens(), **options)


def test_all_updates_of_a_plain_chain_are_closed() -> None:
    net = Chain()
    coverage = found(net).coverage
    assert str(coverage) == "6 updates: 6 closed by 3 blocks"
    assert [row.block for row in coverage] == [f"blocks.{i}" for i in range(3) for _ in range(2)]
    assert coverage.note == "" and coverage.passing == ()


def test_parts_of_blocks_keep_the_coverage_of_the_whole() -> None:
    net = Chain()
    blocks = found(net)
    assert blocks[1:].coverage is blocks.main.coverage is blocks.coverage


class Inline(Chain):
    """An update in the parent that no module gives out, before the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        return super().run(x + torch.cos(x @ self.w), off)


def test_what_a_forward_makes_of_one_modules_output_is_no_input_of_the_next() -> None:
    net = nn.ModuleDict({"encoder": Chain(n=2), "decoder": Chain(n=2)})
    blocks = found(net, forward=lambda m, x: m["decoder"](m["encoder"](x) * 1.0))
    assert blocks.main.names == ("encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.0", "decoder.blocks.1")
    assert {name for b in blocks for name in b.inputs} == {"encoder.x"}


@pytest.mark.parametrize(
    ("join", "inputs"),
    [
        (lambda x, text: torch.cat((x, text), 1), {"text.x", "x_t"}),
        (lambda x, text: torch.cat((x, x), 1), {"decoder.x", "x_t"}),
    ],
)
def test_what_does_not_depend_on_x_t_is_not_main_though_x_t_enters_outside_all_modules(
    join: Callable[[Tensor, Tensor], Tensor], inputs: set[str]
) -> None:
    net, text = nn.ModuleDict({"text": Chain(n=2), "decoder": Chain(n=2)}), tokens()[:, :3]

    def velocity(m: Any, x: Tensor) -> Tensor:
        condition = m["text"](text)
        return m["decoder"](join(x, condition))[:, :6] + condition.mean(1, keepdim=True)

    blocks = found(net, forward=velocity)
    assert blocks.main.names == ("decoder.blocks.0", "decoder.blocks.1")
    assert [b.inputs for b in blocks] == [{"text.x"}] * 2 + [inputs] * 2


def test_what_no_gate_reaches_is_named_open() -> None:
    net = Inline()
    (row,) = found(net).coverage.open
    assert (row.place, row.reason) == ("(the model)", "no module gives the update")
    assert found(net).coverage.summary == "7 updates: 6 closed by 3 blocks · 1 open"


class Leaky(Chain):
    """A state drifts towards a function of itself before the layers: its steps are updates, and no layers."""

    def __init__(self) -> None:
        super().__init__(Layer, 2)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(x @ self.weight)
        for _ in range(3):
            state = state + 0.5 * (torch.tanh(state @ self.weight + x) - state)
        return super().forward(x + state)


def test_only_what_holds_blocks_is_called_a_long_skip() -> None:
    reasons = {row.reason for row in found(Leaky()).coverage.open}
    assert "no module gives the update" in reasons
    assert not any("long skip" in reason for reason in reasons)


class Anew(nn.Module):
    """Begins a stream of its own, and leaves the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.feed = Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        return h + self.feed(h)


def test_what_begins_a_stream_in_every_layer_is_named_open() -> None:
    """What it is cannot be told from its like: where others add it to their stream, it is closed."""
    rows = found(Chain(Anew)).coverage.open
    assert [row.place for row in rows] == ["blocks.1.read", "blocks.2.read"]
    assert rows[0].reason == "begins the stream that blocks.1 adds to: it stays when the block is closed"


def test_attribute_says_what_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    net = Inline().eval()
    scores = fog_a.attribute(net, tokens(), progress=False)
    said = "1 on the way to the output stay open: (the model) (no module gives the update)"
    assert said in capsys.readouterr().err
    assert said in scores.info["notes"]


def test_what_is_read_beside_the_stream_is_named() -> None:
    net = MixedValues()
    (row,) = found(net).coverage.of("beside")
    assert row.block == "blocks.0" and "output [1] is read later: it stays" in row.reason


class Between(TwoProjections):
    """A linear map lies between the first update and what the second is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        x = self.between(F.gelu(self.f(x) + self.a(x)))
        return F.gelu(self.g(x) + self.b(x))


def test_what_stays_in_a_closed_block_is_not_called_inside_it() -> None:
    coverage = found(Chain(Between)).coverage
    assert coverage.summary == "6 updates: 3 closed by 3 blocks · 3 open"
    assert coverage.open[0].reason == "in blocks.0, before what it closes: it stays when the block is closed"


class Values(nn.Module):
    """Gives an update and its values, into which it mixes those of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        v = self.value(torch.tanh(x))
        return self.out(torch.tanh((v if first is None else 0.5 * (v + first)).cumsum(1))), v


class ValuesOfParts(Ends):
    """The parent adds, and hands the first layer's values on (BS-RoFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Values(), Mlp()]) for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        first = None
        for attend, feed in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            update, v = attend(x, first)
            first = v if first is None else first
            x = x + update
            x = x + feed(x)
        return x


class NormedStreams(nn.Module):
    """One attention gives the updates of two streams, and each is normed before it is added (Mochi)."""

    def __init__(self) -> None:
        super().__init__()
        self.attends = nn.ModuleList(Attention() for _ in range(3))
        self.norms = nn.ModuleList(nn.ModuleDict({k: nn.LayerNorm(WIDTH) for k in "xy"}) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x.flip(1).tanh()
        for attend, norm in zip(self.attends, self.norms, strict=True):
            a, b = attend(torch.cat([x, y], 1)).chunk(2, 1)
            x, y = x + norm["x"](a), y + norm["y"](b)  # pyright: ignore[reportIndexIssue]
        return x * y.sigmoid()


def test_branches_are_called_by_modules_and_not_by_numbers_of_a_trace() -> None:
    assert found(NormedStreams(), level="branch").names == tuple(f"norms.{i}.{k}" for i in range(3) for k in "xy")


def test_values_of_a_part_that_its_parent_adds_are_named() -> None:
    """Those of the first layer alone are read later."""
    (row,) = found(ValuesOfParts()).coverage.of("beside")
    assert (row.block, row.place) == ("layers.0", "layers.0") and "output [1] is read later" in row.reason
    (row,) = found(ValuesOfParts(), level="branch").coverage.of("beside")
    assert row.block == "layers.0.0"


class Keeps(nn.Module):
    """Gives its values under two names, and what it got as it got it."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, values: Tensor, context: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        v, context = self.value(torch.tanh(x)), context.expand(context.shape)
        return x + self.out(torch.tanh(v.cumsum(1) * values) + context), {"kv": v, "cached_kv": v, "context": context}


class Keeping(Chain):
    """Each block reads the values of the one before."""

    def __init__(self) -> None:
        super().__init__(Keeps)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        kept = {"cached_kv": torch.ones(()), "context": torch.sin(x)}
        for block in self.blocks:
            x, kept = block(x, kept["cached_kv"], kept["context"])
        return x


def test_only_the_blocks_that_hand_values_on_are_named_and_each_value_once() -> None:
    coverage = found(Keeping()).coverage
    assert [row.place for row in coverage.of("beside")] == ["blocks.0", "blocks.1"]
    assert "beside  blocks.0, blocks.1  output [1]['kv'] is read later: it stays" in str(coverage)


class Coupling(nn.Module):
    """TarFlow: (x − b)·exp(−a), a and b shifted by a token, every second time in reverse; and a number for the loss."""

    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.mix, self.out, self.reverse = Layer(), nn.Linear(WIDTH, 2 * WIDTH), reverse

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flip(1) if self.reverse else x
        h = self.out(self.mix(x))
        a, b = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1).chunk(2, -1)
        y = (x - b) * (-a).exp()
        return y.flip(1) if self.reverse else y, -a.mean((1, 2))


class Couplings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Coupling(i % 2 == 1) for i in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x))
        for block in self.blocks:
            x, number = block(x)
            total = total + number
        return x, total


def test_what_is_made_of_closed_parts_alone_does_not_stay_nor_does_a_stream() -> None:
    coverage = found(Couplings()).coverage
    assert coverage.of("beside") == coverage.open == ()


class Preconditioned(nn.Module):
    """EDM: c_skip x + c_out F(c_in x), where each block of F scales its sum (EDM2)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Chain(Scaled)

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 * x + 0.8 * self.net(0.5 * x)


class Scaled(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x = x / x.norm(dim=-1, keepdim=True)
        return (x + super().forward(x)) * 0.7


def test_preconditioning_is_around_the_network() -> None:
    coverage = found(Preconditioned()).coverage
    assert [row.state for row in coverage] == ["closed"] * 3 + ["around"] and not coverage.note


def test_heads_of_the_layers_are_no_layers_and_named() -> None:
    net = Heads()
    rows = found(net).coverage.open
    said = "heads.1 reads a layer's output for this total alone: a head, which include= reaches"
    assert len(rows) == 3 and rows[0].reason == said
    assert found(net, include="heads.*").names == ("heads.1", "heads.2", "heads.3")


class Noted(Mlp):
    """Hands something on by a plain attribute: no gate can know."""

    def forward(self, x: Tensor) -> Tensor:
        f = super().forward(x)
        self.last = f
        return x + f


class Behind(Chain):
    def __init__(self) -> None:
        super().__init__(Noted)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        return super().run(x, off) * (1 + self.blocks[1].last.mean().sigmoid())


@pytest.mark.parametrize("worth", [0, recording.WORTH])
def test_a_block_that_is_not_deaf_is_named(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "WORTH", worth)  # 0: its calls can be skipped, and that is tried first
    net = Behind()
    blocks = found(net)
    assert blocks.coverage.passing == ("blocks.1",)
    assert "passes  blocks.1" in str(blocks.coverage) and "blocks.1" in blocks.coverage.note


def test_include_reaches_every_level() -> None:
    net = Recursive()
    assert found(net, include="body").names == ("body",)
    assert found(net, include="body.inner").names == ("body.inner",)
    assert found(net, include=["body", "body.first.0", "body.first.0.attend"]).names == (
        "body", "body.first.0", "body.first.0.attend",
    )  # fmt: skip


class Denoiser(nn.Module):
    """a x − b net(x), twice: arithmetic around a whole network."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner

    def forward(self, x: Tensor) -> Tensor:
        for a in (0.9, 0.7):
            x = a * x - 0.5 * self.net(x)
        return x


def test_arithmetic_around_a_network_of_closed_layers_is_not_open() -> None:
    coverage = found(Denoiser(Chain())).coverage
    assert coverage.summary == "14 updates: 12 closed by 6 blocks · 2 around networks of closed layers"
    assert "around  (the model) (2 times)  arithmetic around a network" in str(coverage)
    assert coverage.open == () and coverage.note == ""


def test_around_a_network_that_ends_in_an_open_update_it_is_open() -> None:
    class Ending(Chain):
        def run(self, x: Tensor, off: int | None = None) -> Tensor:
            x = super().run(x, off)
            return x + torch.cos(x @ x.mT) @ x

    coverage = found(Denoiser(Ending())).coverage
    assert {row.place for row in coverage.open} == {"(the model)", "net"} and not coverage.of("around")


class Twice(Chain):
    """The parent adds each part in two executions."""

    def __init__(self) -> None:
        super().__init__(Mlp)

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
            x = x + block(x)
        return x


def test_include_takes_the_names_it_gives() -> None:
    net = Twice()
    names = found(net).names
    assert names[:2] == ("blocks.0@0", "blocks.0@1")
    assert found(net, include=names).names == names
    assert found(net, include="blocks.1@1").names == ("blocks.1@1",)


class NormedByHand(Ends):
    """The parent norms what the part gives, by hand, before it adds it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Mlp() for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for part in self.parts:
            f = part(x)
            x = x + f * torch.rsqrt(f.square().mean(-1, keepdim=True) + 1e-6)
        return x


def test_half_a_gate_is_refused_where_it_would_not_halve_the_update() -> None:
    net = NormedByHand()
    blocks = found(net)
    with fog_a.gate(blocks, 0.0):
        net(tokens())
    with pytest.raises(NotResidual, match="expected a gate of 0 or 1"), fog_a.gate(blocks, 0.5):
        net(tokens())


def test_layers_inside_a_branch_are_counted_inside() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer, self.out = nn.LayerNorm(WIDTH), Layer(), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.out(self.layer(self.norm(x)))

    net = Chain(Outer)
    assert found(net).coverage.summary == "9 updates: 3 closed by 3 blocks · 6 inside them"


class Added(nn.Module):
    """The parent adds tanh of what its modules give, and gives out the last sum, or a multiple of it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layers, self.scale = nn.ModuleList(Mlp() for _ in range(3)), scale

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x if self.scale == 1 else self.scale * x


def test_the_last_output_is_read_where_the_parent_gives_it_out() -> None:
    net = Added(1.0)
    with fog_a.tap(found(net)) as h:
        v = net(tokens())
    assert torch.equal(h["layers.2"], v) and set(h.all) == {"layers.0", "layers.1", "layers.2"}


def test_an_output_that_no_module_sees_is_named() -> None:
    net = Added(2.0)
    with fog_a.tap(found(net)) as h:
        net(tokens())
    assert h["layers.1"].shape == (2, 6, WIDTH)
    with pytest.raises(NoActivations, match=r"output of .layers.2. cannot be read: expected a module that gives"):
        h["layers.2"]


@pytest.mark.filterwarnings("ignore:the head of")  # too few samples to fit a head, and none is asked for
def test_all_outputs_that_no_module_sees_are_named_before_anything_runs() -> None:
    flow = fog_a.wrap(Added(2.0), call=lambda net, x, t, cond: net(x + t[:, None, None]))
    batch = {"x1": torch.randn(8, 6, WIDTH)}
    said = r"output of 'layers.2' cannot be read.*type blocks=\['layers.0', 'layers.1'\]"
    with pytest.raises(NoActivations, match=said):
        fog_a.lasp(flow, batch, LatentTeacher(WIDTH), times=1)
    with pytest.raises(NoActivations, match=said):
        fog_a.AGREPA(flow, LatentTeacher(WIDTH), ["layers.1"], batch=batch)
    rest = ["layers.0", "layers.1"]
    assert list(fog_a.lasp(flow, batch, LatentTeacher(WIDTH), times=1, blocks=rest).layers) == rest
    reg = fog_a.AGREPA(flow, LatentTeacher(WIDTH), ["layers.1"], batch=batch, blocks=rest)
    assert (flow.loss(batch) + reg(batch)).isfinite()
    reg.close()


class WaveNet(nn.Module):
    """gate(in(x) + condition) → res → half to the stream, half to a total that is read after all layers (VITS)."""

    def __init__(self) -> None:
        super().__init__()
        self.cond, self.post = nn.Linear(1, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ins = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(4))
        self.res = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH if i < 3 else WIDTH) for i in range(4))
        self.streams: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        total, c, self.streams = torch.zeros_like(x), self.cond(t[:, None])[:, None], []
        for i in range(4):
            a, b = (self.ins[i](x) + c).chunk(2, -1)
            update = self.res[i](a.tanh() * b.sigmoid())
            if i < 3:
                x, update = x + update[..., :WIDTH], update[..., WIDTH:]
            total = total + update
            self.streams.append(x if i < 3 else total)
        return self.post(total)


@pytest.mark.filterwarnings("ignore:the head of")  # too few samples to fit a head, and none is asked for
def test_a_wavenet_s_stream_is_read_where_the_next_layer_takes_it_in() -> None:
    net, batch = WaveNet(), {"x1": torch.randn(8, 6, WIDTH)}
    flow = fog_a.wrap(net, x="x", t="t")
    blocks = fog_a.find_blocks(flow, batch)
    with torch.no_grad(), fog_a.tap(blocks) as h:
        flow.velocity(batch, 0.5)
    assert len(blocks) == 4 and all(torch.equal(h[b.name], x) for b, x in zip(blocks, net.streams, strict=True))
    assert len(fog_a.lasp(flow, batch, LatentTeacher(WIDTH), times=1).layers) == 4


class Bare(nn.Module):
    """Writes in an update that no module gives."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return h.add_(torch.tanh(h @ self.w))


def test_gates_that_reach_nothing_are_told_from_an_untrained_model() -> None:
    torch.manual_seed(0)
    net = GoesOn(Bare).eval()
    assert found(net).coverage.passing == ("blocks.0", "blocks.1", "blocks.2")
    with pytest.raises(NotResidual, match=r"blocks.2 compute reaches the output.*take that: h = block\(h\)"):
        fog_a.attribute(net, tokens(), progress=False)
