"""Clips as tensors: mel, tokens, and batches of them, padded with masks.

A training batch is a function of (seed, step) alone: the same clips and crops for whoever asks, in any order, so runs
can be compared step by step and go on after a kill.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fog_a.errors import BadManifest
from fog_a_adapters.dit.audio.manifest import Clip, read_manifest
from fog_a_adapters.dit.audio.mel import HOP, MEL_RATE, RATE, decode, log_mel
from fog_a_adapters.dit.audio.tokens import STRIDE, FrameTokens
from fog_a_adapters.dit.model.flow import MelBatch


@dataclass(frozen=True)
class Item:
    """A decoded clip: mel (T, M), tokens (⌈T/2⌉,), the number of its domain, and its 16 kHz audio if kept.

    `start` is the frame of the clip at which a crop begins; None: it is the whole clip.
    """

    id: str
    domain: int
    mel: Float[Tensor, "T M"]
    tokens: Int[Tensor, "N"]
    audio: Float[Tensor, "n"] | None = None
    start: int | None = None

    def crop(self, start: int, frames: int) -> Item:
        """The frames from `start` (a multiple of the token stride) on."""
        assert start % STRIDE == 0
        stop = min(start + frames, len(self.mel))
        tokens = self.tokens[start // STRIDE : -(-stop // STRIDE)]
        at, n = (round(i * HOP * RATE / MEL_RATE) for i in (start, stop - start))
        audio = None if self.audio is None else self.audio[at : at + n]
        return Item(self.id, self.domain, self.mel[start:stop], tokens, audio, (self.start or 0) + start)


def collate(items: Sequence[Item]) -> MelBatch:
    """Items as one padded batch."""
    batch = MelBatch(
        mel=pad_sequence([i.mel for i in items], batch_first=True),
        lengths=torch.tensor([len(i.mel) for i in items]),
        tokens=pad_sequence([i.tokens for i in items], batch_first=True),
        token_lengths=torch.tensor([len(i.tokens) for i in items]),
        domain=torch.tensor([i.domain for i in items]),
        ids=[i.id for i in items],
    )
    if any(i.start is not None for i in items):
        spans = [(i.start or 0, (i.start or 0) + len(i.mel)) for i in items]
        batch["crops"] = torch.tensor(spans, dtype=torch.float64) * HOP / MEL_RATE
    audio = [i.audio for i in items if i.audio is not None]
    if len(audio) == len(items):
        batch["audio"] = pad_sequence(audio, batch_first=True)
        batch["audio_lengths"] = torch.tensor([len(a) for a in audio])
        batch["rate"] = RATE
    return batch


@dataclass(frozen=True)
class Corpus:
    """A folder's clips, ready to train on and to test with."""

    domains: tuple[str, ...]
    train: list[Item]
    test: list[Item]
    tokens: FrameTokens
    notes: tuple[str, ...] = ()

    def mean_frame(self) -> Float[Tensor, "M"]:
        """The mean over all frames of the training clips."""
        return torch.cat([i.mel for i in self.train]).mean(0)

    def batch(self, step: int, size: int, frames: int, seed: int = 0) -> MelBatch:
        """Training batch number `step`: as many clips of each domain, a random crop of each."""
        draw = random.Random(f"{seed}/{step}")
        groups = [[i for i in self.train if i.domain == d] for d in range(len(self.domains))]
        items = [draw.choice(groups[j % len(groups)]) for j in range(size)]
        starts = [STRIDE * draw.randint(0, max(0, len(i.mel) - frames) // STRIDE) for i in items]
        return collate([i.crop(s, frames) for i, s in zip(items, starts, strict=True)])

    def held_out(self, per_domain: int | None = None, size: int = 16) -> list[MelBatch]:
        """The test clips in batches; the first `per_domain` of each domain, shuffled once and for all."""
        items: list[Item] = []
        for d in range(len(self.domains)):
            of_domain = sorted((i for i in self.test if i.domain == d), key=lambda i: i.id)
            random.Random(0).shuffle(of_domain)
            items += of_domain[:per_domain]
        return [collate(items[i : i + size]) for i in range(0, len(items), size)]


def load_corpus(
    folder: str | Path | None = None,
    *,
    vocab: int = 64,
    seed: int = 0,
    audio: bool = False,
    per_domain: int | None = None,
    held_out: int | None = None,
    domains: Sequence[str] | None = None,
) -> Corpus:
    """Manifest → decoded clips → log-mel → tokens.

    Args:
        folder: a folder with manifest.csv; None: the packaged clips.
        vocab: codes per domain.
        audio: keep the waveforms, for teachers that listen.
        per_domain, held_out: at most so many training and test clips of each domain, chosen by the seed.
        domains: only these of the manifest's; None: all.

    Raises:
        BadManifest: see `read_manifest` and `mel.decode`.
        MissingDependency: torchaudio, soundfile or scikit-learn is absent or does not load.
    """
    clips = read_manifest(folder)
    known = tuple(dict.fromkeys(c.domain for c in clips))
    absent = [d for d in domains or () if d not in known]
    if absent:
        raise BadManifest(f"no clip is of domain {absent[0]!r}; the manifest has {', '.join(known)}: take one of these")
    domains = tuple(d for d in known if domains is None or d in domains)
    clips = [c for c in clips if c.domain in domains]
    train = _some(clips, "train", per_domain, seed)
    test = _some(clips, "test", held_out, seed)
    notes: Counter[str] = Counter()
    waves = {c.id: _decode(c, notes) for c in [*train, *test]}
    mels = {name: log_mel(wave) for name, wave in waves.items()}
    tokens = FrameTokens.fit({d: [mels[c.id] for c in train if c.domain == d] for d in domains}, vocab, seed)

    def item(c: Clip) -> Item:
        d = domains.index(c.domain)
        return Item(c.id, d, mels[c.id], tokens(mels[c.id], d), waves[c.id] if audio else None)

    said = tuple(f"{n} of {len(waves)} clips: {note}" for note, n in notes.items())
    return Corpus(domains, [item(c) for c in train], [item(c) for c in test], tokens, said)


def _some(clips: Iterable[Clip], split: str, n: int | None, seed: int) -> list[Clip]:
    """At most n clips of a split per domain, in the manifest's order."""
    chosen: list[Clip] = []
    of_split = [c for c in clips if c.split == split]
    for domain in dict.fromkeys(c.domain for c in of_split):
        group = [c for c in of_split if c.domain == domain]
        chosen += group if n is None or n >= len(group) else random.Random(f"{seed}/{split}/{domain}").sample(group, n)
    return chosen


def _decode(clip: Clip, notes: Counter[str]) -> Float[Tensor, "N"]:
    """The clip's audio; what was converted is counted."""
    wave, said = decode(clip.file)
    notes.update(said)
    return wave
