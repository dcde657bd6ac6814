"""Replay: the velocity is taken inside the user's own training forward, which draws noise, time and dropout itself.

Held to a loop written by hand on the real F5-TTS, whose forward draws from torch and from Python's `random`.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import flow_cases
import numpy as np
import pytest
import torch
from torch import Tensor

import fog_a
from fog_a.errors import BadBatch, BadOutput, UnknownBlock

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")


def train_forward(model: Any, batch: Any) -> Tensor:
    """The forward of `f5_tts.model.Trainer`: a loss, nothing else."""
    return model(batch["mel"].permute(0, 2, 1), text=batch["text"], lens=batch["mel_lengths"])[0]


def by_hand(model: Any, batch: Any, seed: int) -> Tensor:
    """What the network gives out in one training forward, every generator at `seed`."""
    torch.manual_seed(seed)
    random.seed(seed)
    out: list[Tensor] = []
    handle = model.transformer.register_forward_hook(lambda module, args, output: out.append(output))
    with torch.no_grad():
        train_forward(model.eval(), batch)
    handle.remove()
    return out[0]


@pytest.mark.parametrize("kind", ["f5_dit", "f5_dit_checkpointed", "f5_unett", "f5_mmdit"])
def test_the_same_random_numbers_for_every_ablation(kind: str) -> None:
    case = flow_cases.CASES[kind]()
    model = case.model.train()
    model.audio_drop_prob = model.cond_drop_prob = 0.5  # Python's coin decides what the network sees
    names = [f"transformer.{name}" for name in case.blocks]
    seeds = range(4)
    for seed in seeds:
        scores = fog_a.attribute(
            model, case.batch, forward=fog_a.output_of("transformer", train_forward), blocks=names, seed=seed
        )
        v = by_hand(copy.deepcopy(model), case.batch, seed)
        for k, name in enumerate(case.blocks):
            with flow_cases.closed_copy(case, name) as closed:
                v_k = by_hand(closed.model, case.batch, seed)
            want = (v_k - v).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
            np.testing.assert_allclose(scores.values[:, 0, k], want.numpy(), rtol=1e-5, atol=1e-6)
    assert model.training and all(m.training for m in model.transformer.modules())
    coins = [random.Random(seed).random() < 0.5 for seed in seeds]
    assert any(coins) and not all(coins)


def test_a_wrapped_flow_is_replayed_too() -> None:
    case = flow_cases.CASES["f5_dit"]()
    options: Any = dict(forward=fog_a.output_of("transformer", train_forward), seed=1)
    bare = fog_a.attribute(case.model, case.batch, blocks=[f"transformer.{n}" for n in case.blocks], **options)
    flow = fog_a.attribute(fog_a.wrap(case.model), case.batch, blocks=list(case.blocks), **options)
    np.testing.assert_allclose(flow.values[0], bare.values[0], rtol=1e-6)  # the others' padding is masked
    assert flow.times is None, "the forward draws its own"
    with pytest.raises(BadBatch, match=r"a forward= of your own has no time axis, so times= means nothing"):
        fog_a.attribute(fog_a.wrap(case.model), case.batch, times=2, **options)


def test_a_wrong_output_is_named() -> None:
    case = flow_cases.CASES["f5_dit"]()
    with pytest.raises(UnknownBlock, match=r"output_of\('net.transformer'\): no module of CFM; near: transformer"):
        fog_a.attribute(case.model, case.batch, forward=fog_a.output_of("net.transformer", train_forward))
    with pytest.raises(BadOutput, match=r"module 'mel_spec' was not called in this forward"):
        fog_a.attribute(case.model, case.batch, forward=fog_a.output_of("mel_spec", train_forward))
