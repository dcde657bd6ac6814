"""FoG-A (Eq. 9) where the answer is known: closed forms, exact zeros, invariances."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from sharing import how
from small_nets import Layer, Net, tokens
from torch import Tensor, nn

import fog_a


def ratio(v_k: Tensor, v: Tensor) -> np.ndarray:
    v_k, v = v_k.double().flatten(1), v.double().flatten(1)
    return ((v_k - v).norm(dim=1) / (v.norm(dim=1) + 1e-8)).numpy()


def scores_of(net: nn.Module, batch: object, **options: object) -> np.ndarray:
    return fog_a.attribute(net, batch, progress=False, **options).values[:, 0]  # type: ignore[arg-type]


@torch.no_grad()
def skipped(net: Net, x: Tensor, skip: int | None = None) -> Tensor:
    """The forward of `Net` with one layer left out."""
    h = net.stem(x)
    for i, block in enumerate(net.blocks):
        h = h if i == skip else block(h)
    return net.head(h)


class LinearUpdate(nn.Module):
    """h + ε A h. The activation has slope 1 everywhere: it changes nothing, but an update of a stream needs one."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.A, self.act = nn.Linear(width, width, bias=False), nn.PReLU(init=1.0)

    def forward(self, h: Tensor) -> Tensor:
        return h + 0.3 * self.act(self.A(h))


def test_linear_net_in_closed_form() -> None:
    """v = C h_L with h_l = (I + εA_l) h_{l-1}: v − v^{\\k} = C Π_{l>k}(I + εA_l) εA_k h_{k−1}."""
    net, x = Net(depth=5, layer=LinearUpdate).double(), tokens().double()
    with torch.no_grad():
        net.head.bias.zero_()
        h, C, eye = net.stem(x), net.head.weight, torch.eye(6, dtype=torch.float64)
        steps = [0.3 * block.A.weight for block in net.blocks]
        streams = [h]
        for A in steps:
            streams.append(streams[-1] @ (eye + A).T)
        v = streams[-1] @ C.T
        want = []
        for k, A in enumerate(steps):
            d = streams[k] @ A.T
            for later in steps[k + 1 :]:
                d = d @ (eye + later).T
            want.append(ratio(v - d @ C.T, v))
    np.testing.assert_allclose(scores_of(net, x), np.stack(want, 1), rtol=1e-6)


def test_definition_per_sample() -> None:
    net, x = Net(), tokens(samples=4)
    v = skipped(net, x)
    scores = fog_a.attribute(net, x, progress=False)
    want = np.stack([ratio(skipped(net, x, k), v) for k in range(3)], 1)
    np.testing.assert_allclose(scores.values[:, 0], want, rtol=1e-6)
    np.testing.assert_allclose(scores.mean(), want.mean(0), rtol=1e-6)  # the mean of ratios, not the ratio of means
    assert scores.layers == ("blocks.0", "blocks.1", "blocks.2") and scores.times is None
    assert scores.kind == "contribution"


def test_a_block_with_zero_output_scores_exactly_zero() -> None:
    net, x = Net(), tokens()
    nn.init.zeros_(net.blocks[1].fc2.weight)  # type: ignore[union-attr,arg-type]
    nn.init.zeros_(net.blocks[1].fc2.bias)  # type: ignore[union-attr,arg-type]
    scores = scores_of(net, x)
    assert (scores[:, 1] == 0).all() and (scores[:, [0, 2]] > 0).all()


def test_dropout_does_not_reach_the_scores() -> None:
    """In train mode the difference of two forwards would be dropout noise; a probe runs in eval."""
    net, x = Net(dropout=0.5), tokens()
    nn.init.zeros_(net.blocks[1].fc2.weight)  # type: ignore[union-attr,arg-type]
    nn.init.zeros_(net.blocks[1].fc2.bias)  # type: ignore[union-attr,arg-type]
    net.train()
    assert ratio(net(x).detach(), net(x).detach()).min() > 0  # trap: what two train-mode forwards differ by
    scores = scores_of(net, x)
    assert (scores[:, 1] == 0).all()
    assert net.training
    np.testing.assert_array_equal(scores, scores_of(net.eval(), x))


