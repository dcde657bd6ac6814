"""LASP, BiT-C and gradnorm against nets that are built to know the answer."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import bitc_ranks
import numpy as np
import pytest
import rank_jobs
import small_flow
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, normalize

import fog_a
from fog_a.errors import BadBatch, BadFeatures, NoActivations, ShapeMismatch, Unsupported
from fog_a.flows.flow import Flow
from fog_a.flows.samples import Samples
from fog_a.flows.wrapping import wrap
from fog_a.probing.bitc import BiTC
from fog_a.probing.gradnorm import gradnorm
from fog_a.probing.lasp import lasp
from fog_a_adapters import released

D = 12
PLAIN: dict[str, Any] = {"norm": "layer", "flip": False, "clean": False, "train": False}
"""The release's LASP with all its deviations undone."""


def linear(matrix: Tensor) -> nn.Sequential:
    """`matrix` · h by a layer's means, a hidden layer and a ReLU: relu(x) − relu(−x) = x."""
    up = nn.Linear(matrix.shape[1], 2 * len(matrix), bias=False)
    down = nn.Linear(2 * len(matrix), len(matrix), bias=False)
    one = torch.eye(len(matrix))
    up.weight.data, down.weight.data = torch.cat([matrix, -matrix]), torch.cat([one, -one], 1)
    return nn.Sequential(up, nn.ReLU(), down)


