"""SelfTeacher(ema=, cleaner=): the average of the model's weights, at times closer to the data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_flow import Net, a_batch, a_flow
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fog_a
from fog_a.aligning.alignment import AGREPA
from fog_a.errors import BadBatch, Unsupported
from fog_a.flows.bare import twin
from fog_a.teachers import CachedTeacher, SelfTeacher


def with_average(kind: str = "copy", **options: Any) -> tuple[Any, AGREPA, nn.Module, dict[str, Any]]:
    """A flow, its regularizer, and an average of its weights that differs from them."""
    flow, batch = a_flow(), a_batch()
    ema: Any = copy.deepcopy(flow.module) if kind == "copy" else AveragedModel(flow.module)
    with torch.no_grad():
        for p in ema.parameters():
            p.mul_(1.3)
    teacher = SelfTeacher("blocks.3", ema=ema, **options)
    return flow, AGREPA(flow, teacher, "blocks.1", batch=batch, total=1.0), ema, batch


@pytest.mark.parametrize("kind", ["copy", "averaged"])
def test_the_target_is_the_averages_block_at_cleaner_times(kind: str) -> None:
    flow, reg, ema, batch = with_average(kind, cleaner=0.3)
    seen: dict[str, Any] = {"t": [], "teacher": []}
    student = flow.module.blocks[1].register_forward_hook(lambda m, i, o: seen.update(h=o))
    clock = flow.module.register_forward_pre_hook(lambda m, a, k: seen["t"].append(k["t"]), with_kwargs=True)
    inner: Any = ema.module if kind == "averaged" else ema
    inner.blocks[3].register_forward_hook(lambda m, i, o: seen.update(target=o.mean(1)))
    inner.register_forward_pre_hook(lambda m, a, k: seen["teacher"].append(k["t"]), with_kwargs=True)
    flow.loss(batch)
    student.remove()
    clock.remove()
    value = reg(batch)
    torch.testing.assert_close(seen["teacher"][0], (seen["t"][0] + 0.3).clamp(max=0.999))
    head: Any = reg.slots.heads["all"][0]  # pyright: ignore[reportIndexIssue]
    expected = (1 - F.cosine_similarity(head(seen["h"]), seen["target"])).mean()
    assert torch.allclose(value, expected, atol=1e-6)
    value.backward()
    assert all(p.grad is None for p in ema.parameters())
    assert all(p.grad is not None for p in flow.module.blocks[1].parameters())


def test_the_average_stays_as_it_is_and_its_updates_are_seen() -> None:
    flow, reg, ema, batch = with_average(cleaner=0.2)
    before, flags = copy.deepcopy(ema.state_dict()), [m.training for m in ema.modules()]
    values = []
    for factor in (1.0, -1.0):
        with torch.no_grad():
            for p in ema.parameters():
                p.mul_(factor)
        torch.manual_seed(0)
        flow.loss(batch)
        random = torch.get_rng_state()
        values.append(float(reg(batch).detach()))
        assert torch.equal(torch.get_rng_state(), random)
    assert values[0] != values[1]
    assert all(torch.equal(-a, b) for a, b in zip(before.values(), ema.state_dict().values(), strict=True))
    assert flags == [m.training for m in ema.modules()]


def test_a_resumed_run_goes_on_with_the_same_targets() -> None:
    flow, reg, ema, batch = with_average(cleaner=0.2)
    flow.loss(batch)
    reg(batch)
    again = AGREPA(flow, SelfTeacher("blocks.3", ema=ema, cleaner=0.2), "blocks.1")
    again.load_state_dict(reg.state_dict())
    torch.manual_seed(3)
    flow.loss(batch)
    assert torch.equal(reg(batch), again(batch))


def test_a_twin_reads_the_copy_alone() -> None:
    """Also where the adapter holds parts of the model, and where the copy is of the network alone."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = Net(), nn.Linear(1, 1)

    class Reader(fog_a.Flow):
        def __init__(self, model: Any) -> None:
            self.model, self.module, self.scale = model, model.net, model.scale

        def velocity(self, batch: Any, t: Any, seed: int = 0) -> Tensor:
            times = torch.as_tensor(t).expand(len(batch))
            return self.module(batch, times) * self.scale.weight

        def samples(self, batch: Any) -> Any:
            raise NotImplementedError

    model = Around()
    flow = Reader(model)
    whole, part = copy.deepcopy(model), copy.deepcopy(model.net)
    a, b = twin(flow, whole), twin(flow, part)
    assert a.model is whole and a.module is whole.net and a.scale is whole.scale  # pyright: ignore[reportAttributeAccessIssue]
    assert b.module is part
    x = torch.randn(2, 5, 6)
    assert torch.equal(flow.velocity(x, 0.5), a.velocity(x, 0.5))


def test_what_is_refused(tmp_path: Path) -> None:
    flow, batch = a_flow(), a_batch()
    with pytest.raises(Unsupported, match=r"SelfTeacher\(cleaner=0\.2\) needs the copy of the model .*type ema="):
        SelfTeacher(cleaner=0.2)
    with pytest.raises(Unsupported, match=r"ema= is the averaged copy of the model, an nn.Module, got 0\.99"):
        SelfTeacher(ema=0.99)  # pyright: ignore[reportArgumentType]
    with pytest.raises(Unsupported, match=r"cleaner= is added to flow times in \[0, 1\], 1 the data; got 200"):
        SelfTeacher(ema=flow.module, cleaner=200)
    with pytest.raises(Unsupported, match=r"expected a copy of Net.*got Linear with other modules"):
        AGREPA(flow, SelfTeacher(ema=nn.Linear(2, 2)), "blocks.1")
    with pytest.raises(Unsupported, match=r"features change with each training step: pass it without CachedTeacher"):
        CachedTeacher(SelfTeacher(), tmp_path)
    flow.t = None
    reg = AGREPA(flow, SelfTeacher(ema=copy.deepcopy(flow.module)), "blocks.1", batch=batch)
    flow.module(batch["x1"], torch.rand(6))
    with pytest.raises(BadBatch, match=r"SelfTeacher\(ema=\) need this batch's flow times.*reg\(batch, t=t\)"):
        reg(batch)
