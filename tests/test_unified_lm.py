"""Stage 1: the prompts, what is learned of them, style, the coarse head, and answers that are always codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fog_a.errors import BadArgument, NoWeights, ShapeMismatch
from unified_audio.clips import Clip
from unified_audio.generation import AllowedCodes
from unified_audio.language_model import LanguageConfig, LanguageStage
from unified_audio.prompts import Example, Prompt
from unified_audio.style import StyleSlots, segment_means
from unified_audio.vocabulary import Vocabulary, byte_tokenizer

pytest.importorskip("transformers")

FAMILIES = {"S3": 32, "AS": 32}
STYLE = 10


def small(**options: Any) -> LanguageStage:
    return LanguageStage.build(tiny=True, **{"families": FAMILIES, "style_dim": STYLE, "buckets": 8, **options})


def example(i: int, style: bool = True) -> Example:
    prompt = Prompt.speech(f"number {i}") if i % 2 else Prompt.sound("rain", f"a sound {i}, of another length")
    vectors = segment_means(torch.randn(20, STYLE, generator=torch.Generator().manual_seed(i)))
    return Example(prompt, [(torch.arange(6) * (i + 1)) % 32], vectors if style else None)


@pytest.fixture(scope="module")
def trained() -> LanguageStage:
    """A stage that knows four examples by heart, with style and without."""
    torch.manual_seed(0)
    stage = small()
    batch = stage.collate([example(i) for i in range(4)])
    optimizer = torch.optim.AdamW(stage.parameters(), 3e-3)
    first = last = stage(batch)
    for _ in range(80):
        last = stage(batch)
        optimizer.zero_grad()
        last.loss.backward()
        optimizer.step()
    assert float(last.clm.detach()) < 0.1 * float(first.clm.detach())
    assert float(last.coarse.detach()) < 0.1 * float(first.coarse.detach())
    return stage.eval()


# Prompts


def test_the_prompt_of_a_sound_is_equation_16() -> None:
    stage = small()
    batch = stage.collate([Example(Prompt.sound("rain", "on a roof"), [torch.tensor([3, 30])])])
    written = stage.vocabulary.write(batch["ids"][0]).replace("Ġ", " ")
    slots = " ".join(f"[AUDIO_{k}]" for k in range(16))
    assert written == f"[TAG] r a i n [DES] o n   a   r o o f {slots} [AT] [AS_3] [AS_30] [END]"
    learned = batch["labels"][0] != -100
    assert stage.vocabulary.write(batch["labels"][0][learned]) == "[AS_3] [AS_30] [END]"
    assert learned.tolist() == [False] * (len(learned) - 3) + [True] * 3
    assert not batch["styled"].any()


def test_the_prompt_of_speech() -> None:
    stage = small()
    batch = stage.collate([Example(Prompt.speech("hi"), [torch.tensor([3])]), example(2)])
    assert stage.vocabulary.write(batch["ids"][0][batch["mask"][0].bool()]).startswith("[TEXT] h i [AUDIO_0] ")
    assert stage.vocabulary.write(batch["ids"][0][:22]).endswith("[AUDIO_15] [ST] [S3_3] [END]")
    assert (batch["ids"][0][~batch["mask"][0].bool()] == stage.vocabulary.marker("PAD")).all()
    assert batch["styled"].tolist() == [False, True]


def test_two_families_alternate() -> None:
    config = LanguageConfig.dual(8, 4, style_dim=STYLE)
    stage = LanguageStage.build(tiny=True, config=config)
    assert stage.coarse is None
    batch = stage.collate([Example(Prompt.speech("hi"), [torch.tensor([1, 2, 3]), torch.tensor([0, 3])])])
    tail = batch["labels"][0][batch["labels"][0] != -100]
    assert stage.vocabulary.write(tail) == "[S3_1] [BEATS_0] [S3_2] [BEATS_3] [END]"  # cut to the shorter
    assert stage(batch).coarse == 0
    with pytest.raises(ShapeMismatch, match="1 streams of codes for the families S3, BEATS"):
        stage.collate([Example(Prompt.speech("hi"), [torch.tensor([1])])])


def test_text_that_spells_tokens_stays_text() -> None:
    """Whatever a caption says, it cannot end the prompt or name a code."""
    v = Vocabulary(byte_tokenizer(), FAMILIES)
    for text in ("[END] [AS_7] [AT]", "<|endoftext|>", "naïve, 雨, 🌧", ""):
        ids = v.words(text)
        assert all(i < v.base for i in ids) and v.text.decode(ids) == text
    special = byte_tokenizer()
    special.add_special_tokens({"eos_token": "<|endoftext|>"})
    v = Vocabulary(special, FAMILIES)
    assert v.text.eos_token_id not in v.words("all <|endoftext|> over") and v.base == 257


def test_ids_are_apart_and_come_back() -> None:
    v = Vocabulary(byte_tokenizer(), {"S3": 5, "AS": 7, "BEATS": 3}, buckets=3)
    new = range(v.base, v.size)
    assert len({v.name(i) for i in new}) == len(new) == 7 + 16 + 15
    for family, count in v.families.items():
        codes = torch.arange(count)
        ids = v.ids(family, codes)
        assert torch.equal(v.codes(family, ids), codes) and v.name(int(ids[-1])) == f"[{family}_{count - 1}]"
    assert v.cluster(v.ids("AS", torch.arange(7))).tolist() == [3, 3, 3, 4, 4, 4, 5]
    assert v.cluster(torch.tensor([0, v.marker("END"), v.audio[0]])).tolist() == [-100] * 3
    paper = Vocabulary(byte_tokenizer(), {"AS": 4096})
    assert int(paper.cluster(paper.ids("AS", torch.tensor([4095])))) == 4095 // 32 == 127  # Eq. 20
    with pytest.raises(BadArgument, match=r"S3 codes must be in 0…4, got 0…5; .*families=\{'S3': tokenizer.vocab\}"):
        v.ids("S3", torch.tensor([0, 5]))
    with pytest.raises(BadArgument, match="no codes 'XY' in this vocabulary; it has S3, AS, BEATS"):
        v.family("XY")
    with pytest.raises(BadArgument, match="needs families of codes"):
        Vocabulary(byte_tokenizer(), {})


def test_prompts_that_ask_for_nothing() -> None:
    with pytest.raises(BadArgument, match="a prompt of speech with an empty text; say what to speak"):
        Prompt.speech("  ")
    with pytest.raises(BadArgument, match="a prompt of sound with an empty event"):
        Prompt.sound("", "rain")
    stage = small(longest=60)
    with pytest.raises(BadArgument, match=r"a sequence of \d+ \+ 51 ids .*at most 60: crop the clip or shorten"):
        stage.collate([Example(Prompt.speech("hi"), [torch.arange(50) % 32])])
    with pytest.raises(ShapeMismatch, match="an answer without codes"):
        stage.collate([Example(Prompt.speech("hi"), [torch.arange(0)])])
    with pytest.raises(ShapeMismatch, match=r"style vectors must be \(16, 10\), got \(16, 9\)"):
        stage.collate([Example(Prompt.speech("hi"), [torch.arange(3)], torch.zeros(16, 9))])
    with pytest.raises(BadArgument, match="a batch of no examples"):
        stage.collate([])


# Style


def test_segment_means_are_equation_17() -> None:
    frames = torch.randn(50, 3)
    want = torch.stack([frames[int(50 * i / 16) : int(50 * (i + 1) / 16)].mean(0) for i in range(16)])
    torch.testing.assert_close(segment_means(frames), want)
    torch.testing.assert_close(segment_means(frames[:32]), frames[:32].unflatten(0, (16, 2)).mean(1))
    assert segment_means(frames[:5]).shape == (16, 3) and segment_means(frames[:5]).isfinite().all()
    torch.testing.assert_close(segment_means(frames[:1]), frames[:1].expand(16, -1))
    with pytest.raises(ShapeMismatch, match=r"style is averaged over frames \(T, D\)"):
        segment_means(frames[:0])


def test_mixing_is_equation_18() -> None:
    slots = StyleSlots(3, 8, alpha=0.3).eval()
    e, v = torch.randn(2, 16, 8), torch.randn(2, 16, 3)
    out = slots(e, v, torch.tensor([True, False]))
    torch.testing.assert_close(out[0], 0.7 * e[0] + 0.3 * slots.project(v[0]))
    assert torch.equal(out[1], e[1])


def test_style_drops_for_whole_samples_in_training() -> None:
    slots, styled = StyleSlots(3, 8, drop=0.7), torch.ones(2000, dtype=torch.bool)
    e, v = torch.zeros(2000, 16, 8), torch.ones(2000, 16, 3)
    kept = slots(e, v, styled).abs().sum(2) > 0
    assert (kept.all(1) | ~kept.any(1)).all()
    assert float(kept[:, 0].float().mean()) == pytest.approx(0.3, abs=0.05)
    assert (slots.eval()(e, v, styled).abs().sum(2) > 0).all()


def test_style_reaches_its_slots_and_nothing_else() -> None:
    stage = small().eval()
    batch = stage.collate([example(0), example(1)])
    plain = stage.embed(batch["ids"], batch["style"], torch.zeros(2, dtype=torch.bool))
    assert torch.equal(plain, stage.lm.get_input_embeddings()(batch["ids"]))
    mixed = stage.embed(batch["ids"], batch["style"], batch["styled"])
    changed = (mixed != plain).any(-1)
    slots = stage.vocabulary.audio
    assert torch.equal(changed, (batch["ids"] >= slots.start) & (batch["ids"] < slots.stop))
    want = 0.5 * plain[1][changed[1]] + 0.5 * stage.style.project(batch["style"][1])
    torch.testing.assert_close(mixed[1][changed[1]], want)
    stage.train()(batch).loss.backward()
    assert all(p.grad is not None for p in stage.parameters())


# The loss


def test_padding_and_neighbours_do_not_matter() -> None:
    stage = small().eval()
    some = [example(i) for i in range(3)]
    alone = [stage(stage.collate([e])) for e in some]  # answers of equal length: the mean of means is the mean
    torch.testing.assert_close(stage(stage.collate(some)).clm, torch.stack([o.clm for o in alone]).mean())
    torch.testing.assert_close(stage(stage.collate(some)).coarse, torch.stack([o.coarse for o in alone]).mean())


def test_the_loss_is_equation_19() -> None:
    stage = small(coarse_weight=0.3).eval()
    batch = stage.collate([example(0)])
    out = stage(batch)
    torch.testing.assert_close(out.loss, out.clm + 0.3 * out.coarse)
    e = stage.embed(batch["ids"], batch["style"], batch["styled"])
    whole = stage.lm(inputs_embeds=e, attention_mask=batch["mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(out.clm, whole)  # transformers' own causal loss


@pytest.mark.parametrize("shift", [True, False])
def test_the_coarse_head_does_not_see_its_answer(shift: bool) -> None:
    """Over all buckets a code may fall into, what the head says of each sums to 1, unless it knows the code already."""
    stage = small(families={"AS": 32}, targets={"sound": ("AS",)}, coarse_shift=shift).eval()
    assert stage.coarse is not None
    torch.nn.init.normal_(stage.coarse.weight)
    found = 0.0
    for bucket in range(8):
        one = Example(Prompt.sound("rain", "x"), [torch.tensor([4 * bucket])])
        found += float(torch.exp(-stage(stage.collate([one])).coarse.detach()))
    assert (abs(found - 1) < 1e-4) == shift


def test_the_coarse_head_reads_only_codes() -> None:
    stage = small().eval()
    batch = stage.collate([example(0)])
    assert stage.vocabulary.marker("END") in batch["labels"]
    assert stage.vocabulary.cluster(batch["labels"]).max() < stage.vocabulary.clusters
    assert int((stage.vocabulary.cluster(batch["labels"]) >= 0).sum()) == 6


# Generation


def asked(n: int = 4) -> list[Prompt]:
    return [example(i).prompt for i in range(n)]


def test_it_says_what_it_learned(trained: LanguageStage) -> None:
    """Together and one by one: prompts of two grammars and several lengths in one call."""
    want = [example(i).streams[0].tolist() for i in range(4)]
    assert [s.tolist() for (s,) in trained.generate(asked(), greedy=True, longest=20)] == want
    assert [trained.generate([p], greedy=True, longest=20)[0][0].tolist() for p in asked()] == want
    style = [example(i).style for i in range(4)]
    assert [s.tolist() for (s,) in trained.generate(asked(), style=style, greedy=True, longest=20)] == want


@pytest.mark.parametrize("dual", [False, True])
def test_only_allowed_codes_come_out(dual: bool) -> None:
    """An untrained model at a high temperature would say anything."""
    config = (
        LanguageConfig.dual(8, 4, style_dim=STYLE) if dual else LanguageConfig(FAMILIES, style_dim=STYLE, buckets=8)
    )
    stage = LanguageStage.build(tiny=True, config=config)
    prompts = [Prompt.speech("hi"), Prompt.sound("rain", "on a roof")] * 3
    free = {"temperature": 50.0, "top_p": 1.0, "seed": 0}
    found = stage.generate(prompts, longest=12, shortest=5, **free)
    for prompt, streams in zip(prompts, found, strict=True):
        families = stage.config.targets[prompt.domain]
        assert len(streams) == len(families) and len({len(s) for s in streams}) == 1
        assert 5 <= len(streams[0]) <= 12
        for family, s in zip(families, streams, strict=True):
            assert 0 <= int(s.min()) <= int(s.max()) < stage.config.families[family]
    many = stage.generate([prompts[0]] * 40, longest=12, **free)
    lengths = {len(s[0]) for s in many}
    assert min(lengths) >= 1 and max(lengths) <= 12 and len(lengths) > 1, "[END] is allowed, and never forced"


def test_the_grammar_step_by_step() -> None:
    v = Vocabulary(byte_tokenizer(), {"S3": 5, "BEATS": 3})
    allowed = AllowedCodes(v, ("S3", "BEATS"), v.size + 9, shortest=2)
    for n, want in enumerate((["S3"], ["BEATS"], ["S3"], ["BEATS"], ["S3", "END"], ["BEATS"], ["S3", "END"])):
        left = allowed(torch.zeros(1, n, dtype=torch.long), torch.zeros(1, v.size + 9))[0].isfinite().nonzero()[:, 0]
        ids = {i for f in want for i in (v.family(f) if f != "END" else [v.marker("END")])}
        assert set(left.tolist()) == ids


def test_families_may_be_chosen(trained: LanguageStage) -> None:
    (codes,) = trained.generate([Prompt.speech("number 1")], allowed=["AS"], longest=4, seed=0)[0]
    assert int(codes.max()) < 32
    with pytest.raises(BadArgument, match="no codes 'XY'"):
        trained.generate([Prompt.speech("number 1")], allowed=["XY"], longest=4)


def test_sampling_is_a_function_of_its_seed(trained: LanguageStage) -> None:
    options: dict[str, Any] = {"temperature": 5.0, "top_p": 1.0, "longest": 10}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = trained.generate(asked(2), seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    two, three = trained.generate(asked(2), seed=1, **options), trained.generate(asked(2), seed=2, **options)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(one, three, strict=True))
    trained.train()
    trained.generate(asked(1), longest=2, seed=0)
    assert trained.training
    trained.eval()


def test_guidance_runs_from_no_style_to_more_than_style() -> None:
    """w = 0 is the answer without style, w = 1 the one with it; between them the model sees both."""
    torch.manual_seed(1)
    stage = small().eval()
    with torch.no_grad():
        stage.style.project.weight.mul_(8)
    prompts, style = asked(3), [10 * torch.randn(16, STYLE) for _ in range(3)]
    options: dict[str, Any] = {"greedy": True, "longest": 8, "shortest": 8}

    def said(**more: Any) -> list[Tensor]:
        return [s for (s,) in stage.generate(prompts, **options, **more)]

    without, styled = said(), said(style=style)
    assert any(not torch.equal(a, b) for a, b in zip(without, styled, strict=True))
    for weight, want in ((0.0, without), (1.0 + 1e-6, styled)):
        assert all(torch.equal(a, b) for a, b in zip(said(style=style, guidance=weight), want, strict=True))
    with pytest.raises(BadArgument, match="guidance needs a reference's style for every prompt"):
        said(guidance=2.0)


def test_generation_refuses_what_cannot_be() -> None:
    stage = small(longest=60)
    with pytest.raises(BadArgument, match="generate got 0 prompts"):
        stage.generate([])
    with pytest.raises(BadArgument, match=r"generate got 1 prompts and lengths 9…8"):
        stage.generate(asked(1), shortest=9, longest=8)
    with pytest.raises(ShapeMismatch, match="1 style entries for 2 prompts"):
        stage.generate(asked(2), style=[None], longest=3)
    with pytest.raises(ShapeMismatch, match=r"style vectors must be \(16, 10\), got \(3, 10\)"):
        stage.generate(asked(1)[:1], style=[torch.zeros(3, STYLE)], longest=3)
    with pytest.raises(BadArgument, match=r"exceed the longest sequence, 60; shorten the text or ask for fewer"):
        stage.generate(asked(1), longest=500)


# Weights


def test_a_pretrained_model_is_loaded_and_enlarged(tmp_path: Path) -> None:
    """The path that Qwen3 takes, on a folder: an embedding table with padding rows, too small for the codes."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from unified_audio.language_model import TINY

    text = byte_tokenizer()
    lm = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(text) + 8, **TINY))
    lm.save_pretrained(tmp_path)
    text.save_pretrained(tmp_path)
    stage = LanguageStage.build(tmp_path, families=FAMILIES, style_dim=STYLE, checkpointing=True)
    table = stage.lm.get_input_embeddings().weight
    assert len(table) == stage.vocabulary.size and stage.lm.get_output_embeddings().weight is table
    assert torch.equal(table[: len(text)], lm.get_input_embeddings().weight[: len(text)])
    new, old = (float(t.detach().std()) for t in (table[len(text) :], table[: len(text)]))
    assert new == pytest.approx(old, rel=0.1)
    stage(stage.collate([example(0), example(1)])).loss.backward()  # under gradient checkpointing
    assert all(p.grad is not None for p in stage.parameters())
    assert stage.generate(asked(1), longest=3)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    for name in (tmp_path, "Qwen/Qwen3-0.6B-Base"):  # tests have no hub
        with pytest.raises(NoWeights, match=r"could not load the language model .*model.safetensors, tokenizer.json"):
            LanguageStage.build(name)
    for wrong in ({}, {"name": "x", "tiny": True}):
        with pytest.raises(BadArgument, match="a model's name or folder, or tiny=True, one of the two"):
            LanguageStage.build(**wrong)
    with pytest.raises(BadArgument, match="targets name XY, but families are AS"):
        LanguageConfig({"AS": 3}, {"sound": ("XY",)})


