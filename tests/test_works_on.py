"""Models as people have them: wrapped, compiled, frozen, checkpointed, in half precision, in the middle of training.

Each must give the blocks' own names and the scores of the plain model.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from sharing import how
from small_nets import Net, tokens
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fog_a
from fog_a.errors import NoBlocksFound, UnknownBlock, Unsupported

NAMES = ("blocks.0", "blocks.1", "blocks.2")


def expected(net: Net, x: Tensor) -> np.ndarray:
    """Eq. 9 by leaving layers out of the forward, in eval mode."""
    net = copy.deepcopy(net).eval()

    @torch.no_grad()
    def v(skip: int | None) -> Tensor:
        h = net.stem(x)
        for i, block in enumerate(net.blocks):
            h = h if i == skip else block(h)
        return net.head(h).double().flatten(1)

    base = v(None)
    return torch.stack([(v(k) - base).norm(dim=1) / base.norm(dim=1) for k in range(len(net.blocks))], 1).cpu().numpy()


def check(model: nn.Module, x: Any, want: np.ndarray, rtol: float = 1e-5, names: tuple[str, ...] = NAMES) -> None:
    assert fog_a.find_blocks(model, x).names == names
    scores = fog_a.attribute(model, x, progress=False)
    assert scores.layers == names
    np.testing.assert_allclose(scores.values[:, 0], want, rtol=rtol)


def test_train_mode_is_probed_in_eval() -> None:
    net, x = Net(dropout=0.5).train(), tokens()
    want = expected(net, x)
    check(net, x, want)
    assert all(m.training for m in net.modules())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("strategy", ["auto", "loop", "prefix"])
def test_padded_samples_that_torch_packs_into_nested_tensors(strategy: Any) -> None:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)]
    net, x = nn.TransformerEncoder(layers[0], 3).eval(), torch.randn(2, 5, 8)
    net.layers = nn.ModuleList(layers)
    batch = fog_a.Inputs(x, src_key_padding_mask=torch.arange(5) >= torch.tensor([[5], [3]]))
    with torch.no_grad():
        v, want = net.eval()(*batch.args, **batch.kwargs), []
        assert not v[1, 3:].any(), "padded tokens are left out, which only the packed way does"
        for k in range(3):
            without = copy.deepcopy(net)
            del without.layers[k]
            d = without(*batch.args, **batch.kwargs) - v
            want.append(d.flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1))
    scores = fog_a.attribute(net, batch, how=how(strategy, net, batch), progress=False)
    np.testing.assert_allclose(scores.values[:, 0], torch.stack(want, 1), rtol=1e-4)
    blocks = fog_a.find_blocks(net, batch)
    with torch.no_grad(), fog_a.gate(blocks[2:], 0.5):
        half = net(*batch.args, **batch.kwargs)
    with torch.no_grad(), fog_a.gate(blocks[2:], 0.0):
        torch.testing.assert_close(half, (net(*batch.args, **batch.kwargs) + v) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """The model runs as the user set it, the norms are in float32."""
    net, x = Net(), tokens()
    with torch.autocast("cpu", dtype):
        want = expected(net, x)
        check(net, x, want)
    plain = expected(net, x)
    assert np.abs(want / plain - 1).max() > 1e-5  # the low precision was really there


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    net, x = Net().to(dtype), tokens().to(dtype)
    check(net, x, expected(net, x))


def test_frozen_parameters() -> None:
    net, x = Net().requires_grad_(False), tokens()
    check(net, x, expected(net, x))
    net.blocks[1].requires_grad_(True)
    check(net, x, expected(net, x))


def test_inputs_that_require_grad() -> None:
    net, x = Net(), tokens().requires_grad_(True)
    check(net, x, expected(net, x))
    assert x.grad is None and x.requires_grad
    check(net, (x * 2).requires_grad_(), expected(net, x * 2))  # not a leaf: it has a graph of its own


def test_inside_no_grad_and_inference_mode() -> None:
    net, x = Net(), tokens()
    want = expected(net, x)
    with torch.no_grad():
        check(net, x, want)
    with torch.inference_mode():
        check(net, tokens(), want)
    with torch.inference_mode():
        made_there = tokens()
    check(net, made_there, want)


class Checkpointed(Net):
    """Gradient checkpointing as parents do it: a flag, and only when they train."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=self.reentrant)
        return self.head(h)  # type: ignore[arg-type]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_gradient_checkpointing(reentrant: bool, wanted: bool) -> None:
    net, x = Checkpointed().train(), tokens().requires_grad_(wanted)
    net.reentrant = reentrant
    check(net, x, expected(net, x))
    loss = net(tokens().requires_grad_()).square().sum()
    blocks = fog_a.find_blocks(net, x)
    loss.backward()  # the recomputation happens after a probe was there
    assert blocks.names == NAMES and net.blocks[0].fc1.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_inside_a_gate_counts_the_recomputation_for_itself(reentrant: bool) -> None:
    """In backward each block runs again: the gate acts there as it did in the forward, so gradients are those of the
    gated net."""
    net, x = Checkpointed(), tokens().requires_grad_()
    net.reentrant = reentrant
    blocks = fog_a.find_blocks(net, x)
    with fog_a.gate(blocks[1:2], 0):
        net(x).square().sum().backward()
    got, x.grad = x.grad, None
    plain = net.head(net.blocks[2](net.blocks[0](net.stem(x))))
    plain.square().sum().backward()
    torch.testing.assert_close(got, x.grad)


