"""The real encoder classes on tiny random configurations; nothing is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fog_a.blocks import block as concepts
from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.errors import (
    BadBatch,
    BadFeatures,
    MissingDependency,
    NoBlocksFound,
    NoWeights,
    ShapeMismatch,
    UnknownBlock,
    Unsupported,
)
from fog_a.flows.samples import Samples
from fog_a.teachers import (
    BEATsTeacher,
    HFAudioTeacher,
    SelfTeacher,
    SpectralTeacher,
    WhisperTeacher,
    weightless,
)
from fog_a.teachers.teacher import Teacher, route, take
from fog_a_adapters import released

RATE = 16_000


def clips(lengths: list[int], pad: int = 0, rate: int = RATE, garbage: float = 0.0) -> Samples:
    """Noise clips of these lengths in one padded batch; behind their end stands `garbage`."""
    width = max(lengths) + pad
    audio = torch.full((len(lengths), width), garbage)
    for i, n in enumerate(lengths):
        audio[i, :n] = 0.3 * torch.randn(n, generator=torch.Generator().manual_seed(i))
    names = tuple(f"clip{i}" for i in range(len(lengths)))
    domains = tuple("speech" if i % 2 == 0 else "sound" for i in range(len(lengths)))
    return Samples(names, domains, lambda rows: list(rows), audio, rate, torch.tensor(lengths))


def on(samples: Samples, device: torch.device) -> Samples:
    assert samples.audio is not None
    return replace(samples, audio=samples.audio.to(device))


def tiny_whisper() -> Any:
    from transformers import WhisperConfig, WhisperModel

    return WhisperModel(
        WhisperConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=32, max_source_positions=100, num_mel_bins=16,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, dropout=0.3,
        )
    )  # fmt: skip


def tiny_beats(folder: Path) -> Path:
    beats = pytest.importorskip("speechbrain.lobes.models.beats")
    config = {
        "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 4,
        "embed_dim": 16, "conv_pos": 16, "conv_pos_groups": 4, "dropout": 0.3,
    }  # fmt: skip
    bare = folder / "bare.pt"
    net = beats.BEATs()  # only a checkpoint carries a configuration
    net.cfg.update(config)
    cfg = net.cfg
    tiny = nn.ModuleDict({"encoder": beats.TransformerEncoder(cfg)})
    state = {f"encoder.{k}": v for k, v in tiny["encoder"].state_dict().items()}
    state |= {k: v for k, v in nn.Conv2d(1, 16, 16, 16, bias=False).state_dict(prefix="patch_embedding.").items()}
    state |= nn.LayerNorm(16).state_dict(prefix="layer_norm.")
    state |= nn.Linear(16, 32).state_dict(prefix="post_extract_proj.")
    torch.save({"cfg": config, "model": state}, bare)
    return bare


def tiny_hubert(masked: bool, norm: str | None = None) -> HFAudioTeacher:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    config = HubertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        conv_dim=[8, 8], conv_stride=[16, 20], conv_kernel=[32, 20],
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm or ("layer" if masked else "group"), do_stable_layer_norm=masked, layerdrop=0.5,
    )  # fmt: skip
    return HFAudioTeacher(HubertModel(config), extractor=Wav2Vec2FeatureExtractor(return_attention_mask=masked))


def tiny_wavlm() -> HFAudioTeacher:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    config = WavLMConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        conv_dim=[8, 8], conv_stride=[16, 20], conv_kernel=[32, 20],
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="group",
    )  # fmt: skip
    return HFAudioTeacher(WavLMModel(config), extractor=Wav2Vec2FeatureExtractor(return_attention_mask=False))


def tiny_ast(**options: Any) -> HFAudioTeacher:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=104,
        num_mel_bins=32,
    )
    return HFAudioTeacher(ASTModel(config), extractor=ASTFeatureExtractor(num_mel_bins=32, max_length=104), **options)


def tiny_wav2vec2_bert() -> HFAudioTeacher:
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

    config = Wav2Vec2BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    return HFAudioTeacher(Wav2Vec2BertModel(config), extractor=SeamlessM4TFeatureExtractor())


def tiny_moonshine() -> HFAudioTeacher:
    from transformers import MoonshineConfig, MoonshineModel, Wav2Vec2FeatureExtractor

    config = MoonshineConfig(
        hidden_size=24, intermediate_size=24, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2,
    )  # fmt: skip
    return HFAudioTeacher(
        MoonshineModel(config).get_encoder(), extractor=Wav2Vec2FeatureExtractor(return_attention_mask=True)
    )


TEACHERS: dict[str, Callable[[Path], Any]] = {
    "whisper": lambda folder: WhisperTeacher(tiny_whisper()),
    "beats": lambda folder: BEATsTeacher(tiny_beats(folder)),
    "hubert-masked": lambda folder: tiny_hubert(masked=True),
    "hubert-by-length": lambda folder: tiny_hubert(masked=False),
    "hubert-masked-over-time": lambda folder: tiny_hubert(masked=True, norm="group"),
    "wav2vec2-bert": lambda folder: tiny_wav2vec2_bert(),  # a mask over frames
    "moonshine": lambda folder: tiny_moonshine(),  # a mask over audio, and no method to make one over frames
    "wavlm": lambda folder: tiny_wavlm(),
    "ast": lambda folder: tiny_ast(),
    "spectral": lambda folder: SpectralTeacher(16),
}


@pytest.fixture(params=TEACHERS)
def teacher(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return TEACHERS[request.param](tmp_path)


def test_contract(teacher: Any, device: torch.device) -> None:
    """Shape, type, no grad, same twice, no random number drawn, padding and its content without effect."""
    assert isinstance(teacher, Teacher)
    lengths = [16_000, 9_600, 16_000]
    state = torch.get_rng_state()
    found = teacher(on(clips(lengths), device))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.device.type == device.type
    assert found.shape == (3, teacher.dim) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.isfinite(found).all() and found.std(0).max() > 0  # tells samples apart
    torch.testing.assert_close(teacher(on(clips(lengths, pad=8_000, garbage=7.0), device)), found, rtol=1e-4, atol=1e-5)
    alone = torch.cat([teacher(take(on(clips(lengths), device), [i])) for i in range(3)])
    torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-4)


def test_frames(teacher: Any) -> None:
    """Token-wise targets: their mean is the pooled feature."""
    if hasattr(teacher, "frames"):
        frames = teacher.frames(clips([16_000, 9_600]))
        assert len(frames) == 2 and len(frames[0]) > len(frames[1]) > 0
        torch.testing.assert_close(torch.stack([h.mean(0) for h in frames]), teacher(clips([16_000, 9_600])))


def test_never_trained(teacher: Any) -> None:
    """As an attribute of a model it is no submodule; in train mode, under autocast, it gives the same features."""
    model = nn.Linear(2, 2)
    model.teacher = teacher  # pyright: ignore[reportAttributeAccessIssue]
    assert len(list(model.modules())) == 1 and len(list(model.state_dict())) == 2
    before = teacher(clips([8_000, 8_000]))
    if hasattr(teacher, "net"):
        teacher.net.train()
        assert not any(p.requires_grad for p in teacher.net.parameters())
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        after = teacher(clips([8_000, 8_000]))
    assert torch.equal(before, after)


def test_any_rate(teacher: Any) -> None:
    """A low tone sampled at 24 kHz tells nearly what it tells at 16 kHz."""
    if "Bert" in teacher.name:
        pytest.skip("its extractor standardizes each mel band, so of a pure tone it shows the resampler's leakage")

    def tone(rate: int) -> Samples:
        audio = torch.sin(torch.arange(2 * rate) / rate * 2 * torch.pi * 440)[None]
        return Samples(("a",), ("x",), lambda rows: rows, audio, rate)

    a, b = teacher(tone(16_000)), teacher(tone(24_000))
    other = teacher(clips([32_000]))
    assert (a - b).norm() < 0.35 * (a - other).norm()


def test_whisper_real_frames() -> None:
    """1 s is 50 frames of the window's 100; the release takes all; a clip beyond the window is read in pieces."""
    model = tiny_whisper()
    real, release = WhisperTeacher(model), released.WhisperTeacher(model)
    samples = clips([16_000])
    assert samples.audio is not None
    mel = real.extract(
        [samples.audio[0].numpy()], sampling_rate=RATE, max_length=32_000, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        h = model.encoder.eval()(mel).last_hidden_state[0]
    assert h.shape == (100, 32)
    torch.testing.assert_close(real(samples)[0], h[:50].mean(0))
    torch.testing.assert_close(release(samples)[0], h.mean(0))
    long = clips([40_000])  # 2 s and .5 s: 100 and 25 frames
    assert long.audio is not None
    parts = [real(Samples(("a",), ("x",), list, long.audio[:, a:b], RATE)) for a, b in ((0, 32_000), (32_000, 40_000))]
    torch.testing.assert_close(real(long), (100 * parts[0] + 25 * parts[1]) / 125)
    assert real.dim == 32 and WhisperTeacher(model.encoder).dim == 32


def test_whisper_of_ten_seconds() -> None:
    """SPEC §17.8: 10 s are 500 real frames of 1500."""
    import math

    assert math.ceil(10 * RATE / 320) == 500
    from transformers import WhisperConfig

    assert WhisperConfig().max_source_positions == 1500


def test_whisper_from_folder(tmp_path: Path) -> None:
    model = tiny_whisper()
    model.save_pretrained(tmp_path)
    teacher = WhisperTeacher(tmp_path)
    assert teacher.fingerprint == WhisperTeacher(model).fingerprint
    torch.testing.assert_close(teacher(clips([8_000])), WhisperTeacher(model)(clips([8_000])))
    assert WhisperTeacher(tiny_whisper()).fingerprint != teacher.fingerprint  # other weights, another cache


def test_beats_patches(tmp_path: Path) -> None:
    """SPEC §17.8: 10 s are 998 fbank frames, 62 × 8 = 496 patches; very short audio gives one patch's row."""
    teacher = BEATsTeacher(tiny_beats(tmp_path))
    audio = clips([160_000]).audio
    assert audio is not None
    net: Any = teacher.net
    assert net.preprocess(audio).shape == (1, 998, 128)
    assert net.extract_features(audio, torch.ones(1))[0].shape == (1, 496, 32)
    assert teacher(clips([100])).shape == (1, 32)
    padded = released.BEATsTeacher(teacher.net)(clips([16_000, 9_600]))
    real = teacher(clips([16_000, 9_600]))
    torch.testing.assert_close(padded[0], real[0])
    assert not torch.allclose(padded[1], real[1])


def test_ast_reads_real_patches_only() -> None:
    """Its tokens run frequency by frequency behind two special ones; 0.5 s are 48 frames: 4 of 9 patches in time."""
    teacher = tiny_ast()
    h = torch.arange(20.0).reshape(1, 20, 1)  # 2 special, then 9 patches of each of 2 frequencies
    frames, real = teacher._real(h, torch.tensor([8_000]), None)
    assert frames[0, :, 0].tolist() == [(2 + i + 11 + i) / 2 for i in range(9)]
    assert real[0].tolist() == [True] * 4 + [False] * 5
    hidden = tiny_ast(pool=lambda h, n: h[:, 0])
    assert hidden(clips([16_000])).shape == (1, 16)
    assert not torch.equal(tiny_ast(layer=0)(clips([16_000])), teacher(clips([16_000])))


def test_hf_model_object_needs_its_extractor() -> None:
    with pytest.raises(Unsupported, match=r"extractor=AutoFeatureExtractor"):
        HFAudioTeacher(tiny_hubert(masked=True).net)


def test_hf_refuses_an_extractor_that_fills_a_window() -> None:
    """Whisper's 30 s have no mask: a mean would count silence without a word."""
    from transformers import WhisperFeatureExtractor

    with pytest.raises(Unsupported, match=r"pads every clip to 30 s.* type WhisperTeacher\(model\)"):
        HFAudioTeacher(tiny_whisper().encoder, extractor=WhisperFeatureExtractor())


def test_hf_from_folder(tmp_path: Path) -> None:
    teacher = tiny_hubert(masked=True)
    net: Any = teacher.net
    net.save_pretrained(tmp_path)
    teacher.extract.save_pretrained(tmp_path)
    torch.testing.assert_close(HFAudioTeacher(tmp_path)(clips([8_000])), teacher(clips([8_000])))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the files and where to put them."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        NoWeights, match=r"hf download fog-a/none.*config.json.*model.safetensors.*WhisperTeacher\('that"
    ):
        WhisperTeacher("fog-a/none")
    with pytest.raises(NoWeights, match=r"HFAudioTeacher could not load"):
        HFAudioTeacher(tmp_path)
    pytest.importorskip("speechbrain")
    with pytest.raises(NoWeights, match=r"no BEATs checkpoint at .*BEATs_iter3_plus_AS2M.pt"):
        BEATsTeacher(tmp_path / "BEATs.pt")
    (tmp_path / "foreign.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(NoWeights, match=r"foreign.pt is no BEATs checkpoint"):
        BEATsTeacher(tmp_path / "foreign.pt")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, match, build in [
        ("transformers", r"WhisperTeacher needs transformers.*fog-a\[teachers\]", lambda: WhisperTeacher("x")),
        (
            "speechbrain.lobes.models.beats",
            r"needs speechbrain and torchaudio.*fog-a\[beats\]",
            lambda: BEATsTeacher("x"),
        ),
        ("torchaudio.functional", r"24000 Hz must be resampled to 16000 Hz", None),
    ]:
        whisper = WhisperTeacher(tiny_whisper()) if build is None else None
        with monkeypatch.context() as m:
            m.setitem(sys.modules, package, None)
            with pytest.raises(MissingDependency, match=match):
                build() if build else whisper(clips([100], rate=24_000))  # pyright: ignore[reportOptionalCall]


def test_bad_audio() -> None:
    teacher = SpectralTeacher()
    bare = Samples(("a",), ("x",), list)
    with pytest.raises(BadBatch, match=r"reads audio.*Samples have none.*CachedTeacher"):
        teacher(bare)
    with pytest.raises(BadBatch, match=r"needs the sample rate"):
        WhisperTeacher(tiny_whisper())(Samples(("a",), ("x",), list, audio=torch.zeros(1, 100)))
    with pytest.raises(ShapeMismatch, match=r"must be \(1, N\).*audio.mean\(1\)"):
        teacher(Samples(("a",), ("x",), list, torch.zeros(1, 2, 100), RATE))
    with pytest.raises(ShapeMismatch, match=r"Samples.lengths must be 1 numbers"):
        teacher(Samples(("a",), ("x",), list, torch.zeros(1, 100), RATE, torch.tensor([200])))
    with pytest.raises(Unsupported, match="needs a Whisper model"):
        WhisperTeacher(nn.Linear(1, 1))


def test_spectral_against_torchaudio() -> None:
    """The filters are those of torchaudio, an independent implementation."""
    functional = pytest.importorskip("torchaudio.functional")
    theirs = functional.melscale_fbanks(257, 0.0, 8_000.0, 40, RATE, norm=None, mel_scale="htk")
    torch.testing.assert_close(weightless.mel_bands(40, 512, RATE), theirs, atol=1e-4, rtol=1e-4)


MODEL = nn.Sequential()  # blocks know their model by a weak reference


def blocks(count: int) -> Blocks:
    return Blocks(
        [
            ResidualBlock(f"layers.{i}", "layers", i, "stream", "identity", frozenset({"x"}), (f"layers.{i}",))
            for i in range(count)
        ],
        MODEL,
    )


def test_self_teacher() -> None:
    assert SelfTeacher().block_of(blocks(24)).index == 15  # layer ⌈2·24/3⌉ = 16 counted from 1
    assert SelfTeacher("layers.3").block_of(blocks(5)).index == 3
    assert SelfTeacher(-1).block_of(blocks(5)).index == 4
    h = torch.randn(2, 3, 4, requires_grad=True)
    teacher = SelfTeacher()
    z = teacher.features(h, torch.tensor([[True, True, False], [True, True, True]]))
    torch.testing.assert_close(z[0], h[0, :2].mean(0).detach())
    assert not z.requires_grad and teacher.dim == 4
    with pytest.raises(UnknownBlock, match=r"SelfTeacher\(9\) but there are 5 blocks"):
        SelfTeacher(9).block_of(blocks(5))
    with pytest.raises(NoBlocksFound, match="SelfTeacher needs"):
        SelfTeacher().block_of(blocks(0))
    with pytest.raises(Unsupported, match="reads a block in the net's own forward"):
        teacher(clips([100]))


# routing


class Counting:
    """Gives each sample its audio's mean, and remembers whom it was asked about."""

    dim: int = 1

    def __init__(self, name: str = "counting", scale: float = 1.0) -> None:
        self.name, self.scale = name, scale
        self.seen: list[str] = []

    def __call__(self, samples: concepts.Samples) -> Tensor:
        self.seen += samples.ids
        assert samples.audio is not None
        return self.scale * samples.audio.mean(1, keepdim=True)


def test_each_domain_to_its_teacher() -> None:
    samples = clips([10, 10, 10, 10, 10])
    speech, sound = Counting("a"), Counting("b", 2.0)
    routed = route({"speech": speech, "sound": sound}, samples)
    assert routed["speech"].rows == [0, 2, 4] and routed["sound"].rows == [1, 3]
    assert speech.seen == ["clip0", "clip2", "clip4"] and sound.seen == ["clip1", "clip3"]
    assert samples.audio is not None
    torch.testing.assert_close(routed["sound"].features, 2 * samples.audio[[1, 3]].mean(1, keepdim=True))
    assert list(route({"speech": None, "sound": sound}, samples)) == ["sound"]
    one = Counting()
    assert {d: r.rows for d, r in route(one, samples).items()} == {"speech": [0, 2, 4], "sound": [1, 3]}
    with pytest.raises(BadBatch, match=r"domain 'sound'.*'speech'.*None to leave that domain out"):
        route({"speech": speech}, samples)
    with pytest.raises(BadBatch, match=r"domain 'sound', but teachers are there for 'speech', 'sounds'; near: sounds"):
        route({"speech": speech, "sounds": sound}, samples)


def test_take_keeps_samples_whole() -> None:
    samples = clips([10, 20, 30])
    part = take(take(samples, [2, 0]), [1])
    assert part.ids == ("clip0",) and part.lengths is not None and part.lengths.tolist() == [10]
    assert part.rows([0]) == [0]
    assert part.audio is not None and samples.audio is not None and torch.equal(part.audio[0], samples.audio[0])


def test_given_features() -> None:
    samples = clips([10, 10, 10])
    whole = torch.arange(6.0).reshape(3, 2)
    for given in (whole, {"speech": whole, "sound": whole}, {"speech": whole[[0, 2]], "sound": whole[[1]]}):
        routed = route(None, samples, features=given)
        assert routed["speech"].features.tolist() == [[0, 1], [4, 5]] and routed["sound"].features.tolist() == [[2, 3]]
    with pytest.raises(BadFeatures, match=r"features of 'speech' gave \(1, 2\), expected \(2, D\)"):
        route(None, samples, features=whole[:1])
    with pytest.raises(BadFeatures, match=r"NaN or inf in rows \[1\] of 2: look"):
        route(None, samples, features={"speech": torch.tensor([[1.0], [np.nan]]), "sound": whole})
    with pytest.raises(BadFeatures, match=r"expected \(2, D\).*features.mean\(1\)"):
        route(None, samples, features=torch.zeros(3, 4, 5))
    with pytest.raises(BadBatch, match="neither a teacher nor features"):
        route(None, samples)
    with pytest.raises(BadBatch, match="domain 'sound', but features are there for 'speech'"):
        route(None, samples, features={"speech": whole})


def test_an_encoder_that_draws_in_eval(tmp_path: Path) -> None:
    """Older transformers do (LayerDrop); the training's random numbers must be the same with a teacher and without."""
    for build in (TEACHERS["whisper"], TEACHERS["beats"], TEACHERS["wavlm"]):
        teacher = build(tmp_path)
        drawn: list[Tensor] = []
        for module in teacher.net.modules():
            module.register_forward_pre_hook(lambda *_, to=drawn: to.append(torch.rand(1)))
        state = torch.get_rng_state()
        teacher(clips([8_000]))
        assert drawn and torch.equal(torch.get_rng_state(), state)
