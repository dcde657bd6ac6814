"""The register of adapters, `wrap`, the generic adapter and per-sample draws."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fog_a
from fog_a.errors import BadBatch, MissingDependency, ShapeMismatch, UnknownAdapter, Unsupported
from fog_a.flows import register as adapters
from fog_a.flows.dicts import samples_from, to_module
from fog_a.flows.frames import token_mask
from fog_a.flows.generic import GenericAdapter
from fog_a.flows.noise import content_ids, noise, spans, uniform
from fog_a.flows.register import adapter_names, adapter_table, get_adapter
from fog_a.flows.samples import Samples
from fog_a.flows.wrapping import wrap


class Net(nn.Module):
    """v = W x_t + t + c."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        v = self.linear(x_t) + t.reshape(-1, *[1] * (x_t.ndim - 1))
        return v if c is None else v + c


class Masked(Net):
    """Takes the mask too."""

    def forward(self, x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore
        return super().forward(x_t, t) * mask[..., None]


class Theirs(fog_a.Flow):
    """An adapter of a third party's: only what it must have."""

    def __init__(self, model: Any, scale: float = 1.0) -> None:
        super().__init__(model)
        self.scale = scale

    @staticmethod
    def matches(model: object) -> bool:
        return type(model).__name__ == "Foreign"

    def velocity(self, batch: Any, t: Any, seed: int = 0) -> Tensor:
        return self.module(batch["x1"], torch.as_tensor(t)) * self.scale

    def samples(self, batch: Any) -> Samples:
        return samples_from(batch, batch["x1"])


class Foreign(Net):
    """A model that only `Theirs` knows."""


class Broken:
    """A plugin whose `matches` fails."""

    @staticmethod
    def matches(model: object) -> bool:
        raise RuntimeError("spam")


def register(monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    """Installed entry points, besides the real ones."""
    real = importlib.metadata.entry_points
    extra = [importlib.metadata.EntryPoint(name, value, adapters.GROUP) for name, value in entries.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [*real(group=group), *extra])


# ---------------------------------------------------------------- the base class


def test_a_subclass_lacking_a_method_is_refused_when_it_is_made() -> None:
    class NoSamples(fog_a.Flow):
        def velocity(self, batch: Any, t: Any, seed: int = 0) -> Tensor:
            return batch

    kind: Any = NoSamples
    text = r"NoSamples is no adapter yet: it lacks samples\. .* velocity\(self, batch"
    for make in (lambda model: kind(model), lambda model: wrap(model, kind)):
        with pytest.raises(Unsupported, match=text):
            make(Net())
    with pytest.raises(Unsupported, match="it lacks samples and velocity"):
        type("Nothing", (fog_a.Flow,), {})(Net())


def test_a_class_that_is_no_flow_is_refused() -> None:
    class Duck:
        def velocity(self, batch: Any, t: Any, seed: int = 0) -> Tensor:
            return batch

    for adapter in (Duck, Duck()):
        with pytest.raises(Unsupported, match=r"Duck is no adapter: expected a subclass of fog_a\.Flow"):
            wrap(Net(), adapter)


def test_two_methods_are_enough() -> None:
    flow, batch = Theirs(Net()), {"x1": torch.ones(2, 3, 4)}
    samples = flow.samples(batch)
    assert flow.interface(batch) is None and repr(flow) == "Theirs(Net)"
    h, mask = flow.tokens(torch.ones(2, 5, 3, 3), None, samples)  # pyright: ignore[reportArgumentType]
    assert h.shape == (2, 9, 5) and mask is None
    with pytest.raises(Unsupported, match=r"Theirs has no loss.* Define loss\(self, batch\)"):
        flow.loss(batch)


def test_the_grid_of_times() -> None:
    flow = Theirs(Net())
    assert flow.grid(2) == flow.grid(np.int64(2)) == (0.25, 0.75) and len(flow.grid(None)) == 8  # pyright: ignore
    with pytest.raises(
        BadBatch, match=r"a number of midpoints or a list .* got 0\.5\. For one time type times=\[0\.5\]"
    ):
        flow.grid(0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadBatch, match="at least one time, got times=0"):
        flow.grid(0)


def test_a_bare_module_is_a_flow() -> None:
    net, x = nn.Linear(3, 2), torch.ones(4, 3)
    flow = fog_a.BareFlow(net, domains=["a", "b", "a", "b"])
    assert torch.equal(flow.velocity(x), net(x)) and torch.equal(flow.velocity(x, 0.3, 5), net(x))
    assert flow.grid(None) == (None,) and flow.samples_of(x, (4, 2), start=6).ids == ("6", "7", "8", "9")
    assert flow.samples_of(x, (4, 2)).domains == ("a", "b", "a", "b") and len(flow.samples(x)) == 4
    with pytest.raises(BadBatch, match="a bare module's batch cannot be divided: wrap the model"):
        flow.samples(x).rows([0])
    assert fog_a.BareFlow(net, lambda m, b: m(2 * b)).velocity(x).equal(net(2 * x))


# ---------------------------------------------------------------- the register


def test_ours_are_registered() -> None:
    assert {"generic", "f5_tts", "voicebox", "cosyvoice", "matcha", "flow_matching", "diffusers"} <= set(
        adapter_names()
    )


def test_by_class_name_path_class_and_object(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, theirs=f"{__name__}:Theirs")
    model = Foreign()
    for given in (None, "theirs", f"{__name__}:Theirs", Theirs, Theirs(model)):
        flow = wrap(model, given)
        assert type(flow).__name__ == "Theirs" and flow.model is model and flow.module is model
    assert wrap(model, "theirs", scale=2.0).scale == 2.0  # pyright: ignore[reportAttributeAccessIssue]
    assert wrap(flow) is flow
    with pytest.raises(Unsupported, match=r"options \(scale\) are for an adapter's class"):
        wrap(model, Theirs(model), scale=2.0)


def test_a_third_party_goes_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, generic_two=f"{__name__}:Theirs", matcha=f"{__name__}:Theirs")
    assert type(wrap(Foreign())).__name__ == "Theirs"
    assert get_adapter("matcha").__module__ == __name__


def test_a_broken_plugin_fails_by_name_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, spoiled="no_such_module:Nothing", failing=f"{__name__}:Broken", theirs=f"{__name__}:Theirs")
    assert type(wrap(Foreign())).__name__ == "Theirs"
    with pytest.raises(MissingDependency, match=r"adapter 'spoiled' \(no_such_module:Nothing\) does not import"):
        wrap(Foreign(), "spoiled")
    with pytest.raises(UnknownAdapter, match=r"Adapter 'failing' is broken: spam.*Adapter 'spoiled' is broken"):
        wrap(Net())
    problems = {row["name"]: row["problem"] for row in adapter_table()}
    assert "does not import" in str(problems["spoiled"]) and problems["f5_tts"] is None


