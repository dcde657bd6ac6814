"""AGREPA: the loss of Eq. 12, what it leaves alone, the choice, resuming, and what is refused."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_flow import CHANNELS, TEACHER, WIDTH, Block, Net, Statistics, a_batch, a_flow, two_teachers
from torch import Tensor, nn

import fog_a
from fog_a.aligning import heads, width
from fog_a.aligning.alignment import AGREPA
from fog_a.aligning.schedules import Schedule, TimeWeight
from fog_a.errors import (
    BadBatch,
    BadFeatures,
    BadScores,
    NoActivations,
    ShapeMismatch,
    UnknownBlock,
    Unsupported,
)
from fog_a.scores.selection import Choice, Selection
from fog_a.teachers import SelfTeacher
from fog_a_adapters import released

TOKENS = partial(heads.mlp, pool=False)
CHOSEN = Selection(
    domains={
        "speech": (Choice(layer="blocks.1", depth=1, weight=0.3), Choice(layer="blocks.3", depth=3, weight=0.2)),
        "sound": (Choice(layer="blocks.0", depth=0, weight=0.5),),
    }
)


def aligned(
    batch: Any = None, teachers: Any = None, selection: Any = CHOSEN, kind: Any = AGREPA, **options: Any
) -> tuple[Any, AGREPA, Any]:
    """A flow, its regularizer listening already, and a batch."""
    batch = a_batch() if batch is None else batch
    flow = a_flow()
    return flow, kind(flow, two_teachers() if teachers is None else teachers, selection, batch=batch, **options), batch


def outputs_of(net: Net, run: Callable[[], Any]) -> dict[str, Tensor]:
    """What each block gives in a run, by hooks of the test's own."""
    seen: dict[str, Tensor] = {}
    handles = [
        b.register_forward_hook(lambda m, i, o, n=n: seen.update({n: o})) for n, b in net.blocks.named_children()
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


def by_hand(reg: AGREPA, seen: dict[str, Tensor], batch: Any, release: bool = False) -> Tensor:
    """Eq. 12, written out."""
    loss = torch.zeros(())
    for domain, slots in (("speech", [("1", 0.3), ("3", 0.2)]), ("sound", [("0", 0.5)])):
        rows = [i for i, d in enumerate(batch["domains"]) if d == domain]
        dim = two_teachers()[domain].dim
        target = torch.stack([Statistics._draw(batch["ids"][i], dim) for i in rows])
        for s, (layer, weight) in enumerate(slots):
            w = {
                n.split(".", 4)[-1]: p for n, p in reg.named_parameters() if n.startswith(f"slots.heads.{domain}.{s}.")
            }
            z = F.layer_norm(seen[layer][rows].mean(1), (WIDTH,))
            y = F.gelu(z @ w["inner.weight"].T + w["inner.bias"]) @ w["outer.weight"].T + w["outer.bias"]
            part = 1 - (y * target).sum(-1) / (y.norm(dim=-1) * target.norm(dim=-1))
            loss = loss + weight * (part.sum() / len(batch["ids"]) if release else part.mean())
    return loss


@pytest.mark.parametrize("kind", [AGREPA, partial(released.AGREPA, head=heads.mlp)], ids=["domain", "release"])
def test_the_loss_is_equation_12(kind: Any) -> None:
    flow, reg, batch = aligned(a_batch(7), kind=kind)
    seen = outputs_of(flow.module, lambda: flow.loss(batch))
    value = reg(batch)
    expected = by_hand(reg, seen, batch, release=kind is not AGREPA)
    assert torch.allclose(value, expected, rtol=1e-5)
    mine = torch.autograd.grad(value, [*flow.module.blocks.parameters()], retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(expected, [*flow.module.blocks.parameters()], allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.allclose(a, b, atol=1e-7)


def test_padding_does_not_count() -> None:
    lengths = torch.tensor([7, 3, 5, 7, 2, 4])
    batch = {**a_batch(), "mask": torch.arange(7) < lengths[:, None]}
    flow, reg, _ = aligned(batch)
    seen = outputs_of(flow.module, lambda: flow.loss(batch))
    value = reg(batch)
    rows = [1, 3, 5]
    h = torch.stack([seen["0"][i, : lengths[i]].mean(0) for i in rows])
    head = reg.slots.heads["sound"][0]  # pyright: ignore[reportIndexIssue]
    y = head(h[:, None])  # of one token: the mean
    target = torch.stack([Statistics._draw(batch["ids"][i], 3) for i in rows])
    assert reg.metrics()["ag_repa/sound/blocks.0"] == pytest.approx(
        float(F.cosine_similarity(y, target).mean().detach()), abs=1e-6
    )
    assert value.isfinite()


def trained(
    steps: int, with_reg: bool, dropout: float = 0.3, **options: Any
) -> tuple[list[float], list[Tensor], Tensor]:
    """Losses, parameters and the next random number of a short training with and without AGREPA."""
    flow = a_flow()
    flow.module.blocks[1].f.append(nn.Dropout(dropout))
    reg = AGREPA(flow, two_teachers(), **options) if with_reg else None
    optimizer = torch.optim.AdamW(flow.module.parameters(), lr=1e-2)
    torch.manual_seed(1)
    losses = []
    for step in range(steps):
        batch = a_batch(seed=step)
        loss = flow.loss(batch)
        total = loss if reg is None else loss + reg(batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, [p.detach().clone() for p in flow.module.parameters()], torch.rand(3)


@pytest.mark.parametrize(
    "options",
    [
        {"warmup": 100, "every": 2},
        {"selection": CHOSEN, "schedule": Schedule("stop", 1), "total": 0.0},
    ],
    ids=["warmup", "weight-0"],
)
def test_training_is_bit_identical_without_it(options: dict[str, Any]) -> None:
    if "selection" in options:  # the first call looks, the second would align: its schedule has weight 0 by then
        options = {**options, "selection": Selection.fixed(["blocks.1"], total=0.0)}
    with_reg, without = trained(8, True, **options), trained(8, False)
    assert with_reg[0] == without[0]
    assert all(torch.equal(a, b) for a, b in zip(with_reg[1], without[1], strict=True))
    assert torch.equal(with_reg[2], without[2])


def test_alignment_draws_no_random_number() -> None:
    flow, reg, batch = aligned()
    flow.loss(batch)
    before = torch.get_rng_state()
    reg(batch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    a = torch.rand(2)
    torch.manual_seed(5)
    AGREPA(a_flow(), two_teachers())
    assert torch.equal(torch.rand(2), a)


def test_it_owns_its_heads_and_nothing_else() -> None:
    flow, reg, batch = aligned()
    theirs = {id(p) for p in flow.module.parameters()}
    assert not theirs & {id(p) for p in reg.parameters()}
    assert all(n.startswith("slots.") or n == "_extra_state" for n in reg.state_dict())
    assert not any(isinstance(m, Net) for m in reg.modules())
    assert list(flow.module.state_dict()) == list(Net().state_dict())
    reg.close()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in flow.module.modules())
    copy.deepcopy(flow.module)
    with pytest.raises(NoActivations, match=r"after reg\.close\(\), reg\.open\(\)"):
        flow.loss(batch)
        reg(batch)
    reg.open()
    flow.loss(batch)
    assert float(reg(batch).detach()) > 0


def test_an_ema_of_the_model_is_not_listened_to() -> None:
    """A deep copy carries the hooks of the model along; what it computes is its own."""
    flow, reg, batch = aligned()
    ema, values = copy.deepcopy(flow.module), []
    for run_ema in (False, True):
        torch.manual_seed(0)
        flow.loss(batch)
        if run_ema:
            with torch.no_grad():
                ema(2 * batch["x1"], torch.rand(6))
        values.append(float(reg(batch).detach()))
    assert values[0] == values[1]


def test_a_copy_listens_to_the_copy_of_its_model() -> None:
    """As a whole module that holds both is copied, for an average of the weights."""
    flow, reg, batch = aligned()
    same = copy.deepcopy(reg)
    same.open()
    values = []
    for r in (reg, same):
        torch.manual_seed(0)
        r.flow.loss(batch)
        values.append(r(batch))
    assert same.flow.module is not flow.module and torch.equal(values[0], values[1])
    values[1].backward()
    assert all(p.grad is None for p in flow.module.parameters())


def test_a_model_with_hooks_can_be_saved(tmp_path: Path) -> None:
    """What is loaded again has hooks that do nothing."""
    flow, reg, batch = aligned()
    torch.save(flow.module, tmp_path / "net.pt")
    net, values = torch.load(tmp_path / "net.pt", weights_only=False), []
    for run_loaded in (False, True):
        torch.manual_seed(0)
        flow.loss(batch)
        if run_loaded:
            net(2 * batch["x1"], torch.rand(6))
        values.append(float(reg(batch).detach()))
    assert values[0] == values[1]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), flow.module.parameters(), strict=True))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_the_last_forward_with_grad_is_aligned(train: bool) -> None:
    """Whatever runs without grad before it or after it, as for self-conditioning or samples to look at."""
    flow, reg, batch = aligned(time_weight=TimeWeight("soft"))
    torch.manual_seed(0)
    flow.loss(batch)
    expected = reg(batch)
    other = torch.randn(6, 7, 6)
    flow.module(other, torch.rand(6))  # a forward with grad: not the last one
    torch.manual_seed(0)
    flow.loss(batch)
    with torch.no_grad():
        flow.module.train(train)
        flow.module(other, torch.zeros(6))
    assert torch.equal(reg(batch), expected)
    with torch.no_grad():
        flow.module.train()(other, torch.zeros(6))
    torch.manual_seed(0)
    flow.loss(batch)
    assert torch.equal(reg(batch), expected)


def test_one_forward_a_step_and_nothing_kept_after_it() -> None:
    flow, reg, batch = aligned()
    calls = []
    flow.module.register_forward_hook(lambda *_: calls.append(1))
    flow.loss(batch)
    reg(batch)
    assert len(calls) == 1
    assert reg._listening._tap is not None and not len(reg._listening._tap)


def test_evaluation_is_free_of_it() -> None:
    flow, reg, batch = aligned()
    with torch.no_grad():
        flow.loss(batch)
        assert reg(batch) == 0
    reg.eval()
    flow.module.eval()
    flow.loss(batch)
    assert reg(batch) == 0 and reg.step == 0


def test_the_choice_after_the_warmup() -> None:
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), k=2, warmup=6, every=2)
    optimizer = torch.optim.AdamW([*flow.module.parameters(), *reg.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=12)
    shapes = [p.shape for p in reg.parameters()]
    for step in range(12):
        batch = a_batch(seed=step)
        loss, term = flow.loss(batch), reg(batch)
        assert (float(term.detach()) > 0) == (step >= 6)
        assert (reg.selection is None) == (step < 5)
        optimizer.zero_grad()
        (loss + term).backward()
        optimizer.step()
        schedule.step()
    assert [p.shape for p in reg.parameters()] == shapes
    assert reg.selection is not None
    for domain in ("speech", "sound"):  # scales .1, 1, .2, 2: the larger ones matter
        assert set(reg.selection.weights(domain)) == {"blocks.1", "blocks.3"}
        assert sum(reg.selection.weights(domain).values()) == pytest.approx(0.5)
        assert reg.selection.samples[domain] == 6  # 3 probes of 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in reg.parameters())


def test_the_choice_is_shown_where_the_user_looks(capsys: pytest.CaptureFixture[str]) -> None:
    flow, batch = a_flow(), a_batch()
    reg = AGREPA(flow, Statistics(), k=2, warmup=3, every=1)
    for _ in range(5):
        flow.loss(batch)
        reg(batch)
    said = capsys.readouterr().err
    assert said.count("fog_a: layers chosen at step 3") == 1 and "blocks.3 (layer 4): λ" in said
    reg = AGREPA(flow, Statistics(), k=1, warmup=2, every=1, by="top", probe=undecided)
    for _ in range(2):
        flow.loss(batch)
        reg(batch)
    assert "of resamples, not settled" in capsys.readouterr().err


def undecided(flow: Any, batch: Any, blocks: Any, draw: Any) -> fog_a.Scores:
    """A probe whose layers take turns on top."""
    samples = flow.samples(batch)
    values = torch.rand(len(samples), 1, 4, generator=torch.Generator().manual_seed(draw.seed)).numpy()
    return fog_a.Scores(values, blocks.names, (draw.t,), samples.domains, samples.ids, "contribution", {})


def test_a_run_that_ended_in_its_warmup_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    flow, batch = a_flow(), a_batch()
    reg = AGREPA(flow, Statistics(), warmup=500)
    reg.close()
    assert capsys.readouterr().err == ""
    reg.open()
    for _ in range(20):
        flow.loss(batch)
        reg(batch)
    reg.close()
    message = "AGREPA has aligned nothing in 20 steps: its warm-up takes 500. Type AGREPA(..., warmup=2)"
    assert message in capsys.readouterr().err
    reg.close()
    del reg
    gc.collect()
    assert capsys.readouterr().err == ""
    other = AGREPA(flow, Statistics(), warmup=500)
    flow.loss(batch)
    other(batch)
    del other  # as at the end of a program
    gc.collect()
    assert "AGREPA has aligned nothing in 1 steps" in capsys.readouterr().err


def test_a_domain_that_no_batch_has_is_waited_for() -> None:
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), k=1, warmup=4, every=2)
    for step in range(8):
        batch = a_batch(seed=step, domains=("speech", "sound") if step == 6 else ("speech",))
        flow.loss(batch)
        if step == 3:  # the warm-up is over
            with pytest.warns(UserWarning, match=r"had a sample of 'sound': nothing is aligned .*'sound': None"):
                reg(batch)
        else:
            reg(batch)
        assert (reg.selection is None) == (step < 6)


