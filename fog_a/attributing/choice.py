"""Which blocks a measurement scores, and what finding them showed of its first case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.errors import BadArgument, UnknownBlock
from fog_a.finding.blocks import ROOM, Discovery, discover
from fog_a.flows.case import Case


@dataclass
class Choice:
    """The blocks to score, and those that are left out because they do not see x_t."""

    blocks: Blocks
    side: Blocks | None = None
    discovery: Discovery | None = None
    """The forward in which the blocks were found, until its case is measured."""
    network: str | None = None
    """What `output_of` names: stacks outside of it are left out."""
    closed: Blocks | None = None
    """Those that are closed throughout."""

    def shown(self, case: Case) -> Discovery | None:
        """What finding showed of this case; it is kept no longer."""
        discovery, self.discovery = self.discovery, None
        return discovery if discovery is not None and discovery.case is case else None

    @property
    def notes(self) -> Iterator[str]:
        """What was left out, and what no gate reaches."""
        for stack, members in self.side.stacks.items() if self.side is not None else ():
            inputs = ", ".join(sorted({i for b in members for i in b.inputs}))
            outside = self.network is not None and not stack.startswith(f"{self.network}.")
            what = f"depend only on {inputs}" if inputs else "depend on no tensor that the model is given"
            reason = f"are outside of {self.network}" if outside else what
            yield (
                f"{len(members)} blocks of {stack} {reason}: left out. "
                "To score them pass blocks=find_blocks(...) or their names"
            )
        if self.blocks.coverage.note:
            yield self.blocks.coverage.note


Wanted = Blocks | ResidualBlock | str | Sequence[str] | None


def chosen(
    case: Case,
    wanted: Wanted,
    level: Literal["layer", "branch"],
    room: int | None = None,
    closed: Wanted = None,
) -> Choice:
    """The blocks that are wanted: of another call, by their names, or (None) all that see x_t.

    Args:
        room: bytes that finding may keep of its forward; None: as many as it likes.
        closed: blocks that are closed throughout; what is wanted without a word are the others.

    Raises:
        UnknownBlock: blocks of another model, a name that is no block's, or none.
        BadArgument: a block that is to be scored is closed throughout, or all are.
    """
    objects = (Blocks, ResidualBlock)
    needed = not isinstance(wanted, objects) or not (closed is None or isinstance(closed, objects))
    discovery = discover(case, level, room=ROOM if room is None else min(room, ROOM)) if needed else None
    blocks = _named(case, wanted, discovery, "blocks")
    shut = None if closed is None else _named(case, closed, discovery, "closed")
    if shut is not None:
        discovery = None  # its forward had them open
        if wanted is None:
            blocks = Blocks([b for b in blocks if b.name not in shut.names], blocks.model, blocks.coverage)
        _check_closed(blocks, shut)
    if wanted is not None:
        return Choice(blocks, None, discovery, None, shut)
    rest = [b for b in blocks if not b.main]
    network = getattr(case.flow.override.forward, "name", None)
    return Choice(blocks.main, Blocks(rest, blocks.model) if rest else None, discovery, network, shut)


def _named(case: Case, wanted: Wanted, discovery: Discovery | None, keyword: str) -> Blocks:
    """The blocks of a keyword."""
    if isinstance(wanted, ResidualBlock):
        blocks = Blocks([wanted], case.module)
    elif isinstance(wanted, Blocks):
        blocks = wanted
    else:
        assert discovery is not None
        blocks = discovery.blocks if wanted is None else discovery.blocks.named(wanted)
    if blocks.model is not case.module:
        raise UnknownBlock(f"the blocks in {keyword}= are of another model object. Use find_blocks(model, batch)")
    if not len(blocks):
        raise UnknownBlock(
            f"expected at least one block in {keyword}=, got none. Leave it out"
            + (" to score those of find_blocks" if keyword == "blocks" else "")
        )
    return blocks


def _check_closed(blocks: Blocks, closed: Blocks) -> None:
    if not len(blocks):
        raise BadArgument(
            f"closed= closes all {len(closed)} blocks, so none is left to score. Leave at least one out of it"
        )
    both = [name for name in blocks.names if name in closed.names]
    if both:
        raise BadArgument(f"{', '.join(both)} stands in blocks= and in closed=. Leave it out of one of them")
