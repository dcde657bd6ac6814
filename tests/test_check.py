"""`fog_a.check`: ideal networks of every convention are confirmed where declared, and named where not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fog_a
from fog_a.flows.convention import Convention
from fog_a.flows.paths import path_of

FRAMES, WIDTH = 6, 4

CONVENTIONS: dict[str, dict[str, Any]] = {
    "flow matching": {},
    "minRF": {"time": lambda t: 1 - t},
    "SD3": {"time": lambda t: 1000 * (1 - t)},
    "against its time": {"time": lambda t: 1 - t, "target": "-v"},
    "clean": {"target": "x0"},
    "noise in [0, 1000]": {"target": "eps", "time": lambda t: 1000 * (1 - t)},
    "GVP": {"path": "cosine"},
    "Stable Audio": {"path": "cosine", "target": "v_prediction", "time": lambda t: 1 - t},
    "DDPM": {"path": "ddpm", "target": "eps"},
    "DDPM's v": {"path": "ddpm", "target": "v_prediction"},
}


class Ideal(nn.Module):
    """The best predictor of data that are ±1 throughout a sample, in one convention: E[x_1|x_t] = tanh(α Σ x_t/σ²).

    Its three blocks change nothing but in the last bits.
    """

    def __init__(self, path: str = "linear", target: Any = "v", time: Any = None) -> None:
        super().__init__()
        self.convention = Convention(path_of(path), target, time)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x_t = x_t + 1e-4 * block(x_t)
        at = self.convention.flow_time(t).clamp(0.01, 0.99).reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype)
        m = self.convention.path.mix(at)
        total = x_t.flatten(1).sum(1).reshape(at.shape)
        x1 = (m.alpha * total / m.sigma**2).tanh().expand_as(x_t)
        return self.convention.predicted((x_t - m.alpha * x1) / m.sigma, x1, at)[1]


def signs(count: int = 16) -> Tensor:
    torch.manual_seed(0)
    return (torch.randint(0, 2, (count, 1, 1)) * 2.0 - 1.0).expand(-1, FRAMES, WIDTH).contiguous()


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_right_convention_fits_best(name: str) -> None:
    options = CONVENTIONS[name]
    net = Ideal(**options)
    check = fog_a.check(fog_a.wrap(net, x="x_t", t="t", **options), {"x1": signs()})
    assert check.ok and check.declared is not None and check.declared.mean < 0.5
    assert "declared convention fits best" in check.verdict or "fits as well as" in check.verdict
    assert check.fits[1].mean >= check.declared.mean - 0.01
    assert len(check.fits) > 11


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "flow matching"])
def test_the_wrong_convention_is_named(name: str) -> None:
    net = Ideal(**CONVENTIONS[name])
    check = fog_a.check(fog_a.wrap(net, x="x_t", t="t"), {"x1": signs()})
    assert not check.ok
    assert check.verdict.startswith("Another convention fits better")
    right = fog_a.wrap(net, x="x_t", t="t", **CONVENTIONS[name])
    best, declared = check.best, fog_a.check(right, {"x1": signs()}).declared
    assert best is not None and declared is not None and abs(best.mean - declared.mean) < 0.02
    for option in CONVENTIONS[name]:
        assert f"{option}=" in check.verdict


def test_the_text_is_the_table() -> None:
    check = fog_a.check(fog_a.wrap(Ideal(), x="x_t", t="t"), {"x1": signs(20)})
    text = str(check)
    assert repr(check) == text
    lines = text.splitlines()
    assert lines[0] == "Ideal: 16 of 20 samples"
    assert lines[2].startswith("  error (1: no better than x_t)") and "t=0.20" in lines[2]
    assert lines[3].startswith('  declared: path="linear", target="v"')
    for words in ("time=lambda t: 1 - t", "time=lambda t: 1000 * t", 'target="eps"', 'target="x0"', 'path="cosine"'):
        assert words in text
    assert "predicting zero" in text and "predicting the batch mean" in text
    assert "blocks   3 (blocks 3)" in text
    assert "the same bits" in text and "weights float32; velocity float32" in text and "cpu" in text


def test_an_untrained_network_fits_nothing() -> None:
    class Blank(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return 0.1 * x_t.flip(1)

    check = fog_a.check(fog_a.wrap(Blank(), x="x_t", t="t"), {"x1": torch.randn(16, FRAMES, WIDTH)})
    assert not check.ok and check.verdict.startswith("Nothing fits: the best of")


def test_an_inverted_mask_is_named() -> None:
    real = (torch.arange(FRAMES) < torch.tensor([3, 4] * 8)[:, None])[..., None]
    x1 = torch.where(real, signs(), torch.randn(16, FRAMES, WIDTH))  # garbage in the padding

    class Masked(Ideal):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return torch.where(real[: len(x_t)], super().forward(torch.where(real[: len(x_t)], x_t, 0.0), t), 5.0)

    flow = fog_a.wrap(Masked(), x="x_t", t="t")
    right = fog_a.check(flow, {"x1": x1, "mask": real[..., 0]})
    assert right.ok and right.notes["padding"] == "does not reach the velocity of real frames"
    wrong = fog_a.check(flow, {"x1": x1, "mask": ~real[..., 0]})
    assert not wrong.ok and "type batch['mask'] = ~batch['mask']" in wrong.verdict
    assert "looks inverted" in wrong.notes["mask"] and "looks" not in right.notes["mask"]


def test_what_misleads_is_told() -> None:
    class Leaky(Ideal):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return super().forward(x_t, t) + 0.01 * x_t.mean(1, keepdim=True) * torch.rand(1)

    mask = torch.arange(FRAMES) < torch.tensor([3, 6] * 8)[:, None]
    check = fog_a.check(fog_a.wrap(Leaky(), x="x_t", t="t"), {"x1": signs() * mask[..., None], "mask": mask})
    assert check.notes["padding"].startswith("leaks: other numbers in the padding move the velocity of real frames by")
    assert check.notes["repeats"].startswith("the network draws random numbers in eval mode")


def test_nothing_is_left_behind() -> None:
    net = Ideal().train()
    state, generator = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    x1 = signs()
    generator = torch.get_rng_state()
    fog_a.check(fog_a.wrap(net, x="x_t", t="t"), {"x1": x1})
    assert net.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_network_of_whole_steps_is_checked() -> None:
    class Table(Ideal):
        def __init__(self) -> None:
            super().__init__(path="ddpm", target="eps")
            self.table = nn.Embedding(1000, 1)

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return super().forward(x_t, t) + 1e-6 * self.table(t)[:, None]

    check = fog_a.check(fog_a.wrap(Table(), x="x_t", t="t", path="ddpm", target="eps"), {"x1": signs()})
    assert check.ok and check.declared is not None and check.declared.mean < 0.5


def test_what_is_no_flow_is_refused() -> None:
    with pytest.raises(fog_a.FogError, match=r"check reads a wrapped flow, got Ideal. Type fog_a.check\(fog_a.wrap\("):
        fog_a.check(Ideal(), {"x1": signs()})  # pyright: ignore[reportArgumentType]