def test_a_domain_that_no_batch_has_had_is_named_long_before_the_choice() -> None:
    flow = a_flow()
    reg = AGREPA(flow, {**two_teachers(), "sounds": Statistics()}, k=1, warmup=100, every=2)
    for step in range(8):
        flow.loss(a_batch(seed=step))
        if step == 3:
            message = (
                r"step 4: no batch .* domain 'sounds', only of 'sound', 'speech'; near: sound. Is the name right\?"
            )
            with pytest.warns(UserWarning, match=message):
                reg(a_batch(seed=step))
        else:
            reg(a_batch(seed=step))


def test_heads_that_no_optimizer_has_are_noticed() -> None:
    for trained in (True, False):
        flow, reg, batch = aligned()
        optimizer = torch.optim.SGD([*flow.module.parameters(), *(reg.parameters() if trained else [])], lr=1e-3)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(25):
                optimizer.zero_grad()
                loss = flow.loss(batch)
                (loss + reg(batch)).backward()
                optimizer.step()
        assert len(said) == (0 if trained else 1)
    assert "AdamW([*model.parameters(), *reg.parameters()])" in str(said[0].message)


def test_of_an_untrained_model_at_the_end_of_the_warmup_the_next_probe_is_waited_for() -> None:
    flow = a_flow(scales=(0.0, 0.0))
    reg = AGREPA(flow, two_teachers(), k=1, warmup=2, every=1)
    batch = a_batch()
    flow.loss(batch)
    reg(batch)
    with pytest.warns(UserWarning, match=r"step 2: nothing is aligned, and the next probe tries again: .* untrained"):
        flow.loss(batch)
        assert reg(batch) == 0
    assert reg.step == 2 and reg.selection is None and reg.state == "probing"
    for block in flow.module.blocks:
        block.scale = 1.0
    flow.loss(batch)
    reg(batch)
    assert reg.selection is not None


