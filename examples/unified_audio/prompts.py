"""Prompts and training sequences of stage 1.

    sound    [TAG] event [DES] description [AUDIO_0] … [AUDIO_15] [AT] s₁ … s_N [END]                        (Eq. 16)
    speech   [TEXT] text                   [AUDIO_0] … [AUDIO_15] [ST] s₁ … s_N [END]

Only s₁ … s_N [END] is learned: the labels of the prompt are −100. Where a target has two families (configuration B),
they alternate: s₁ b₁ s₂ b₂ … (Eq. 15).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fog_a.errors import BadArgument, ShapeMismatch
from unified_audio.clips import Clip, Domain
from unified_audio.vocabulary import Vocabulary


@dataclass(frozen=True)
class Prompt:
    """What is asked for: a sound of an event as described, or a text spoken.

    >>> Prompt.sound("rain", "rain on a tin roof").domain
    'sound'

    Raises:
        BadArgument: an empty text, event or description.
    """

    domain: Domain
    text: str
    event: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise BadArgument(f"a prompt of {self.domain} with an empty text; say what to {_does(self.domain)}")
        if self.domain == "sound" and not self.event.strip():
            raise BadArgument(
                "a prompt of sound with an empty event; name one, e.g. Prompt.sound('rain', 'rain on a roof')"
            )

    @classmethod
    def speech(cls, text: str) -> Prompt:
        """TTS."""
        return cls("speech", text)

    @classmethod
    def sound(cls, event: str, description: str) -> Prompt:
        """TTA."""
        return cls("sound", description, event)

    @classmethod
    def of(cls, clip: Clip) -> Prompt:
        """The prompt that a training clip answers."""
        return cls(clip.domain, clip.text, clip.event)

    def ids(self, vocabulary: Vocabulary) -> list[int]:
        """The prompt's ids, up to and with [AT] or [ST]."""
        mark, words = vocabulary.marker, vocabulary.words
        if self.domain == "sound":
            head = [mark("TAG"), *words(self.event), mark("DES"), *words(self.text)]
            return [*head, *vocabulary.audio, mark("AT")]
        return [mark("TEXT"), *words(self.text), *vocabulary.audio, mark("ST")]


@dataclass(frozen=True)
class Example:
    """A prompt, its answer (one stream of codes per family of the target) and style vectors (K, D) or None."""

    prompt: Prompt
    streams: Sequence[Int[Tensor, "N"]]
    style: Float[Tensor, "K D"] | None = None


class LanguageBatch(TypedDict):
    """Padded on the right. ids, labels (−100: not learned), mask: (B, S); style (B, K, D) and which rows have one."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    style: Tensor
    styled: Tensor


def answer(vocabulary: Vocabulary, families: Sequence[str], streams: Sequence[Int[Tensor, "N"]]) -> Int[Tensor, "M"]:
    """Streams as one sequence, a code of each family in turn, then [END]; cut to the shortest stream."""
    if len(streams) != len(families):
        raise ShapeMismatch(f"{len(streams)} streams of codes for the families {', '.join(families)}; one for each")
    n = min(len(s) for s in streams)
    if n == 0:
        raise ShapeMismatch("an answer without codes; is the clip shorter than a token?")
    together = torch.stack([vocabulary.ids(f, s[:n]) for f, s in zip(families, streams, strict=True)], dim=1)
    return torch.cat([together.flatten(), torch.tensor([vocabulary.marker("END")])])


def collate(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    targets: dict[Domain, tuple[str, ...]],
    style_dim: int,
    longest: int = 8192,
) -> LanguageBatch:
    """Examples as one batch.

    Raises:
        BadArgument: no examples, or a sequence longer than `longest`.
        ShapeMismatch: streams that do not fit the target's families, style vectors of another shape.
    """
    if not examples:
        raise BadArgument("a batch of no examples; expected at least one")
    rows, labels = [], []
    for e in examples:
        head = torch.tensor(e.prompt.ids(vocabulary))
        tail = answer(vocabulary, targets[e.prompt.domain], e.streams)
        if len(head) + len(tail) > longest:
            raise BadArgument(
                f"a sequence of {len(head)} + {len(tail)} ids (prompt {e.prompt.text[:40]!r}), at most {longest}: crop "
                "the clip or shorten its description"
            )
        rows.append(torch.cat([head, tail]))
        labels.append(torch.cat([torch.full_like(head, -100), tail]))
    style = torch.zeros(len(examples), vocabulary.slots, style_dim)
    for row, e in zip(style, examples, strict=True):
        if e.style is not None:
            if e.style.shape != row.shape:
                raise ShapeMismatch(f"style vectors must be {tuple(row.shape)}, got {tuple(e.style.shape)}")
            row.copy_(e.style)
    return LanguageBatch(
        ids=pad_sequence(rows, batch_first=True, padding_value=vocabulary.marker("PAD")),
        labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        mask=pad_sequence([torch.ones_like(r) for r in rows], batch_first=True),
        style=style,
        styled=torch.tensor([e.style is not None for e in examples]),
    )


def _does(domain: Domain) -> str:
    return "speak" if domain == "speech" else "make sound"
