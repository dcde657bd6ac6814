"""The application's tokens: the AST tokenizer and its codebook, alone and on two ranks; S3; k-means; A and B."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_jobs
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fog_a.errors import BadArgument, MissingDependency, NoWeights, ShapeMismatch, Unsupported
from fog_a_adapters.dit import DiTConfig, FlowMatching
from unified_audio.ast_tokenizer import ASTConfig, ASTTokenizer
from unified_audio.audio_frames import MelFrames
from unified_audio.code_book import CodeBook
from unified_audio.fusion import DualInterface, condition, deinterleave, interleave
from unified_audio.items import Reader
from unified_audio.s3 import S3Codes
from unified_audio.tokens import ASTCodes, KMeansCodes

TINY = ASTConfig.tiny(input_dim=6, vocab=8, hidden_dim=16)


def mask_of(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def clouds(n: int = 40, centres: int = 4, dim: int = 3, seed: int = 0) -> Tensor:
    """Well separated groups of vectors (1, n · centres, dim)."""
    g = torch.Generator().manual_seed(seed)
    at = 10 * torch.eye(max(centres, dim))[:centres, :dim] + 10 * torch.arange(centres)[:, None].float()
    return (at[:, None] + 0.1 * torch.randn(centres, n, dim, generator=g)).flatten(0, 1)[None]


# The codebook


def test_k_means_starts_the_codes_where_the_data_are() -> None:
    book, z = CodeBook(4, 3), clouds()
    out = book(z)
    assert out.perplexity == pytest.approx(4, abs=1e-3)
    means = z.unflatten(1, (4, 40)).mean(2)[0]
    assert torch.cdist(means, book.codes).amin(1).max() < 0.05
    assert bool(book.started) and float(out.loss.detach()) == pytest.approx(0.01, rel=0.3)


def test_the_moving_average_is_the_formula() -> None:
    book, z = CodeBook(4, 3, decay=0.7, dead=0), clouds()
    book(z)
    n, m = book.counts.clone(), book.sums.clone()
    new = z[:, :60] + 0.5  # of the first two groups only
    codes = book.nearest(new)[0]
    used = torch.bincount(codes, minlength=4).float()
    sums = torch.stack([new[0][codes == k].sum(0) for k in range(4)])
    book(new)
    n, m = 0.7 * n + 0.3 * used, 0.7 * m + 0.3 * sums
    smooth = (n + 1e-5) / (n.sum() + 4e-5) * n.sum()
    torch.testing.assert_close(book.counts, n)
    torch.testing.assert_close(book.codes, m / smooth[:, None])


def test_eval_changes_nothing_and_no_parameter_is_learned() -> None:
    book = CodeBook(4, 3)
    book(clouds())
    before = {k: v.clone() for k, v in book.state_dict().items()}
    book.eval()(clouds(seed=1) + 3)
    assert all(torch.equal(v, before[k]) for k, v in book.state_dict().items())
    assert not list(book.parameters())


def test_dead_codes_live_again() -> None:
    """All but one code are far off; they come to the data, and without revival they stay."""
    found = {}
    for dead in (0.0, 0.05):
        torch.manual_seed(0)
        book, z = CodeBook(4, 3, dead=dead), clouds()
        book(z[:, :40])  # started on the first group alone
        book.codes[1:] += 1000
        book.sums[1:] += 1000 * book.counts[1:, None]
        found[dead] = [float(book(z).perplexity) for _ in range(30)][-1]
    assert found[0.0] == pytest.approx(1, abs=1e-3) and found[0.05] > 2.5


def test_perplexity_is_between_one_and_the_number_of_codes() -> None:
    book = CodeBook(8, 3).eval()
    book.codes.copy_(torch.arange(8.0)[:, None].expand(-1, 3))
    assert book(torch.full((1, 9, 3), 2.1)).perplexity == pytest.approx(1)
    even = torch.arange(8.0)[None, :, None].expand(-1, -1, 3)
    assert book(even).perplexity == pytest.approx(8)
    assert book(even, mask_of([4])[:, :1].expand(1, 8) & (torch.arange(8) < 4)).perplexity == pytest.approx(4)


def test_fewer_vectors_than_codes_still_start() -> None:
    book = CodeBook(32, 3)
    out = book(torch.randn(1, 5, 3))
    assert book.codes.isfinite().all() and float(out.loss.detach()) < 1e-3
    with pytest.raises(ShapeMismatch, match=r"holds vectors of width 3, got \(1, 5, 4\)"):
        book(torch.randn(1, 5, 4))
    with pytest.raises(BadArgument, match=r"at least 2 codes and a decay in \[0, 1\), got 1 and 0.8"):
        CodeBook(1, 3)


def test_gradients_go_straight_through() -> None:
    book = CodeBook(4, 3)
    z = clouds().requires_grad_()
    out = book(z)
    (out.z * 3).sum().backward(retain_graph=True)
    assert z.grad is not None and torch.equal(z.grad, torch.full_like(z, 3.0))
    z.grad = None
    out.loss.backward()
    torch.testing.assert_close(z.grad, 2 * (z.detach() - out.z.detach()) / z.numel(), atol=1e-6, rtol=1e-4)


# The tokenizer


def features(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    kinds = 2 * torch.randn(5, 6, generator=g)
    at = torch.randint(5, (len(lengths), max(lengths)), generator=g)
    return kinds[at] * mask_of(lengths)[..., None], mask_of(lengths)


def test_it_learns_and_says_its_perplexity() -> None:
    tokenizer, (x, mask) = ASTTokenizer(TINY), features([30, 21, 9])
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    first = last = tokenizer(x, mask)
    for _ in range(80):
        last = tokenizer(x, mask)
        optimizer.zero_grad()
        last.loss.backward()
        optimizer.step()
    assert float(last.loss.detach()) < 0.3 * float(first.loss.detach())
    assert float(last.rec.detach()) < 0.3 * float(x[mask].var()), "worse than always saying the mean"
    assert 3 < float(last.perplexity) <= 8
    tokenizer.eval()
    back = tokenizer.decode(tokenizer.encode(x, mask), mask)
    torch.testing.assert_close(back[mask], tokenizer(x, mask).features[mask])


def test_the_loss_is_equation_14() -> None:
    tokenizer, (x, mask) = ASTTokenizer(TINY).train(), features([12, 7])
    tokenizer(x, mask)
    out = tokenizer.eval()(x, mask)
    z_e, z_q = tokenizer.latent(x, mask), tokenizer.book.codes[out.codes]
    rec = (x - out.features)[mask].square().mean()
    vq = (z_q - z_e)[mask].square().mean()
    torch.testing.assert_close(out.loss, 1.0 * rec + 10.0 * vq)
    torch.testing.assert_close(tokenizer.loss(x, mask), out.loss)


def test_padding_changes_no_code_and_no_frame() -> None:
    tokenizer, (x, mask) = ASTTokenizer(TINY), features([30, 11])
    tokenizer(x, mask)
    tokenizer.eval()
    garbage = torch.where(mask[..., None], x, torch.full_like(x, 1e3))
    whole, alone = tokenizer(garbage, mask), tokenizer(x[1:, :11])
    assert torch.equal(whole.codes[1, :11], alone.codes[0])
    torch.testing.assert_close(whole.features[1, :11], alone.features[0])
    assert not tokenizer.encode(x, mask)[1, 11:].any()


def test_the_papers_sizes() -> None:
    """SPEC §9: 768 → 1024, two stages of two units, one code a patch; the configuration survives JSON."""
    with torch.device("meta"):
        tokenizer = ASTTokenizer()
    assert (tokenizer.book.size, tokenizer.book.dim) == (4096, 1024)
    shapes = [tuple(p.shape) for n, p in tokenizer.encoder.named_parameters() if n.endswith("weight")]
    stage = [(1024, 1024, 3), (1024, 1024, 1)] * 2 + [(1024, 1024, 3)]
    assert shapes == [(1024, 768, 3), *stage, *stage]
    assert tokenizer.encoder[0].conv.bias is None and tokenizer.projector.conv.bias is None
    assert ASTConfig(**json.loads(json.dumps(TINY.to_dict()))) == TINY
    with pytest.raises(ShapeMismatch, match=r"reads features \(B, T, 6\), got \(1, 4, 7\); .*ASTConfig\(input_dim="):
        ASTTokenizer(TINY)(torch.zeros(1, 4, 7))


def test_a_checkpoint_goes_on_bit_identically() -> None:
    def steps(tokenizer: ASTTokenizer, some: range) -> None:
        optimizer = torch.optim.SGD(tokenizer.parameters(), 1e-2)
        for i in some:
            torch.manual_seed(i)
            optimizer.zero_grad()
            tokenizer(*features([12, 7], seed=i)).loss.backward()
            optimizer.step()

    one, two = ASTTokenizer(TINY), ASTTokenizer(TINY)
    steps(one, range(3))
    two.load_state_dict(one.state_dict())
    steps(one, range(3, 5))
    steps(two, range(3, 5))
    assert all(torch.equal(a, two.state_dict()[k]) for k, a in one.state_dict().items())


# Two ranks


def on_ranks(rank: int | None) -> dict[str, Any]:
    """A codebook over several batches, ranks with different numbers of vectors; and a tokenizer inside DDP."""
    torch.manual_seed(0)
    book, seen = CodeBook(8, 3, dead=0.3), []
    for step in range(6):
        z = clouds(seed=step, centres=6)[0]
        z = z[: 40 * (1 + step)]  # the sixth group comes last: codes die and live again
        part = z if rank is None else (z[:30] if rank == 0 else z[30:])
        torch.manual_seed(step if rank in (None, 0) else 99)  # only the first rank's draws count
        seen.append(float(book(part[None]).perplexity))
    found: dict[str, Any] = {"codes": book.codes.tolist(), "counts": book.counts.tolist(), "perplexity": seen}
    if rank is None:
        return found
    torch.manual_seed(0)
    tokenizer = ASTTokenizer(TINY)
    train = DistributedDataParallel(tokenizer)
    optimizer = torch.optim.SGD(train.parameters(), 1e-2)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        train(*features([12, 5 + 4 * rank], seed=10 * step + rank)).loss.backward()
        optimizer.step()
    found["tokenizer"] = [v.flatten().tolist() for v in tokenizer.state_dict().values()]
    return found


def test_two_ranks_have_the_codebook_of_one_process(tmp_path: Path) -> None:
    ranks, one = rank_jobs.start(on_ranks, tmp_path), on_ranks(None)
    assert ranks[0] == ranks[1]
    for key in ("codes", "counts", "perplexity"):
        torch.testing.assert_close(torch.tensor(ranks[0][key]), torch.tensor(one[key]), rtol=1e-4, atol=1e-4)


# Codes of clips


def test_codes_of_audio_and_of_frames() -> None:
    source, audio = MelFrames(), torch.randn(16_000) * 0.1
    kmeans = KMeansCodes.fit([source(audio)], source, 5)
    assert torch.equal(kmeans(audio), kmeans.of_frames(source(audio))) and kmeans.vocab == 5
    assert KMeansCodes.from_state(kmeans.state(), source).name == kmeans.name
    assert kmeans.name.startswith("kmeans-mel-mean2-5-")
    tokenizer = ASTTokenizer(ASTConfig.tiny(vocab=16))
    codes = ASTCodes(tokenizer, source)
    assert codes(audio).shape == kmeans(audio).shape and int(codes(audio).max()) < 16
    before = codes.name
    with torch.no_grad():
        tokenizer.projector.conv.weight.add_(1)
    assert ASTCodes(tokenizer, source).name != before, "caches would mix"
    with pytest.raises(ShapeMismatch, match="trained on frames of width 6, mel-mean2 has 100"):
        ASTCodes(ASTTokenizer(TINY), source)
    with pytest.raises(ShapeMismatch, match=r"centres \(3, 6\) do not fit frames of width 100"):
        KMeansCodes(torch.zeros(3, 6), source)
    with pytest.raises(BadArgument, match="at least one training clip"):
        KMeansCodes.fit([], source)


# S3


@pytest.fixture(scope="module")
def tiny_s3() -> Any:
    model = pytest.importorskip("s3tokenizer.model", exc_type=ImportError)
    torch.manual_seed(0)
    config = model.ModelConfig(n_mels=80, n_audio_ctx=300, n_audio_state=64, n_audio_head=1, n_audio_layer=2,
                               n_codebook_size=32)  # fmt: skip
    net = model.S3Tokenizer("speech_tokenizer_v1", config)
    with torch.no_grad():  # codes where the encoder's outputs are, so that different audio gets different ones
        h, _ = net.encoder(torch.randn(1, 80, 64), torch.tensor([64]))
    net.quantizer._codebook.embed.copy_(h[0])
    return net


def as_onnx(net: Any, path: Path) -> None:
    """The network's weights under the node names that the published file has, which the package reads."""
    onnx = pytest.importorskip("onnx")
    nodes, tensors = [], []

    def put(node: str, tensor: Tensor, known: str = "", op: str = "Add") -> None:
        name = known or f"w{len(tensors)}"
        tensors.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        nodes.append(onnx.helper.make_node(op, [name], [f"{name}_out"], name=node))

    for name, value in net.state_dict().items():
        place = name.removeprefix("encoder.")
        if name == "quantizer._codebook.embed":
            put("/quantizer/rq/model/layers.0/_codebook/Pow_1", value.T)
        elif place == "positional_embedding" or place.startswith("conv"):
            put(name, value, f"encoders.{place}")
        else:
            norm = "_ln" in place
            kind = ("Mul" if norm else "MatMul") if place.endswith("weight") else ("Add_1" if norm else "Add")
            put("/" + place.replace(".mlp.", ".mlp/mlp.").rsplit(".", 1)[0] + "/" + kind,
                value.T if value.ndim == 2 else value)  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "s3", [], [], initializer=tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".onnx"])
