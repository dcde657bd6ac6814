"""A probe leaves nothing behind: everything that can be read of the model and the process is the same after it.

Also when the model, the user's forward or the keyboard interrupts it at any point.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import Layer, tokens
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import fog_a

HOOKS = [
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
]


class Messy(nn.Module):
    """All that a probe could disturb: statistics, dropout, three generators, a buffer made in the forward, counters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(6)
        self.blocks = nn.ModuleList(Layer(6, dropout=0.5) for _ in range(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", None)

    def noise(self, x: Tensor) -> Any:
        return 0.1 * torch.randn_like(x) + random.random() + float(np.random.rand())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().mean()
        h = self.norm(self.stem(x + self.noise(x)).mT).mT
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class Quiet(Messy):
    """The same without random numbers in eval mode."""

    def noise(self, x: Tensor) -> Any:
        return 0.0


def messy(kind: type[Messy] = Messy) -> Messy:
    """Trained a step, with hooks of its user's own, mixed modes, frozen and half-filled gradients."""
    net = kind()
    net(tokens()).square().mean().backward()
    net.blocks[0].requires_grad_(False)
    net.blocks[1].zero_grad(set_to_none=True)
    net.blocks[2].eval()
    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, args, out: None)
        module.register_forward_pre_hook(lambda m, args, kwargs: None, with_kwargs=True)
        if name:
            module.register_full_backward_hook(lambda m, gi, go: None)
    kept = net.head.forward
    net.head.forward = lambda *args, **kwargs: kept(*args, **kwargs)  # somebody else's patch stays
    net.head.forward.mark = "mine"  # type: ignore[attr-defined]
    return net


def state_of(net: nn.Module) -> dict[str, Any]:
    """Everything that can be read of a model and the process, by value and by identity."""
    seen: dict[str, Any] = {
        "rng": (torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": [torch.is_autocast_enabled(d) for d in ("cpu", "cuda")],
        "modes": len(_get_current_dispatch_mode_stack()),
        "default": (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "global hooks": [
            len(h) for n, h in vars(torch_module).items() if n.startswith("_global_") and hasattr(h, "keys")
        ],
    }
    if torch.cuda.is_available():
        seen["cuda rng"] = [s.numpy().tobytes() for s in torch.cuda.get_rng_state_all()]
    for name, m in net.named_modules():
        seen[f"{name} hooks"] = {h: [*getattr(m, h).items()] for h in HOOKS if hasattr(m, h)}
        seen[f"{name} dict"] = {k: id(v) for k, v in vars(m).items() if k not in ("training", *HOOKS)}
        seen[f"{name} type"] = (type(m), m.training, id(m.forward) if "forward" in vars(m) else None)
        seen[f"{name} children"] = [(k, id(v)) for k, v in m._modules.items()]
        for k, p in m._parameters.items():
            if p is not None:
                grad = None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes())
                seen[f"{name}.{k}"] = (id(p), bits(p), p.requires_grad, grad, len(p._backward_hooks or ()))
        for k, b in m._buffers.items():
            seen[f"{name}.{k}"] = None if b is None else (id(b), bits(b), b.requires_grad)
    return seen


def bits(t: Tensor) -> bytes:
    return t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if t.ndim else repr(t.item()).encode()


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    assert not changed, changed


DISTURBANCES: dict[str, Callable[[Messy], Any]] = {
    "hook": lambda net: net.blocks[0].register_forward_hook(lambda m, args, out: None),
    "their hook": lambda net: net.head._forward_hooks.popitem(),
    "mode": lambda net: net.blocks[2].train(),
    "requires_grad": lambda net: net.blocks[0].requires_grad_(True),
    "gradient": lambda net: net.head.weight.grad.add_(1e-6),  # type: ignore[union-attr]
    "no gradient": lambda net: setattr(net.head.weight, "grad", None),
    "weight": lambda net: net.head.weight.data.mul_(1 + 1e-6),
    "statistics": lambda net: net.norm.running_mean.add_(1e-6),  # type: ignore[union-attr]
    "counter": lambda net: net.calls.add_(1),
    "new buffer": lambda net: net.register_buffer("last", torch.zeros(())),
    "forward": lambda net: setattr(net.stem, "forward", net.stem.forward),
    "their forward": lambda net: delattr(net.head, "forward"),
    "torch": lambda net: torch.rand(1),
    "numpy": lambda net: np.random.rand(),
    "python": lambda net: random.random(),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_trace_would_be_seen(name: str) -> None:
    net = messy()
    before = state_of(net)
    same(before, state_of(net))
    DISTURBANCES[name](net)
    with pytest.raises(AssertionError):
        same(before, state_of(net))


def gated(net: nn.Module, x: Tensor, **options: Any) -> None:
    """gate and tap by hand, in the mode the model is in; what the model itself does to its state is taken back."""
    with fog_a.blocks.untouched.preserved(net):
        blocks = fog_a.find_blocks(net, x, **options)
        run = options.get("forward") or (lambda m, b: m(b))
        with fog_a.gate(blocks, 0.5), fog_a.gate(blocks[:1], 0), fog_a.tap(blocks) as h:
            run(net, x)
        assert set(h.all) == set(blocks.names)


PROBES: dict[str, Callable[..., Any]] = {
    "find_blocks": lambda net, x, **o: fog_a.find_blocks(net, x, **o),
    "branches": lambda net, x, **o: fog_a.find_blocks(net, x, level="branch", **o),
    "attribute": lambda net, x, **o: fog_a.attribute(net, x, progress=False, **o),
    "several": lambda net, x, **o: fog_a.attribute(net, [x, x[:2]], progress=False, **o),
    "gate and tap": gated,
}


@pytest.fixture(params=PROBES)
def probe(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return PROBES[request.param]


def test_nothing_is_left(probe: Callable[..., Any]) -> None:
    net, x = messy(), tokens()
    before, batch = state_of(net), (x.clone(), x.requires_grad, x._version)
    probe(net, x)
    same(before, state_of(net))
    assert torch.equal(x, batch[0]) and (x.requires_grad, x._version) == batch[1:]


def test_nothing_is_left_of_an_estimate() -> None:
    net, x = messy(Quiet), tokens()
    before, batch = state_of(net), x.clone()
    fog_a.attribute(net, x, how=fog_a.FirstOrder(2))
    same(before, state_of(net))
    assert torch.equal(x, batch) and not x.requires_grad


def test_nothing_is_left_under_the_users_own_modes(probe: Callable[..., Any]) -> None:
    net, x = messy(), tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = state_of(net)
        probe(net, x)
        same(before, state_of(net))
    with torch.inference_mode():
        before = state_of(net)
        probe(net, tokens())
        same(before, state_of(net))


class Halt(Exception):
    """The model's own."""


def breaking(module: nn.Module, at: int, error: type[BaseException], after: bool = False) -> Iterator[None]:
    """Raise inside the module's forward at its `at`-th execution, or right after it."""
    calls = [0]

    def count(m: nn.Module, args: Any, out: Any = None) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise error("from inside the model")

    handle = module.register_forward_hook(count) if after else module.register_forward_pre_hook(count)
    yield
    handle.remove()


def caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """The user's own exception can be seen: it is this one, or a cause of it."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return isinstance(error, kind)


FORWARDS = {"find_blocks": 1, "branches": 1, "gate and tap": 2, "attribute": 4, "several": 4}
MOMENTS = [(name, at) for name, most in FORWARDS.items() for at in range(1, most + 1)]


@pytest.mark.parametrize("error", [Halt, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["stem", "blocks.2.fc2", "head"])
@pytest.mark.parametrize(("name", "at"), MOMENTS)
def test_nothing_is_left_after_an_exception(name: str, at: int, where: str, error: type[BaseException]) -> None:
    """In the recorded forward (at = 1), in the base, in an ablation."""
    net, x = messy(), tokens()
    hook = breaking(net.get_submodule(where), at, error)
    next(hook)
    before = state_of(net)
    with pytest.raises(BaseException) as raised:
        PROBES[name](net, x)
    assert caused_by(raised.value, error)
    if not issubclass(error, Exception):
        assert issubclass(raised.type, error)  # Ctrl-C is nobody's to translate; attribute adds what it measured
    same(before, state_of(net))


def faults(count: int, seed: int) -> None:
    """Errors before or after a module's forward, at a random execution of a random module, in a random probe."""
    draw = random.Random(seed)
    executions = {name: executed(name) for name in PROBES}
    for _ in range(count):
        name, error = draw.choice([*PROBES]), draw.choice([Halt, KeyboardInterrupt, torch.OutOfMemoryError])
        where = draw.choice([*executions[name]])
        net, x = messy(), tokens()
        fault = breaking(net.get_submodule(where), draw.randint(1, executions[name][where]), error, draw.random() < 0.5)
        next(fault)
        before = state_of(net)
        try:
            PROBES[name](net, x)
        except BaseException as raised:
            assert caused_by(raised, error), (name, where)
        else:  # out of memory in a forward that several ablations share: they are run alone instead
            assert error is torch.OutOfMemoryError and name in ("attribute", "several"), (name, where)
        same(before, state_of(net))


def executed(name: str) -> Counter[str]:
    """How often a probe executes each module."""
    net, counts = messy(), Counter[str]()
    for path, module in net.named_modules():
        module.register_forward_pre_hook(lambda m, args, path=path: counts.update([path]))
    PROBES[name](net, tokens())
    return counts


def test_nothing_is_left_after_faults_anywhere() -> None:
    faults(40, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 5))
def test_nothing_is_left_after_two_thousand_faults(seed: int) -> None:
    faults(500, seed)


@pytest.mark.parametrize("error", [Halt, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_nothing_is_left_after_a_failing_forward(at: int, error: type[BaseException]) -> None:
    """The user's own `forward`, before and after it has called the model."""
    net, x = messy(), tokens()
    for first in (True, False):
        calls = [0]

        def forward(m: nn.Module, batch: Tensor, first: bool = first, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            v = None if first and calls[0] == at else m(batch)
            if calls[0] == at:
                raise error("from the user's forward")
            assert v is not None
            return v

        before = state_of(net)
        with pytest.raises(BaseException) as raised:
            fog_a.attribute(net, x, forward=forward, progress=False)
        assert caused_by(raised.value, error)
        same(before, state_of(net))


def test_nothing_is_left_of_a_gate_whose_body_fails() -> None:
    net, x = messy(), tokens()
    blocks = fog_a.find_blocks(net, x)
    before = state_of(net)
    for context in (fog_a.gate(blocks, 0), fog_a.gate(blocks, torch.zeros(3)), fog_a.tap(blocks)):
        with pytest.raises(Halt), context:
            raise Halt
        same(before, state_of(net))


def test_their_hooks_stay_and_run() -> None:
    net, x = messy(), tokens()
    seen: list[str] = []
    net.blocks[1].register_forward_hook(lambda m, args, out: seen.append("theirs"))
    before = state_of(net)
    fog_a.attribute(net, x, progress=False)
    same(before, state_of(net))
    assert seen
    seen.clear()
    net(x)
    assert seen == ["theirs"]


def test_a_hook_that_the_user_sets_during_a_probe_stays() -> None:
    net, x = messy(), tokens()
    blocks = fog_a.find_blocks(net, x)
    with fog_a.gate(blocks, 0.5):
        handle = net.blocks[0].register_forward_hook(lambda m, args, out: None)
    assert handle.id in net.blocks[0]._forward_hooks
    handle.remove()


def test_a_tap_left_open_sees_only_its_own_model() -> None:
    net, x = messy(), tokens()
    before = state_of(net)
    h = fog_a.tap(fog_a.find_blocks(net, x)).open()
    h.open()
    h.close()
    h.close()
    same(before, state_of(net))


def train(probed: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Twelve steps of a net with dropout, BatchNorm and three generators; probes between and inside the steps."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    net = Messy().train()
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=1e-2), []
    for step in range(12):
        x = tokens(seed=step) + 0.1 * torch.randn(3, 5, 4)
        if probed and step % 3 == 0:
            fog_a.attribute(net, x, progress=False)
        loss = (net(x) - x).square().mean()
        if probed and step % 4 == 1:
            fog_a.find_blocks(net, x)  # between forward and backward
        loss.backward()
        if probed and step % 5 == 2:
            fog_a.attribute(net, x, progress=False)  # while gradients wait for the optimizer
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        losses.append(loss.item())
    return losses, {k: v.clone() for k, v in net.state_dict().items()}


def test_training_with_and_without_probes_is_bit_identical() -> None:
    losses, state = train(probed=False)
    probed_losses, probed_state = train(probed=True)
    assert losses == probed_losses and len(set(losses)) == len(losses)
    assert all(torch.equal(state[k], probed_state[k]) for k in state)
