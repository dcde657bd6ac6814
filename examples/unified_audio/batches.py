"""Training batches by number: each a function of (seed, step, rank) alone.

    mel      = MelBatches(reader, corpus.of("train"), size=16, frames=256)                 # stage 2: a MelBatch
    features = FrameBatches(reader, corpus.of("train", "sound"), size=64, source=beats)    # AST tokenizer: (F, mask)
    language = LanguageBatches(reader, corpus.of("train"), size=8, stage=stage, source=mel_frames)    # stage 1
    for step in range(done, steps):
        loss = model(mel(step))

Both domains are equal in each batch: the smaller one is drawn again, with replacement, until it is as long as the
larger one; an epoch ends when the larger one was seen once. Since a batch depends on its number alone, a run that is
killed goes on with exactly the batches that it would have seen, and no state of a loader is to be saved.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fog_a.errors import BadArgument
from fog_a_adapters.dit.model.flow import MelBatch
from unified_audio.audio_frames import AudioFrames
from unified_audio.clips import DOMAINS, Clip
from unified_audio.items import Item, Reader, collate
from unified_audio.language_model import LanguageStage
from unified_audio.prompts import Example, LanguageBatch, Prompt
from unified_audio.style import segment_means


class Order:
    """Which clips make batch number `step`.

    Args:
        clips: of any domains; these alternate, so an even size is balanced exactly.
        size: clips per batch and rank.
        rank, world: this process and how many there are; together they see `size · world` clips a step.

    Raises:
        BadArgument: no clips, or a size below 1.
    """

    def __init__(self, clips: Sequence[Clip], size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if not clips or size < 1:
            raise BadArgument(f"batches of {size} out of {len(clips)} clips; expected at least one of each")
        self.clips, self.size, self.seed, self.rank, self.world = tuple(clips), size, seed, rank, world
        self.per_epoch = -(-len(balanced(self.clips, seed, 0)) // (size * world))
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __call__(self, step: int) -> list[Clip]:
        """The clips of a step; the last batch of an epoch is filled up from the epoch's beginning."""
        epoch, within = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, balanced(self.clips, self.seed, epoch))
        order, first = self._epoch[1], (within * self.world + self.rank) * self.size
        return [self.clips[order[(first + j) % len(order)]] for j in range(self.size)]


class MelBatches:
    """Batches of stage 2, cropped at random.

    Args:
        order: see `Order`, whose other options are taken too.
        frames: crop length in mel frames; None: whole clips.
        keep: how many decoded clips to hold in memory.
    """

    def __init__(
        self, reader: Reader, clips: Sequence[Clip], size: int, frames: int | None = None, *, keep: int = 512,
        seed: int = 0, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.order = Order(clips, size, seed=seed, rank=rank, world=world)
        self.reader, self.frames, self.keep = reader, frames, keep
        self.per_epoch = self.order.per_epoch
        self._items: dict[str, Item] = {}

    def __call__(self, step: int) -> MelBatch:
        """Batch number `step` of this rank."""
        return collate([self._cropped(clip, step, j) for j, clip in enumerate(self.order(step))])

    def _cropped(self, clip: Clip, step: int, place: int) -> Item:
        item = self._items.get(clip.id) or self.reader.item(clip)
        if len(self._items) < self.keep:
            self._items[clip.id] = item
        if self.frames is None or len(item.mel) <= self.frames:
            return item
        draw = random.Random(f"{self.order.seed}/{step}/{self.order.rank}/{place}")
        return item.crop(draw.randint(0, len(item.mel) - self.frames), self.frames)


class FrameBatches:
    """Batches of an AST tokenizer: frame features and which of them are real."""

    def __init__(
        self, reader: Reader, clips: Sequence[Clip], size: int, source: AudioFrames, *,
        seed: int = 0, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.order = Order(clips, size, seed=seed, rank=rank, world=world)
        self.reader, self.source, self.per_epoch = reader, source, self.order.per_epoch

    def __call__(self, step: int) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        """Batch number `step` of this rank."""
        found = [self.reader.frames(clip, self.source) for clip in self.order(step)]
        lengths = torch.tensor([len(f) for f in found])
        features = pad_sequence(found, batch_first=True)
        return features, torch.arange(features.shape[1]) < lengths[:, None]


class LanguageBatches:
    """Batches of stage 1: each clip's prompt, codes and style vectors, these of its own frames (Eq. 17)."""

    def __init__(
        self, reader: Reader, clips: Sequence[Clip], size: int, stage: LanguageStage, source: AudioFrames, *,
        seed: int = 0, rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.order = Order(clips, size, seed=seed, rank=rank, world=world)
        self.reader, self.stage, self.source, self.per_epoch = reader, stage, source, self.order.per_epoch

    def __call__(self, step: int) -> LanguageBatch:
        """Batch number `step` of this rank."""
        return self.stage.collate([self.example(clip) for clip in self.order(step)])

    def example(self, clip: Clip) -> Example:
        """One clip as stage 1 learns it."""
        style = segment_means(self.reader.frames(clip, self.source), self.stage.config.slots)
        return Example(Prompt.of(clip), self.reader.streams(clip), style)


def balanced(clips: Sequence[Clip], seed: int, epoch: int) -> list[int]:
    """Indices of an epoch: the domains in turn, each shuffled, the smaller drawn again until it is as long."""
    draw = random.Random(f"{seed}/{epoch}")
    groups = [g for d in DOMAINS if (g := [i for i, c in enumerate(clips) if c.domain == d])]
    longest = max(map(len, groups))
    rows = [draw.sample(g, len(g)) + draw.choices(g, k=longest - len(g)) for g in groups]
    return [i for together in zip(*rows, strict=True) for i in together]
