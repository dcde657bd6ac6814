"""Blocks as text: a table per stack for a terminal."""

from __future__ import annotations

from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.scores.tables import Table


def tree(blocks: Blocks) -> str:
    """One table per stack: index, name, form, definition, parameters, and the inputs its updates depend on."""
    tables, everything = [], frozenset().union(*(b.inputs for b in blocks))
    for stack, members in blocks.stacks.items():
        note = "" if all(b.main for b in members) else "  (does not see x_t: not scored unless asked for)"
        rows = [
            (b.index, b.name, b.form, b.definition, _parameters(blocks, b), _needs(b.inputs, everything))
            for b in members
        ]
        columns = ("", "name", "form", "gate 0", "parameters", "depends on")
        tables.append(Table(f"{stack}  {len(members)} blocks{note}", columns, rows, right=(4,)).text() + "\n")
    return "\n".join([*tables, f"{len(blocks)} blocks in {len(blocks.stacks)} stack{'s' * (len(blocks.stacks) > 1)}"])


def _needs(inputs: frozenset[str], everything: frozenset[str]) -> str:
    """The inputs by name, where they tell one block from another."""
    return f"all {len(inputs)} inputs" if len(inputs) > 3 and inputs == everything else ", ".join(sorted(inputs)) or "–"


def _parameters(blocks: Blocks, block: ResidualBlock) -> str:
    """Parameters of the block's module; of its parts where it has none of its own."""
    modules = dict(blocks.model.named_modules())
    whole = modules.get(block.name.partition("@")[0])
    parts = [whole] if whole is not None else [modules[p] for p in block.parts if p in modules]
    count = sum(p.numel() for p in {id(p): p for m in parts for p in m.parameters()}.values())
    return f"{count:,}" if parts else "–"
