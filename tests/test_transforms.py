"""Operations that hold functions (flex_attention, torch.cond), and forwards that transform a network (torch.func)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import fog_a
from fog_a.blocks.untouched import eager

D = 16


def flex(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + (i - j))


def chosen(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return torch.cond(q.mean() > 0, lambda q, k, v: q * k + v, lambda q, k, v: q * k - v, (q, k, v))


def closure(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return torch.cond(q.mean() > 0, lambda: q * k + v, lambda: q * k - v, ())


class Layer(nn.Module):
    def __init__(self, mix: Callable[..., Any]) -> None:
        super().__init__()
        self.mix, self.norm, self.qkv, self.out = mix, nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, 1, D)).permute(2, 0, 3, 1, 4).contiguous()
        return h + self.out(self.mix(q, k, v).squeeze(1))


class Within(nn.Module):
    """Its whole update is computed by a function that `torch.cond` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))

    def forward(self, h: Tensor) -> Any:
        return torch.cond(h.sum() < 1e9, lambda: h + self.f(h), lambda: h * 1, ())


class Plain(Within):
    def forward(self, h: Tensor) -> Tensor:
        return h + self.f(h)


def stack(make: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, D), *(make() for _ in range(3)), nn.Linear(D, 8)).eval()


def assert_exact(net: nn.Sequential, x: Tensor, forward: Callable[..., Any] | None = None) -> None:
    """Scores as by hand: each layer in turn gives back what it gets."""
    scores = fog_a.attribute(net, x, forward=forward, progress=False)
    run = forward or (lambda net, x: net(x))
    with torch.no_grad(), eager():
        v = run(net, x)
        by_hand = []
        for i in (1, 2, 3):
            kept, net[i] = net[i], nn.Identity()
            by_hand.append(((run(net, x) - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)).mean())
            net[i] = kept
    assert scores.layers == ("1", "2", "3")
    torch.testing.assert_close(torch.tensor(scores.mean()), torch.stack(by_hand).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mix", [flex, chosen, closure])
def test_operations_that_hold_functions(mix: Callable[..., Any]) -> None:
    assert_exact(stack(lambda: Layer(mix)), torch.randn(2, 5, 8))


def test_a_layer_computed_by_a_function_that_an_operation_holds() -> None:
    net, x = stack(Within), torch.randn(2, 5, 8)
    assert_exact(net, x)
    assert fog_a.find_blocks(net, x).coverage.summary == "3 updates: 3 closed by 3 blocks"


def derivative(net: nn.Module, x: Tensor) -> Any:
    return torch.func.jvp(net, (x,), (x.sin(),))[1]


def gradient(net: nn.Module, x: Tensor) -> Any:
    return torch.func.grad(lambda z: net(z).square().sum())(x)


def by_sample(net: nn.Module, x: Tensor) -> Any:
    return torch.func.vmap(lambda z: net(z[None])[0])(x)


def ensemble(net: nn.Module, x: Tensor) -> Any:
    weights = {name: torch.stack([p, 0.9 * p]) for name, p in net.named_parameters()}
    return torch.func.vmap(lambda w: torch.func.functional_call(net, w, (x,)), out_dims=1)(weights)


class Adding(nn.Module):
    """The parent adds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D)) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = h + layer(h)
        return h


def test_sums_of_a_derivative_are_named_as_such() -> None:
    torch.manual_seed(0)
    net, x = Adding().eval(), torch.randn(2, 5, D)
    coverage = fog_a.find_blocks(net, x, forward=derivative).coverage
    assert coverage.open and all("a sum of torch.func's derivative" in row.reason for row in coverage.open)
    assert coverage.passing == () and "torch.func" not in str(fog_a.find_blocks(net, x).coverage)


@pytest.mark.parametrize("forward", [derivative, gradient, by_sample, ensemble])
@pytest.mark.parametrize("tokens", [5, 1024])
def test_forwards_that_transform_the_network(forward: Callable[..., Any], tokens: int) -> None:
    assert_exact(stack(Plain), torch.randn(3, tokens, 8), forward)


def test_what_is_compiled_inside_a_gate_is_compiled_afterwards() -> None:
    """In a process that has compiled nothing yet."""
    script = """
import sys, torch, fog_a
from torch import nn
layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
net, x = nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False).eval(), torch.randn(2, 3, 8)
blocks, compile, ran = fog_a.find_blocks(net, x), torch.compile, []
assert "torch._dynamo" not in sys.modules
with fog_a.gate(blocks, 0), torch.no_grad():
    other = torch.compile(lambda x: x + 1, backend=lambda graph, inputs: ran.append(1) or graph.forward)
    assert torch.equal(other(x), x + 1) and not ran
assert torch.compile is compile and torch.equal(other(x), x + 1) and ran
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