def test_s3_from_files(tiny_s3: Any, tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"speech_tokenizer_v1{suffix}"
    state = {k: v.contiguous() for k, v in tiny_s3.state_dict().items()}
    if suffix == ".onnx":
        as_onnx(tiny_s3, path)
    else:
        (save_file if suffix == ".safetensors" else torch.save)(state, path)
    codes, audio = S3Codes(path), 0.1 * torch.randn(32_000)
    assert codes.vocab == 32 and codes.frames is None
    assert torch.equal(codes(audio), S3Codes(tiny_s3)(audio))
    assert len(codes(audio)) == 100 and len(set(codes(audio).tolist())) > 1  # 50 a second
    assert codes.name == S3Codes(tiny_s3).name
    with pytest.raises(Unsupported, match="S3 codes are made of audio"):
        codes.of_frames(torch.zeros(3, 4))


def test_s3_weights_that_are_none(tiny_s3: Any, tmp_path: Path) -> None:
    with pytest.raises(
        NoWeights, match=r"no S3 tokenizer at .*Get speech_tokenizer_v1.onnx .*give its path.*KMeansCod"
    ):
        S3Codes(tmp_path / "speech_tokenizer_v1.onnx")
    for suffix in (".onnx", ".pt", ".safetensors"):
        torn = tmp_path / f"torn{suffix}"
        torn.write_bytes(b"\xff\xfftorn")
        with pytest.raises(NoWeights, match=r"torn.* is no S3 tokenizer .*Get speech_tokenizer_v1.onnx"):
            S3Codes(torn)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weight": torch.ones(2)}, foreign)
    with pytest.raises(NoWeights, match="holds other weights than an S3 tokenizer's"):
        S3Codes(foreign)
    torch.save({**tiny_s3.state_dict(), "quantizer._codebook.project_down.weight": torch.ones(2)}, foreign)
    with pytest.raises(Unsupported, match="is a later S3 tokenizer"):
        S3Codes(foreign)


def test_s3_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3tokenizer", None)
    with pytest.raises(MissingDependency, match="pip install onnx && pip install --no-deps s3tokenizer"):
        S3Codes("speech_tokenizer_v1.onnx")


# Configurations A and B


def test_interleaving_is_one_to_one() -> None:
    s, b = torch.tensor([1, 2, 3]), torch.tensor([7, 8, 9])
    assert interleave(s, b).tolist() == [1, 7, 2, 8, 3, 9]  # Eq. 15
    for n, m in ((5, 3), (3, 5), (10, 1), (7, 7)):
        s, b = torch.arange(n), 100 + torch.arange(m)
        first, second = deinterleave(interleave(s, b))
        assert torch.equal(first, s) and second.tolist() == sorted(second.tolist())
        first, second = deinterleave(interleave(s, b, cut=True))
        assert torch.equal(first, s[: min(n, m)]) and torch.equal(second, b[: min(n, m)])
    with pytest.raises(ShapeMismatch, match="two streams of 0 and 3 codes"):
        interleave(torch.arange(0), torch.arange(3))
    with pytest.raises(ShapeMismatch, match="come in pairs, got 3"):
        deinterleave(torch.arange(3))


DUAL = DiTConfig.tiny()


@pytest.mark.parametrize("dual", ["interleave", "fuse"])
def test_the_dual_interface(dual: Any) -> None:
    interface = DualInterface(DUAL, acoustic=20, dual=dual)
    s, b = torch.randint(DUAL.vocab, (2, 9)), torch.randint(20, (2, 9))
    tokens = interleave_rows(s, b)
    lengths, domain = torch.tensor([40, 21]), torch.tensor([0, 1])
    c = interface(tokens, torch.tensor([18, 10]), domain, lengths, 40)
    assert c.shape == (2, 40, DUAL.token_dim) and not c[1, 21:].any()
    torch.testing.assert_close(c[0].norm(dim=-1), torch.ones(40))
    alone = interface(tokens[1:, :10], torch.tensor([10]), domain[1:], lengths[1:], 21)
    torch.testing.assert_close(c[1:, :21], alone)  # padding never leaks in
    both = interface(tokens, torch.tensor([18, 10]), domain, lengths, 40)
    (both * torch.randn_like(both)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in interface.parameters()), "trap 4: frozen in the release"


def interleave_rows(s: Tensor, b: Tensor) -> Tensor:
    return torch.stack([interleave(x, y) for x, y in zip(s, b, strict=True)])


def test_interleaved_tokens_stand_in_order_and_fused_ones_together() -> None:
    """At a length of 2N frames the interleaved interface is its embeddings, one after the other; fused at N."""
    s, b = torch.tensor([[3, 4]]), torch.tensor([[5, 6]])
    tokens, zero = interleave_rows(s, b), torch.tensor([0])
    one = DualInterface(DUAL, acoustic=20, dual="interleave")
    c = one(tokens, torch.tensor([4]), zero, torch.tensor([4]), 4)[0]
    rows = torch.stack([one.books[0].weight[3], one.acoustic.weight[5], one.books[0].weight[4], one.acoustic.weight[6]])
    torch.testing.assert_close(c, torch.nn.functional.normalize(rows, dim=-1))
    two = DualInterface(DUAL, acoustic=20, dual="fuse")
    c = two(tokens, torch.tensor([4]), zero, torch.tensor([2]), 2)[0]
    rows = torch.cat([two.books[0].weight[[3, 4]], two.acoustic.weight[[5, 6]]], -1) @ two.projections[0].weight.T
    torch.testing.assert_close(c, torch.nn.functional.normalize(rows, dim=-1))


def test_a_flow_of_either_configuration() -> None:
    assert condition(FlowMatching(DUAL), "A").interface.__class__.__name__ == "TokenInterface"
    assert isinstance(condition(FlowMatching(DUAL), "B").interface, DualInterface)
    with pytest.raises(BadArgument, match="dual must be 'interleave' or 'fuse', got 'both'"):
        condition(FlowMatching(DUAL), "B", dual="both")
    with pytest.raises(BadArgument, match="configuration must be 'A' or 'B', got 'C'"):
        condition(FlowMatching(DUAL), "C")


def test_a_flow_trains_and_samples_on_two_streams() -> None:
    import fog_a
    from unified_audio.batches import MelBatches
    from unified_audio.corpora import from_manifest

    source, clips = MelFrames(), from_manifest().some(2).of("train")
    bare = Reader()
    codes = KMeansCodes.fit([bare.frames(c, source) for c in clips], source, 16)
    reader = Reader(None, {"speech": codes, "sound": codes}, second=codes)
    batch = MelBatches(reader, clips, 2, 40)(0)
    flow = condition(FlowMatching(DUAL), "B", acoustic=16)
    flow(batch).backward()
    assert flow.sample(batch, steps=3).shape == batch["mel"].shape
    wrapped = fog_a.wrap(flow)
    assert wrapped.interface(batch).shape == (2, 40, DUAL.token_dim)  # what BiT-C anchors, also in configuration B
