"""Who else listens: pocketsphinx, an English recognizer with weights of its own, held to a grammar of a few words.

    recognizer = GrammarRecognizer(["zero one two"], GriffinLim())
    recognizer([mel])                                                      # → ["two zero"]

It was trained on none of the corpus, so beside a recognizer that was, it says whether words are heard or recognized
by their corpus's manner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fog_a.errors import BadArgument, MissingDependency
from fog_a_adapters.dit.audio.mel import RATE, optional
from unified_audio.evaluation import words
from unified_audio.vocoder import Vocoder


class GrammarRecognizer:
    """pocketsphinx with the grammar "one or more of the words of these transcripts"; it hears the vocoder's sound.

    Raises:
        MissingDependency: the pocketsphinx package, which brings its weights, is absent.
        BadArgument: no word, or one that its dictionary does not have.
    """

    def __init__(self, said: Sequence[str], vocoder: Vocoder) -> None:
        try:
            from pocketsphinx import Decoder  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependency(
                f"a recognizer with a grammar needs pocketsphinx ({error}). Type pip install --no-deps "
                "pocketsphinx==5.1.1, or leave --recognizer out"
            ) from error
        self.decoder: Any = Decoder(lm=None, loglevel="FATAL")
        few = sorted({word for text in said for word in words(text).split()})
        unknown = [w for w in few if self.decoder.lookup_word(w) is None]
        if unknown or not few:
            raise BadArgument(
                f"expected words that pocketsphinx's English dictionary has, got {', '.join(unknown) or 'none'}. Give "
                "English transcripts, or leave --recognizer out: a recognizer of the corpus's own words is trained"
            )
        grammar = f"#JSGF V1.0;\ngrammar few;\npublic <said> = ( {' | '.join(few)} )+;\n"
        self.decoder.add_jsgf_string("few", grammar)
        self.decoder.activate_search("few")
        self.vocoder, self.name = vocoder, f"pocketsphinx, {len(few)} words, on {vocoder.name}"

    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> list[str]:
        """The likeliest words of each clip; an empty string where it hears none."""
        return [self._heard(self.vocoder(mel)) for mel in mels]

    def _heard(self, sound: Any) -> str:
        samples = optional("torchaudio").functional.resample(sound.samples, sound.rate, RATE)
        self.decoder.start_utt()
        self.decoder.process_raw((samples.clamp(-1, 1) * 32767).short().numpy().tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return "" if found is None else found.hypstr