def test_state_and_configuration_survive(trained: LanguageStage) -> None:
    config = LanguageConfig.from_dict(json.loads(json.dumps(trained.config.to_dict())))
    assert config == trained.config
    again = LanguageStage.build(tiny=True, config=config)
    again.load_state_dict(trained.state_dict())
    batch = trained.collate([example(0), example(3)])
    assert torch.equal(again.eval()(batch).loss, trained(batch).loss)


def test_clips_become_batches() -> None:
    from unified_audio.audio_frames import MelFrames
    from unified_audio.batches import LanguageBatches
    from unified_audio.corpora import from_manifest
    from unified_audio.items import Reader
    from unified_audio.tokens import KMeansCodes

    source, clips = MelFrames(), from_manifest().some(2).of("train")
    codes = KMeansCodes.fit([Reader().frames(c, source) for c in clips], source, 16)
    reader = Reader(None, {"speech": codes, "sound": codes})
    stage = small(style_dim=source.dim)
    batches = LanguageBatches(reader, clips, 2, stage, source)
    batch = batches(0)
    assert batch["styled"].all() and batch["style"].any() and stage(batch).loss.isfinite()
    assert torch.equal(batch["ids"], LanguageBatches(reader, clips, 2, stage, source)(0)["ids"])
    clip: Clip = next(c for c in clips if c.domain == "sound")
    assert batches.example(clip).prompt == Prompt.sound(clip.event, clip.text)
