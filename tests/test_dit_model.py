"""The bundled DiT against a forward written by hand, and what must hold exactly: identity at the start, masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fog_a.errors import Unsupported
from fog_a_adapters.dit.model.dit import Block, DiT, DiTConfig, positions, time_features
from fog_a_adapters.dit.model.interface import frame_mask, stretch


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def by_hand(net: DiT, x_t: Tensor, t: Tensor, c: Tensor, ref: Tensor, mask: Tensor, gates: list[float]) -> Tensor:
    """Eq. 7 and 22 from the weights alone, with explicit softmax attention and a gate per layer."""
    w = {k: p.detach() for k, p in net.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    D, H = net.config.dim, net.config.heads
    h = linear(torch.cat([x_t, c, ref], -1), "inlet")
    for p in range(h.shape[1]):
        for i in range(0, D, 2):
            angle = p / 10_000 ** (i / D)
            h[:, p, i] += math.sin(angle)
            h[:, p, i + 1] += math.cos(angle)
    freqs = torch.tensor([10_000 ** (-i / (D // 2)) for i in range(D // 2)])
    angles = t[:, None] * freqs
    e = linear(F.silu(linear(torch.cat([angles.cos(), angles.sin()], -1), "time.0")), "time.2")
    for layer, g in enumerate(gates):
        b = f"blocks.{layer}"
        m = linear(F.silu(e), f"{b}.modulation.1")[:, None]
        g1, b1, g2, b2, a1, a2 = (m[..., i * D : (i + 1) * D] for i in range(6))
        start = h
        q, k, v = linear((1 + g1) * layer_norm(h) + b1, f"{b}.attn.qkv").split(D, -1)
        heads = []
        for i in range(H):
            s = slice(i * D // H, (i + 1) * D // H)
            logits = q[..., s] @ k[..., s].transpose(1, 2) / math.sqrt(D / H)
            logits = logits.masked_fill(~mask[:, None, :], -math.inf)
            heads.append(logits.softmax(-1) @ v[..., s])
        h = h + a1 * linear(torch.cat(heads, -1), f"{b}.attn.out")
        f = linear(F.gelu(linear((1 + g2) * layer_norm(h) + b2, f"{b}.ffn.0")), f"{b}.ffn.3")
        h = start + g * (h + a2 * f - start)
    return linear(layer_norm(h) * w["norm.weight"] + w["norm.bias"], "outlet")


def shaken(config: DiTConfig) -> DiT:
    """A net whose every parameter is away from its start."""
    net = DiT(config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def blocks_of(net: DiT) -> list[Block]:
    return [block for block in net.blocks if isinstance(block, Block)]


def inputs(net: DiT, lengths: tuple[int, ...] = (7, 12)) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, M = len(lengths), max(lengths), net.config.mels
    x_t, ref = torch.randn(2, B, T, M)
    return x_t, torch.rand(B), torch.randn(B, T, net.config.token_dim), ref, frame_mask(torch.tensor(lengths), T)


@pytest.mark.parametrize("gates", [(1, 1, 1), (1, 0, 1), (0, 0, 0), (0.5, 1, 0.25)])
def test_equals_a_forward_written_by_hand(gates: tuple[float, ...]) -> None:
    net = shaken(DiTConfig.tiny(layers=3, dim=16, heads=2, mels=5, token_dim=6))
    args = inputs(net)
    handles = [
        block.register_forward_hook(lambda m, a, out, g=g: a[0] + g * (out - a[0]))
        for block, g in zip(net.blocks, gates, strict=True)
    ]
    with torch.no_grad():
        got, want = net(*args), by_hand(net, *args, list(gates))
    for handle in handles:
        handle.remove()
    mask = args[-1]
    torch.testing.assert_close(got[mask], want[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["adaln_zero", "release"])
def test_every_block_is_the_identity_at_the_start(init: str) -> None:
    net = DiT(DiTConfig.tiny(init=init))
    h, e = torch.randn(2, 9, 64), torch.randn(2, 64)
    for block in blocks_of(net):
        assert torch.equal(block(h, e), h)


def test_the_two_starts_differ_where_they_should() -> None:
    zero, release = (
        dict(blocks_of(DiT(DiTConfig.tiny(init=i)))[0].named_parameters()) for i in ("adaln_zero", "release")
    )
    assert not zero["modulation.1.weight"].any() and zero["attn.out.weight"].any() and zero["ffn.3.weight"].any()
    assert release["modulation.1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not release["attn.out.weight"].any() and not release["ffn.3.weight"].any()


def test_both_starts_leave_it_after_one_step() -> None:
    for init in ("adaln_zero", "release"):
        net = DiT(DiTConfig.tiny(init=init))
        opt = torch.optim.AdamW(net.parameters(), 1e-2)
        args = inputs(net)
        net(*args).square().mean().backward()
        opt.step()
        h, e = torch.randn(2, 9, 64), torch.randn(2, 64)
        assert all((block(h, e) - h).abs().max() > 1e-6 for block in blocks_of(net))


def test_padding_changes_nothing() -> None:
    net = shaken(DiTConfig.tiny(layers=2))
    x_t, t, c, ref, mask = inputs(net, (9, 14))
    with torch.no_grad():
        v = net(x_t, t, c, ref, mask)
        junk = [torch.where(mask[..., None], a, torch.full_like(a, 1e3)) for a in (x_t, c, ref)]
        torch.testing.assert_close(net(junk[0], t, junk[1], junk[2], mask)[mask], v[mask])
        alone = net(x_t[:1, :9], t[:1], c[:1, :9], ref[:1, :9])
    torch.testing.assert_close(alone[0], v[0, :9], rtol=1e-4, atol=1e-5)


def test_positions_and_time_features() -> None:
    p = positions(3, 4)
    assert p[0].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(p[2], torch.tensor([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]))
    f = time_features(torch.tensor([0.0, 0.5]), 4)
    assert f[0].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(f[1], torch.tensor([math.cos(0.5), math.cos(0.005), math.sin(0.5), math.sin(0.005)]))


def test_stretch_is_torch_interpolation_sample_by_sample() -> None:
    x, old, new = torch.randn(4, 8, 3), torch.tensor([8, 5, 1, 3]), torch.tensor([15, 10, 4, 2])
    got = stretch(x, old, new, 15)
    for i in range(4):
        want = F.interpolate(x[i : i + 1, : old[i]].mT, size=int(new[i]), mode="linear", align_corners=False).mT[0]
        torch.testing.assert_close(got[i, : new[i]], want)


def test_presets_and_their_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in DiT(config).parameters())
            for name, config in {
                "paper": DiTConfig.paper(),
                "small": DiTConfig.small(),
                "tiny": DiTConfig.tiny(),
            }.items()
        }
    assert 4.6e8 < sizes["paper"] < 4.8e8  # the paper: 473 M
    assert 2e7 < sizes["small"] < 5e7 and sizes["tiny"] < 5e5
    paper = DiTConfig.paper()
    assert (paper.layers, paper.dim, paper.heads, paper.vocab) == (24, 1024, 16, 4096)
    assert DiTConfig.from_dict(paper.to_dict()) == paper


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 30}, r"multiple of the 4 heads, got 30; take dim=32"),
        ({"layers": 0}, r"at least one layer, got layers=0"),
        ({"init": "xavier"}, "'release'"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        DiTConfig.tiny(**changes)
