"""Which pretrained parts a run has. Nothing is downloaded; what is not given has a stand-in, named in every table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fog_a.teachers import BEATsTeacher, WhisperTeacher
from fog_a.teachers.weightless import SpectralTeacher
from unified_audio.audio_frames import AudioFrames, frames_from
from unified_audio.evaluation import Embedder, TeacherEmbedder
from unified_audio.grammar_recognizer import GrammarRecognizer
from unified_audio.recognizer import Recognizer, WhisperRecognizer
from unified_audio.s3 import S3Codes
from unified_audio.tokens import Codes
from unified_audio.vggish import VGGish
from unified_audio.vocoder import Vocoder, vocoder


@dataclass(frozen=True)
class Weights:
    """Paths; each part raises NoWeights, which says what to get, where a path holds nothing of its kind.

    Attributes:
        vocos: pytorch_model.bin of charactr/vocos-mel-24khz; without: Griffin-Lim.
        s3: speech_tokenizer_v1.onnx of CosyVoice-300M; without: k-means codes.
        beats: BEATs_iter3_plus_AS2M.pt, for the sound tokenizer, style and the teacher of sound; without: log-mel.
        whisper: folder of a Whisper, the teacher of speech and a second embedder; without: log-mel statistics.
        language: folder of Qwen3-0.6B-Base; without: a tiny random one.
        recognizer: folder of a Whisper, or pocketsphinx with a grammar of the corpus's words; without: one is trained.
        vggish: vggish-10086976.pth, for the published FAD; without: statistics of mel windows.
    """

    vocos: Path | None = None
    s3: Path | None = None
    beats: Path | None = None
    whisper: Path | None = None
    language: Path | None = None
    recognizer: Path | None = None
    vggish: Path | None = None

    def vocoder(self) -> Vocoder:
        return vocoder(self.vocos)

    def frames(self) -> AudioFrames:
        return frames_from(self.beats)

    def speech_codes(self) -> Codes | None:
        return None if self.s3 is None else S3Codes(self.s3)

    def teachers(self) -> dict[str, Any]:
        """Domain → teacher."""
        speech = SpectralTeacher() if self.whisper is None else WhisperTeacher(self.whisper)
        sound = SpectralTeacher() if self.beats is None else BEATsTeacher(self.beats)
        return {"speech": speech, "sound": sound}

    def listener(self, sounds: Vocoder, said: Sequence[str]) -> Recognizer | None:
        """The one that is named; `said`: the corpus's transcripts."""
        if self.recognizer == Path("pocketsphinx"):
            return GrammarRecognizer(said, sounds)
        return None if self.recognizer is None else WhisperRecognizer(self.recognizer, sounds)

    def embedder(self, sounds: Vocoder) -> Embedder | None:
        return None if self.vggish is None else VGGish(self.vggish, sounds)

    def second_embedder(self, sounds: Vocoder) -> Embedder | None:
        """The encoder of Whisper, one embedding a clip."""
        return None if self.whisper is None else TeacherEmbedder(WhisperTeacher(self.whisper), sounds)
