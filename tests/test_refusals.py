"""What a user may type by mistake is one FogError with what to type next, before the model has run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_flow import a_batch, a_flow
from small_nets import Net, tokens
from torch import nn

import fog_a
from fog_a.flows.noise import LAST_SEED, checked_seed


def attribute(*args: Any, **options: Any) -> fog_a.Scores:
    return fog_a.attribute(*args, progress=False, **options)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([tokens()[0], tokens()[1, :3]])


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a seed that torch cannot take": (
        lambda: attribute(Net(), tokens(), seed=2**70),
        r"seed= between .* smaller number",
    ),
    "a seed with a fraction": (lambda: attribute(Net(), tokens(), seed=1.5), r"seed= as a whole number, got 1\.5"),
    "a block by number": (lambda: attribute(Net(), tokens(), blocks=[1]), r"expected a block's name, got 1"),
    "blocks= as a number": (lambda: attribute(Net(), tokens(), blocks=1), r"expected a block's name, got 1"),
    "a gate on names": (lambda: fog_a.gate(["blocks.1"], 0), r"expected Blocks, got .*named\(\[names\]\)"),  # pyright: ignore[reportArgumentType]
    "a gate on one block": (
        lambda: fog_a.gate(fog_a.find_blocks(Net(), tokens())[1], 0),  # pyright: ignore[reportArgumentType]
        r"expected Blocks, got .*a slice",
    ),
    "a tap on a model": (lambda: fog_a.tap(Net()), r"expected Blocks, got"),  # pyright: ignore[reportArgumentType]
    "a lazy layer": (lambda: attribute(nn.Sequential(nn.LazyLinear(4), Net()), tokens()), "Run one forward first"),
    "a sparse batch": (lambda: attribute(Net(), tokens().to_sparse()), r"Type x\.to_dense\(\)"),
    "a nested batch": (lambda: attribute(Net(), nested()), "to_padded_tensor"),
    "a batch on meta": (lambda: attribute(Net(), tokens().to("meta")), "Give a batch of real data"),
    "a model on meta": (lambda: attribute(Net().to("meta"), tokens()), "Load the weights"),
    "a forward that is no function": (lambda: attribute(Net(), tokens(), forward=3), "as a function.*got 3.*output_of"),
    "a checkpoint that is no path": (lambda: attribute(Net(), tokens(), checkpoint=3), "the path of a folder, got 3"),
    "an option of no adapter": (
        lambda: fog_a.wrap(nn.Linear(4, 4), x="input", t=None, pth="linear"),
        r"no option 'pth': did you mean path",
    ),
    "a function for a network": (
        lambda: fog_a.wrap(lambda x_t, t: x_t, x="x_t", t="t"),
        r"expected a network, an nn\.Module, got a function",
    ),
    "scores joined with a number": (
        lambda: attribute(Net(), tokens()).concat(3),  # pyright: ignore[reportArgumentType]
        r"expected Scores, got a int",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_is_refused_with_what_to_type(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(fog_a.FogError, match=message):
        call()


def test_a_state_of_another_k_is_refused() -> None:
    flow = a_flow()
    saved = fog_a.AGREPA(flow, 6, k=1, batch=a_batch())
    other = fog_a.AGREPA(flow, 6, k=2, batch=a_batch())
    with pytest.raises(fog_a.ShapeMismatch, match=r"state of 2 slots for 'all', got one of 1.*AGREPA\(\.\.\., k=1\)"):
        other.load_state_dict(saved.state_dict())


def test_a_state_of_other_layers_is_refused() -> None:
    flow, batch = a_flow(), a_batch()
    saved = fog_a.AGREPA(flow, 6, ["blocks.1"], batch=batch).state_dict()
    fog_a.AGREPA(flow, 6, ["blocks.1"], batch=batch).load_state_dict(saved)
    open_to_any = fog_a.AGREPA(flow, 6, k=1, batch=batch)
    open_to_any.load_state_dict(saved)
    assert open_to_any.selection is not None and open_to_any.selection.layers == ("blocks.1",)
    other = fog_a.AGREPA(flow, 6, ["blocks.2"], batch=batch)
    with pytest.raises(fog_a.FogError, match=r"aligns .*blocks\.1.*selection= names .*blocks\.2.*leave selection= out"):
        other.load_state_dict(saved)
    assert other.selection is not None and other.selection.layers == ("blocks.2",)


@pytest.mark.parametrize("seed", [0, -3, np.int64(5), LAST_SEED])
def test_seeds_that_are_taken(seed: Any) -> None:
    assert checked_seed(seed) == int(seed)
    assert attribute(Net(), tokens(), seed=seed).values.shape == (3, 1, 3)
