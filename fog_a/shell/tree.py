"""Blocks as text: a table per stack for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from fog_a.blocks.block import Blocks, ResidualBlock


def tree(found: Blocks) -> str:
    """One table per stack: index, name, form, definition, parameters, and the inputs its updates depend on."""
    lines, everything = [], frozenset().union(*(b.inputs for b in found))
    for stack, members in found.stacks.items():
        note = "" if all(b.main for b in members) else "  (does not see x_t: not scored unless asked for)"
        lines.append(f"{stack}  {len(members)} blocks{note}")
        rows = [
            (f"{b.index}", b.name, b.form, b.definition, _parameters(found, b), _needs(b.inputs, everything))
            for b in members
        ]
        lines += aligned(("", "name", "form", "gate 0", "parameters", "depends on"), rows, right=(0, 4))
        lines.append("")
    total = f"{len(found)} blocks in {len(found.stacks)} stack{'s' if len(found.stacks) > 1 else ''}"
    return "\n".join([*lines, total])


def _needs(inputs: frozenset[str], everything: frozenset[str]) -> str:
    """The inputs by name, where they tell one block from another."""
    return f"all {len(inputs)} inputs" if len(inputs) > 3 and inputs == everything else ", ".join(sorted(inputs)) or "–"


def _parameters(found: Blocks, block: ResidualBlock) -> str:
    """Parameters of the block's module; of its parts where it has none of its own."""
    modules = dict(found.model.named_modules())
    own = modules.get(block.name.partition("@")[0])
    mine = [own] if own is not None else [modules[p] for p in block.parts if p in modules]
    count = sum(p.numel() for p in {id(p): p for m in mine for p in m.parameters()}.values())
    return f"{count:,}" if mine else "–"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of text in columns; those at `right` set flush right."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
