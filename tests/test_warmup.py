"""The probes of the warm-up: how many, at which t, of which layers; the ways of the paper and of the release."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_flow import Net, a_batch, a_flow, two_teachers
from torch import Tensor, nn

import fog_a
from fog_a.aligning.alignment import AGREPA
from fog_a.aligning.recipe import recipe
from fog_a.aligning.warmup import Probe, Warmup, contribution
from fog_a.errors import BadOutput, Unsupported
from fog_a.teachers import LatentTeacher
from fog_a_adapters import released
from fog_a_adapters.dit import DiTConfig, FlowMatching

DOMAINS = ("speech", "sound")


def probed(flow: Any, calls: int, probe: Probe = contribution, **options: Any) -> Warmup:
    """`calls` probes on the same batch, without a training in between."""
    warmup = Warmup(flow, recipe(warmup=calls, every=1, **options), DOMAINS, probe=probe)
    batch = a_batch()
    for step in range(1, calls + 1):
        warmup.call(step)
        warmup.add(warmup.measure(batch, flow.samples(batch)))
    return warmup


def test_25_probes_in_5000_steps_and_the_last_at_the_end() -> None:
    warmup = Warmup(a_flow(), recipe(), DOMAINS)
    due = []
    for step in range(1, 5001):
        warmup.due = []
        warmup.call(step)
        due += [step] * bool(warmup.due)
    assert len(due) == 25 and due[0] == 200 and due[-1] == 5000


def test_a_warmup_shorter_than_the_interval_probes_once() -> None:
    warmup = Warmup(a_flow(), recipe(warmup=3, every=100), DOMAINS)
    due = [step for step in range(1, 4) if (warmup.call(step), bool(warmup.due))[1]]
    assert due == [3]


def test_every_slot_visits_every_stratum_of_t_once() -> None:
    warmup = Warmup(a_flow(), recipe(), DOMAINS)
    for slot in range(3):
        times = [warmup.time(c, slot) for c in range(25)]
        assert sorted(times) == pytest.approx([(j + 0.5) / 25 for j in range(25)])
    assert [warmup.time(c, 0) for c in range(25)] != [warmup.time(c, 1) for c in range(25)]
    assert warmup.time(25, 0) == warmup.time(0, 0)


def test_scores_are_those_of_attribute() -> None:
    flow, batch = a_flow(), a_batch()
    warmup = probed(flow, 1, samples=1)
    scores = warmup.scores({})
    t, seed = warmup.time(0, 0), warmup._seed(0, 0)
    expected = fog_a.attribute(flow, flow.samples(batch).rows([0, 1]), times=[t], seed=seed)
    assert np.array_equal(scores.values, expected.values)
    assert scores.domains == DOMAINS and scores.info["t"] == [t, t]
    assert scores.layers == expected.layers


def test_probes_leave_the_training_alone() -> None:
    flow = a_flow()
    flow.module.blocks[0].f.append(nn.Dropout(0.5))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    probed(flow, 2)
    assert torch.equal(torch.get_rng_state(), before) and flow.module.training
    assert all(p.grad is None and p.requires_grad for p in flow.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in flow.module.modules())


def test_only_candidates_are_probed_and_chosen() -> None:
    flow = a_flow()
    reg = AGREPA(flow, two_teachers(), k=1, warmup=2, every=1, blocks=["blocks.0", "blocks.2"])
    for step in range(2):
        flow.loss(a_batch(seed=step))
        reg(a_batch(seed=step))
    assert reg.selection is not None and reg.selection.layers == ("blocks.2",)


def test_after_a_choice_probes_keep_their_rhythm() -> None:
    flow = a_flow()
    warmup = Warmup(flow, recipe(warmup=4, every=2, refresh=4, k=1), DOMAINS)
    batch, chosen, probes = a_batch(), [], []
    for step in range(1, 13):
        if warmup.advance(step, batch, flow.samples(batch), first=not chosen) is not None:
            chosen.append(step)
        probes.append(warmup.counts["sound"])
    assert chosen == [4, 8, 12]
    assert probes == [step // 2 for step in range(1, 13)]


def measured(warmup: Warmup) -> list[set[int]]:
    """For each row, the layers that were measured."""
    return [{i for i, x in enumerate(row["values"]) if x is not None} for row in warmup.rows]


def test_the_papers_halves_alternate_by_probe_not_by_step() -> None:
    warmup = probed(a_flow(), 5, **released.PAPER)
    sets = [s for s, row in zip(measured(warmup), warmup.rows, strict=True) if row["domain"] == "speech"]
    assert sets == [{0, 2}, {1, 3}] * 2 + [{0, 2}]
    scores = warmup.scores({})
    mean = scores.mean("speech")
    assert all(math.isfinite(x) for x in mean)
    assert set(fog_a.select(scores, 2).weights("speech")) == {"blocks.1", "blocks.3"}


def test_the_release_only_ever_measures_every_second_layer() -> None:
    warmup = probed(a_flow(), 25, released.Probe(clean=False), samples=1)
    assert all(s == {0, 2} for s in measured(warmup)) and len(warmup.rows) == 50
    assert {row["t"] for row in warmup.rows} == {0.8}
    scores = warmup.scores({})
    chosen = fog_a.select(scores, 2, weighting="proportional", total=2.0)
    assert set(chosen.weights("sound")) == {"blocks.0", "blocks.2"}
    assert "left out, because they were never measured: blocks.1, blocks.3" in chosen.explain()
    for choice in chosen.domains["sound"]:
        assert choice.score is not None and choice.weight == pytest.approx(2 * choice.score)


def test_the_releases_norm_has_a_floor_and_its_mode_a_noise() -> None:
    """A block without effect scores 1e-4/base under 1e-8 inside the root; with dropout in train mode, more."""
    flow = a_flow(scales=(0.0, 1.0))
    probe = released.Probe(every=1, clean=False, train=False)
    quiet = probed(flow, 1, probe, samples=1).rows[0]["values"]
    batch = a_batch()
    warmup = Warmup(flow, recipe(samples=1), DOMAINS)
    v = flow.velocity(flow.samples(batch).rows([0, 1]), 0.8, warmup._seed(0, 0))[0]
    base = float((v.square().mean() + 1e-8).sqrt().detach())
    assert quiet[0] == pytest.approx(1e-4 / base, rel=1e-4) and quiet[1] > 0.05
    flow.module.blocks[1].f.append(nn.Dropout(0.5))
    assert probed(flow, 1, probe, samples=1).rows[0]["values"][0] == pytest.approx(1e-4 / base, rel=0.5)
    noisy = probed(flow, 1, replace(probe, train=True), samples=1).rows[0]["values"]
    assert noisy[0] > 100 * quiet[0]
    assert flow.module.training


def test_the_release_on_any_adapter() -> None:
    """The clean data in x_t's place needs nothing of the adapter; the loss is the same as of the bundled model."""
    reg = released.AGREPA(a_flow(), {"speech": 5, "sound": 3}, k=1, warmup=1, every=1)
    features = {"speech": torch.randn(3, 5), "sound": torch.randn(3, 3)}
    for _ in range(2):
        reg.flow.loss(a_batch())
        loss = reg(a_batch(), features=features)
    assert reg.selection is not None and reg.selection.weighting == "proportional" and reg.selection.total == 2
    assert loss > 0 and reg.scores is None


