"""Which blocks a measurement scores, and what finding them showed of its first case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fog_a.blocks.block import Blocks
from fog_a.errors import UnknownBlock
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

    def shown(self, case: Case) -> Discovery | None:
        """What finding showed of this case; it is kept no longer."""
        discovery, self.discovery = self.discovery, None
        return discovery if discovery is not None and discovery.case is case else None

    @property
    def notes(self) -> Iterator[str]:
        """What was left out, and what no gate reaches."""
        for stack, members in self.side.stacks.items() if self.side is not None else ():
            inputs = ", ".join(sorted({i for b in members for i in b.inputs})) or "nothing"
            outside = self.network is not None and not stack.startswith(f"{self.network}.")
            reason = f"are outside of {self.network}" if outside else f"depend only on {inputs}"
            yield (
                f"{len(members)} blocks of {stack} {reason}: left out. "
                "To score them pass blocks=find_blocks(...) or their names"
            )
        if self.blocks.coverage.note:
            yield self.blocks.coverage.note


def chosen(
    case: Case, wanted: Blocks | Sequence[str] | None, level: Literal["layer", "branch"], room: int | None = None
) -> Choice:
    """The blocks that are wanted: of another call, by their names, or (None) all that see x_t.

    Args:
        room: bytes that finding may keep of its forward; None: as many as it likes.

    Raises:
        UnknownBlock: blocks of another model, a name that is no block's, or none.
    """
    if isinstance(wanted, Blocks):
        if wanted.model is not case.module:
            raise UnknownBlock("the blocks in blocks= are of another model object. Use find_blocks(model, batch)")
        choice = Choice(wanted)
    else:
        discovery = discover(case, level, room=ROOM if room is None else min(room, ROOM))
        blocks = discovery.blocks
        rest = [b for b in blocks if not b.main]
        if wanted is None:
            network = getattr(case.flow.override.forward, "name", None)
            choice = Choice(blocks.main, Blocks(rest, blocks.model) if rest else None, discovery, network)
        else:
            choice = Choice(blocks.named(wanted), discovery=discovery)
    if not len(choice.blocks):
        raise UnknownBlock(
            "expected at least one block in blocks=, got none. Leave it out to score those of find_blocks"
        )
    return choice