def test_unknown_class_names_the_nearest_and_the_generic_way() -> None:
    class VoiceboxNet(Net):
        pass

    text = r'no adapter knows .*VoiceboxNet\. Registered: cosyvoice, .*Nearest: "voicebox".*x="…".*\(x_t, t, c\)'
    with pytest.raises(UnknownAdapter, match=text):
        wrap(VoiceboxNet())
    with pytest.raises(UnknownAdapter, match=r"no adapter knows builtins\.int"):
        wrap(3)


def test_unknown_name_and_path() -> None:
    with pytest.raises(UnknownAdapter, match="no adapter is named 'f5'; did you mean 'f5_tts'"):
        wrap(Net(), "f5")
    with pytest.raises(MissingDependency, match=r"'no\.such:Thing' does not import"):
        wrap(Net(), "no.such:Thing")
    with pytest.raises(Unsupported, match=r"Net is no adapter: expected a subclass of fog_a\.Flow, with velocity"):
        wrap(Net(), Net())


def test_an_adapter_of_another_model_says_what_it_is_for() -> None:
    text = r"F5TTSAdapter cannot read a Net: 'Net' object has no attribute 'transformer'\. It is for F5-TTS and E2-TTS"
    with pytest.raises(Unsupported, match=text):
        wrap(Net(), "f5_tts")


def test_the_batch_follows_the_model_at_every_depth() -> None:
    x = torch.zeros(2, 4)
    there = to_module({"x1": x, "rotary": (x, [x]), "names": ["a", "b"]}, Net().to("meta"), "x1")
    assert there["x1"].is_meta and there["rotary"][0].is_meta and there["rotary"][1][0].is_meta
    assert there["names"] == ["a", "b"] and isinstance(there["rotary"], tuple) and not x.is_meta