@pytest.mark.parametrize("target", ["x0", "eps"])
def test_the_release_in_another_convention(target: str) -> None:
    """Also where the prediction at x_1 tells no velocity."""
    flow = fog_a.wrap(Net(), x="x_t", t="t", target=target)
    reg = released.AGREPA(flow, two_teachers(), k=1, warmup=1, every=1, batch=a_batch())
    flow.loss(a_batch())
    reg(a_batch())
    assert reg.selection is not None


def test_the_release_is_refused_where_no_argument_carries_x_t() -> None:
    class Inside(Net):
        """It draws its own x_t of what it is given."""

        def forward(self, x_t: Any, t: Any) -> Any:
            return super().forward(x_t, t)

    class Reader(fog_a.Flow):
        t = "t"

        def velocity(self, batch: Any, t: Any, seed: int = 0) -> Any:
            return self.module(batch["x1"], torch.as_tensor(t).expand(len(batch["x1"])))

        def samples(self, batch: Any) -> Any:
            return a_flow().samples(batch)

    message = r"no argument of Inside carries x_t. Type released\.AGREPA\(.*clean=False"
    with pytest.raises(Unsupported, match=message):
        released.AGREPA(Reader(Inside()), two_teachers(), batch=a_batch())
    reg, batch = released.AGREPA(Reader(Inside()), two_teachers()), a_batch()
    reg.flow.velocity(batch, 0.5)
    with pytest.raises(Unsupported, match=message):
        reg(batch)
    released.AGREPA(Reader(Inside()), two_teachers(), batch=a_batch(), probe=released.Probe(clean=False))