class Turn(nn.Module):
    """h + f(h), such that the output is `matrix` · h."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.f = linear(matrix - torch.eye(len(matrix)))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.f(h)


class Net(nn.Module):
    """A velocity network on tokens: every block turns the stream; an embedding of its own as the interface."""

    def __init__(self, matrices: list[Tensor], drop: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, D)
        self.drop = nn.Dropout(drop)
        self.norm = nn.BatchNorm1d(D)
        self.blocks = nn.ModuleList(Turn(m) for m in matrices)
        self.out = nn.Linear(D, D)

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor | None = None) -> Tensor:
        h = self.drop(x_t)
        for block in self.blocks:
            h = block(h)
        return self.out(h) + t[:, None, None]


def rotation() -> Tensor:
    return torch.linalg.qr(torch.randn(D, D))[0]


def interface(net: Any, batch: dict[str, Tensor]) -> Tensor:
    return net.embed(batch["tokens"])


def a_flow(*matrices: Tensor, drop: float = 0.0) -> Flow:
    return wrap(Net(list(matrices), drop), x="x_t", t="t", interface=interface)


def a_batch(count: int = 32, frames: int = 5, domains: tuple[str, ...] = ("speech", "sound")) -> dict[str, Any]:
    names = [domains[i % len(domains)] for i in range(count)]
    x1 = torch.randn(count, 1, D) + 0.3 * torch.randn(count, frames, D)  # clips differ more than their frames
    ids = [f"clip{i}" for i in range(count)]
    return {"x1": x1, "tokens": torch.randint(40, (count, frames)), "domains": names, "ids": ids}


def described(h: Tensor) -> Tensor:
    return layer_norm(h.mean(1), (h.shape[-1],))


# LASP


def test_the_layer_that_holds_the_teacher() -> None:
    """Through the identity: layer 1 carries exactly T, layer 2 exactly −T, layer 3 a turned one."""
    r, s = rotation(), rotation()
    flow, batch = a_flow(r, -torch.eye(D), s), a_batch()
    teaching = described(batch["x1"] @ r.T)
    scores = lasp(flow, batch, head=torch.eye(D), features=teaching, times=[1.0])
    assert scores.kind == "storage" and scores.values.shape == (32, 1, 3) and scores.times == (1.0,)
    assert scores.layers == ("blocks.0", "blocks.1", "blocks.2")
    np.testing.assert_allclose(scores.values[:, 0, 0], 1, atol=1e-5)
    np.testing.assert_allclose(scores.values[:, 0, 1], -1, atol=1e-5)
    expected = cosine_similarity(described(batch["x1"] @ -(s @ r).T), teaching)
    np.testing.assert_allclose(scores.values[:, 0, 2], expected, atol=1e-5)
    assert scores.top(1).names == ("blocks.0",)
    assert scores.domains[:2] == ("speech", "sound") and scores.ids[:2] == ("clip0", "clip1")


def test_sign_flip_of_the_release() -> None:
    """SPEC §17.11: the anti-aligned layer gives −c by default and +c where signs follow the interface."""
    flow, batch = a_flow(torch.eye(D), -torch.eye(D)), a_batch()
    batch["x1"] = interface(flow.module, batch).detach() + 0.1 * torch.randn(32, 5, D)
    teaching = described(batch["x1"]) + 0.5 * torch.randn(32, D)
    options: dict[str, Any] = {"head": torch.eye(D), "features": teaching, "times": [1.0]}
    c = cosine_similarity(described(batch["x1"]), teaching).numpy()
    assert 0.5 < c.mean() < 0.97
    plain, flipped = lasp(flow, batch, **options), released.lasp(flow, batch, **{**PLAIN, "flip": True}, **options)
    np.testing.assert_allclose(plain.values[:, 0], np.stack([c, -c], 1), atol=1e-5)
    np.testing.assert_allclose(flipped.values[:, 0], np.stack([c, c], 1), atol=1e-5)
    release = released.lasp(flow, batch, head=torch.eye(D), features=teaching)
    assert release.times == (0.8,) and release.info["options"]["norm"] == "l2"
    c2 = cosine_similarity(batch["x1"].mean(1), teaching).numpy()  # x_1, not x_t, though t = .8
    np.testing.assert_allclose(release.values[:, 0], np.stack([c2, c2], 1), atol=1e-5)
    assert plain.info["interface"]["speech"]["cosine"] == pytest.approx(
        cosine_similarity(described(interface(flow.module, batch)), teaching)[::2].mean().item(), abs=1e-5
    )


def test_each_deviation_is_an_option() -> None:
    flow, batch = a_flow(rotation(), rotation(), drop=0.5), a_batch()
    options: dict[str, Any] = {"head": torch.eye(D), "features": torch.randn(32, D), "times": [0.8], "beside": ()}
    base = lasp(flow, batch, **options)
    assert base == lasp(flow, batch, **options)
    assert np.array_equal(released.lasp(flow, batch, **PLAIN, **options).values, base.values)
    for deviation in ({"norm": "l2"}, {"clean": True}, {"train": True}, {"center": True}):
        assert released.lasp(flow, batch, **{**PLAIN, **deviation}, **options) != base, deviation
    train = {**PLAIN, "train": True, **options}
    assert released.lasp(flow, batch, **train) == released.lasp(flow, batch, **train)  # dropout from the seed
    assert released.lasp(flow, batch, **train) != released.lasp(flow, batch, **train, seed=1)


def test_l2_is_not_layer_norm() -> None:
    """Eq. 3 takes the mean over the width away; the release's norm keeps it."""
    flow, batch = a_flow(torch.eye(D)), a_batch()
    batch["x1"] = batch["x1"] + 3
    teaching = torch.ones(32, D)
    options: dict[str, Any] = {"head": torch.eye(D), "features": teaching, "times": [1.0], "beside": ()}
    assert released.lasp(flow, batch, **{**PLAIN, "norm": "l2"}, **options).values.mean() > 0.8
    assert abs(lasp(flow, batch, **options).values.mean()) < 1e-5
    expected = cosine_similarity(normalize(batch["x1"].mean(1), dim=-1), teaching)
    np.testing.assert_allclose(
        released.lasp(flow, batch, **{**PLAIN, "norm": "l2"}, **options).values[:, 0, 0], expected, atol=1e-5
    )