@pytest.mark.parametrize(("reentrant", "inside"), [(True, False), (True, True), (False, False), (None, False)])
def test_a_backward_that_would_run_blocks_without_their_gate_is_warned_of(reentrant: bool | None, inside: bool) -> None:
    net, x = Net() if reentrant is None else Checkpointed(), tokens().requires_grad_()
    if reentrant is not None:
        net.reentrant = reentrant  # type: ignore[assignment]
    blocks = fog_a.find_blocks(net, x)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with fog_a.gate(blocks[1:2], 0):
            y = net(x).square().sum()
            if inside:
                y.backward()
    wanted = reentrant and not inside
    said = [str(w.message) for w in heard if "re-entrant" in str(w.message)]
    assert len(said) == bool(wanted), said
    if wanted:
        assert re.search(r"'blocks\.1' .* Call backward\(\) inside `with .*use_reentrant=False", said[0])


def test_checkpoint_wrapper_modules() -> None:
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    net, x = Net(), tokens()
    want = expected(net, x)
    net.blocks = nn.ModuleList(wrapper.checkpoint_wrapper(b) for b in net.blocks)
    check(net, x, want)


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", ["wrapped", "in place", "its blocks", "its blocks in place", "its forward"])
def test_compiled_before_the_probe(how: str) -> None:
    """A hook set after the first compiled call is silently ignored by torch."""
    net, x = Net(), tokens()
    want = expected(net, x)
    model: Any = net
    if how == "wrapped":
        model = torch.compile(net, backend="eager")
    elif how == "in place":
        net.compile(backend="eager")
    elif how == "its blocks":
        net.blocks = nn.ModuleList(torch.compile(b, backend="eager") for b in net.blocks)  # type: ignore[misc]
    elif how == "its blocks in place":
        for block in net.blocks:
            block.compile(backend="eager")
    else:
        net.forward = torch.compile(net.forward, backend="eager")
    with torch.no_grad():
        v = model(x)
        check(model, x, want)
        assert torch.equal(model(x), v)
        blocks = fog_a.find_blocks(model, x)
        with fog_a.gate(blocks, 0):
            torch.testing.assert_close(model(x), net.head(net.stem(x)))
        assert torch.equal(model(x), v)
        with fog_a.tap(blocks) as h:
            model(x)
        assert set(h.all) == set(NAMES)


@pytest.mark.usefixtures("dynamo")
def test_compiled_code_is_used_again_after_a_probe() -> None:
    from torch._dynamo.testing import CompileCounter

    net, x, counter = Net(), tokens(), CompileCounter()
    model: Any = torch.compile(net, backend=counter)
    model(x)
    compiled = counter.frame_count
    fog_a.attribute(model, x, progress=False)
    model(x)
    assert counter.frame_count == compiled >= 1