def test_all_gates_closed_leave_stem_and_head() -> None:
    net, x = Net(), tokens()
    blocks = fog_a.find_blocks(net, x)
    with torch.no_grad(), fog_a.gate(blocks, 0):
        assert torch.equal(net(x), net.head(net.stem(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_open_gates_change_no_bit(dtype: torch.dtype) -> None:
    """x + 1·(y − x) is off by 1e-3 in bfloat16: 1 must select."""
    net, x = Net().to(dtype), tokens().to(dtype)
    blocks = fog_a.find_blocks(net, x)
    with torch.no_grad():
        v = net(x)
        for value in (1, 1.0, torch.ones(()), torch.ones(3)):
            with fog_a.gate(blocks, value):
                assert torch.equal(net(x), v)
        with fog_a.gate(blocks[:0], 0):
            assert torch.equal(net(x), v)


def test_no_block_is_no_change() -> None:
    net, x = Net(), tokens()
    blocks = fog_a.find_blocks(net, x)
    assert len(blocks[:0]) == 0
    with torch.no_grad(), fog_a.gate(blocks[:0], 0):
        assert torch.equal(net(x), skipped(net, x))


@pytest.mark.parametrize("s", [2.0**10, 2.0**-10, 3.7])
def test_scores_do_not_depend_on_the_scale_of_v(s: float) -> None:
    net, x = Net(), tokens()
    before = scores_of(net, x)
    with torch.no_grad():
        for p in net.head.parameters():
            p.mul_(s)
    after = scores_of(net, x)
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_the_order_of_samples_does_not_matter() -> None:
    net, x = Net(), tokens(samples=5)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(scores_of(net, x[order]), scores_of(net, x)[order], rtol=1e-5)


def test_exactly_repeated_block_scores_the_same_each_time() -> None:
    """Skipping any one of N executions of one block is the same function."""

    class Repeated(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            for _ in range(4):
                h = self.blocks[0](h)
            return self.head(h)

    net, x = Repeated(depth=1), tokens()
    scores = fog_a.attribute(net, x, progress=False)
    assert scores.layers == tuple(f"blocks.0@{i}" for i in range(4))
    np.testing.assert_allclose(scores.values, scores.values[:, :, :1].repeat(4, 2), rtol=1e-5)
    exact = fog_a.attribute(net, x, progress=False, how=how("prefix", net, x)).values
    assert (exact == exact[:, :, :1]).all() and exact.min() > 0


def test_norms_are_taken_over_the_valid_entries() -> None:
    net, x = Net(), tokens(samples=3, length=6)
    keep = torch.arange(6)[None, :, None] < torch.tensor([6, 4, 1])[:, None, None]
    v = skipped(net, x)
    want = np.stack([ratio(skipped(net, x, k) * keep, v * keep) for k in range(3)], 1)
    np.testing.assert_allclose(scores_of(net, x, mask=keep), want, rtol=1e-6)
    np.testing.assert_allclose(scores_of(net, x, mask=keep.expand(3, 6, 4)), want, rtol=1e-6)
    np.testing.assert_allclose(scores_of(net, x, mask=keep[:, :, 0]), want, rtol=1e-6)


def test_nan_in_padding_does_not_count() -> None:
    class Padded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(torch.arange(x.shape[1])[:, None] > 2, float("nan"))

    keep = (torch.arange(5) <= 2)[None, :, None]
    net, x = Padded(), tokens()
    v = skipped(net, x)
    want = np.stack([ratio(skipped(net, x, k)[:, :3], v[:, :3]) for k in range(3)], 1)
    np.testing.assert_allclose(scores_of(net, x, mask=keep), want, rtol=1e-6)


class Noisy(Net):
    """Draws in eval from all three generators; its first layer is the identity, plus nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.5 * torch.randn_like(x) + random.random() + float(np.random.rand()))


def test_base_and_ablations_see_the_same_random_numbers() -> None:
    net, x = Noisy(), tokens()
    nn.init.zeros_(net.blocks[0].fc2.weight)  # type: ignore[union-attr,arg-type]
    nn.init.zeros_(net.blocks[0].fc2.bias)  # type: ignore[union-attr,arg-type]
    a, b, c = scores_of(net, x), scores_of(net, x), scores_of(net, x, seed=1)
    assert (a[:, 0] == 0).all() and (a[:, 1:] > 0).all()
    np.testing.assert_array_equal(a, b)
    assert (a[:, 1:] != c[:, 1:]).any()


def test_several_batches_are_their_samples_in_a_row() -> None:
    net, x = Net(), tokens(samples=6)
    whole = fog_a.attribute(net, x, domains=["a", "b", "a", "b", "a", "b"], progress=False)
    parts = fog_a.attribute(net, [x[:2], x[2:4], x[4:]], domains=["a", "b"], progress=False)
    stream = fog_a.attribute(net, iter([x[:2], x[2:4], x[4:]]), domains=["a", "b"], progress=False)
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-5)
    np.testing.assert_array_equal(parts.values, stream.values)
    assert parts.domains == whole.domains and parts.ids == whole.ids and len(set(whole.ids)) == 6
    loader = torch.utils.data.DataLoader([*x], batch_size=2)
    np.testing.assert_array_equal(fog_a.attribute(net, loader, progress=False).values, parts.values)


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "inputs", "mixed", "forward"])
def test_every_form_of_batch_means_the_same(form: str) -> None:
    net, x = Net(), tokens()
    want = scores_of(net, x)
    batch = {
        "tuple": (x,),
        "dict": {"x": x},
        "inputs": fog_a.Inputs(x),
        "mixed": fog_a.Inputs(x=x),
        "forward": {"anything": [x, "at all"]},
    }.get(form, x)
    options = {"forward": lambda m, b: m(b["anything"][0])} if form == "forward" else {}
    np.testing.assert_array_equal(scores_of(net, batch, **options), want)


def test_blocks_may_be_given_by_name_or_as_blocks() -> None:
    net, x = Net(), tokens()
    want = scores_of(net, x)
    blocks = fog_a.find_blocks(net, x)
    np.testing.assert_allclose(scores_of(net, x, blocks=blocks[1:]), want[:, 1:], rtol=1e-5)
    scores = fog_a.attribute(net, x, blocks=["blocks.2", "blocks.0"], progress=False)
    assert scores.layers == ("blocks.2", "blocks.0")
    np.testing.assert_allclose(scores.values[:, 0], want[:, [2, 0]], rtol=1e-5)


def test_an_ablation_that_gives_nan_is_reported_and_not_averaged() -> None:
    class Fragile(nn.Module):
        """Without its first block, v of sample 0 is 0/0."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = nn.ModuleList(Layer(4) for _ in range(3)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = first = self.blocks[0](x)
            for block in self.blocks[1:]:  # type: ignore[attr-defined]
                h = block(h)
            moved = (first - x).abs().sum(dim=(1, 2), keepdim=True)
            return self.head(h) * torch.where(x[:, :1, :1] > 5, moved / moved, 1.0)

    net, x = Fragile(), tokens()
    x[0, 0, 0] = 6.0
    with pytest.warns(UserWarning, match=r"without blocks\.0 the velocity is NaN"):
        scores = fog_a.attribute(net, x, progress=False)
    values = scores.values[:, 0]
    assert np.isnan(values[0, 0]) and np.isfinite(values[1:]).all() and np.isfinite(values[0, 1:]).all()
    assert scores.mean()[0] == pytest.approx(values[1:, 0].mean())


def test_inf_in_what_is_removed_cannot_leak() -> None:
    net, x = Net(), tokens()
    blocks = fog_a.find_blocks(net, x)
    net.blocks[1].fc2.bias.data.fill_(float("inf"))  # type: ignore[union-attr,operator]
    with torch.no_grad():
        assert not net(x).isfinite().all()
        with fog_a.gate(blocks[1:2], 0):
            assert torch.equal(net(x), skipped(net, x, 1))
        with fog_a.gate(blocks[1:2], torch.tensor([0.0, 1.0, 0.0])):
            finite = net(x).isfinite().flatten(1).all(1)
    assert finite.tolist() == [True, False, True]


def test_a_layer_that_changes_the_dtype_keeps_it() -> None:
    class Upcast(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    class Half(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x).to(torch.bfloat16)
            for block in self.blocks:
                h = block(h)
            return self.head(h)

    net, x = Half(layer=Upcast), tokens()
    blocks = fog_a.find_blocks(net, x)
    with torch.no_grad(), fog_a.gate(blocks, 0):
        v = net(x)
    assert v.dtype == torch.float32 and torch.equal(v, net.head(net.stem(x).to(torch.bfloat16).float()))


class InPlace(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x += self.fc2(torch.tanh(self.fc1(self.norm(x))))
        return x


class WritesIntoItsBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(InPlace(4) for _ in range(3)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_a_net_that_writes_into_its_own_batch() -> None:
    """Every forward of a probe sees the batch as it was given (Eq. 9: the same x_t), and so does the user after."""
    net, x = WritesIntoItsBatch(), tokens()
    kept = x.clone()
    with torch.no_grad():
        v = net(kept.clone())
        want = []
        for k in range(3):
            h = kept.clone()
            for i, block in enumerate(net.blocks):
                h = h if i == k else block(h)
            want.append(ratio(net.head(h), v))
    np.testing.assert_allclose(scores_of(net, x), np.stack(want, 1), rtol=1e-5)
    assert torch.equal(x, kept)


def test_probing_a_copy_gives_the_same_bits() -> None:
    net, x = Net(), tokens()
    np.testing.assert_array_equal(scores_of(copy.deepcopy(net), x), scores_of(net, x))
    np.testing.assert_array_equal(scores_of(net, x), scores_of(net, x))


def test_scalar_gates_in_between_and_their_limits() -> None:
    """Gate g of one layer is stem → … h + g·f(h) …: exact at g = ½ in closed form."""
    net, x = Net(), tokens()
    blocks = fog_a.find_blocks(net, x)
    with torch.no_grad():
        for g in (0.25, 0.5, 0.75):
            with fog_a.gate(blocks[1:2], g):
                got = net(x)
            h = net.blocks[0](net.stem(x))
            h = h + g * (net.blocks[1](h) - h)
            torch.testing.assert_close(got, net.head(net.blocks[2](h)), rtol=1e-5, atol=1e-6)