def run(steps: range, flow: Any, reg: AGREPA, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)
        batch = a_batch(seed=step)
        loss = flow.loss(batch)
        loss = loss + reg(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def fresh(**options: Any) -> tuple[Any, AGREPA, torch.optim.Optimizer]:
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), k=2, warmup=8, every=2, **options)
    return flow, reg, torch.optim.AdamW([*flow.module.parameters(), *reg.parameters()], lr=1e-2)


@pytest.mark.parametrize("cut", [1, 5, 7, 8, 11])
@pytest.mark.parametrize("options", [{}, {"refresh": 3, "schedule": Schedule("saturated", 3)}], ids=["once", "refresh"])
def test_a_resumed_run_is_bit_identical(cut: int, options: dict[str, Any], tmp_path: Path) -> None:
    flow, reg, optimizer = fresh(**options)
    whole = run(range(15), flow, reg, optimizer)
    expected = [p.detach().clone() for p in [*flow.module.parameters(), *reg.parameters()]]

    flow, reg, optimizer = fresh(**options)
    first = run(range(cut), flow, reg, optimizer)
    save_file({n: t.contiguous() for n, t in reg.state_dict().items()}, tmp_path / "reg.safetensors")
    torch.save([flow.module.state_dict(), optimizer.state_dict(), reg.state_dict()], tmp_path / "rest.pt")
    flow, reg, optimizer = fresh(**options)
    model, state, same = torch.load(tmp_path / "rest.pt", weights_only=True)
    flow.module.load_state_dict(model)
    optimizer.load_state_dict(state)
    reg.load_state_dict(load_file(tmp_path / "reg.safetensors"))
    assert all(torch.equal(a, same[n]) for n, a in reg.state_dict().items())
    assert first + run(range(cut, 15), flow, reg, optimizer) == whole
    now = [*flow.module.parameters(), *reg.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(expected, now, strict=True))


