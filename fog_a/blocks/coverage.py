"""What a trace's residual updates became: closed by a block, inside one, of a side stack, or open."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "inside", "side", "around", "open", "apart", "beside"]


@dataclass(frozen=True)
class CoverageRow:
    """One residual update of the trace, or something that a block gives beside its stream.

    Attributes:
        place: the module in whose forward it is added; of what is beside a stream, the block.
        state: `"closed"` by the block; `"inside"` the branch of one; closed by a block of a `"side"` stack, which does
            not depend on x_t; `"around"` a network whose layers are closed (`a x - b net(x)`); `"open"`: no gate
            reaches it; `"apart"`: no layer's, not on the way to the output; `"beside"`: no update, but given out
            beside the stream, and it stays when the block is closed.
        block: the name of the block that closes or holds it, or "".
        reason: why it is open or stays.
    """

    place: str
    state: State
    block: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Coverage:
    """The account of every residual update that one forward made. Iterate over its rows, print it.

    `passing` names the blocks whose parts still reached the output, by bits, when all gates were closed; None: that
    could not be tried.
    """

    rows: tuple[CoverageRow, ...] = ()
    passing: tuple[str, ...] | None = ()

    def of(self, state: State) -> tuple[CoverageRow, ...]:
        """The rows of one state."""
        return tuple(row for row in self.rows if row.state == state)

    @property
    def open(self) -> tuple[CoverageRow, ...]:
        """The updates that no gate reaches, though they lead to the output."""
        return self.of("open")

    @property
    def note(self) -> str:
        """One line on what stays open and on what is not deaf; "" where there is nothing to say."""
        words = [f"{row.place} ({row.reason})" for row in dict.fromkeys(self.open)]
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        stays = f"{len(self.open)} on the way to the output stay open: {', '.join(words[:3])}{more}" if words else ""
        return "; ".join(filter(None, [stays, *self._passing()]))

    def __iter__(self) -> Iterator[CoverageRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        shown: tuple[State, ...] = ("open", "around", "beside")
        return "\n".join([self.summary, *(line for state in shown for line in self._lines(state)), *self._passing()])

    @property
    def summary(self) -> str:
        """One line: how many updates there are, and what became of them."""
        n = Counter(row.state for row in self.rows)
        blocks = len({row.block for row in self.of("closed")})
        side = ", ".join(sorted({row.reason for row in self.of("side")}))
        words = [
            f"{n['closed']} closed by {blocks} block{'s' * (blocks != 1)}",
            f"{n['inside']} inside them" if n["inside"] else "",
            f"{n['side']} of a side stack ({side})" if n["side"] else "",
            f"{n['around']} around networks of closed layers" if n["around"] else "",
            f"{n['apart']} apart from the way to the output" if n["apart"] else "",
            f"{n['open']} open" if n["open"] else "",
        ]
        total = len(self.rows) - n["beside"]
        return f"{total} update{'s' * (total != 1)}: " + " · ".join(word for word in words if word)

    def _lines(self, state: State) -> Iterator[str]:
        """A line for all places of one list with one reason."""
        places: dict[tuple[str, str], list[str]] = {}
        for row in self.of(state):
            places.setdefault((re.sub(r"\d+", "*", row.place), row.reason), []).append(row.place)
        for (_, reason), every in places.items():
            names, n = list(dict.fromkeys(every)), len(every)
            shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
            yield f"{state:<6}  {shown}{f' ({n} times)' if n > min(len(names), 3) else ''}  {reason}"

    def _passing(self) -> Iterator[str]:
        if self.passing is None:
            yield "not tried: whether the closed blocks are deaf, since the model failed when their parts were changed"
        elif self.passing:
            yield f"passes  {', '.join(self.passing)}  what these compute reaches the output with all gates closed"
