"""how=fog_a.NNsight() agrees with our own hooks, and refuses what nnsight cannot do."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import flow_cases
import pytest
import torch
from own_zoo import CASES as ZOO
from torch import Tensor, nn

import fog_a
from fog_a.attributing.nnsight import Envoys
from fog_a.blocks.untouched import rng_state
from fog_a.errors import MissingDependency, NotResidual, Unsupported

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def nnsight() -> Any:
    """Imported late, and after what beartype decorates: nnsight puts `save` on every object, and beartype stumbles."""
    if importlib.util.find_spec("voicebox_pytorch") is not None:
        flow_cases.import_voicebox()
    return pytest.importorskip("nnsight")


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


class Parents(nn.Module):
    """No block module: the parent adds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(8), nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.GELU())])
            for _ in range(3)
        )

    def forward(self, x: Tensor, c: Tensor) -> dict[str, Tensor]:
        for norm, attn, ff in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = x + attn(norm(x)) * c
            x = x + ff(x)
        return {"sample": x}


class Twice(nn.Module):
    """One layer, executed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


@pytest.mark.parametrize("name", ["prenorm", "postnorm", "parents"])
def test_agrees_with_the_hooks(name: str, nnsight: Any) -> None:
    net = {"prenorm": lambda: encoder(norm_first=True), "postnorm": encoder, "parents": Parents}[name]()
    batch: Any = (torch.randn(3, 5, 8), torch.rand(3, 5, 1)) if name == "parents" else torch.randn(3, 5, 8)
    for gate in (0.0, 0.5):
        ours = fog_a.attribute(net, batch, how="loop", gate=gate)
        for model in (nnsight.NNsight(net), net):
            theirs = fog_a.attribute(model, batch, how=fog_a.NNsight(), gate=gate)
            assert theirs.layers == ours.layers
            torch.testing.assert_close(torch.tensor(theirs.values), torch.tensor(ours.values), rtol=0, atol=1e-5)
            assert theirs.info["strategy"] == "nnsight"


@pytest.mark.parametrize(
    "name", ["f5_dit", "f5_unett", "f5_mmdit", "voicebox", "matcha_cfm", "cosyvoice3", "sd3", "flux"]
)
@pytest.mark.filterwarnings("ignore")
def test_agrees_on_flows(name: str, nnsight: Any) -> None:
    case = flow_cases.CASES[name]()
    flow = fog_a.wrap(case.model, **case.options)
    ours = fog_a.attribute(flow, case.batch, times=2, how="loop")
    theirs = fog_a.attribute(flow, case.batch, times=2, how=fog_a.NNsight())
    torch.testing.assert_close(torch.tensor(theirs.values), torch.tensor(ours.values), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_agrees_on_our_zoo(case: Any, nnsight: Any) -> None:
    net, batch = case.model(), case.batch()
    ours = fog_a.attribute(net, batch, how="loop", progress=False)
    blocks = fog_a.find_blocks(net, batch).main
    if any(block.alone or any(point.times > 1 for point in block.gate_points) for block in blocks):
        with pytest.raises(Unsupported, match=r"envoy stands for one call|envoy is reached once, in order"):
            fog_a.attribute(nnsight.NNsight(net), batch, how=fog_a.NNsight(), progress=False)
    else:
        theirs = fog_a.attribute(nnsight.NNsight(net), batch, how=fog_a.NNsight(), progress=False)
        assert theirs.layers == ours.layers
        torch.testing.assert_close(torch.tensor(theirs.values), torch.tensor(ours.values), rtol=0, atol=1e-5)


def test_leaves_the_model_as_it_was(nnsight: Any) -> None:
    net, x = encoder().train(), torch.randn(2, 5, 8)
    state = torch.get_rng_state()
    fog_a.attribute(nnsight.NNsight(net), x, how=fog_a.NNsight())
    assert net.training and torch.equal(torch.get_rng_state(), state)
    with fog_a.gate(fog_a.find_blocks(net, x), 0):
        assert torch.equal(net.eval()(x), x)


def test_a_block_knows_its_envoy(nnsight: Any) -> None:
    net, x = encoder(), torch.randn(2, 5, 8)
    blocks, model = fog_a.find_blocks(net, x), nnsight.NNsight(net)
    assert blocks[1].envoy(model)._module is net.get_submodule("layers.1")
    with pytest.raises(NotResidual, match=r"'layers\.1' is no envoy of this NNsight: wrap the module"):
        blocks[1].envoy(nnsight.NNsight(nn.Linear(2, 2)))


def language_model(nnsight: Any) -> Any:
    """A tiny GPT-2 with a tokenizer of seven words: nothing is downloaded."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = "[PAD] [UNK] the cat sat on mat".split()
    table = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    table.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=table, pad_token="[PAD]", unk_token="[UNK]")
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=16, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return nnsight.LanguageModel(transformers.GPT2LMHeadModel(config), tokenizer=tokenizer)


def test_a_language_model_reads_text(nnsight: Any) -> None:
    model = language_model(nnsight)
    texts = ["the cat sat", "on the mat the cat"]
    theirs = fog_a.attribute(model, texts, how=fog_a.NNsight())
    assert theirs.layers == ("transformer.h.0", "transformer.h.1", "transformer.h.2")
    envoys = Envoys(model)
    for i, text in enumerate(texts):
        ours = fog_a.attribute(envoys.model, envoys.batch(text), how="loop")
        torch.testing.assert_close(torch.tensor(theirs.values[i]), torch.tensor(ours.values[0]), rtol=0, atol=1e-5)


def test_remote_is_passed_on_for_hub_models_and_refused_for_others(
    nnsight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unsupported, match="not a private TransformerEncoder"):
        fog_a.attribute(encoder(), torch.randn(2, 5, 8), how=fog_a.NNsight(remote=True))
    model, asked = language_model(nnsight), []
    envoys = Envoys(model, remote=True)

    def trace(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.pop("remote", None))
        raise ConnectionError("offline")

    monkeypatch.setattr(envoys.traced, "trace", trace)
    with pytest.raises(ConnectionError):
        envoys._traced(((), {}, rng_state()))
    assert asked == [True]


def test_refusals(nnsight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="'layer' is called 2 times in one forward"):
        fog_a.attribute(Twice(), torch.randn(2, 5, 8), how=fog_a.NNsight())
    with torch.device("meta"):
        empty = encoder()
    with pytest.raises(Unsupported, match="load the weights, with dispatch=True"):
        Envoys(empty)
    monkeypatch.setitem(sys.modules, "nnsight", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fog-a\[nnsight\]'"):
        fog_a.attribute(encoder(), torch.randn(2, 5, 8), how=fog_a.NNsight())