def test_refresh_chooses_anew_and_layers_that_stay_keep_their_heads() -> None:
    flow = a_flow()
    reg = AGREPA(flow, Statistics(), k=2, warmup=2, every=1, refresh=4)
    optimizer = torch.optim.SGD(flow.module.parameters(), lr=0.0)
    run(range(3), flow, reg, optimizer)
    before = dict(enumerate(reg.slots.bound["all"]))
    assert set(before.values()) == {"blocks.1", "blocks.3"}
    flow.module.blocks[1].scale, flow.module.blocks[0].scale = 0.01, 3.0
    run(range(3, 8), flow, reg, optimizer)
    after = dict(enumerate(reg.slots.bound["all"]))
    assert set(after.values()) == {"blocks.0", "blocks.3"}
    kept = {slot for slot, layer in before.items() if layer == "blocks.3"}
    assert {slot for slot, layer in after.items() if layer == "blocks.3"} == kept


class Widening(Net):
    """Two streams: two blocks of one width, two of another; the last of each matters."""

    def __init__(self) -> None:
        super().__init__((0.1, 2.0))
        self.widen, self.lift = nn.Linear(WIDTH, 24), nn.Linear(1, 24)
        self.wide = nn.ModuleList(Block(scale, 24) for scale in (0.1, 4.0))
        self.last = nn.Linear(24, CHANNELS)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h, e = self.into(x_t), self.time(t[:, None, None])
        for block in self.blocks:
            h = block(h, e)
        h, e = self.widen(h), self.lift(t[:, None, None])
        for block in self.wide:
            h = block(h, e)
        return self.last(h)