def test_data_parallel() -> None:
    net, x = Net(), tokens()
    check(nn.DataParallel(net), x, expected(net, x))


@pytest.fixture
def gloo(tmp_path: Path) -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("gloo", "dynamo")
@pytest.mark.parametrize("compiled", ["", "inside", "outside"])
def test_distributed_data_parallel(compiled: str) -> None:
    net, x = Net(), tokens()
    want = expected(net, x)
    inner: Any = torch.compile(net, backend="eager") if compiled == "inside" else net
    model: Any = nn.parallel.DistributedDataParallel(inner)
    if compiled == "outside":
        model = torch.compile(model, backend="eager")
    model(x).sum().backward()
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    check(model, x, want)
    model.zero_grad(set_to_none=False)
    model(x).sum().backward()  # its reducer is as it was
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True) if p.grad is not None)


@pytest.mark.usefixtures("gloo")
def test_a_probe_between_forward_and_backward_of_ddp() -> None:
    net, x = Net(), tokens()
    model = nn.parallel.DistributedDataParallel(net)
    loss = model(x).square().sum()
    fog_a.attribute(model, x, progress=False)
    loss.backward()
    again = copy.deepcopy(net)
    again.zero_grad()
    again(x).square().sum().backward()
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_module_named_module_is_not_a_wrapper() -> None:
    """Only the wrappers' own `module` is left out of names."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net()

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    holder, x = Holder(), tokens()
    check(holder, x, expected(holder.module, x), names=tuple(f"module.{n}" for n in NAMES))
    check(nn.DataParallel(holder), x, expected(holder.module, x), names=tuple(f"module.{n}" for n in NAMES))


def test_parametrized_and_weight_normed() -> None:
    net, x = Net(), tokens()
    for block in net.blocks:
        torch.nn.utils.parametrizations.weight_norm(block.fc1)  # type: ignore[arg-type]
        torch.nn.utils.parametrizations.spectral_norm(block.fc2)  # type: ignore[arg-type]
    net.eval()
    check(net, x, expected(net, x))


def test_lora_style_wrappers_inside_are_not_layers() -> None:
    class LoRA(nn.Module):
        """W x + B A x: a sum, but no residual."""

        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner
            self.down = nn.Linear(inner.in_features, 2, bias=False)
            self.up = nn.Linear(2, inner.out_features, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.up(self.down(x))

    net, x = Net(), tokens()
    for block in net.blocks:
        block.fc1 = LoRA(block.fc1)  # type: ignore[arg-type]
    check(net, x, expected(net, x))


class FusedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def test_torch_encoders_own_fused_path() -> None:
    """In eval it runs a fused kernel that hooks turn off: a gate of 1 must compare one arithmetic with itself."""
    net, x = FusedEncoder().eval(), tokens(width=8)
    blocks = fog_a.find_blocks(net, x)
    assert blocks.names == tuple(f"encoder.layers.{i}" for i in range(3))
    with torch.no_grad():
        with fog_a.gate(blocks, 1):
            opened = net(x)
        torch.testing.assert_close(opened, net(x), rtol=1e-4, atol=1e-5)
        want = []
        for k in range(3):
            h = x
            for i, layer in enumerate(net.encoder.layers):
                h = h if i == k else layer(h)
            want.append(((h - opened).flatten(1).norm(dim=1) / opened.flatten(1).norm(dim=1)).numpy())
    scores = fog_a.attribute(net, x, progress=False)
    np.testing.assert_allclose(scores.values[:, 0], np.stack(want, 1), rtol=1e-4)


@pytest.mark.parametrize("how", ["traced", "scripted"])
def test_a_jitted_part_may_be_inside(how: str) -> None:
    net, x = Net(), tokens()
    want = expected(net, x)
    with torch.no_grad():
        for block in net.blocks:
            traced = torch.jit.trace(block.fc2, torch.randn(3, 5, 12))  # type: ignore[arg-type]
            block.fc2 = traced if how == "traced" else torch.jit.script(block.fc2)  # type: ignore[arg-type]
    check(net, x, want)


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda net: torch.jit.trace(net, tokens())])
def test_a_scripted_or_traced_model_takes_no_hooks(compiled: Any) -> None:
    with pytest.raises(Unsupported, match="takes hooks, got a scripted or traced one"):
        fog_a.find_blocks(compiled(nn.Sequential(nn.Linear(4, 4))), tokens())


def test_a_scripted_layer_is_named_where_its_update_stays_open() -> None:
    net, x = Net(), tokens()
    net.blocks[1] = torch.jit.script(net.blocks[1])  # type: ignore[arg-type]
    blocks = fog_a.find_blocks(net, x)
    assert "no module gives the update, or blocks.1 does, scripted: it takes no hooks" in blocks.coverage.note
    assert "blocks.1" not in blocks.names and len(blocks) == len(net.blocks) - 1
    for k in range(len(net.blocks)):
        if k != 1:
            net.blocks[k] = torch.jit.script(net.blocks[k])  # type: ignore[arg-type]
    with pytest.raises(NoBlocksFound, match=r"blocks\.0 is scripted and takes no hooks: wrap what it was made of"):
        fog_a.find_blocks(net, x)


def test_traced_layers() -> None:
    net, x = Net(), tokens()
    want = expected(net, x)
    net.blocks = nn.ModuleList(torch.jit.trace(block, net.stem(x)) for block in net.blocks)
    check(net, x, want)


def test_weights_that_accelerate_keeps_elsewhere() -> None:
    net, x = Net(), tokens()
    want = expected(net, x)
    check(accelerate.cpu_offload(net, execution_device="cpu"), x, want)


def test_a_loader_of_tuples() -> None:
    net, x = Net(), tokens()
    whole = fog_a.attribute(net, x, progress=False).values
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=1)
    np.testing.assert_allclose(fog_a.attribute(net, loader, progress=False).values, whole, rtol=1e-5)


def test_noncontiguous_and_expanded_inputs() -> None:
    net = Net()
    x = tokens().mT.contiguous().mT
    check(net, x, expected(net, x))
    x = tokens()[:1].expand(3, 5, 4)
    check(net, x, expected(net, x))


def test_a_float64_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        net, x = Net(), tokens().double()
        check(net, x, expected(net, x))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_cuda(dtype: torch.dtype, compiled: bool) -> None:
    net, x = Net(width=64).to("cuda", dtype), tokens().to("cuda", dtype)
    want = expected(net, x)
    states = torch.cuda.get_rng_state_all()
    model: Any = torch.compile(net) if compiled else net
    model(x)
    check(model, x, want, rtol=1e-4 if dtype == torch.float32 else 2e-2)
    assert all(torch.equal(a, b) for a, b in zip(states, torch.cuda.get_rng_state_all(), strict=True))


@pytest.mark.parametrize("start", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_gate_that_learns_gets_its_gradient(start: float, samples: int) -> None:
    """d/dg of Σ v² at any g, one for all or one per sample: the difference quotient's, in float64."""
    net, x = Net().double().eval(), tokens().double()
    blocks = fog_a.find_blocks(net, x)[1:2]

    def loss(g: Tensor) -> Tensor:
        with fog_a.gate(blocks, g):
            return net(x).square().flatten(1).sum(1)

    g = torch.full((samples,), start, dtype=torch.float64, requires_grad=True)
    loss(g).sum().backward()
    with torch.no_grad():
        slope = (loss(g + 1e-6) - loss(g - 1e-6)) / 2e-6
    torch.testing.assert_close(g.grad, slope if samples > 1 else slope.sum()[None], rtol=1e-5, atol=1e-8)


def test_a_model_that_lost_blocks_since_they_were_found() -> None:
    net, x = Net(), tokens()
    blocks = fog_a.find_blocks(net, x)
    with fog_a.tap(blocks) as h:
        net(x)
    assert list(h) == list(blocks.names)
    net.blocks = net.blocks[:2]
    for use in (
        lambda: fog_a.attribute(net, x, blocks=blocks),
        fog_a.gate(blocks, 0).__enter__,
        fog_a.tap(blocks).open,
    ):
        with pytest.raises(UnknownBlock, match=r"got a model without blocks.2.*find_blocks\(model, batch\) again"):
            use()
