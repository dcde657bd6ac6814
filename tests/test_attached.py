"""reg.attach(model): the term is added in the model's own forward, and the state rides in its checkpoint."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jaxtyping import config
from small_flow import a_batch, a_flow, two_teachers
from torch import Tensor, nn

import fog_a
from fog_a.aligning.alignment import AGREPA
from fog_a.errors import BadOutput, Unsupported


@dataclass
class Output:
    """What a model of transformers gives, in short."""

    loss: Tensor
    v: Tensor


class Model(nn.Module):
    """A model whose forward is its loss, in one of the forms of `form`."""

    def __init__(self, form: str = "scalar") -> None:
        super().__init__()
        self.flow: Any = a_flow()
        self.net, self.form = self.flow.module, form

    def forward(self, **batch: Any) -> Any:
        loss = self.flow.loss(batch)
        forms = {"scalar": loss, "dict": {"loss": loss}, "tuple": (loss, 1), "object": Output(loss, loss.detach())}
        return forms[self.form] if self.form in forms else self.net(batch["x1"], torch.rand(6))


def loss_of(out: Any) -> Tensor:
    return (
        out
        if isinstance(out, Tensor)
        else out[0]
        if isinstance(out, tuple)
        else getattr(out, "loss", None) or out["loss"]
    )


def a_model(form: str = "scalar", attach: bool = True) -> tuple[Model, AGREPA, torch.optim.Optimizer]:
    model = Model(form)
    reg = AGREPA(model.flow, two_teachers(), k=2, warmup=4, every=2)
    if attach:
        reg.attach(model)
    heads = [] if attach else [*reg.parameters()]
    return model, reg, torch.optim.AdamW([*model.parameters(), *heads], lr=1e-2)


def train(model: Model, reg: AGREPA | None, optimizer: Any, steps: range) -> list[float]:
    """A trainer: it knows nothing of the alignment, unless it gets `reg`."""
    losses = []
    for step in steps:
        torch.manual_seed(step)
        batch = a_batch(seed=step)
        loss = loss_of(model(**batch))
        loss = loss if reg is None else loss + reg(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("form", ["scalar", "dict", "tuple", "object"])
def test_it_is_the_edited_loop_to_the_bit(form: str) -> None:
    model, reg, optimizer = a_model(form)
    other, edited, same = a_model(form, attach=False)
    assert train(model, None, optimizer, range(8)) == train(other, edited, same, range(8))
    assert reg.step == 8 and reg.selection == edited.selection
    assert all(torch.equal(a, b) for a, b in zip(reg.parameters(), edited.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), other.net.parameters(), strict=True))


@pytest.mark.parametrize("cut", [3, 6], ids=["in the warm-up", "after it"])
def test_the_models_checkpoint_resumes_it(cut: int) -> None:
    model, reg, optimizer = a_model()
    whole = train(model, None, optimizer, range(9))
    model, reg, optimizer = a_model()
    first = train(model, None, optimizer, range(cut))
    state, progress = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert [key for key in state if "ag_repa" in key] == ["ag_repa.state"]
    model, reg, optimizer = a_model()
    model.load_state_dict(state)
    optimizer.load_state_dict(progress)
    assert reg.step == cut
    assert first + train(model, None, optimizer, range(cut, 9)) == whole


@pytest.mark.parametrize("attach", [True, False], ids=["attached", "a loop of one's own"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_run_begun_without_it_resumes_with_it(attach: bool, groups: int) -> None:
    """Until alignment starts, the bits are those of the run without it; afterwards the heads train."""

    def optimizer_of(model: Model, heads: list[Tensor]) -> torch.optim.Optimizer:
        if groups == 1 or not heads:
            return torch.optim.AdamW([*model.parameters(), *heads], lr=1e-2)
        net = [p for p in model.parameters() if all(p is not head for head in heads)]
        return torch.optim.AdamW([{"params": heads, "weight_decay": 0.0}, {"params": net}], lr=1e-2)

    model = Model()
    optimizer = optimizer_of(model, [])
    train(model, None, optimizer, range(2))
    state, progress = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, None, optimizer, range(2, 6))
    late, reg, _ = a_model(attach=attach)
    again = optimizer_of(late, [*reg.parameters()])
    if attach:
        with pytest.warns(UserWarning, match="it begins now, at step 0"):
            late.load_state_dict(state)
    else:
        late.load_state_dict(state)
    with pytest.raises(ValueError, match="parameter group"):
        again.load_state_dict(progress)
    reg.resume(again)
    again.load_state_dict(progress)
    term = None if attach else reg
    train(late, term, again, range(2, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), late.net.parameters(), strict=True))
    before = [p.detach().clone() for p in reg.parameters()]
    train(late, term, again, range(6, 8))
    assert reg.state == "aligning" and not any(map(torch.equal, before, reg.parameters()))
    again.load_state_dict(copy.deepcopy(again.state_dict()))  # a state with the heads is as it is


def test_evaluation_and_copies_are_free_of_it() -> None:
    model, reg, optimizer = a_model()
    train(model, None, optimizer, range(6))
    plain, ema, batch = Model(), copy.deepcopy(model), a_batch()
    plain.net.load_state_dict(model.net.state_dict())
    outputs = []
    for each in (model.eval(), plain.eval(), ema.train()):
        torch.manual_seed(0)
        outputs.append(each(**batch).detach())
    assert outputs[0] == outputs[1] == outputs[2] and reg.step == 6
    assert not [key for key in ema.state_dict() if key.endswith("state")]
    assert len(list(ema.parameters())) == len(list(model.parameters()))  # an average needs the same names
    model.train()(**batch)
    assert reg.step == 7


@pytest.mark.parametrize("how", ["detach", "close"])
def test_nothing_is_left(how: str) -> None:
    model, reg, optimizer = a_model()
    train(model, None, optimizer, range(6))
    getattr(reg, how)()
    reg.close()
    assert list(model.state_dict()) == list(Model().state_dict()) and not hasattr(model, "ag_repa")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    reg.open()
    reg.attach(model)
    train(model, None, optimizer, range(6, 8))
    assert reg.step == 8


def test_arguments_of_another_forward() -> None:
    class Positional(Model):
        def forward(self, x1: Tensor, domains: Any, ids: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.flow.loss({"x1": x1, "domains": domains, "ids": ids})

    model, batch = Positional(), a_batch()
    reg = AGREPA(model.flow, two_teachers(), "blocks.1", batch=batch)
    reg.attach(model)
    with pytest.raises(Unsupported, match=r"got 2 arguments and keywords ids, .*attach\(model, batch=lambda"):
        model(batch["x1"], batch["domains"], ids=batch["ids"])
    reg.detach()
    reg.attach(model, batch=lambda x1, domains, ids: {"x1": x1, "domains": domains, "ids": ids})
    assert float(model(batch["x1"], batch["domains"], ids=batch["ids"]).detach()) > 0 and reg.step == 1


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without jaxtyping's checks, which a compiler would trace."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_compiled_model() -> None:
    results, batch = [], a_batch()
    for compiled in (False, True):
        torch.compiler.reset()
        model = Model()
        reg = AGREPA(model.flow, two_teachers(), "blocks.1", batch=batch)
        reg.attach(model)
        run: Any = torch.compile(model, backend="aot_eager") if compiled else model
        torch.manual_seed(0)
        results.append(float(run(**batch).detach()))
        assert reg.metrics()["ag_repa/loss"] > 0
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_what_is_refused() -> None:
    model, reg, _ = a_model()
    with pytest.raises(Unsupported, match=r"attached to a model already. Type reg\.detach\(\) first"):
        reg.attach(Model())
    other = AGREPA(model.flow, two_teachers())
    with pytest.raises(
        Unsupported, match=r"Model has an attribute 'ag_repa': .*Detach that one first: reg\.detach\(\)"
    ):
        other.attach(model)
    velocity, _, _ = a_model("velocity")
    with pytest.raises(BadOutput, match=r"expected a training loss from the forward of Model: .*loss \+ reg\(batch\)"):
        velocity(**a_batch())
    with pytest.warns(
        UserWarning, match=r"without AG-REPA \(ag_repa\.state is not in it\): it begins now, at step 0.*reg\.resume"
    ):
        model.load_state_dict(Model().state_dict())


def test_a_bare_network_of_one_argument() -> None:
    """A flow whose network is the model: probes run the model's forward, and add nothing to it."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = a_flow().module

        def forward(self, batch: dict[str, Any]) -> Tensor:
            return fog_a.wrap(self.inner, x="x_t", t="t").loss(batch)

    model, batch = Summed(), a_batch()
    reg = AGREPA(fog_a.wrap(model.inner, x="x_t", t="t"), two_teachers(), k=1, warmup=2, every=1)
    reg.attach(model)
    for _ in range(3):
        model(batch).backward()
    assert reg.selection is not None and all(p.grad is not None for p in model.ag_repa.parameters())


def test_a_regularizer_is_freed_with_its_model() -> None:
    """What waits for its end, to say that nothing was aligned, keeps neither alive."""
    model, reg, optimizer = a_model()
    here = weakref.ref(reg), weakref.ref(model)
    del model, reg, optimizer
    gc.collect()
    assert here[0]() is None and here[1]() is None