def test_a_probe_of_a_zero_velocity_is_skipped_and_the_next_tries_again() -> None:
    """A zero-initialised output layer gives nothing to compare with; training goes on."""
    flow = a_flow()
    output = flow.module.out[1]
    with torch.no_grad():
        weight = output.weight.clone()
        output.weight.zero_()
        output.bias.zero_()
    reg = AGREPA(flow, two_teachers(), k=1, warmup=2, every=1)
    with pytest.warns(UserWarning, match=r"a probe was skipped, and the next one tries again: the velocity is zero"):
        for step in range(3):
            flow.loss(a_batch(seed=step))
            assert reg(a_batch(seed=step)) == 0
    assert reg.state == "probing" and reg.metrics()["ag_repa/probes"] == 0
    with torch.no_grad():
        output.weight.copy_(weight)
    flow.loss(a_batch())
    reg(a_batch())
    assert reg.state == "aligning" and reg.selection is not None


def test_a_diverged_model_is_an_error_not_a_zero() -> None:
    flow = a_flow()
    with torch.no_grad():
        flow.module.out[1].weight.fill_(float("nan"))
    with pytest.raises(BadOutput):
        probed(flow, 1)


def bundled(**changes: Any) -> tuple[Any, dict[str, Any]]:
    """The bundled model, which drops conditions in training, and a batch for it."""
    torch.manual_seed(0)
    flow = fog_a.wrap(FlowMatching(DiTConfig.tiny(layers=3, dim=32, **changes), drop=0.5))
    batch: dict[str, Any] = {
        "mel": torch.randn(4, 20, 100),
        "lengths": torch.tensor([20, 12, 16, 20]),
        "tokens": torch.randint(64, (4, 10)),
        "token_lengths": torch.tensor([10, 6, 8, 10]),
        "domain": torch.tensor([0, 1, 0, 1]),
        "ids": list("abcd"),
    }
    return flow, batch


def scrambled(flow: Any) -> Any:
    """Away from the identity."""
    with torch.no_grad():
        for p in flow.module.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return flow


def test_nothing_is_dropped_while_it_probes() -> None:
    """Also by the parts of the model around its network."""
    flow, batch = bundled()
    scrambled(flow)
    rows = []
    for training in (True, False):
        flow.model.train(training)
        warmup = Warmup(flow, recipe(warmup=4, every=1), DOMAINS)
        for step in range(1, 5):
            warmup.call(step)
            warmup.add(warmup.measure(batch, flow.samples(batch)))
        assert all(m.training == training for m in flow.model.modules())
        rows.append(warmup.rows)
    assert rows[0] == rows[1]


def test_the_release_on_the_bundled_model_probes_the_clean_mel() -> None:
    flow, batch = bundled()
    scrambled(flow)
    warmup = Warmup(flow, recipe(warmup=1, every=1, samples=1), DOMAINS, probe=released.Probe())
    warmup.call(1)
    seen: list[Any] = []
    handle = flow.module.register_forward_hook(lambda m, args, v: seen.append(args))
    rows = warmup.measure(batch, flow.samples(batch))["rows"]
    handle.remove()
    clean = [args for args in seen if torch.equal(args[0], batch["mel"][:2]) and (args[1] < 1).all()]
    assert len(clean) >= 3 and all((args[1] == 0.8).all() for args in clean)
    assert [row["values"][1] for row in rows] == [None, None]


def test_the_bundled_model_from_its_identity_start() -> None:
    """adaLN-Zero: early probes find nothing; zeros count until training has moved the gates."""
    flow, batch = bundled()
    reg = AGREPA(flow, {"speech": 5, "sound": 3}, k=1, warmup=4, every=1)
    features = {"speech": torch.randn(2, 5), "sound": torch.randn(2, 3)}
    optimizer = torch.optim.AdamW([*flow.module.parameters(), *reg.parameters()], lr=1e-2)
    for _ in range(6):
        loss = flow.loss(batch)
        term = reg(batch, features=features)
        optimizer.zero_grad()
        (loss + term).backward()
        optimizer.step()
    assert reg.selection is not None and reg.metrics()["ag_repa/loss"] > 0


class Edged(Net):
    """Its edges are made for the whole batch."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.edges = torch.arange(samples * 9).flip(0)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        tokens = x_t.flatten(0, 1)
        return super().forward(x_t + 0.1 * tokens[self.edges].view(x_t.shape), t)


def test_a_model_that_takes_whole_batches_alone_is_measured_on_one_and_not_probed() -> None:
    torch.manual_seed(0)
    flow, batch = fog_a.wrap(Edged(4), x="x_t", t="t"), {"x1": torch.randn(4, 9, 6)}
    chosen = AGREPA(flow, LatentTeacher(6), ["blocks.1"], batch=batch)
    flow.loss(batch)
    assert chosen(batch).item() > 0
    reg = AGREPA(flow, LatentTeacher(6), k=1, warmup=1, every=1, batch=batch)
    flow.loss(batch)
    with pytest.raises(Unsupported, match=r"probes 1 of the batch's 4 samples.*IndexError.*selection=fog_a.select"):
        reg(batch)