def test_layers_of_two_widths_have_heads_of_their_own_width() -> None:
    batch, teachers = a_batch(), two_teachers()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = fog_a.wrap(Widening(), x="x_t", t="t")
    reg = AGREPA(flow, teachers, batch=batch, k=2, warmup=4, every=1)
    assert reg.slots.widths == {"speech": [16, 16, 24, 24], "sound": [16, 16, 24, 24]}
    optimizer = torch.optim.SGD([*flow.module.parameters(), *reg.parameters()], lr=1e-3)
    run(range(2), flow, reg, optimizer)
    again = AGREPA(flow, teachers, batch=batch, k=2, warmup=4, every=1)
    again.load_state_dict(reg.state_dict())  # in the middle of the warm-up
    reg.close()
    optimizer = torch.optim.SGD([*flow.module.parameters(), *again.parameters()], lr=1e-3)
    run(range(2, 6), flow, again, optimizer)
    assert again.selection is not None and set(again.selection.layers) == {"blocks.1", "wide.1"}
    for domain, layers in again.slots.bound.items():
        assert {again.slots.widths[domain][layers.index(name)] for name in ("blocks.1", "wide.1")} == {16, 24}
    used = [p.grad is not None for p in again.slots.heads["speech"].parameters()]
    assert sum(used) == len(used) // 2
    flow.loss(batch)
    with pytest.raises(ShapeMismatch, match=r"are 16 and 24 wide, .* AGREPA\(\.\.\., batch=one_training_batch\)"):
        AGREPA(flow, teachers, k=1, blocks=["blocks.1", "wide.1"])(batch)


@pytest.mark.parametrize("factory", [heads.mlp, heads.linear, heads.conv1d, heads.conv2d])
@pytest.mark.parametrize("target", ["pooled", "tokens"])
def test_every_head_with_every_target(factory: Any, target: str) -> None:
    hidden = {} if factory is heads.linear else {"hidden": 8}
    head = partial(factory, pool=target == "pooled", **hidden)
    batch = {**a_batch(), "mask": torch.arange(7) < torch.tensor([7, 3, 5, 7, 2, 4])[:, None]}
    flow, reg, _ = aligned(batch, head=head)
    loss = flow.loss(batch)
    value = reg(batch)
    (loss + value).backward()
    assert 0 < float(value.detach()) < 2
    assert all(p.grad is not None for p in reg.parameters())
    changed = {**batch, "x1": batch["x1"].clone()}
    changed["x1"][4, 2:] = 50.0  # in the padding
    torch.manual_seed(0)
    flow.loss(batch)
    a = reg(batch)
    torch.manual_seed(0)
    flow.loss(changed)
    assert torch.allclose(reg(changed), a, atol=1e-6)


def test_tokenwise_targets_are_resampled_to_the_real_tokens() -> None:
    batch = a_batch(2, domains=("all",))
    flow = a_flow()
    reg = AGREPA(flow, TEACHER, "blocks.2", batch=batch, head=partial(heads.linear, pool=False), total=1.0)
    frames = torch.randn(2, 7, TEACHER)
    seen = outputs_of(flow.module, lambda: flow.loss(batch))
    value = reg(batch, features=frames)
    head = reg.slots.heads["all"][0]  # pyright: ignore[reportIndexIssue]
    y = head(seen["2"])
    assert torch.allclose(value, (1 - F.cosine_similarity(y, frames, dim=-1)).mean(), atol=1e-6)


def test_features_take_the_teachers_place() -> None:
    batch = a_batch()
    rows = {d: [i for i, x in enumerate(batch["domains"]) if x == d] for d in ("speech", "sound")}
    pooled = {
        d: torch.stack([Statistics._draw(batch["ids"][i], n) for i in rows[d]])
        for d, n in (("speech", 5), ("sound", 3))
    }
    values = []
    for options, call in (
        ({"teachers": two_teachers()}, {}),
        ({"teachers": {"speech": 5, "sound": 3}}, {"features": pooled}),
        ({"teachers": {"speech": 5, "sound": 3}, "features": lambda b: pooled}, {}),
    ):
        flow, reg, _ = aligned(batch, **options)
        torch.manual_seed(0)
        flow.loss(batch)
        values.append(float(reg(batch, **call).detach()))
    assert values[0] == values[1] == values[2]


