"""What `how=` and `until=` take: small frozen objects, each with its own options and no others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from fog_a.errors import BadArgument, is_real, is_whole


@dataclass(frozen=True)
class Shared:
    """Ablations that share work: in one forward as further rows, or one at a time from the first block that differs.

    Args:
        rows: at most so many rows (samples × (1 + ablations)) in one forward. As many as the batch has samples: one
            ablation at a time, with the loop's bits. None: as many as the memory holds.
        memory: at most so many bytes beyond a plain forward, by an estimate: a number, or `"2GiB"`.

    Raises:
        BadArgument: no room at all, or a size that cannot be read.

    >>> Shared(memory="64MiB").bytes
    67108864
    """

    rows: int | None = None
    memory: int | str | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and (not is_whole(self.rows) or self.rows < 1):
            raise BadArgument(
                f"expected Shared(rows=) as a number of rows, 1 or more, got {self.rows!r}. "
                "A batch of B samples needs B rows, and B more for each ablation beside it"
            )
        if self.bytes is not None and self.bytes < 1:
            raise BadArgument(
                f"expected Shared(memory=) of 1 byte or more, got {self.memory!r}. Leave it out: no limit"
            )

    @property
    def bytes(self) -> int | None:
        """The memory in bytes, or None."""
        return parse_bytes(self.memory)


@dataclass(frozen=True)
class FirstOrder:
    """An estimate of all scores from one forward and `projections` backward passes, without an ablation.

    Args:
        projections: an estimate's standard deviation is about 0.7/√projections of itself.

    Raises:
        BadArgument: less than one projection.
    """

    projections: int = 8

    def __post_init__(self) -> None:
        if not is_whole(self.projections) or self.projections < 1:
            raise BadArgument(f"expected FirstOrder(projections=) of 1 or more, got {self.projections!r}. 8 is usual")


@dataclass(frozen=True)
class NNsight:
    """Ablations through nnsight, for a model that is an `nnsight.NNsight` or `LanguageModel` already, or any other.

    Args:
        remote: passed to nnsight's `trace`; only its wrappers of hub models run remotely.
    """

    remote: bool = False


@dataclass(frozen=True)
class Settled:
    """Draw batches until the set of the best `k` layers holds at this confidence, or `looks` batches are used up.

    Args:
        k: the size of the set.
        confidence: between 0 and 1; each of the looks uses its part of what remains.
        looks: how many batches may be drawn. None: the length of the list or DataLoader.

    Raises:
        BadArgument: a number out of its range.
    """

    k: int = 3
    confidence: float = 0.95
    looks: int | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.k) or self.k < 1:
            raise BadArgument(f"expected Settled(k=) of 1 or more, got {self.k!r}. 3 is usual")
        if not is_real(self.confidence) or not 0 < self.confidence < 1:
            raise BadArgument(f"expected Settled(confidence=) between 0 and 1, got {self.confidence!r}. 0.95 is usual")
        if self.looks is not None and (not is_whole(self.looks) or self.looks < 1):
            raise BadArgument(f"expected Settled(looks=) of 1 batch or more, got {self.looks!r}")


How = Literal["auto", "loop"] | Shared | FirstOrder | NNsight
Until = Literal["settled"] | Settled | None


def checked_how(how: Any, gate: float) -> None:
    """BadArgument for anything that is no way to run ablations, or that cannot be run at this gate."""
    if isinstance(how, type) and issubclass(how, (Shared, FirstOrder, NNsight)):
        raise BadArgument(f"expected an object in how=, got the class {how.__name__}. Type how=fog_a.{how.__name__}()")
    if how not in ("auto", "loop") and not isinstance(how, (Shared, FirstOrder, NNsight)):
        raise BadArgument(
            f"expected how='auto', 'loop', fog_a.Shared(), fog_a.FirstOrder() or fog_a.NNsight(), got {how!r}"
        )
    if isinstance(how, FirstOrder) and gate != 0:
        raise BadArgument(f"FirstOrder estimates closed gates, got gate={gate}. Leave gate= out, or how=")


def stopping(until: Any, batch: Any) -> Settled | None:
    """When measuring ends, with the number of looks: planned before the first, so that looking often costs its part.

    Raises:
        BadArgument: another rule, or a number of batches that is not known.
    """
    if until is None:
        return None
    rule = Settled() if until == "settled" else until
    if not isinstance(rule, Settled):
        raise BadArgument(f"expected until=None, 'settled' or fog_a.Settled(k, confidence, looks), got {until!r}")
    if rule.looks is not None:
        return rule
    if not hasattr(batch, "__len__") or hasattr(batch, "shape") or isinstance(batch, (dict, tuple)):
        raise BadArgument(
            "until= looks after each batch and must know how many there may be. "
            "Give a list or DataLoader of batches, or until=fog_a.Settled(looks=…)"
        )
    return Settled(rule.k, rule.confidence, max(len(batch), 1))


def parse_bytes(memory: int | str | None) -> int | None:
    """`"2GiB"`, `"64MiB"`, `"500MB"` or a number, in bytes.

    >>> parse_bytes("64MiB")
    67108864
    """
    if memory is None or (is_whole(memory) and not isinstance(memory, str)):
        return None if memory is None else int(memory)
    text = memory if isinstance(memory, str) else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", text, re.IGNORECASE)
    if match is None:
        raise BadArgument(f'expected memory= like "2GiB", "64MiB" or a number of bytes, got {memory!r}')
    power = "KMGT".index(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
