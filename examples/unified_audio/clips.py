"""Clips and corpora: what every part of this application passes on.

A `Clip` is one file with what is known about it. Speech has a transcript (`text`) and a `speaker`; sound has an `event`
("dog bark") and a description (`text`). A `Corpus` is clips with a split each, checked once: after that no transcript
is empty, no event is missing and no id stands for two files.
"""

from __future__ import annotations

import difflib
import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fog_a.errors import BadArgument, BadManifest

Domain = Literal["speech", "sound"]
DOMAINS: tuple[Domain, ...] = ("speech", "sound")
"""In the order of their numbers, which is `DiTConfig.domains`'."""


class UnknownEvent(BadArgument):
    """An event that no training clip has."""


@dataclass(frozen=True)
class Clip:
    """One file. `id` is unique in its corpus and names the file for ever: caches key on it.

    Attributes:
        domain: "speech" or "sound".
        path: an audio file that soundfile decodes.
        text: transcript of speech, description of a sound.
        event: what sounds; "" for speech.
        speaker: who speaks; "" for sound.
        split: "train", "test" or another word, which keeps the clip out of both.
        rate: the only sample rate this file may have (LibriSpeech: 16 000); None: any, resampled.
    """

    id: str
    domain: Domain
    path: Path
    text: str
    event: str = ""
    speaker: str = ""
    split: str = "train"
    rate: int | None = None

    @property
    def number(self) -> int:
        """The domain's number: 0 speech, 1 sound."""
        return DOMAINS.index(self.domain)


@dataclass(frozen=True)
class Corpus:
    """Clips with splits.

    >>> clip = Clip("a", "sound", Path("a.flac"), "a dog, far away", event="dog bark")
    >>> corpus = Corpus((clip,))
    >>> corpus.event("Dog bark")
    'dog bark'

    Raises:
        BadManifest: no clip, an id twice, an empty transcript or description, a sound without an event, an event that
            is only in the test split.
    """

    clips: tuple[Clip, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.clips:
            raise BadManifest("a corpus of no clips; expected at least one line, file or caption")
        if twice := sorted(_repeated(c.id for c in self.clips)):
            raise BadManifest(f"{few(twice)} named more than once; ids must be unique: delete or rename the doubles")
        self._check(lambda c: not c.text.strip(), "an empty transcript or description; fill it in or take the clip out")
        self._check(lambda c: c.domain == "sound" and not c.event.strip(), "no event; say what sounds ('rain')")
        known = set(self.events)
        if known:
            self._check(
                lambda c: c.domain == "sound" and c.split == "test" and c.event not in known,
                "an unknown event: no training clip has it; mark a clip of it 'train', or take these out",
            )

    def _check(self, wrong: Callable[[Clip], bool], what: str) -> None:
        bad = [c for c in self.clips if wrong(c)]
        if bad:
            events = sorted({c.event for c in bad} - {""})
            named = f" ({few(events)})" if "event" in what and events else ""
            raise BadManifest(f"{len(bad)} of {len(self.clips)} clips have {what}{named}: {few([c.id for c in bad])}")

    def __len__(self) -> int:
        return len(self.clips)

    def of(self, split: str = "train", domain: Domain | None = None) -> tuple[Clip, ...]:
        """The clips of a split, of one domain or of both."""
        return tuple(c for c in self.clips if c.split == split and domain in (None, c.domain))

    @property
    def domains(self) -> tuple[Domain, ...]:
        """The domains that have clips, in the order of their numbers."""
        return tuple(d for d in DOMAINS if any(c.domain == d for c in self.clips))

    @property
    def events(self) -> tuple[str, ...]:
        """The events of the training clips, sorted."""
        return tuple(sorted({c.event for c in self.of("train", "sound")}))

    @property
    def speakers(self) -> tuple[str, ...]:
        """Who speaks in the training clips, sorted."""
        return tuple(sorted({c.speaker for c in self.of("train", "speech")} - {""}))

    def event(self, name: str) -> str:
        """The event as the corpus writes it. Raises UnknownEvent, with what comes nearest."""
        found = {e.lower(): e for e in self.events}.get(name.strip().lower())
        if found is None:
            near = difflib.get_close_matches(name, self.events, 3, 0.4) or list(self.events)
            raise UnknownEvent(
                f"unknown event {name!r}: no training clip has it. Type one of the {len(self.events)} that are known: "
                f"{few(near, 8)}"
            )
        return found

    def some(self, count: int | None, split: str = "train", seed: int = 0) -> Corpus:
        """At most `count` clips of a split per domain, chosen by the seed, the events in turn; other splits stay.

        Test clips of events that have no training clip left go too.
        """
        chosen = {c.id for c in self.clips if c.split != split}
        for domain in self.domains:
            draw = random.Random(f"{seed}/{split}/{domain}")
            groups = [draw.sample(g, len(g)) for g in _by_event(self.of(split, domain))]
            turns = [c.id for turn in itertools.zip_longest(*groups) for c in turn if c]
            chosen.update(turns[:count])
        left = [c for c in self.clips if c.id in chosen]
        gone = {c.event for c in self.clips if c.split == "train"} - {c.event for c in left if c.split == "train"}
        return replace(self, clips=tuple(c for c in left if c.split != "test" or not c.event or c.event not in gone))

    def held_out(self, share: float = 0.2) -> Corpus:
        """Where a domain has no test clips: hold a share of its training clips out, the same ones every time."""
        chosen: set[str] = set()
        for domain in self.domains:
            for group in () if self.of("test", domain) else _by_event(self.of("train", domain)):
                ids = sorted((c.id for c in group), key=lambda i: (zlib.crc32(i.encode()), i))
                chosen.update(ids[: min(len(ids) - 1, max(1, round(share * len(ids))))])
        return replace(self, clips=tuple(replace(c, split="test") if c.id in chosen else c for c in self.clips))


def join(*corpora: Corpus) -> Corpus:
    """Several corpora as one, e.g. LibriSpeech and a folder of sounds."""
    return Corpus(tuple(c for k in corpora for c in k.clips), tuple(n for k in corpora for n in k.notes))


def few(names: Sequence[str], n: int = 4) -> str:
    """The first names, and how many there are."""
    return ", ".join(names[:n]) + (f", … ({len(names)})" if len(names) > n else "")


def _by_event(clips: Sequence[Clip]) -> list[list[Clip]]:
    """Clips by event, so that none is held out altogether. Speech is one group."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.event, []).append(clip)
    return list(groups.values())


def _repeated(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {n for n in names if n in seen or seen.add(n)}