def test_a_domain_may_be_left_out_and_one_teacher_serve_all() -> None:
    flow, reg, batch = aligned(teachers={"speech": Statistics(5), "sound": None})
    flow.loss(batch)
    reg(batch)
    assert {n for n in reg.metrics() if n.count("/") == 2} == {"ag_repa/speech/blocks.1", "ag_repa/speech/blocks.3"}
    flow, reg, batch = aligned(teachers=Statistics(), selection=["blocks.0", "blocks.2"])
    flow.loss(batch)
    reg(batch)
    assert {n for n in reg.metrics() if n.count("/") == 2} == {"ag_repa/all/blocks.0", "ag_repa/all/blocks.2"}


def test_self_alignment_reads_a_deeper_block_and_stops_its_gradient() -> None:
    flow, reg, batch = aligned(teachers=SelfTeacher("blocks.3"), selection="blocks.0", total=1.0)
    seen = outputs_of(flow.module, lambda: flow.loss(batch))
    value = reg(batch)
    head = reg.slots.heads["all"][0]  # pyright: ignore[reportIndexIssue]
    y = head(seen["0"])
    assert torch.allclose(value, (1 - F.cosine_similarity(y, seen["3"].mean(1))).mean(), atol=1e-6)
    value.backward()
    assert all(p.grad is None for p in flow.module.blocks[3].parameters())
    assert all(p.grad is not None for p in flow.module.blocks[0].parameters())


def test_a_self_teacher_of_another_width() -> None:
    class Wider(Net):
        """Two blocks of one width, then two of twice that."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(1.0, w) for w in (WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH))
            self.out = nn.Linear(2 * WIDTH, 6)

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            h, e = self.into(x_t), self.time(t[:, None, None])
            for i, block in enumerate(self.blocks):
                if i == 2:
                    h, e = torch.cat([h, h], -1), torch.cat([e, e], -1)
                h = block(h, e)
            return self.out(h)

    flow, batch = fog_a.wrap(Wider(), x="x_t", t="t"), a_batch()
    reg = AGREPA(flow, SelfTeacher("blocks.3"), "blocks.0", batch=batch)
    flow.loss(batch)
    assert float(reg(batch).detach()) > 0
    assert [p.shape[0] for n, p in reg.named_parameters() if "outer.weight" in n] == [2 * WIDTH]


def test_weights_and_heads_by_flow_time() -> None:
    """t comes from the network's own call, because the adapter names that argument; given, it must be the same."""
    flow, reg, batch = aligned(time_weight=TimeWeight("hard", tau=0.5), head=partial(heads.by_time, bins=2))
    times: list[Tensor] = []
    flow.module.register_forward_pre_hook(lambda m, a, k: times.append(k["t"]), with_kwargs=True)
    torch.manual_seed(4)
    flow.loss(batch)
    value = reg(batch)
    torch.manual_seed(4)
    flow.loss(batch)
    assert torch.equal(reg(batch, t=times[0]), value)
    value.backward()
    late = {
        d: [float(times[0][i]) >= 0.5 for i, x in enumerate(batch["domains"]) if x == d] for d in ("speech", "sound")
    }
    assert 0 < sum(late["speech"] + late["sound"]) < 6
    for name, p in reg.named_parameters():
        domain, part = name.split(".")[2], name.split(".")[5]
        trained = p.grad is not None and bool(p.grad.any())
        assert trained == (int(part) == 1 and any(late[domain])), name
    with pytest.raises(ShapeMismatch, match="t has 4 values for 6 samples"):
        flow.loss(batch)
        reg(batch, t=torch.rand(4))


def test_a_schedule_ends_it_and_saturation_too() -> None:
    flow, reg, batch = aligned(schedule=Schedule("linear", 4))
    seen = []
    for _ in range(6):
        torch.manual_seed(0)
        flow.loss(batch)
        seen.append(float(reg(batch).detach()))
    assert seen == pytest.approx([seen[0] * f for f in (1, 0.75, 0.5, 0.25, 0, 0)], rel=1e-5)
    flow, reg, batch = aligned(schedule=Schedule("saturated", 5, growth=1e-3))
    weights = []
    for _ in range(12):
        torch.manual_seed(0)
        flow.loss(batch)
        reg(batch)
        weights.append(reg.weight)
    assert weights[0] == 1.0 and weights[-1] == 0.0


