"""From tokens to sound: averaged weights, references, vocoders, and a whole tiny studio."""

from __future__ import annotations

import pytest
import soundfile
import torch
from torch import nn

from fog_a.errors import BadArgument, NotWritten, NoWeights
from fog_a_adapters.dit import DiTConfig, FlowMatching
from fog_a_adapters.dit.audio.mel import log_mel
from unified_audio.audio_frames import MelFrames
from unified_audio.clips import UnknownEvent
from unified_audio.corpora import from_manifest
from unified_audio.items import Reader
from unified_audio.language_model import LanguageStage
from unified_audio.stage2 import Average, reference_frames, speak
from unified_audio.synthesis import Studio
from unified_audio.tokens import KMeansCodes
from unified_audio.vocoder import GriffinLim, Sound, VocosVocoder, vocoder


def _flow(**changes) -> FlowMatching:
    torch.manual_seed(0)
    model = FlowMatching(DiTConfig.tiny(layers=2, dim=32, token_dim=32, **changes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def test_the_average_follows_and_gives_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(net, 0.5)
    start = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    average.update(net)  # d = min(0.5, 1/10)
    with average.in_place_of(net):
        assert torch.allclose(net[0].weight, start + 0.9)
    assert torch.allclose(net[0].weight, start + 1.0)
    other = Average(net, 0.5)
    other.load(average.state())
    assert other.count == 1 and torch.equal(other.values["0.weight"], average.values["0.weight"])
    with pytest.raises(BadArgument, match="in \\[0, 1\\), got 1"):
        Average(net, 1)


@pytest.mark.parametrize("new", [1, 7, 70, 200])
def test_references_keep_to_the_share_of_training(new):
    r = reference_frames(new)
    assert r == 1 or r < 0.3 * (r + new)
    assert r + 1 >= 0.3 * (r + 1 + new)


def test_speak_hears_tokens_and_reference():
    model = _flow()
    tokens, mel, before = torch.arange(20), torch.randn(12, 100), torch.arange(6)
    options = {"frames": 40, "steps": 5}
    made = speak(model, tokens, 0, reference=(mel, before), **options)
    assert made.shape == (40, 100) and made.isfinite().all()
    assert torch.equal(made, speak(model, tokens, 0, reference=(mel, before), **options))
    for other in (
        speak(model, tokens.flip(0), 0, reference=(mel, before), **options),
        speak(model, tokens, 0, reference=(mel + 1, before), **options),
        speak(model, tokens, 1, reference=(mel, before), **options),
        speak(model, tokens, 0, reference=(mel, before), **{**options, "seed": 1}),
    ):
        assert not torch.allclose(made, other)
    assert speak(model, tokens, 0, **options).shape == (40, 100)


def test_guidance_one_is_the_conditional_velocity():
    model = _flow()
    tokens = torch.arange(10)
    plain, guided = (speak(model, tokens, 0, frames=20, steps=2, cfg=w) for w in (1.0, 3.0))
    zero = FlowMatching.tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowMatching, "tokens", lambda self, batch: torch.zeros_like(zero(self, batch)))
        without = speak(model, tokens, 0, frames=20, steps=2, cfg=1.0)
    assert torch.allclose(guided, without + 3 * (plain - without), atol=1e-4)  # one Euler interval is linear in v


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(0).long(), 0, 40), "0 tokens for 40 frames"),
        ((torch.arange(4), 2, 40), "domain 2"),
        ((torch.arange(4), 0, 1), "1 frames"),
        ((torch.tensor([64]), 0, 40), "for a model of 64 codes a domain"),
    ],
)
def test_speak_refuses(arguments, message):
    tokens, domain, frames = arguments
    with pytest.raises(BadArgument, match=message):
        speak(_flow(), tokens, domain, frames=frames)


