"""The ids of stage 1: a text tokenizer's, and behind them markers, style slots and codes.

    text ids │ [TAG] [DES] [TEXT] [AT] [ST] [END] [PAD] │ [AUDIO_0] … [AUDIO_15] │ [S3_0] … │ [AS_0] … │ [BEATS_0] …

The new ids are ours alone: the text tokenizer does not know them, so a description that spells "[AS_7]" or "[END]" is
text and nothing else. `Vocabulary.name` writes any new id out. Codes also fall into coarse buckets,
cluster(s) = ⌊s / w⌋, so many per family that the paper's 4096 codes make 128 (w = 32) (Eq. 20).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fog_a.errors import BadArgument, MissingDependency

MARKERS = ("TAG", "DES", "TEXT", "AT", "ST", "END", "PAD")
SLOTS = 16
"""Style slots, K of Eq. 16."""


class Vocabulary:
    """Ids of text, markers, slots and codes.

    Args:
        text: a transformers tokenizer, or whatever has `encode(text, add_special_tokens=…)` and a length.
        families: name → number of codes, e.g. {"S3": 4096, "AS": 4096}.
        slots: K.
        buckets: coarse buckets per family, at most.

    Raises:
        BadArgument: no family, or one without codes.
    """

    def __init__(self, text: Any, families: Mapping[str, int], slots: int = SLOTS, buckets: int = 128) -> None:
        if not families or min(families.values()) < 1:
            raise BadArgument(f"a vocabulary needs families of codes, e.g. {{'AS': 4096}}; got {dict(families)}")
        self.text, self.families, self.slots, self.buckets = text, dict(families), slots, buckets
        self.base = len(text)
        self._first: dict[str, int] = {}
        at = self.base + len(MARKERS) + slots
        for family, count in self.families.items():
            self._first[family], at = at, at + count
        self.size = at

    def marker(self, name: str) -> int:
        """The id of a marker such as "END"."""
        return self.base + MARKERS.index(name)

    @property
    def audio(self) -> range:
        """The ids of the style slots."""
        first = self.base + len(MARKERS)
        return range(first, first + self.slots)

    def family(self, name: str) -> range:
        """The ids of a family's codes. Raises BadArgument at an unknown one."""
        if name not in self._first:
            raise BadArgument(f"no codes {name!r} in this vocabulary; it has {', '.join(self.families)}")
        return range(self._first[name], self._first[name] + self.families[name])

    def words(self, text: str) -> list[int]:
        """A text's ids; special tokens that it spells stay text."""
        return list(self.text.encode(text, add_special_tokens=False, split_special_tokens=True))

    def ids(self, family: str, codes: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Codes → ids. Raises BadArgument where one is outside the family."""
        of = self.family(family)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(of):
            raise BadArgument(
                f"{family} codes must be in 0…{len(of) - 1}, got {int(codes.min())}…{int(codes.max())}; was this "
                f"vocabulary built for another tokenizer? families={{{family!r}: tokenizer.vocab}}"
            )
        return codes.long() + of.start

    def codes(self, family: str, ids: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Ids → codes."""
        return ids - self.family(family).start

    def cluster(self, ids: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """The coarse bucket of each id, −100 for what is no code; each family has buckets of its own (Eq. 20)."""
        found = torch.full_like(ids, -100)
        for number, (family, count) in enumerate(self.families.items()):
            of, width = self.family(family), -(-count // self.buckets)
            inside = (ids >= of.start) & (ids < of.stop)
            found = torch.where(inside, (ids - of.start) // width + number * self.buckets, found)
        return found

    @property
    def clusters(self) -> int:
        """How many coarse buckets there are."""
        return self.buckets * len(self.families)

    def name(self, id_: int) -> str:
        """A new id written out, e.g. "[AS_17]"; text as the tokenizer decodes it."""
        if id_ < self.base:
            return str(self.text.decode([id_]))
        if id_ < self.base + len(MARKERS):
            return f"[{MARKERS[id_ - self.base]}]"
        if id_ in self.audio:
            return f"[AUDIO_{id_ - self.audio.start}]"
        family = next(f for f in self.families if id_ in self.family(f))
        return f"[{family}_{id_ - self._first[family]}]"

    def write(self, ids: Sequence[int] | Tensor) -> str:
        """A sequence written out, for people to read."""
        return " ".join(self.name(int(i)) for i in ids)


def byte_tokenizer() -> Any:
    """A text tokenizer of 256 bytes and no merges: knows every text, needs no file. For small models."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingDependency(f"stage 1 needs transformers ({error}): pip install 'fog-a[teachers]'") from error
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
