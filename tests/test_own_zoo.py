"""Our own zoo: in each model exactly its layers are found, and their scores are those of a forward written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from own_zoo import CASES, NEGATIVES, Case

import fog_a

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def within(part: str, branch: str) -> bool:
    """A part is the labelled module, or lies around it or inside it."""
    return any(part == b or part.startswith(b + ".") or b.startswith(part + ".") for b in branch.split("|"))


def answers(block: fog_a.ResidualBlock, layer: str | tuple[str, ...]) -> bool:
    if isinstance(layer, str):
        return block.name == layer
    return len(block.parts) == len(layer) and all(map(within, block.parts, layer))


@each_case
def test_finds_the_layers_and_nothing_else(case: Case) -> None:
    blocks = fog_a.find_blocks(case.model(), case.batch())
    assert len(blocks) == len(case.layers), blocks.names
    wrong = [(b.name, b.parts, layer) for b, layer in zip(blocks, case.layers, strict=True) if not answers(b, layer)]
    assert not wrong
    assert len(set(blocks.names)) == len(blocks), "a name stands for one block"


@each_case
def test_scores_are_those_of_the_forward_without_the_layer(case: Case) -> None:
    model, batch = case.model(), case.batch()
    scores = fog_a.attribute(model, batch, blocks=fog_a.find_blocks(model, batch), progress=False)
    with torch.no_grad():
        v = model(batch.clone())
        gone = [model.without(k, batch.clone()) for k in range(len(case.layers))]
    want = [(v_k - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1) for v_k in gone]
    np.testing.assert_allclose(scores.values[:, 0, :], torch.stack(want, 1).numpy(), rtol=1e-5, atol=1e-6)
    assert scores.values.min() > 1e-3, "each of these layers matters"


@each_case
def test_gate_one_changes_nothing_and_gate_zero_removes(case: Case) -> None:
    model, batch = case.model(), case.batch()
    blocks = fog_a.find_blocks(model, batch)
    with torch.no_grad():
        v = model(batch.clone())
        for k in range(len(blocks)):
            want = model.without(k, batch.clone())
            with fog_a.gate(blocks[k : k + 1], 1.0):
                assert torch.equal(model(batch.clone()), v)
            with fog_a.gate(blocks[k : k + 1], 0.0):
                torch.testing.assert_close(model(batch.clone()), want)
                torch.testing.assert_close(model(batch.clone()), want, msg="the second forward under one gate")


@pytest.mark.parametrize("case", NEGATIVES, ids=lambda case: case.name)
def test_nothing_is_found_where_nothing_is_residual(case: Case) -> None:
    with pytest.raises(fog_a.NoBlocksFound):
        fog_a.find_blocks(case.model(), case.batch())