def test_another_version_warns_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class Read(Theirs):
        package, version = "numpy", "0.1"

    with pytest.warns(UserWarning, match=r"Read was read at numpy 0\.1, and numpy [2-9].* is installed"):
        wrap(Foreign(), Read)
    Read.version = importlib.metadata.version("numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(Foreign(), Read)


def test_table_tells_what_is_installed() -> None:
    table = {row["name"]: row for row in adapter_table()}
    assert table["diffusers"]["installed"] == importlib.metadata.version("diffusers")
    assert table["f5_tts"]["package"] == "f5-tts" and table["f5_tts"]["version"] == "1.1.22"
    assert table["cosyvoice"]["package"] == "cosyvoice" and table["cosyvoice"]["version"] == "ace7c47"
    assert table["f5_tts"]["reads"] == "F5-TTS and E2-TTS: `CFM` around DiT, UNetT or MMDiT"
    assert all(row["reads"] for row in table.values())


def test_table_knows_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "cosyvoice").is_dir()])
    monkeypatch.delitem(sys.modules, "cosyvoice", raising=False)

    def installed() -> Any:
        return next(row["installed"] for row in adapter_table() if row["name"] == "cosyvoice")

    assert installed() is None
    (tmp_path / "cosyvoice").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed() == "on the path"


