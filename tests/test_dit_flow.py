"""Path, loss, sampler and conditioning of the bundled model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fog_a.flows.dicts import rows
from fog_a_adapters.dit import DiTConfig, FlowMatching, MelBatch
from fog_a_adapters.dit.model.flow import prefixes, sway


def batch_of(lengths: tuple[int, ...] = (20, 31), pad: int = 0, mels: int = 100) -> MelBatch:
    g = torch.Generator().manual_seed(1)
    T, B = max(lengths) + pad, len(lengths)
    mel, tokens = torch.zeros(B, T, mels), torch.zeros(B, -(-T // 2), dtype=torch.long)
    for i, n in enumerate(lengths):
        mel[i, :n] = torch.randn(n, mels, generator=g)
        tokens[i, : -(-n // 2)] = torch.randint(0, 64, (-(-n // 2),), generator=g)
    return MelBatch(
        mel=mel,
        lengths=torch.tensor(lengths),
        tokens=tokens,
        token_lengths=torch.tensor([-(-n // 2) for n in lengths]),
        domain=torch.arange(B) % 2,
        ids=[f"clip{i}" for i in range(B)],
    )


def shaken(**changes: object) -> FlowMatching:
    model = FlowMatching(DiTConfig.tiny(layers=2, dim=32, **changes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


class Oracle(nn.Module):
    """In place of the network: a velocity that is known."""

    def __init__(self, v: Tensor) -> None:
        super().__init__()
        self.v, self.seen = v, []

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        self.seen.append((x_t, t, condition, reference, mask))
        return self.v


def test_sway_numbers() -> None:
    t = torch.linspace(0, 1, 32)
    assert (
        sway(torch.tensor([0.5])).item() == pytest.approx(1 - math.cos(math.pi / 4)) == pytest.approx(0.29289, abs=5e-6)
    )
    torch.testing.assert_close(sway(t), 1 - torch.cos(math.pi * t / 2))
    assert torch.equal(sway(t, 0.0), t)
    assert len(t[1:]) == 31


def test_the_loss_is_eq_23_over_real_frames() -> None:
    model, batch = shaken().eval(), batch_of()
    x0, t = torch.randn_like(batch["mel"]), torch.tensor([0.3, 0.8])
    constant = torch.randn_like(batch["mel"])
    model.net = oracle = Oracle(constant)  # pyright: ignore[reportAttributeAccessIssue]
    got = model.loss(batch, x0=x0, t=t)
    want = [(constant[i, :n] - (batch["mel"][i, :n] - x0[i, :n])).square().mean() for i, n in enumerate((20, 31))]
    torch.testing.assert_close(got, torch.stack(want).mean())
    x_t = oracle.seen[0][0]
    for i, n in enumerate((20, 31)):
        torch.testing.assert_close(x_t[i, :n], (1 - t[i]) * x0[i, :n] + t[i] * batch["mel"][i, :n])


def test_padding_changes_neither_loss_nor_velocity() -> None:
    model = shaken().eval()
    short, long = batch_of(), batch_of(pad=13)
    torch.testing.assert_close(
        model.velocity(long, 0.4, 7)[:, :31], model.velocity(short, 0.4, 7), rtol=1e-4, atol=1e-5
    )
    x0, prefix = model.draws(short, 3)
    losses = model.losses(short, x0=x0, t=torch.tensor([0.1, 0.9]), prefix=prefix)
    junk = F.pad(x0, (0, 0, 0, 13), value=99.0)
    long["mel"][:, 31:] = 55.0
    padded = model.losses(long, x0=junk, t=torch.tensor([0.1, 0.9]), prefix=prefix)
    torch.testing.assert_close(padded, losses)


def test_a_clips_draws_depend_on_seed_and_id_alone() -> None:
    model, batch = shaken(), batch_of((20, 31, 25))
    x0, prefix = model.draws(batch, 5)
    again, prefix_again = model.draws(rows(batch, [2, 0], 3), 5)  # pyright: ignore[reportArgumentType]
    assert torch.equal(again, x0[[2, 0]]) and torch.equal(prefix_again, prefix[[2, 0]])
    assert not torch.equal(model.draws(batch, 6)[0], x0)
    assert x0[1].std().item() == pytest.approx(0.5, rel=0.05) and not x0[0, 20:].any()
    state = torch.get_rng_state()
    model.draws(batch, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_reference_stays_below_30_percent_of_the_cropped_length() -> None:
    lengths = torch.tensor([1, 3, 6, 7, 10, 100])
    assert prefixes(torch.full((6,), 0.9999), lengths).tolist() == [1, 1, 1, 1, 2, 29]  # the longest
    assert prefixes(torch.zeros(6), lengths).tolist() == [1] * 6
    model, batch = shaken(), batch_of((100, 60))
    model.drop = 0.0
    model.net = oracle = Oracle(torch.zeros_like(batch["mel"]))  # pyright: ignore[reportAttributeAccessIssue]
    seen: list[list[int]] = []
    for _ in range(200):
        model(batch)
        reference = oracle.seen[-1][3]
        n = reference.abs().sum(-1).ne(0).sum(1)
        assert all(torch.equal(reference[i, : n[i]], batch["mel"][i, : n[i]]) for i in range(2))
        seen.append(n.tolist())
    assert all(1 <= s[0] <= 29 for s in seen) and max(s[0] for s in seen) > 20
    assert all(1 <= s[1] <= 17 for s in seen)


def test_conditions_drop_in_training_only() -> None:
    model, batch = shaken(), batch_of((20,) * 400)
    model.net = oracle = Oracle(torch.zeros_like(batch["mel"]))  # pyright: ignore[reportAttributeAccessIssue]
    model.train()(batch)
    tokens, reference = (oracle.seen[-1][i].flatten(1).any(1) for i in (2, 3))
    assert 0.84 < tokens.float().mean() < 0.96 and 0.84 < reference.float().mean() < 0.96
    assert bool((tokens != reference).any())  # dropped independently
    model.eval()(batch)
    assert all(oracle.seen[-1][i].flatten(1).any(1).all() for i in (2, 3))


def test_the_interface_is_unit_length_per_frame_and_reaches_its_embeddings() -> None:
    model, batch = FlowMatching(DiTConfig.tiny()), batch_of()
    c = model.tokens(batch)
    assert c.shape == (2, 31, 64) and not c[0, 20:].any()
    torch.testing.assert_close(c[0, :20].norm(dim=-1), torch.ones(20))
    for i in range(2):  # clip i is of domain i: its own book, projections start as the identity
        n, length = int(batch["token_lengths"][i]), int(batch["lengths"][i])
        e = model.interface.books[i](batch["tokens"][i : i + 1, :n])
        want = F.normalize(F.interpolate(e.mT, size=length, mode="linear", align_corners=False).mT, dim=-1)[0]
        torch.testing.assert_close(c[i, :length], want, rtol=1e-4, atol=1e-5)
    c.sum().backward()
    for part in (model.interface.books, model.interface.projections):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_sampler_is_euler_with_guidance() -> None:
    model, batch = shaken().eval(), batch_of((12, 16))
    x, prefix = model.draws(batch, 4)
    mask = torch.arange(16) < batch["lengths"][:, None]
    reference = batch["mel"] * (torch.arange(16) < prefix[:, None])[..., None]
    c = model.tokens(batch).detach()
    times = 1 - torch.cos(math.pi / 2 * torch.linspace(0, 1, 5))
    with torch.no_grad():
        for a, b in itertools.pairwise(times):
            v_c, v_u = (model.net(x, a.expand(2), tokens, reference, mask) for tokens in (c, 0 * c))
            x = x + (b - a) * (v_u + 3 * (v_c - v_u))
    model.train()
    got = model.sample(batch, steps=5, cfg=3.0, seed=4)
    assert model.training
    torch.testing.assert_close(got, x * mask[..., None])


def test_the_sampler_reaches_the_data_of_a_perfect_velocity() -> None:
    model, batch = shaken().eval(), batch_of()
    x0, _ = model.draws(batch, 0)
    model.net = Oracle(batch["mel"] - x0)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(model.sample(batch, steps=7), batch["mel"], rtol=1e-4, atol=1e-5)
