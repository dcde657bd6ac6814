"""Who listens: log-mel → words, so that a word error rate can be taken of synthesized speech.

`WordRecognizer` is for small vocabularies (the ten digits of a spoken-digit corpus): five convolutions
and CTC over whole words, trained on the corpus's training split in about a minute on a CPU. It has no language
model, so it cannot guess a word that was not said. `WhisperRecognizer` is for free speech, where weights are given.

    recognizer = WordRecognizer.fit([(log_mel(audio), "eight zero five"), …])
    recognizer([mel])                                                      # → ["eight zero five"]
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from fog_a.blocks.untouched import rng
from fog_a.errors import BadArgument, BadScores, MissingDependency, NoWeights
from fog_a.files import write
from fog_a_adapters.dit.audio.mel import MELS
from fog_a_adapters.dit.model.interface import frame_mask


class Recognizer(Protocol):
    """Mels (T, M) as `log_mel` makes them → what is said, a string per clip. `name` stands beside every error rate."""

    name: str

    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> list[str]: ...


class _Net(nn.Module):
    """Mel → log-probabilities of blank and words, a quarter as many frames; what is after a clip's end stays zero."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.shrink = nn.ModuleList(nn.Conv1d(i, width, 5, stride=2, padding=2, bias=False) for i in (MELS, width))
        self.look = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2 * d, dilation=d, bias=False) for d in (1, 2, 4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(5))
        self.drop = nn.Dropout(0.1)
        self.out = nn.Conv1d(width, words + 1, 1)

    def forward(self, mel: Float[Tensor, "B T M"], lengths: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """(B, ⌈T/4⌉, words + 1) and how many of its frames are real."""
        mask = frame_mask(lengths, mel.shape[1])[..., None]
        x = mel - (mel * mask).sum(1, keepdim=True) / lengths[:, None, None]  # a channel's color is not a word's
        x, real = (x * mask).transpose(1, 2), lengths
        for i, conv in enumerate([*self.shrink, *self.look]):
            y = F.relu(self.norms[i](conv(x)))
            real = (real + 1) // 2 if i < len(self.shrink) else real
            y = self.drop(y) * frame_mask(real, y.shape[2])[:, None]
            x = y if i < len(self.shrink) else x + y
        return self.out(x).transpose(1, 2).log_softmax(-1), real


class WordRecognizer:
    """CTC over the words of a small vocabulary; make it with `fit` or `load`."""

    def __init__(self, words: Sequence[str], width: int = 96) -> None:
        self.words, self.width = tuple(words), width
        self.net = _Net(len(self.words), width)
        self.name = f"CTC over {len(self.words)} words"

    @classmethod
    def fit(
        cls, clips: Sequence[tuple[Float[Tensor, "T M"], str]], *, steps: int = 450, size: int = 16, lr: float = 3e-3,
        width: int = 96, seed: int = 0,
    ) -> WordRecognizer:  # fmt: skip
        """Train on clips and their transcripts; a function of these and the seed. About a minute.

        Raises BadArgument: no clip, an empty transcript, or more than 1000 different words (take a Whisper).
        """
        words = sorted({w for _, text in clips for w in text.split()})
        if not clips or not all(text.split() for _, text in clips) or len(words) > 1000:
            raise BadArgument(
                f"a word recognizer learns from clips with transcripts of at most 1000 different words, got "
                f"{len(clips)} clips, {sum(not t.split() for _, t in clips)} without words, {len(words)} words. For "
                "free speech: WhisperRecognizer(folder)"
            )
        with rng(seed):
            made = cls(words, width)
            made._train([(mel, made._target(text)) for mel, text in clips], steps, size, lr, random.Random(seed))
        return made

    def _target(self, text: str) -> Tensor:
        return torch.tensor([1 + self.words.index(w) for w in text.split()])

    def _train(self, data: list[tuple[Tensor, Tensor]], steps: int, size: int, lr: float, draw: random.Random) -> None:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, weight_decay=0.01)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
        self.net.train()
        for _ in range(steps):
            some = [draw.choice(data) for _ in range(size)]
            mel, lengths = _padded([_roughened(m) for m, _ in some])
            scores, real = self.net(mel, lengths)
            targets, counts = torch.cat([t for _, t in some]), torch.tensor([len(t) for _, t in some])
            loss = F.ctc_loss(scores.transpose(0, 1), targets, real, counts, zero_infinity=True)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            cycle.step()
        self.net.eval()

    @torch.no_grad()
    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> list[str]:
        """The likeliest path of each clip, repeats and blanks removed."""
        said: list[str] = []
        for some in (mels[i : i + 32] for i in range(0, len(mels), 32)):
            scores, real = self.net.eval()(*_padded([m.cpu().float() for m in some]))
            for row, n in zip(scores.argmax(-1).tolist(), real.tolist(), strict=True):
                path = [c for c, _ in itertools.groupby(row[:n]) if c]
                said.append(" ".join(self.words[c - 1] for c in path))
        return said

    def save(self, path: str | Path) -> None:
        """Weights and words in one safetensors file."""
        facts = {"words": json.dumps(self.words), "width": str(self.width)}
        write(Path(path), save({k: v.contiguous() for k, v in self.net.state_dict().items()}, facts))

    @classmethod
    def load(cls, path: str | Path) -> WordRecognizer:
        """The inverse of `save`. Raises BadScores at a file that is none of its."""
        try:
            with safe_open(str(path), "pt") as file:
                facts = file.metadata() or {}
                made = cls(json.loads(facts["words"]), int(facts["width"]))
                made.net.load_state_dict({k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118
        except Exception as error:
            raise BadScores(
                f"{path} is no recognizer that WordRecognizer.save wrote ({type(error).__name__}: {error}); delete it "
                "and it is trained again"
            ) from error
        made.net.eval()
        return made


class WhisperRecognizer:
    """Whisper through transformers, from a folder or the hub; it hears what the vocoder makes of a mel.

    Args:
        folder: hub name or folder with config.json, model.safetensors, preprocessor_config.json, tokenizer files.
        vocoder: mel → sound; see `unified_audio.vocoder`.

    Raises:
        MissingDependency: transformers is absent. NoWeights: the files are not there; the message says which.
    """

    def __init__(self, folder: str | Path, vocoder: Any) -> None:
        try:
            from transformers import pipeline
        except ImportError as error:
            raise MissingDependency(f"Whisper needs transformers ({error}): pip install 'fog-a[teachers]'") from error
        try:
            self.pipe: Any = pipeline("automatic-speech-recognition", model=str(folder))
        except (OSError, ValueError) as error:
            raise NoWeights(
                f"no speech recognizer at {str(folder)!r} ({str(error).splitlines()[0]}). Give a folder with "
                "config.json, model.safetensors, preprocessor_config.json and the tokenizer files, e.g. of "
                "openai/whisper-base.en; for a few words: WordRecognizer.fit(clips)"
            ) from error
        self.vocoder, self.name = vocoder, f"{folder} on {vocoder.name}"

    def __call__(self, mels: Sequence[Float[Tensor, "T M"]]) -> list[str]:
        sounds = [self.vocoder(m) for m in mels]
        return [self.pipe({"raw": s.samples.numpy(), "sampling_rate": s.rate})["text"] for s in sounds]


def _padded(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(list(mels), batch_first=True), torch.tensor([len(m) for m in mels])


def _roughened(mel: Float[Tensor, "T M"]) -> Float[Tensor, "T M"]:
    """Noise, a shift in level, and a masked band and span: what is synthesized is never as clean as what was said."""
    x = mel + 0.3 * torch.rand(()) * torch.randn_like(mel) + 0.3 * torch.randn(())
    for axis, most in ((0, 10), (1, 15)):
        span = int(torch.randint(0, most + 1, ()))
        start = int(torch.randint(0, max(1, x.shape[axis] - span), ()))
        x = x.index_fill(axis, torch.arange(start, min(start + span, x.shape[axis])), 0.0)
    return x