def test_padding_does_not_count() -> None:
    """More padding, whatever stands in it: the same scores, at the layers and at the interface."""
    flow, batch = a_flow(rotation(), rotation()), a_batch(16)
    mask = torch.arange(5) < torch.randint(2, 6, (16, 1))
    batch["mask"] = mask
    features = torch.randn(16, D)
    options: dict[str, Any] = {"head": torch.eye(D), "features": features, "times": [1.0]}
    base = lasp(flow, batch, **options)
    longer = {
        **batch,
        "x1": torch.cat([batch["x1"].masked_fill(~mask[..., None], 50.0), torch.full((16, 3, D), -70.0)], 1),
        "mask": torch.cat([mask, torch.zeros(16, 3, dtype=torch.bool)], 1),
        "tokens": torch.cat([batch["tokens"], torch.full((16, 3), 39)], 1),
    }
    again = lasp(flow, longer, **options)
    np.testing.assert_allclose(again.values, base.values, atol=1e-5)
    for domain in ("speech", "sound"):
        assert again.info["interface"][domain] == pytest.approx(base.info["interface"][domain], abs=1e-4)
    unmasked = lasp(flow, {k: v for k, v in longer.items() if k != "mask"}, **options)
    assert np.abs(unmasked.values - base.values).max() > 0.1


