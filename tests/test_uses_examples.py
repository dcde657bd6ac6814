"""The examples of uses, small: they run, and what they print is computed from what they measured."""

from __future__ import annotations

import argparse
import importlib
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import Net, tokens

import fog_a

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES / "uses")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_the_published_tables(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    validation = example("validation")
    exact, taylor = validation.published("Llama-2-7b-hf")
    assert len(exact) == 32 and exact[0] > 19000 and taylor.argmin() == 0
    assert len(validation.models()) == 8
    validation.show_published()
    assert "gemma-7b_yesBOS        28       0.71   0.47            5 of  7             4.6%" in (
        out := capsys.readouterr().out
    )
    assert "of the 9 that ShortGPT removes" in out
    with pytest.raises(SystemExit, match=r"is not in shortened_llm\.csv, which has"):
        validation.published("gpt2")


def test_a_language_model_beside_them(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    validation, config = example("validation"), {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, num_attention_heads=2, **config)).eval()
    ids = [torch.randint(20, (n,)) for n in (7, 9)]
    validation.llm(model, ids, None)
    out = capsys.readouterr().out
    assert "model.layers.2" in out and "rank correlation of contribution and perplexity" in out
    with pytest.raises(SystemExit, match="has 18 blocks, this model 3"):
        validation.llm(model, ids, "gemma-2b_yesBOS")


def test_a_pipelines_own_calls(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    validation = example("validation")

    class FluxTransformer2DModel(Net):
        pass

    net = FluxTransformer2DModel(3).eval()

    class Pipe:
        transformer = net

        def __call__(self, prompt: str, num_inference_steps: int, output_type: str) -> None:
            for step in range(num_inference_steps):
                net(tokens(2, seed=step))

    validation.SKIPPED["FluxTransformer2DModel"] = {"somebody": ["blocks.1"]}
    scores = validation.diffusion(Pipe(), ["a", "b"], steps=2)
    assert scores.values.shape == (8, 1, 3) and "somebody: blocks.1 is rank" in capsys.readouterr().out
    assert not net._forward_pre_hooks


def test_curves_and_halves_of_a_trained_net(example: Any) -> None:
    trained = example("trained_nets")
    torch.manual_seed(0)
    model, x = Net(4).eval(), tokens(16)
    with torch.no_grad():
        whole = model(x)
    net = trained.Net(model, x, lambda: float((model(x) - whole).detach().norm()), "distance")
    scores = fog_a.attribute(model, x)
    result = trained.measured(net, most=2, level="layer")
    lines = result["with layers closed"]
    assert set(lines) == {"least contribution", "most contribution", "first", "last", "spread evenly"}
    assert all(errors[0] == 0 < errors[1] for errors in lines.values())
    assert lines["least contribution"][1] <= lines["most contribution"][1]
    assert result["layers"] == list(scores.layers)
    assert lines["least contribution"][1] == min(result["without one layer"])
    assert -1 <= result["halves: rank correlation"] <= 1 and 0 <= result["halves: same least layer"] <= 1
    assert f"blocks.0{' ' * 24} {scores.mean()[0]:.3f}" in trained.summary(result)
    assert trained.spoken("It's 85, right?") == "it s eight five right" and trained.spoken("...") == "-"
    trained.picture(json.loads(json.dumps(result)))


@pytest.mark.slow
def test_guidance_and_caches_on_the_bundled_model(example: Any) -> None:
    guided = example("skip_guidance")
    run = guided.measure(0, layers=2, steps=2, held_out=2, scales=[1.0])
    assert set(run["guided"]) == {"blocks.0", "blocks.1"} and "speech: without guidance" in guided.summary([run], [1.0])
    guided.picture([run], [1.0])
    cached = example("cache_schedule")
    run = cached.measure(0, layers=2, steps=2, held_out=2, shares=[0.5])
    assert run["by drift"][0][0] <= 0.5 and np.array(run["compute"]).shape == (16, 2)
    cached.picture([run])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")
def test_f5_tts_with_fewer_layers(example: Any) -> None:
    import flow_cases

    flow_cases.import_f5()
    pruning: types.ModuleType = example("prune_f5_tts")
    a = argparse.Namespace(depth=4, keep=2, steps=3, tune=2, clips=2)
    run = pruning.measure(0, a)
    assert {len(x) for x in run.values()} == {4} and all(np.isfinite(x).all() for x in run.values())
    made = pruning.numbers(run)
    assert made["changes"].keys() == {f"{arm}, {when}" for arm in pruning.ARMS for when in ("at once", "tuned")}
    figure = pruning.picture([made, made])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["seed 0", "seed 1"]