class TestRefusals:
    def test_a_domain_without_a_teacher(self) -> None:
        flow, reg, batch = aligned()
        batch = {**batch, "domains": ["speech", "music"] * 3}
        flow.loss(batch)
        with pytest.raises(
            BadBatch, match=r"domain 'music', but teachers are there for 'speech', 'sound'.*'music': None"
        ):
            reg(batch)

    def test_features_that_do_not_fit(self) -> None:
        flow, reg, batch = aligned(teachers={"speech": 5, "sound": 3})
        good = {"speech": torch.randn(3, 5), "sound": torch.randn(3, 3)}
        cases: list[tuple[Any, str]] = [
            (None, r"domain 'speech' has no teacher, only a width \(5\)"),
            ({**good, "sound": torch.randn(3, 4)}, "'sound' are 4 wide, but the heads were built for its teacher's 3"),
            ({**good, "sound": torch.randn(2, 3)}, "expected"),
            ({**good, "sound": torch.full((3, 3), float("nan"))}, "NaN or inf"),
        ]
        for features, message in cases:
            flow.loss(batch)
            with pytest.raises(BadFeatures, match=message):
                reg(batch, features=features)
        flow.loss(batch)
        assert reg(batch, features=good).isfinite()

    def test_frames_that_do_not_fit(self) -> None:
        flow, reg, batch = aligned(head=TOKENS, teachers={"speech": 5, "sound": 3})
        good = {"speech": [torch.randn(4, 5)] * 3, "sound": [torch.randn(2, 3)] * 3}
        cases: list[tuple[Any, str]] = [
            ({**good, "sound": [torch.randn(2, 3)] * 2}, "expected frames for 3 samples, got 2"),
            ({**good, "sound": [torch.randn(2, 4)] * 3}, r"sample 1 has \(2, 4\), expected \(T, 3\)"),
            ({**good, "sound": [torch.full((2, 3), float("inf"))] * 3}, "NaN or inf in sample 1"),
        ]
        for features, message in cases:
            flow.loss(batch)
            with pytest.raises(BadFeatures, match=message):
                reg(batch, features=features)

    def test_a_teacher_without_frames(self) -> None:
        class Pooled:
            name, dim = "pooled", 4

            def __call__(self, samples: Any) -> Tensor:
                return torch.randn(len(samples), 4)

        flow, reg, batch = aligned(teachers=Pooled(), head=TOKENS, selection="blocks.0")
        flow.loss(batch)
        with pytest.raises(Unsupported, match=r"\(pool=False\) needs a teacher with frames.*'pooled' only pools"):
            reg(batch)

    def test_no_forward(self) -> None:
        _, reg, batch = aligned()
        with pytest.raises(NoActivations, match=r"expected one forward of the model .* before reg\(batch\)"):
            reg(batch)

    def test_a_frozen_model_has_no_graph(self) -> None:
        flow, reg, batch = aligned()
        flow.module.requires_grad_(False)
        flow.loss(batch)
        with pytest.raises(NoActivations, match="recorded without a graph"):
            reg(batch)

    def test_another_batch_than_the_forwards(self) -> None:
        flow, reg, batch = aligned()
        flow.loss(batch)
        with pytest.raises(ShapeMismatch, match="Call reg with the batch of the last forward"):
            reg(a_batch(4))

    def test_a_selection_of_another_model(self) -> None:
        batch, other = a_batch(), a_flow(scales=(1.0, 2.0))
        chosen = fog_a.select(fog_a.attribute(other, batch, times=[0.5]), 1)
        with pytest.raises(BadScores, match="made for another model"):
            AGREPA(a_flow(), two_teachers(), chosen, batch=batch)
        with pytest.raises(UnknownBlock, match=r"no block is named 'blocks\.9'"):
            AGREPA(a_flow(), two_teachers(), "blocks.9", batch=batch)

    def test_widths(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Odd(Net):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([nn.Conv1d(40 * i + 40, 40 * i + 80, 1) for i in range(4)])

        with pytest.raises(Unsupported, match=r"cannot be read from its weights.*batch=one_training_batch"):
            AGREPA(fog_a.wrap(Odd(), x="x_t", t="t"), Statistics())
        monkeypatch.setattr(width, "stream_width", lambda module: 9)  # a guess that errs
        flow = a_flow()
        reg = AGREPA(flow, Statistics(), "blocks.0")
        batch = a_batch()
        flow.loss(batch)
        message = r"layers are 16 wide, but the heads were built for 9: type AGREPA\(\.\.\., batch=one_training_batch"
        with pytest.raises(ShapeMismatch, match=message):
            reg(batch)

    def test_a_domain_that_nobody_knows(self) -> None:
        """In the selection, in the batch, in what takes the teachers' place: at construction or at the first call."""
        misspelt = CHOSEN.model_copy(update={"domains": {**CHOSEN.domains, "speach": CHOSEN.domains["speech"]}})
        message = r"selection has layers of domain 'speach', but teachers are there for 'speech', 'sound'; near: speech"
        with pytest.raises(Unsupported, match=message):
            AGREPA(a_flow(), two_teachers(), misspelt)
        batch = a_batch()
        message = r"batch has samples of domain 'speech', but teachers are there for 'speach', 'sound'; near: speach"
        teachers = {"speach": Statistics(), "sound": Statistics()}
        with pytest.raises(BadBatch, match=message):
            AGREPA(a_flow(), teachers, batch=batch)
        with pytest.raises(BadBatch, match=message):
            AGREPA(a_flow(), teachers)(batch)
        reg = AGREPA(a_flow(), two_teachers())
        with pytest.raises(BadFeatures, match=r"features= has an entry of domain 'sounds'.*; near: sound"):
            reg(batch, features={"sounds": torch.zeros(3, 3)})

    def test_what_would_fail_after_the_warmup_fails_at_the_first_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Deaf(Statistics):
            def __call__(self, samples: Any) -> Tensor:
                raise BadFeatures("no audio")

        late = {"t": torch.full((6,), 900.0)}
        cases: list[tuple[dict[str, Any], dict[str, Any], Any, str]] = [
            ({"k": 9}, {}, Unsupported, "k = 9 layers per domain, but the model has 4"),
            ({"blocks": ["blocks.7"]}, {}, UnknownBlock, "blocks.7"),
            (
                {"teachers": {"speech": Statistics()}},
                {},
                BadBatch,
                "domain 'sound', but teachers are there for 'speech'",
            ),
            ({"teachers": 5}, {}, BadFeatures, "has no teacher, only a width"),
            (
                {"teachers": 5},
                {"features": torch.randn(6, 4)},
                BadFeatures,
                "4 wide, but the heads were built for .* 5",
            ),
            ({"teachers": Deaf()}, {}, BadFeatures, "no audio"),
            ({"head": TOKENS, "features": lambda b: torch.randn(6, 2, 2)}, {}, BadFeatures, r"has \(2, 2\), expected"),
            ({"time_weight": TimeWeight()}, late, BadBatch, r"must lie in \[0, 1\].*got 900 to 900"),
        ]
        for options, call, error, message in cases:
            flow, batch = a_flow(), a_batch()
            reg = AGREPA(flow, **{"teachers": Statistics(), **options})
            flow.loss(batch)
            with pytest.raises(error, match=message):
                reg(batch, **call)
        flow = a_flow()
        flow.t = None
        reg = AGREPA(flow, Statistics(), "blocks.1", time_weight=TimeWeight())
        flow.module(batch["x1"], torch.rand(6))
        with pytest.raises(BadBatch, match=r"type reg\(batch, t=t\)"):
            reg(batch)
        monkeypatch.setattr(width, "stream_width", lambda module: 9)
        with pytest.raises(ShapeMismatch, match="layers are 16 wide, but the heads were built for 9"):
            AGREPA(a_flow(), Statistics())(batch)

    def test_a_state_of_another_model(self) -> None:
        _, reg, _ = aligned()
        other = AGREPA(a_flow(scales=(1.0, 2.0)), two_teachers(), k=2)
        with pytest.raises(BadScores, match=r"saved with another model: it aligns 'blocks\.3'"):
            other.slots.heads.clear()  # the heads' own sizes are torch's to compare
            other.set_extra_state(reg.get_extra_state())
        assert other.step == 0 and other.selection is None

    def test_no_layer_and_no_teacher(self) -> None:
        with pytest.raises(UnknownBlock, match="no layer is named for speech, sound"):
            AGREPA(a_flow(), two_teachers(), [])
        with pytest.raises(Unsupported, match=r"'speech' must be an object .* got 'openai/whisper-small'"):
            AGREPA(a_flow(), {"speech": "openai/whisper-small"})
        with pytest.raises(UnknownBlock, match=r"for domain 'all', only for speech, sound: .*teachers=\{'speech'"):
            AGREPA(a_flow(), Statistics(), CHOSEN)

    def test_options(self) -> None:
        with pytest.raises(Unsupported, match="did you mean warmup"):
            AGREPA(a_flow(), Statistics(), warm_up=3)
        with pytest.raises(Unsupported, match="at least one teacher"):
            AGREPA(a_flow(), {})

    def test_missing_time(self) -> None:
        flow, reg, batch = aligned(head=partial(heads.by_time, bins=2))
        flow.t = None
        reg.close()
        reg.open()
        flow.module.forward(batch["x1"], torch.rand(6))  # a forward whose t nobody names
        flow.module(batch["x1"], torch.rand(6))
        with pytest.raises(BadBatch, match=r"type reg\(batch, t=t\)"):
            reg(batch)