def test_wrapping_imports_no_model_package() -> None:
    code = (
        "import sys, fog_a, torch; flow = fog_a.wrap(torch.nn.Linear(2, 2), x='input', t=None)\n"
        "from fog_a.flows.register import adapter_table; adapter_table()\n"
        "print([m for m in ('f5_tts', 'voicebox_pytorch', 'matcha', 'diffusers', 'flow_matching') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_adapter_gets_what_is_inside_ddp_and_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x1 = Foreign(), torch.ones(2, 4)
    both = nn.DataParallel(model), torch.compile(model, backend="eager")  # before: it loads entry points of its own
    register(monkeypatch, theirs=f"{__name__}:Theirs")
    v = wrap(model).velocity({"x1": x1}, 0.5)
    for outside in both:
        for given in (None, "theirs"):
            flow = wrap(outside, given)
            assert flow.module is model and flow.model is model
            assert torch.equal(flow.velocity({"x1": x1}, 0.5), v)
    assert (
        wrap(nn.DataParallel(Masked()), x="x_t", t="t").velocity({"x1": x1[:, None], "mask": x1[:, :1] > 0}, 0.5).any()
    )


class Holder(nn.Module):
    """Draws noise and time itself, and gives a loss; the network is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.mel, self.estimator = nn.Linear(4, 4), Timed()

    def forward(self, mel: Tensor) -> Tensor:
        return self.estimator(self.mel(mel), torch.rand(len(mel))).square().mean()


class Timed(nn.Module):
    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        return noisy * t[:, None, None]


class Pipeline:
    def __init__(self) -> None:
        self.transformer, self.name = Timed(), "pipeline"


@pytest.mark.parametrize(("model", "name"), [(Holder(), "estimator"), (Pipeline(), "transformer")])
def test_an_object_that_holds_its_network_names_it(model: Any, name: str) -> None:
    with pytest.raises(UnknownAdapter) as error:
        wrap(model)
    text = str(error.value)
    assert f'It holds .{name} (Timed): type fog_a.wrap(model.{name}, x="noisy", t="t")' in text
    replay = f'fog_a.attribute(model, batch, forward=fog_a.output_of("{name}"))'
    assert (replay in text) == isinstance(model, nn.Module)
    flow = wrap(getattr(model, name), x="noisy", t="t")
    assert flow.velocity(torch.ones(2, 3, 4), 0.5).shape == (2, 3, 4)


# ---------------------------------------------------------------- the generic adapter


def test_generic_path_and_loss() -> None:
    net, x1 = Net(), torch.randn(3, 5, 4)
    flow = wrap(net, x="x_t", t="t", sigma=0.5)
    x0 = 0.5 * noise(x1, content_ids(x1), seed=7)
    t = torch.tensor([0.1, 0.5, 0.9])
    x_t = (1 - t)[:, None, None] * x0 + t[:, None, None] * x1
    torch.testing.assert_close(flow.velocity({"x1": x1, "c": x1}, t, seed=7), net(x_t, t, x1))
    assert torch.equal(flow.velocity(x1, 0.5, 7), flow.velocity({"x1": x1}, 0.5, 7))
    assert flow.loss({"x1": x1}).ndim == 0


def test_generic_reads_mask_domains_and_audio() -> None:
    x1, mask = torch.randn(2, 6, 4), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    batch = {
        "x1": x1, "mask": mask, "domains": ["speech", "sound"], "ids": ["a", "b"],
        "audio": torch.zeros(2, 99), "rate": 8000,
    }  # fmt: skip
    flow = wrap(Net(), x="x_t", t="t")  # its forward names no mask: it is not given one
    samples = flow.samples(batch)
    assert samples.ids == ("a", "b") and samples.domains == ("speech", "sound") and samples.rate == 8000
    assert samples.mask is not None and samples.mask.shape == (2, 6, 1)
    flow.velocity(batch, 0.5)
    assert wrap(Masked(), x="x_t", t="t").velocity(batch, 0.5)[1, 4:].abs().sum() == 0
    assert samples.rows([1])["domains"] == ["sound"] and samples.rows([1])["x1"].shape == (1, 6, 4)
    kept = flow.loss(batch)
    batch["x1"] = torch.where(mask[..., None], x1, 1e6)  # what is padding counts nothing
    torch.manual_seed(0)
    a = flow.loss(batch)
    assert float(a.detach()) < 100 and kept.requires_grad
    _, tokens = flow.tokens(torch.zeros(2, 3, 8), None, samples)  # pyright: ignore[reportArgumentType]
    assert tokens is not None and tokens.tolist() == [[True] * 3, [True, True, False]]


def test_a_smaller_batch_has_what_is_shared_whole() -> None:
    batch = {"x1": torch.randn(2, 4), "label": torch.arange(2), "positions": torch.zeros(2, 9), "pair": (1, 2)}
    fewer = wrap(Net(), x="x_t", t="t", shared=("positions", "pair")).samples(batch).rows([1])
    assert fewer["x1"].shape == (1, 4) and fewer["label"].tolist() == [1]
    assert fewer["positions"] is batch["positions"] and fewer["pair"] == (1, 2)


def test_generic_takes_a_path_of_ones_own_and_channels_first() -> None:
    def back(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * x0 + (1 - t) * x1, x0 - x1

    x1 = torch.randn(2, 4)
    there, again = wrap(Net(), x="x_t", t="t"), wrap(Net(), x="x_t", t="t", path=back)
    again.module.load_state_dict(there.module.state_dict())
    t = 0.25
    torch.testing.assert_close(there.velocity(x1, t) - t, again.velocity(x1, 1 - t) - (1 - t))
    first = GenericAdapter(Net(), channels="first")
    h, _ = first.tokens(torch.zeros(2, 8, 5), None, first.samples(x1))  # pyright: ignore[reportArgumentType]
    assert h.shape == (2, 5, 8)
    assert first.tokens(torch.zeros(2, 8, 3, 3), None, first.samples(x1))[0].shape == (2, 9, 8)  # pyright: ignore
    assert first.tokens(torch.zeros(2, 8), None, first.samples(x1))[0].shape == (2, 1, 8)  # pyright: ignore


def test_generic_says_what_is_wrong() -> None:
    with pytest.raises(Unsupported, match='path is one of "linear", "cosine", "ddpm", "edm", or a function'):
        wrap(Net(), x="x_t", t="t", path="sine")
    with pytest.raises(Unsupported, match='channels is "first" or "last"'):
        wrap(Net(), x="x_t", t="t", channels="middle")
    flow = wrap(Net(), x="x_t", t="t")
    with pytest.raises(BadBatch, match=r"the adapter of Net: the batch lacks x1 \(it has mel\).*x_1 is under 'x1'"):
        flow.velocity({"mel": torch.zeros(2, 4)}, 0.5)
    with pytest.raises(BadBatch, match=r"Net does not run on this batch: .*lacks c; it gives besides spam"):
        flow.velocity({"x1": torch.zeros(2, 4), "spam": 1}, 0.5)
    with pytest.raises(BadBatch, match=r"Masked does not run on this batch: .*lacks mask"):
        wrap(Masked(), x="x_t", t="t").velocity(torch.zeros(2, 3, 4), 0.5)
    with pytest.raises(ShapeMismatch, match=r"expected one time, or one for each of 2 samples, got \(3,\)"):
        flow.velocity(torch.zeros(2, 4), torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(BadBatch, match="got an empty batch"):
        flow.velocity({"x1": torch.zeros(0, 4)}, 0.5)
    with pytest.raises(BadBatch, match="one of domains per sample: expected 2, got 3"):
        flow.velocity({"x1": torch.zeros(2, 4), "domains": ["a", "b", "c"]}, 0.5)
    with pytest.raises(BadBatch, match=r"'x1' is torch.float64, the model's weights are torch.float32"):
        flow.velocity({"x1": torch.zeros(2, 4, dtype=torch.float64)}, 0.5)
    with pytest.raises(ShapeMismatch, match=r"the prediction has the shape of x_t, \(2, 2, 4\); Sum gave \(2,\)"):
        wrap(Sum(), x="x_t", t="t").velocity(torch.zeros(2, 2, 4), 0.5)


class Sum(nn.Module):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.flatten(1).sum(1)


@pytest.mark.cuda
def test_the_batch_follows_the_model() -> None:
    x1 = torch.randn(2, 4)
    here, there = wrap(Net(), x="x_t", t="t"), wrap(Net().cuda(), x="x_t", t="t")
    there.module.load_state_dict(here.module.state_dict())
    torch.testing.assert_close(there.velocity(x1, 0.5).cpu(), here.velocity(x1, 0.5))


# ---------------------------------------------------------------- draws


def test_noise_is_a_samples_own() -> None:
    x = torch.randn(4, 7, 3)
    ids = content_ids(x)
    x0 = noise(x, ids, seed=1)
    assert len(set(ids)) == 4 and not torch.equal(x0[0], x0[1])
    assert torch.equal(noise(x[[2]], [ids[2]], seed=1)[0], x0[2])
    assert not torch.equal(noise(x, ids, seed=2), x0)
    assert abs(float(noise(torch.zeros(20, 500), [str(i) for i in range(20)], 0).std()) - 1) < 0.02
    padded = torch.cat([x, torch.zeros(4, 5, 3)], 1)
    assert content_ids(padded, [7] * 4) == ids
    assert torch.equal(noise(padded, ids, 1, [7] * 4)[:, :7], x0) and noise(padded, ids, 1, [7] * 4)[:, 7:].sum() == 0


def test_uses_are_told_apart() -> None:
    assert not torch.equal(uniform(["a"], 0, "span"), uniform(["a"], 0, "prefix"))
    assert torch.equal(uniform(["a", "b"], 0, "span")[1:], uniform(["b"], 0, "span"))


def test_spans_fill_their_fraction() -> None:
    lengths = torch.tensor([10, 20])
    for start in (0.0, 0.5, 0.99):
        span = spans(lengths, torch.tensor([0.7, 0.5]), torch.full((2,), start), 20)
        assert span.sum(1).tolist() == [7, 10] and not span[0, 10:].any()


def test_masks_at_half_the_rate() -> None:
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])[..., None]
    found = token_mask(mask, torch.zeros(2, 3, 8))
    assert found is not None and found.tolist() == [[True] * 3, [True, False, False]]


# ---------------------------------------------------------------- the documents' example


def test_the_documents_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "write-an-adapter.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 40
    (tmp_path / "my_adapter.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    use = page.split("```python\n")[2].split("```")[0]
    space: dict[str, Any] = {}
    exec(compile(use, "write-an-adapter.md", "exec"), space)
    flow = space["flow"]
    assert isinstance(flow, fog_a.Flow)
    assert torch.equal(flow.velocity(space["batch"], 0.5, 0), flow.velocity(space["batch"], 0.5, 0))
    assert fog_a.find_blocks(flow, space["batch"]).main.names == space["names"]


def test_what_the_adapter_sets_is_not_for_the_batch() -> None:
    flow = wrap(nn.Linear(3, 3), x="input", t=None)
    with pytest.raises(BadBatch, match="the batch holds 'input', which is set here, for each t: leave it out"):
        flow.velocity({"x1": torch.ones(2, 3), "input": torch.ones(2, 3)}, 0.5)
