"""The toy with planted importance: what each arm's loss reaches, what is planted, and the figure."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
planted = pytest.importorskip("planted")
nets = pytest.importorskip("planted_nets")

SMALL = nets.Setting(layers=4, width=6, tokens=3, channels=3, warmup=12, steps=8, batch=4, scarce=4, held_out=8)


def test_a_seed_does_not_depend_on_the_seeds_beside_it() -> None:
    one, two = (planted.train(SMALL, seeds, scarce=True, progress=False) for seeds in ([3], [5, 3]))
    for name in ("foga", "loss"):
        np.testing.assert_allclose(one[name][0], two[name][1], rtol=1e-4)


@pytest.mark.parametrize("way", [0, 1], ids=planted.WAYS)
def test_stream_reaches_all_updates_before_and_local_one(way: int) -> None:
    made, world, k = nets.Nets(SMALL, [0]), nets.World(SMALL, [0]), 2
    made.branch(1 + 2 * SMALL.layers)
    z = world.latents(0, scarce=False)
    x, t, _ = (a.repeat_interleave(1 + 2 * SMALL.layers, 0) for a in world.path(z, (7, 0)))
    _, tokens = planted.aligned(made, SMALL, x, t, 1)
    row = way * SMALL.layers + k
    tokens[row].square().sum().backward()
    grads = [block.update.outlet.weight.grad for block in made.blocks]
    reached = [bool(g is not None and g[1 + row].abs().sum() > 0) for g in grads]
    assert reached == ([True, True, True, False] if way == 0 else [False, False, True, False])
    others = [i for i in range(1 + 2 * SMALL.layers) if i != 1 + row]
    assert all(g is None or not g[others].any() for g in grads), "no other training"


def test_local_is_the_hand_written_reference() -> None:
    """1 − cos of h_{k−1} + f_k(h_{k−1}) with h_{k−1} cut off: the gradients of update k, and none else."""
    made, world, k = nets.Nets(SMALL, [0]), nets.World(SMALL, [0]), 1
    z = world.latents(0, scarce=False)
    x, t, _ = world.path(z, (7, 0))
    heads = planted.Heads(SMALL, [0])

    def far(tokens: torch.Tensor) -> torch.Tensor:
        every = tokens.new_zeros(2 * SMALL.layers, *tokens.shape[1:])
        rows = torch.cat([every[: SMALL.layers + k], tokens, every[SMALL.layers + k + 1 :]])
        return (1 - torch.nn.functional.cosine_similarity(heads(rows)[SMALL.layers + k], z[0], dim=-1)).mean()

    h = made.blocks[0](made.enter(x, t))
    far(planted.alone(made.blocks[k], h, torch.tensor([0]))).backward()
    got = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
    assert {n.split(".")[1] for n in got} == {str(k)}
    made.zero_grad()
    h = made.blocks[0](made.enter(x, t)).detach()
    far(h + made.blocks[k].update(h)).backward()
    for name, grad in got.items():
        torch.testing.assert_close(grad, dict(made.named_parameters())[name].grad)


def test_contribution_follows_what_is_planted_and_not_depth() -> None:
    """FoG-A of the warmed-up toy ranks layers by their planted scale."""
    setting = replace(SMALL, layers=6, warmup=40, steps=1)
    made = planted.train(setting, range(8), scarce=False, progress=False)
    scales = [np.random.default_rng((seed, 1)).permutation(6) for seed in range(8)]
    rho = [np.corrcoef(np.argsort(np.argsort(f)), s)[0, 1] for f, s in zip(made["foga"], scales, strict=True)]
    assert np.mean(rho) > 0.7
    depth = [np.corrcoef(np.argsort(np.argsort(f)), np.arange(6))[0, 1] for f in made["foga"]]
    assert abs(np.mean(depth)) < 0.5


def test_the_script_writes_numbers_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nets.Setting, "__init__", lambda self: None)
    monkeypatch.setattr(sys, "argv", ["planted", "--first", "7", "--seeds", "2", "--out", str(tmp_path / "toy")])
    for name, value in SMALL.__dict__.items():
        monkeypatch.setattr(nets.Setting, name, value)
    monkeypatch.setattr("dataclasses.asdict", lambda s: dict(SMALL.__dict__))
    runpy.run_path(str(Path(planted.__file__)), run_name="__main__")
    found = json.loads((tmp_path / "toy.json").read_text())
    assert found["seeds"] == [7, 8] and np.shape(found["scarce"]["local"]["benefit"]) == (2, 4)
    assert (tmp_path / "toy.png").stat().st_size > 10_000
    assert "much data, stream alignment: benefit" in capsys.readouterr().out