def test_griffin_lim_gives_back_what_it_was_shown():
    tone = 0.5 * torch.sin(2 * torch.pi * 440 / 16_000 * torch.arange(16_000))
    mel = log_mel(tone)
    sound = vocoder()(mel)
    assert sound.made_by.startswith("Griffin-Lim") and sound.rate == 24_000
    assert abs(sound.seconds - 1) < 0.02 and sound.samples.abs().max() == pytest.approx(0.99)
    spectrum = torch.fft.rfft(sound.samples).abs()
    assert float(spectrum.argmax()) * sound.rate / len(sound.samples) == pytest.approx(440, abs=25)
    with pytest.raises(BadArgument, match=r"finite mel of \(frames, 100\)"):
        vocoder()(torch.zeros(5, 80))


def test_vocos_is_built_from_its_weights(tmp_path):
    models, heads = pytest.importorskip("vocos.models"), pytest.importorskip("vocos.heads")
    parts = {"backbone": models.VocosBackbone(100, 32, 48, 2), "head": heads.ISTFTHead(32, 1024, 256, padding="center")}
    state = {f"{n}.{k}": v for n, part in parts.items() for k, v in part.state_dict().items()}
    state["feature_extractor.window"] = torch.zeros(3)
    torch.save(state, tmp_path / "pytorch_model.bin")
    made = vocoder(tmp_path)
    sound = made(torch.randn(40, 100))
    assert made.name.startswith("Vocos") and sound.samples.isfinite().all()
    assert len(sound.samples) == pytest.approx(40 * 256, abs=256)
    with pytest.raises(NoWeights, match=r"no Vocos weights at .* get pytorch_model\.bin of huggingface\.co/charactr"):
        VocosVocoder(tmp_path / "none")
    torch.save({"backbone.embed.weight": torch.zeros(8, 80, 7)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(NoWeights, match="is no Vocos for 100 mel bins"):
        VocosVocoder(tmp_path)


def test_sounds_are_written_whole(tmp_path):
    sound = Sound(torch.linspace(-0.9, 0.9, 2400), 24_000, "test")
    back, rate = soundfile.read(sound.save(tmp_path / "a.wav"))
    assert rate == 24_000 and torch.allclose(torch.tensor(back).float(), sound.samples, atol=1e-4)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten):
        sound.save(tmp_path / "file" / "a.wav")


@pytest.fixture(scope="module")
def studio() -> Studio:
    corpus = from_manifest().some(2)
    frames, reader = MelFrames(), Reader()
    codes = {
        d: KMeansCodes.fit([reader.frames(c, frames) for c in corpus.of("train", d)], frames, 16)
        for d in corpus.domains
    }
    reader = Reader(codes=codes)
    torch.manual_seed(0)
    language = LanguageStage.build(tiny=True, families={"S3": 16, "AS": 16}, style_dim=frames.dim)
    sampler = {"steps": 3, "cfg": 1.0}
    return Studio(language, _flow(vocab=16), reader, frames, GriffinLim(2), corpus, sampler=sampler)


def test_a_studio_speaks_and_sounds(studio, tmp_path):
    corpus = studio.corpus
    speaker, source = corpus.of("train", "speech")[0], corpus.of("train", "sound")[0]
    made = studio.speech("three birds", speaker, longest=12)
    assert len(made.mel) >= 16 and made.sound.samples.isfinite().all() and made.tokens.max() < 16
    made.save(tmp_path / "speech.wav")
    assert soundfile.info(tmp_path / "speech.wav").samplerate == 24_000
    again = studio.speech("three birds", speaker, longest=12)
    assert torch.equal(made.mel, again.mel)
    assert studio.sound(source.event.upper(), "as it sounds", source, longest=8).mel.isfinite().all()
    item = studio.reader.item(speaker)
    assert len(studio.again(speaker).mel) == len(item.mel) - max(1, int(0.25 * len(item.mel)))


def test_a_studio_refuses(studio):
    corpus = studio.corpus
    speaker, source = corpus.of("train", "speech")[0], corpus.of("train", "sound")[0]
    with pytest.raises(BadArgument, match=r"a reference of sound .* for a prompt of speech"):
        studio.speech("one", source)
    with pytest.raises(BadArgument, match="empty text"):
        studio.speech(" ", speaker)
    with pytest.raises(UnknownEvent, match="unknown event 'zebra'"):
        studio.sound("zebra", "a zebra", source)
