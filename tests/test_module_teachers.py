"""Teachers that read a tensor of the batch: any frozen module, or the clean data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fog_a
from fog_a.aligning.schedules import TimeWeight
from fog_a.aligning.slots import Center
from fog_a.errors import BadBatch, BadFeatures, UnknownBlock, Unsupported
from fog_a.flows.samples import Samples
from fog_a.teachers import CachedTeacher, LatentTeacher, ModuleTeacher


def samples_of(batch: dict[str, Any], mask: Tensor | None = None) -> Samples:
    count = len(next(iter(batch.values())))

    def rows(index: Any) -> dict[str, Any]:
        return {key: value[list(index)] for key, value in batch.items()}

    return Samples(tuple(map(str, range(count))), ("all",) * count, rows, mask=mask)


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6 * 16, 10))


def test_the_output_of_a_module_and_of_its_layers() -> None:
    net, batch = encoder(), {"image": torch.randn(3, 1, 4, 4)}
    samples = samples_of(batch)
    net.train()
    last = ModuleTeacher(net, "image")
    with torch.no_grad():
        expected = net.eval()(batch["image"])
        maps = net[:2](batch["image"])
    net.train()
    assert last.dim == 10 and torch.equal(last(samples), expected)
    assert not last(samples).requires_grad and not any(p.requires_grad for p in net.parameters())
    inner = ModuleTeacher(net, "image", layer="1", dim=6)
    torch.testing.assert_close(inner(samples), maps.mean((2, 3)))
    frames = inner.frames(samples)
    assert len(frames) == 3 and frames[0].shape == (16, 6)
    torch.testing.assert_close(torch.stack(frames).mean(1), inner(samples))
    first = ModuleTeacher(net, "image", layer="0")
    assert first.dim == 6
    highest = ModuleTeacher(net, "image", layer="1", pool=lambda out: out.amax((2, 3)), dim=6)
    torch.testing.assert_close(highest(samples), maps.amax((2, 3)))
    read = ModuleTeacher(net, lambda batch: batch["image"] * 2)
    assert not torch.equal(read(samples), expected) and read.dim == 10
    assert {last.name, inner.pool, first.pool} == {"module:Sequential:image", "mean-1", "mean-0"}


def test_tokens_by_their_axes() -> None:
    batch = {"x": torch.randn(2, 5, 4)}
    token = ModuleTeacher(nn.Linear(4, 3), "x", pool="first")
    assert torch.equal(token(samples_of(batch)), token.module(batch["x"])[:, 0])
    conv = ModuleTeacher(nn.Conv1d(5, 7, 1), "x", channels="first")
    torch.testing.assert_close(conv(samples_of(batch)), conv.module(batch["x"]).mean(2))


class Pair(nn.Module):
    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"features": image * scale}


def test_a_module_of_several_arguments() -> None:
    batch = {"image": torch.randn(2, 4), "s": torch.randn(2, 1)}
    teacher = ModuleTeacher(Pair(), lambda batch: {"image": batch["image"], "scale": batch["s"]}, dim=4)
    assert torch.equal(teacher(samples_of(batch)), batch["image"] * batch["s"])


def test_the_clean_data_over_real_frames() -> None:
    x1 = torch.randn(2, 6, 3)
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    teacher = LatentTeacher(3)
    torch.testing.assert_close(teacher(samples_of({"x1": x1})), x1.mean(1))
    pooled = teacher(samples_of({"x1": x1}, mask[..., None]))
    torch.testing.assert_close(pooled, torch.stack([x1[0].mean(0), x1[1, :2].mean(0)]))
    first = LatentTeacher(3, channels="first")
    torch.testing.assert_close(first(samples_of({"x1": x1.transpose(1, 2)}, mask[:, None])), pooled)
    assert [len(x) for x in teacher.frames(samples_of({"x1": x1}, mask[..., None]))] == [6, 2]
    mel = samples_of({"mel": x1.mT}, mask[..., None])  # v is (B, T, D), the data under its key is not
    torch.testing.assert_close(LatentTeacher(3, "mel", channels="first")(mel), pooled)
    short = samples_of({"x1": x1[:, :4]}, mask[..., None])  # cut to the longest sample that is left
    torch.testing.assert_close(teacher(short), torch.stack([x1[0, :4].mean(0), x1[1, :2].mean(0)]))
    image = LatentTeacher(3, "latents")
    assert image(samples_of({"latents": torch.randn(2, 3, 4, 4)})).shape == (2, 3)


def test_it_is_kept_by_the_cache(tmp_path: Path) -> None:
    calls = []

    class Counted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            calls.append(len(input))
            return super().forward(input)

    batch = {"x1": torch.randn(4, 3)}
    cached = CachedTeacher(ModuleTeacher(Counted(3, 5), "x1"), tmp_path)
    a, b = cached(samples_of(batch)), cached(samples_of(batch))
    assert torch.equal(a, b) and calls == [4] and a.shape == (4, 5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(3))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = x_t + t[:, None, None]
        for block in self.blocks:
            h = h + block(h)
        return h


def test_it_teaches_each_domain_its_own_samples() -> None:
    torch.manual_seed(0)
    flow = fog_a.wrap(Net(), x="x_t", t="t")
    batch = {"x1": torch.randn(6, 5, 4), "domains": ["a", "b"] * 3}
    teacher = ModuleTeacher(nn.Linear(4, 7), "x1")
    reg = fog_a.AGREPA(flow, {"a": teacher, "b": LatentTeacher(4)}, ["blocks.1"], batch=batch)
    loss = flow.loss(batch) + reg(batch)
    loss.backward()
    assert 0 < float(reg.metrics()["ag_repa/loss"]) < 2
    assert all(p.grad is not None for p in reg.parameters())
    assert all(p.grad is None for p in teacher.module.parameters())
    scores = fog_a.lasp(flow, {"x1": torch.randn(60, 5, 4)}, ModuleTeacher(nn.Linear(4, 7), "x1"), times=2)
    assert scores.values.shape == (30, 2, 3)


def test_what_does_not_fit_is_named() -> None:
    net = encoder()
    with pytest.raises(UnknownBlock, match=r"layer='head' is no module of Sequential; it has 0, 1, 2. named_modules"):
        ModuleTeacher(net, "image", layer="head")
    with pytest.raises(
        Unsupported, match=r"what ReLU gives is not told by its parts: type ModuleTeacher\(..., dim=..."
    ):
        ModuleTeacher(net, "image", layer="1")
    with pytest.raises(Unsupported, match=r'pool is "mean", "first" or a function'):
        ModuleTeacher(net, "image", pool="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unsupported, match=r'channels is "last" or "first"'):
        ModuleTeacher(net, "image", channels="middle")  # pyright: ignore[reportArgumentType]
    samples = samples_of({"x1": torch.randn(2, 1, 4, 4)})
    with pytest.raises(BadBatch, match=r"reads the batch's 'image', which it lacks \(it has x1\). Type input="):
        ModuleTeacher(net, "image")(samples)
    with pytest.raises(
        BadBatch, match=r"does not take \(2, 4, 3\), which input= gives it: mat1 and mat2.*input=lambda"
    ):
        ModuleTeacher(nn.Linear(4, 6), "x1")(samples_of({"x1": torch.randn(2, 4, 3)}))
    with pytest.raises(BadFeatures, match=r"gave \(2, 6\) for 2 samples, expected width 3. Type dim=6"):
        ModuleTeacher(net, "x1", layer="1", dim=3)(samples)


def test_the_cosine_to_other_samples_tells_what_is_learned() -> None:
    """A teacher that says the same of all samples is met by a constant: the shuffled cosine is as high."""
    torch.manual_seed(0)
    x1 = torch.randn(32, 1, 4).expand(-1, 5, -1).contiguous()
    flow = fog_a.wrap(Net(), x="x_t", t="t")
    constant = 5 * torch.ones(4)
    gaps = {}
    for center in (False, True):
        reg = fog_a.AGREPA(flow, LatentTeacher(4), ["blocks.2"], batch={"x1": x1}, center=center)
        optimizer = torch.optim.Adam(reg.parameters(), lr=1e-2)
        for _ in range(60):
            batch = {"x1": x1 + constant}
            flow.loss(batch)
            optimizer.zero_grad()
            reg(batch).backward()
            optimizer.step()
        metrics = reg.metrics()
        gaps[center] = metrics["ag_repa/all/blocks.2"] - metrics["ag_repa/all/blocks.2/shuffled"]
        if not center:
            assert metrics["ag_repa/all/blocks.2/shuffled"] > 0.9  # though nothing of the sample is known
        again = fog_a.AGREPA(flow, LatentTeacher(4), ["blocks.2"], batch={"x1": x1}, center=center)
        again.load_state_dict(reg.state_dict())
        assert set(again.state_dict()) == set(reg.state_dict())
        reg.close()
    assert gaps[True] > 0.3 > gaps[False]


def test_times_of_another_clock_are_heard_as_the_flows_own() -> None:
    """`time_weight` gets t in [0, 1] of a network that is given 1000 (1 − t)."""
    seen: list[Tensor] = []
    weight = TimeWeight("hard")

    class Watched(type(weight)):
        def __call__(self, t: Tensor) -> Tensor:
            seen.append(t)
            return super().__call__(t)

    flow = fog_a.wrap(Net(), x="x_t", t="t", time=lambda t: 1000 * (1 - t))
    batch = {"x1": torch.randn(6, 5, 4)}
    reg = fog_a.AGREPA(flow, LatentTeacher(4), ["blocks.1"], batch=batch, time_weight=Watched("hard"))
    torch.manual_seed(1)
    flow.loss(batch)
    reg(batch)
    torch.manual_seed(1)
    torch.testing.assert_close(seen[0], torch.rand(6), rtol=0, atol=1e-4)
    plain = fog_a.wrap(Net(), x="x_t", t="t")
    reg = fog_a.AGREPA(plain, LatentTeacher(4), ["blocks.1"], batch=batch, time_weight=TimeWeight("hard"))
    plain.module(batch["x1"], 1000 * torch.rand(6))
    with pytest.raises(BadBatch, match=r"\[0, 1\]"):
        reg(batch)


def test_center_is_the_mean_so_far() -> None:
    center = Center({"a": 2, "b": 3})
    first, second = torch.randn(4, 2), [torch.randn(5, 3), torch.randn(7, 3)]
    out = center({"a": first, "b": second})
    assert isinstance(out["a"], Tensor)
    torch.testing.assert_close(out["a"], first - first.mean(0))
    more = torch.randn(8, 2)
    out = center({"a": more})
    torch.testing.assert_close(out["a"], more - torch.cat([first, more]).mean(0))
    mean = torch.stack([x.mean(0) for x in second]).mean(0)
    torch.testing.assert_close(center({"b": second})["b"][0], second[0] - mean)
