"""Clips as tensors: decoded, log-mel, tokens, each computed once and kept on disk; and padded batches of them.

reader = Reader(Cache("cache"), {"speech": s3, "sound": ast})        # configuration B: second=beats_codes
reader.fill(corpus.clips)                                            # all at once; resumable
batch  = collate([reader.item(clip) for clip in corpus.of("test")[:8]])      # a MelBatch of the bundled model
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fog_a.errors import BadArgument, BadManifest
from fog_a_adapters.dit.audio.mel import HOP, MEL_RATE, RATE, decode, log_mel, optional
from fog_a_adapters.dit.model.flow import MelBatch
from unified_audio.audio_frames import AudioFrames
from unified_audio.cache import Cache
from unified_audio.clips import Clip, Domain
from unified_audio.fusion import interleave
from unified_audio.tokens import Codes


@dataclass(frozen=True)
class Item:
    """A clip as tensors: mel (T, M), tokens (N,) (or (2N,), interleaved, in configuration B), 16 kHz audio (n,).

    The tokens cover the same time as the mel. `width` is how many tokens make one moment: 1, or 2 where interleaved.
    """

    clip: Clip
    mel: Float[Tensor, "T M"]
    tokens: Int[Tensor, "N"]
    audio: Float[Tensor, "n"]
    width: int = 1

    def crop(self, start: int, frames: int) -> Item:
        """The mel frames from `start` on, with the tokens and audio of that time."""
        stop, moments = min(start + frames, len(self.mel)), len(self.tokens) // self.width
        a, b = (round(i * moments / len(self.mel)) for i in (start, stop))
        a = min(a, moments - 1)
        at, to = (round(i * HOP * RATE / MEL_RATE) for i in (start, stop))
        at = min(at, len(self.audio) - 1)  # the last frame is centred on the very end
        tokens = self.tokens[a * self.width : max(a + 1, b) * self.width]
        return replace(self, mel=self.mel[start:stop], tokens=tokens, audio=self.audio[at : max(at + 1, to)])


def collate(items: Sequence[Item], audio: bool = True) -> MelBatch:
    """Items as one padded batch of the bundled model; `lengths` and `token_lengths` say what is real."""
    batch = MelBatch(
        mel=pad_sequence([i.mel for i in items], batch_first=True),
        lengths=torch.tensor([len(i.mel) for i in items]),
        tokens=pad_sequence([i.tokens for i in items], batch_first=True),
        token_lengths=torch.tensor([len(i.tokens) for i in items]),
        domain=torch.tensor([i.clip.number for i in items]),
        ids=[i.clip.id for i in items],
    )
    if audio:
        batch["audio"] = pad_sequence([i.audio for i in items], batch_first=True)
        batch["audio_lengths"] = torch.tensor([len(i.audio) for i in items])
        batch["rate"] = RATE
    return batch


class Reader:
    """Decodes clips and computes what is asked of them, once.

    Args:
        cache: where mel, frames and tokens are kept; None: nothing is kept.
        codes: domain → what makes its tokens (S3 for speech, AST for sound).
        second: the second stream of configuration B (BEATs codes, both domains), interleaved 1:1 with the first.
        device: where frames and codes are computed (BEATs, S3); what is kept and returned is on CPU.

    `notes` counts what had to be converted ("resampled from 44100 to 16000 Hz").
    """

    def __init__(
        self,
        cache: Cache | None = None,
        codes: Mapping[Domain, Codes] | None = None,
        second: Codes | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.cache, self.codes, self.second = cache, dict(codes or {}), second
        self.notes: Counter[str] = Counter()

    def audio(self, clip: Clip) -> Float[Tensor, "n"]:
        """The first 10 s at 16 kHz, mono, peak 1. Raises BadManifest: no audio, or another rate than the corpus has."""
        if clip.rate is not None and (rate := _rate(clip)) not in (None, clip.rate):
            raise BadManifest(
                f"{clip.path} has {rate} samples a second, its corpus has {clip.rate}; a wrong header or a foreign "
                "file: get it anew, or convert it and use it by a manifest.csv, where any rate is resampled"
            )
        wave, notes = decode(clip.path)
        self.notes.update(notes)
        return wave

    def mel(self, clip: Clip) -> Float[Tensor, "T M"]:
        """Normalised log-mel."""
        return self._kept(clip, "log-mel", lambda: log_mel(self.audio(clip)))

    def frames(self, clip: Clip, source: AudioFrames) -> Float[Tensor, "T D"]:
        """Frame features."""
        return self._kept(clip, f"frames-{source.name}", lambda: source(self.audio(clip).to(self.device)).cpu())

    def tokens(self, clip: Clip, codes: Codes) -> Int[Tensor, "N"]:
        """The codes that `codes` makes of a clip; from cached frames where it is made on frames."""
        source = codes.frames
        if source is None:
            return self._kept(clip, f"codes-{codes.name}", lambda: codes(self.audio(clip).to(self.device)).cpu())
        return self._kept(clip, f"codes-{codes.name}", lambda: codes.of_frames(self.frames(clip, source)))

    def streams(self, clip: Clip) -> list[Int[Tensor, "N"]]:
        """The clip's token streams: one in configuration A, two in B."""
        first = self.codes.get(clip.domain)
        if first is None:
            raise BadArgument(f"no tokenizer for {clip.domain!r}: Reader(cache, {{'speech': …, 'sound': …}})")
        return [self.tokens(clip, c) for c in (first, self.second) if c is not None]

    def item(self, clip: Clip) -> Item:
        """Everything that stage 2 needs of a clip."""
        streams = self.streams(clip)
        tokens = streams[0] if len(streams) == 1 else interleave(*streams)
        return Item(clip, self.mel(clip), tokens, self.audio(clip), len(streams))

    def fill(self, clips: Sequence[Clip]) -> int:
        """Computes what is not cached yet, with a progress bar; start it again after a kill or a full disk."""
        for clip in optional("tqdm").tqdm(clips, desc="features and tokens", disable=None):
            self.mel(clip)
            self.streams(clip)
        return len(clips)

    def _kept(self, clip: Clip, kind: str, compute: Callable[[], Tensor]) -> Tensor:
        if self.cache is None:
            return compute()
        return self.cache.get(clip, kind, lambda: {"x": compute()})["x"]


def _rate(clip: Clip) -> int | None:
    """A file's sample rate; None where it cannot be read, of which `decode` will tell."""
    soundfile = optional("soundfile")
    try:
        return int(soundfile.info(str(clip.path)).samplerate)
    except soundfile.LibsndfileError:
        return None
