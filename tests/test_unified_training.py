"""Training through Accelerate: goes on where it was to the bit, and refuses what is not its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fog_a.errors import BadArgument, BadOutput, BadScores, Unsupported
from unified_audio.ast_tokenizer import ASTConfig, ASTTokenizer
from unified_audio.training import Recipe, fit

state = pytest.importorskip("accelerate.state")


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate keeps one precision per process."""
    yield
    state.AcceleratorState._reset_state(reset_partial_state=True)


def _net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Dropout(0.3), nn.Linear(width, 1))


def _batch(number: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(number))


def _loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x)[:, 0] - x.sum(1)).square().mean()


RECIPE = Recipe(steps=12, lr=1e-2, average=0.9)


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole, killed = _net(), _net()
    straight = fit(whole, _loss, _batch, RECIPE, tmp_path / "a", cpu=True)
    fit(killed, _loss, _batch, RECIPE, tmp_path / "b", cpu=True, stop=5)
    torch.manual_seed(99)  # what happened in between does not matter
    again = _net()
    resumed = fit(again, _loss, _batch, RECIPE, tmp_path / "b", cpu=True)
    assert resumed.losses == straight.losses and len(straight.losses) == 12
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for k, v in straight.average.values.items():
        assert torch.equal(v, resumed.average.values[k])
    assert fit(_net(), _loss, _batch, RECIPE, tmp_path / "b", cpu=True).losses == straight.losses
    assert list((tmp_path / "a" / "tensorboard").iterdir())


def test_accumulated_batches_are_one_large_batch(tmp_path):
    def still() -> nn.Module:
        return _net().eval()

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = still()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net.eval()(x)

    small, large = Still(), Still()
    fit(small, _loss, _batch, Recipe(steps=3, accumulation=2), tmp_path / "a", cpu=True)
    both = lambda n: torch.cat([_batch(2 * n), _batch(2 * n + 1)])  # noqa: E731
    fit(large, _loss, both, Recipe(steps=3), tmp_path / "b", cpu=True)
    for a, b in zip(small.state_dict().values(), large.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_training_learns_in_bf16_too(tmp_path):
    made = fit(_net(32), _loss, _batch, Recipe(steps=60, lr=3e-2, precision="bf16"), tmp_path, cpu=True)
    assert sum(made.losses[-10:]) < 0.7 * sum(made.losses[:10])


def test_the_tokenizer_trains(tmp_path):
    torch.manual_seed(0)
    tokenizer = ASTTokenizer(ASTConfig.tiny(input_dim=12, vocab=8, hidden_dim=16))
    x = torch.randn(4, 10, 12)
    mask = torch.ones(4, 10, dtype=torch.bool)
    made = fit(tokenizer, lambda m, b: m(*b).loss, lambda n: (x, mask), Recipe(steps=25, lr=3e-3), tmp_path, cpu=True)
    assert min(made.losses[-5:]) < made.losses[0] and len(made.losses) == 25


def test_training_refuses(tmp_path):
    fit(_net(), _loss, _batch, RECIPE, tmp_path, cpu=True, stop=2)
    with pytest.raises(Unsupported, match="another configuration: weights"):
        fit(_net(9), _loss, _batch, RECIPE, tmp_path, cpu=True)
    with pytest.raises(Unsupported, match=r"lr \(there 0.01, here 0.1\)"):
        fit(_net(), _loss, _batch, Recipe(steps=12, lr=0.1, average=0.9), tmp_path, cpu=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a fi")
    with pytest.raises(BadScores, match="delete it to train anew"):
        fit(_net(), _loss, _batch, RECIPE, tmp_path, cpu=True)
    with pytest.raises(BadOutput, match="the loss is nan at step 0"):
        fit(_net(), lambda m, b: _loss(m, b) * torch.nan, _batch, RECIPE, tmp_path / "nan", cpu=True)
    with pytest.raises(BadArgument, match="at least one step"):
        Recipe(steps=0)