class Mixed(nn.Module):
    """The stream holds what block 1 writes from a hidden clip property; blocks 0 and 2 write noise of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Write(i) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        for block in self.blocks:
            h = block(h, x)
        return h


class Write(nn.Module):
    """Blocks 1 and 2 leave x's first half in the stream, block 0 its second half alone."""

    def __init__(self, index: int) -> None:
        super().__init__()
        keep = torch.zeros(D)
        keep[: D // 2] = float(index > 0)
        keep[D // 2 :] = float(index == 0)
        self.register_buffer("keep", keep)
        self.f = linear(torch.eye(D))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.f(x * self.keep - h)


def test_ridge_head_of_a_bare_module() -> None:
    """No flow, no times, no head: T is linear in what blocks 1 and 2 hold, independent of what block 0 holds."""
    net = Mixed()
    x = torch.randn(80, 1, D).expand(80, 4, D)
    teaching = x[:, 0, : D // 2] @ torch.randn(D // 2, 7)
    scores = lasp(net, x, features=teaching)
    assert scores.times is None and scores.values.shape == (40, 1, 3)  # the other 40 were for the fit
    assert scores.domains == ("all",) * 40
    told = scores.info["head"]["all"]
    assert told["kind"] == "ridge" and told["samples"] == 40 and 0.3 < told["explained"] < 1
    mean, beside = scores.mean(), scores.info["beside"]
    assert mean[1] > 0.85 and mean[2] > 0.85 and abs(mean[0]) < 0.3
    probe = beside["probe"]["all"][0]
    assert probe[1] > 0.9 and probe[2] > 0.9 and abs(probe[0]) < 0.35
    assert all(abs(v) < 0.1 for v in beside["shuffled"]["all"][0])
    assert beside["cka"]["all"][0][1] > 0.5 > 0.2 > abs(beside["cka"]["all"][0][0])
    assert beside["cknna"]["all"][0][1] > 0.3 > abs(beside["cknna"]["all"][0][0])
    assert scores.info["interface"] == {}


def test_the_half_that_fits_is_not_the_half_that_is_scored() -> None:
    """A teacher of pure noise: on its own half a wide head would tell it by heart; on the other it tells nothing."""
    layer = nn.TransformerEncoderLayer(64, 2, 64, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x, noise = torch.randn(40, 3, 64), torch.randn(40, 16)
    with pytest.warns(UserWarning, match=r"tells nothing of samples that it has not seen.*Give more samples"):
        scores = lasp(net, x, features=noise)
    assert np.abs(scores.mean()).max() < 0.15
    assert scores.info["warnings"]
    halves = [set(lasp(net, x, features=x.mean(1), seed=seed, beside=()).ids) for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]


def test_other_samples_for_the_fit() -> None:
    net = Mixed()
    x = torch.randn(80, 1, D).expand(80, 4, D)
    w = torch.randn(D // 2, 7)
    scores = lasp(net, x[:20], fit=[x[20:]], features=lambda b: b[:, 0, : D // 2] @ w)
    assert scores.values.shape == (20, 1, 3) and scores.info["head"]["all"]["samples"] == 60
    assert scores.mean()[1] > 0.85


@pytest.mark.filterwarnings("ignore:the head of")
def test_one_clip_is_in_one_half() -> None:
    """The same ids in several batches: all their copies fit, or all are scored."""
    flow, batch = a_flow(rotation(), rotation()), a_batch(12, domains=("all",))
    features = [torch.randn(12, 4)] * 2
    scores = lasp(flow, [batch, batch], features=features, times=2)
    assert sorted(scores.ids) == sorted(2 * sorted(set(scores.ids))) and len(set(scores.ids)) == 6
    assert scores.times == (0.25, 0.75)


@pytest.mark.filterwarnings("ignore:the head of")
def test_the_mean_direction_fools_a_cosine() -> None:
    """Features that are one direction and a little noise: every layer scores high, and the controls say why."""
    flow, batch = a_flow(torch.eye(D), rotation()), a_batch(64, domains=("all",))
    batch["x1"] = batch["x1"] + torch.randn(D)  # layers have a mean of their own, as they do
    teaching = 5 * torch.ones(64, 6) + torch.randn(64, 6)
    fooled = lasp(flow, batch, features=teaching, times=[1.0])
    assert fooled.mean().min() > 0.7
    assert min(fooled.info["beside"]["shuffled"]["all"][0]) > fooled.mean().min() - 0.05
    assert max(map(abs, fooled.info["beside"]["cka"]["all"][0])) < 0.15
    honest = lasp(flow, batch, features=teaching, times=[1.0], center=True)
    assert np.abs(honest.mean()).max() < 0.2


@pytest.mark.filterwarnings("ignore:the head of")
def test_teachers_by_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each domain has its own head; a domain without a teacher is left out."""

    class Clip:
        def __init__(self, name: str, dim: int) -> None:
            self.name, self.dim = name, dim

        def __call__(self, samples: Samples) -> Tensor:
            return torch.stack([torch.randn(self.dim, generator=seeded(i)) for i in samples.ids])

    def seeded(name: str) -> torch.Generator:
        return torch.Generator().manual_seed(int(name.removeprefix("clip")))

    flow, batch = a_flow(rotation(), rotation()), a_batch(40)
    scores = lasp(flow, batch, {"speech": Clip("a", 3), "sound": Clip("b", 5)}, times=1, beside=["shuffled"])
    assert set(scores.info["head"]) == {"speech", "sound"} and scores.domain_names == ("speech", "sound")
    assert len(scores.ids) == 20 and set(scores.info["beside"]) == {"shuffled"}
    assert lasp(flow, batch, {"speech": None, "sound": Clip("b", 5)}, times=1).domain_names == ("sound",)
    one = lasp(flow, batch, Clip("a", 3), times=1)
    assert set(one.info["head"]) == {"all"} and set(one.info["beside"]["cka"]) == {"speech", "sound"}
    monkeypatch.setattr(flow, "velocity", None)  # nothing runs before the domains are known
    with pytest.raises(BadBatch, match="domain 'sound', but teachers are there for 'speech'"):
        lasp(flow, batch, {"speech": Clip("a", 3)})


def state_of(model: nn.Module) -> tuple[Any, ...]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    flags = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    rngs = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    return hooks, flags, grads, copy.deepcopy(model.state_dict()), rngs


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("probe", ["lasp", "release", "gradnorm", "activations", "raises"])
def test_leaves_no_trace(probe: str) -> None:
    flow, batch = a_flow(rotation(), rotation(), drop=0.5), a_batch(8)
    flow.module.train()
    flow.module.drop.eval()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    flow.module.blocks[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType, reportAttributeAccessIssue]
    flow.loss(batch).backward()
    features = torch.randn(8, 3)
    bitc = BiTC(flow, 3, width=D)
    before = state_of(flow.module)
    if probe == "raises":
        with pytest.raises(BadFeatures):
            lasp(flow, batch, head=bitc, features=features[:2])
    else:
        {
            "lasp": lambda: lasp(flow, batch, head=bitc, features=features),
            "release": lambda: released.lasp(flow, batch, head=bitc, features=features),
            "gradnorm": lambda: gradnorm(flow, batch),
            "activations": lambda: gradnorm(flow, batch, wrt="activations"),
        }[probe]()
    assert same(before, state_of(flow.module))


class Narrowing(nn.Module):
    """Two stacks of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(Turn(torch.randn(8, 8)) for _ in range(2))
        self.down = nn.Linear(8, 4)
        self.narrow = nn.ModuleList(Turn(torch.randn(4, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.wide:
            x = block(x)
        x = self.down(x)
        for block in self.narrow:
            x = block(x)
        return x


def test_one_width_at_a_time() -> None:
    net, x = Narrowing(), torch.randn(32, 3, 8)
    with pytest.raises(ShapeMismatch, match=r"have 2\. .*blocks=\['narrow\.0', 'narrow\.1'\]\) for 4, or lasp"):
        lasp(net, x, features=x.mean(1))
    for stack in ("wide", "narrow"):
        scores = lasp(net, x, features=x.mean(1), blocks=[f"{stack}.0", f"{stack}.1"])
        assert scores.layers == (f"{stack}.0", f"{stack}.1") and scores.mean().max() > 0.2


def test_bare_module_masks_and_domains() -> None:
    net, x = Mixed(), torch.randn(16, 4, D)
    mask = torch.arange(4) < torch.randint(1, 5, (16, 1))
    options: dict[str, Any] = {"head": torch.eye(D), "features": torch.randn(16, D)}
    about: dict[str, Any] = {"domains": ["a", "b"] * 8, "mask": mask}
    flow = fog_a.BareFlow(net, **about)
    scores = lasp(flow, x, **options)
    assert scores.domain_names == ("a", "b")
    padded = lasp(flow, torch.where(mask[..., None], x, 9.0), **options)  # other data, so other names of groups
    np.testing.assert_array_equal(padded.values, scores.values)
    doubled = lasp(fog_a.BareFlow(net, lambda m, b: m(b["inputs"]), **about), {"inputs": x}, **options)
    assert doubled == scores


def test_what_does_not_fit() -> None:
    flow, batch = a_flow(rotation(), rotation()), a_batch(16)
    x = torch.randn(16, 4, D)
    features = torch.randn(16, 6)
    with pytest.raises(BadBatch, match="a bare module has no time axis"):
        lasp(Mixed(), x, features=features, times=3)
    with pytest.raises(BadBatch, match=r"'all' has 3 different ones, at least 4 are needed.*fit=batches.*head=bitc"):
        lasp(Mixed(), x[:3], features=features[:3])
    with pytest.raises(BadBatch, match="neither a teacher nor features"):
        lasp(flow, batch)
    with pytest.raises(BadBatch, match="features= are of one batch, but there are several"):
        lasp(flow, [batch, batch], features=features)
    with pytest.raises(BadBatch, match="fit= needs its own features"):
        lasp(flow, batch, fit=batch, features=features)
    with pytest.raises(BadBatch, match="features= are there for 1 batches"):
        lasp(flow, [batch, batch], features=[features])
    with pytest.raises(ShapeMismatch, match=r"reads layers 12 wide and gives the teacher's 6"):
        lasp(flow, batch, head=torch.eye(D), features=features)
    with pytest.raises(ShapeMismatch, match=r"reads layers 12 wide"):
        lasp(flow, batch, head=nn.Linear(5, 6), features=features)
    with pytest.raises(Unsupported, match="head= has none for 'all', only for speech"):
        lasp(flow, batch, head={"speech": torch.eye(D)}, features=features)
    with pytest.raises(Unsupported, match="there is no interface of the layers' width here"):
        released.lasp(Mixed(), x, features=features, **{**PLAIN, "flip": True}, times=None)
    with pytest.raises(Unsupported, match="beside= knows shuffled, probe, cka, cknna; got r2"):
        lasp(flow, batch, features=batch["x1"].mean(1), beside=["r2"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeMismatch, match="expected one domain per sample, 16 of them, got 2"):
        lasp(fog_a.BareFlow(Mixed(), domains=["a", "b"]), x, features=features)
    assert lasp(flow, batch, head=nn.Linear(D, 6), features=features).values.shape == (16, 8, 2)


# BiT-C


def test_bitc_is_equation_5() -> None:
    """Value, and gradient to the embedding and the heads, against the equation written out."""
    flow, batch = a_flow(rotation()), a_batch(6)
    mask = torch.arange(5) < torch.randint(2, 6, (6, 1))
    batch["mask"] = mask
    bitc = BiTC(flow, {"speech": 7, "sound": 4}, weight={"speech": 0.5, "sound": 1.0}, batch=batch)
    for head in bitc.heads.values():
        w = head.weight
        assert torch.allclose(w @ w.T, torch.eye(len(w)), atol=1e-5)  # orthogonal at the start
    assert [tuple(p.shape) for p in bitc.parameters()] == [(7, D), (4, D)] and bitc.width == D
    features = {"speech": torch.randn(3, 7), "sound": torch.randn(3, 4)}
    net: Any = flow.module
    loss = bitc(batch, features=features)
    loss.backward()
    got = net.embed.weight.grad.clone(), bitc.head("speech").weight.grad.clone()
    net.zero_grad()
    bitc.zero_grad()
    expected = torch.zeros(())
    for domain, first, scale in (("speech", 0, 0.5), ("sound", 1, 1.0)):
        e, m = net.embed(batch["tokens"])[first::2], mask[first::2, :, None]
        z = layer_norm((e * m).sum(1) / m.sum(1), (D,))
        cos = cosine_similarity(z @ bitc.head(domain).weight.T, features[domain])
        expected = expected + scale * (1 - cos).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(got[0], net.embed.weight.grad)
    torch.testing.assert_close(got[1], bitc.head("speech").weight.grad)
    assert got[0].abs().sum() > 0


def test_bitc_reductions_and_dropped_conditions() -> None:
    flow, batch = a_flow(rotation()), a_batch(8)
    batch["domains"] = ["speech"] * 6 + ["sound"] * 2
    heads: dict[str, Any] = {"speech": 4, "sound": 4}
    ours, release = BiTC(flow, heads, width=D), released.BiTC(flow, heads, width=D)
    release.load_state_dict(ours.state_dict())
    features = torch.randn(8, 4)
    kept = torch.tensor([1, 1, 0, 1, 1, 0, 1, 0]).bool()
    z = described(interface(flow.module, batch))
    w = torch.stack([ours.head(d).weight for d in batch["domains"]])
    away = 1 - cosine_similarity((w @ z[..., None])[..., 0], features)
    torch.testing.assert_close(ours(batch, features=features), away[:6].mean() + away[6:].mean())
    torch.testing.assert_close(release(batch, features=features), away.mean())
    torch.testing.assert_close(ours(batch, features=features, kept=kept), away[:6][kept[:6]].mean() + away[6])
    torch.testing.assert_close(release(batch, features=features, kept=kept), away[kept].sum() / 8)


def test_bitc_head_without_samples_gets_a_zero_gradient() -> None:
    flow, batch = a_flow(rotation()), a_batch(4, domains=("speech",))
    bitc = BiTC(flow, {"speech": 3, "sound": 5}, width=D)
    bitc(batch, features=torch.randn(4, 3)).backward()
    assert bitc.head("sound").weight.grad is not None and not bitc.head("sound").weight.grad.any()
    assert bitc.head("speech").weight.grad is not None and bitc.head("speech").weight.grad.any()
    nothing = bitc(batch, features=torch.randn(4, 3), kept=torch.zeros(4).bool())
    assert nothing.item() == 0 and nothing.requires_grad


def test_bitc_one_teacher_for_all() -> None:
    class Clip:
        name, dim = "clip", 3

        def __call__(self, samples: Samples) -> Tensor:
            return torch.stack([torch.full((3,), float(i.removeprefix("clip"))).sin() + 1 for i in samples.ids])

    flow, batch = a_flow(rotation(), rotation()), a_batch(8)
    bitc = BiTC(flow, Clip(), batch=batch)
    assert list(bitc.heads) == ["all"] and bitc.head("speech") is bitc.head("sound")
    assert set(bitc.state_dict()) == {"heads.all.weight"}
    away = 1 - cosine_similarity(
        described(interface(flow.module, batch)) @ bitc.head("all").weight.T,
        torch.arange(8.0)[:, None].expand(8, 3).sin() + 1,
    )
    torch.testing.assert_close(bitc(batch), away.mean())
    curve = lasp(flow, batch, head=bitc, times=2)
    assert curve.values.shape == (8, 2, 2)
    mean = (1 - away).detach()
    assert curve.info["interface"]["sound"]["cosine"] == pytest.approx(mean[1::2].mean().item(), abs=1e-5)


def test_bitc_lowers_its_loss() -> None:
    """A few steps on embeddings and heads: the anchor takes hold, which it cannot with frozen embeddings."""
    flow, batch = a_flow(rotation()), a_batch(16, domains=("all",))
    features = torch.randn(40, 6)[batch["tokens"]].mean(1)
    bitc = BiTC(flow, 6, batch=batch)
    net: Any = flow.module
    optimizer = torch.optim.Adam([*net.embed.parameters(), *bitc.parameters()], lr=0.02)
    first = bitc(batch, features=features).item()
    for _ in range(60):
        optimizer.zero_grad()
        bitc(batch, features=features).backward()
        optimizer.step()
    assert bitc(batch, features=features).item() < 0.2 * first


def test_bitc_what_does_not_fit() -> None:
    flow, batch = a_flow(rotation()), a_batch(4)
    with pytest.raises(Unsupported, match=r"BiTC\(flow, teachers, batch=one_batch\), or width="):
        BiTC(flow, 3)
    bare = wrap(Net([rotation()]), x="x_t", t="t")
    with pytest.raises(Unsupported, match=r"GenericAdapter has no conditioning interface.*interface=lambda"):
        BiTC(bare, 3, batch=batch)
    with pytest.raises(ShapeMismatch, match="the interface is 12 wide, BiTC's heads were built for 7"):
        BiTC(flow, 3, width=7)(batch, features=torch.randn(4, 3))
    with pytest.raises(Unsupported, match="knows only the width of all, no teacher"):
        BiTC(flow, 3, width=D)(batch)
    with pytest.raises(ShapeMismatch, match=r"layers are 12 wide, BiTC's heads were made for an interface of 7"):
        lasp(flow, batch, head=BiTC(flow, 3, width=7), features=torch.randn(4, 3))
    with pytest.raises(Unsupported, match="weight= names speech; the teachers are of speech, sound"):
        BiTC(flow, {"speech": 3, "sound": 3}, width=D, weight={"speech": 1.0})
    with pytest.raises(Unsupported, match="no head for domain 'music'"):
        BiTC(flow, {"speech": 3}, width=D).head("music")


# gradnorm


def test_gradnorm_is_the_norm_of_the_gradient() -> None:
    flow, batch = a_flow(rotation(), rotation(), rotation()), a_batch(4)
    scores = gradnorm(flow, batch, seed=3)
    assert scores.kind == "gradnorm" and scores.times is None and scores.values.shape == (4, 1, 3)
    assert scores.domains == ("speech", "sound", "speech", "sound")
    net: Any = flow.module
    for i in range(4):
        torch.manual_seed(3)
        net.zero_grad()
        flow.loss(flow.samples(batch).rows([i])).backward()
        expected = [float(torch.stack([p.grad.norm() for p in block.parameters()]).norm()) for block in net.blocks]
        np.testing.assert_allclose(scores.values[i, 0], expected, rtol=1e-5)
    both = gradnorm(flow, batch, seed=3, draws=2).values
    np.testing.assert_allclose(both, (scores.values + gradnorm(flow, batch, seed=4).values) / 2, rtol=1e-5)


def test_gradnorm_of_activations() -> None:
    """At the last block: v = W h + …, so ∂L/∂h = 2/n (v − v*) W, by hand."""
    flow, batch = a_flow(rotation(), rotation()), a_batch(2)
    scores = gradnorm(flow, batch, wrt="activations", blocks=["blocks.1"])
    net: Any = flow.module
    for i in range(2):
        x1 = batch["x1"][[i]]
        torch.manual_seed(0)
        t, x0 = torch.rand(1), torch.randn_like(x1)
        with torch.no_grad():
            v = net((1 - t) * x0 + t * x1, t)
            expected = (2 / x1.numel() * (v - (x1 - x0)) @ net.out.weight).norm()
        assert scores.values[i, 0, 0] == pytest.approx(float(expected), rel=1e-4)


def test_gradnorm_chooses_layers() -> None:
    """It is one of select's rankings, and a frozen layer has none."""
    flow, batch = a_flow(*(rotation() for _ in range(4))), a_batch(4)
    net: Any = flow.module
    net.blocks[2].requires_grad_(False)
    scores = gradnorm(flow, [batch, batch])
    assert scores.values.shape == (8, 1, 4) and not scores.values[:, 0, 2].any()
    assert "blocks.2" not in fog_a.select(scores, 3, by="top").domains["speech"]
    net.requires_grad_(False)
    with pytest.raises(NoActivations, match="no gradient at the parameters of any block"):
        gradnorm(flow, batch)
    with pytest.raises(Unsupported, match="wrt must be"):
        gradnorm(flow, batch, wrt="weights")  # pyright: ignore[reportArgumentType]
    assert math.isfinite(scores.mean().sum())


@pytest.mark.parametrize("wrt", ["parameters", "activations"])
def test_gradnorm_refuses_reentrant_checkpointing(wrt: Any) -> None:
    """torch.autograd.grad sees nothing inside it: every layer would have a norm of 0."""
    flow = small_flow.a_flow(reentrant=True)
    with pytest.raises(Unsupported, match=r"re-entrant gradient checkpointing .* use_reentrant=False"):
        gradnorm(flow, small_flow.a_batch(2), wrt=wrt)
    assert gradnorm(small_flow.a_flow(reentrant=False), small_flow.a_batch(2), wrt=wrt).values.all()


@pytest.mark.parametrize("release", [False, True])
def test_bitc_on_two_ranks_is_the_joint_batch(tmp_path: Path, release: bool) -> None:
    """A mean of rank means is not the joint mean, and one rank has no sound: the gradients are the joint ones all the
    same, on both ranks, in sync."""
    joint = bitc_ranks.gradients(None, release)
    for found in rank_jobs.start(bitc_ranks.gradients, tmp_path, release):
        assert found.keys() == joint.keys()
        for name, gradient in found.items():
            np.testing.assert_allclose(gradient, joint[name], rtol=1e-4, atol=1e-6)


class Ends(nn.Module):
    """Layers without a module of their own; the last sum is the output, which no module sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([nn.LayerNorm(D), linear(rotation())]) for _ in range(3))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        for norm, f in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x_t = x_t + f(norm(x_t))
        return x_t


def test_an_output_that_no_module_sees() -> None:
    flow, x1 = wrap(Ends(), x="x_t", t="t"), torch.randn(4, 3, D)
    with pytest.raises(Unsupported, match=r"no module takes or gives the output of layers.2.*wrt='parameters'"):
        gradnorm(flow, {"x1": x1}, wrt="activations")
    assert (gradnorm(flow, {"x1": x1}).values > 0).all()
    assert (gradnorm(flow, {"x1": x1}, wrt="activations", blocks=["layers.0", "layers.1"]).values > 0).all()


@pytest.mark.filterwarnings("ignore:the head of")  # so few clips tell nothing
def test_every_score_says_what_it_was_measured_on() -> None:
    flow, batch, teachers = small_flow.a_flow(), small_flow.a_batch(8), small_flow.two_teachers()
    options: dict[str, Any] = {"seed": 3}
    made = [
        fog_a.attribute(flow, batch, times=2, **options),
        fog_a.lasp(flow, batch, teachers, times=2, **options),
        fog_a.gradnorm(flow, batch, **options),
        fog_a.drift(flow, batch, steps=3, **options),
        fog_a.interactions(flow, batch, ["blocks.0", "blocks.1"], times=2, **options).scores,
    ]
    for scores in made:
        assert scores.info["seed"] == 3, scores.kind
        assert set(scores.info["versions"]) == {"fog_a", "torch", "numpy", "python"}
        assert {"class", "blocks", "parameters"} <= set(scores.info["signature"])
        assert scores.info["signature"]["class"].endswith("small_flow.Net")
