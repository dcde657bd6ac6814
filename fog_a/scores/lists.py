"""Layers as other tools take them: numbers in a list of blocks, ranks by a pattern of names.

A model keeps its blocks in lists, `transformer_blocks.7` is number 7 of `transformer_blocks`. What skips layers takes
the list and the numbers; PEFT's `rank_pattern` takes patterns of module names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fog_a.errors import BadArgument, BadOutput, ShapeMismatch, is_whole


def place(name: str) -> tuple[str, int]:
    """The list of a block and its number there.

    Raises:
        BadArgument: the block is no item of a list, or one execution of a module that runs several times.

    >>> place("transformer_blocks.7")
    ('transformer_blocks', 7)
    """
    path, _, number = name.rpartition(".")
    if number.isdecimal():
        return path, int(number)
    if "@" in number:
        raise BadArgument(
            f"{name!r} is one execution of a module that runs several times, and a number names all of them. "
            "Close it by fog_a.gate(blocks.named([...]), 0)"
        )
    raise BadArgument(
        f"expected names that end in a number, such as 'transformer_blocks.7', got {name!r}, which is no item of a "
        "list. Select on scores of level='layer', or close the block by fog_a.gate"
    )


def indices(names: Sequence[str]) -> dict[str, list[int]]:
    """List path → the numbers of these blocks in it, ascending; lists in the order of the names.

    >>> indices(["single.3", "double.0", "single.1"])
    {'single': [1, 3], 'double': [0]}
    """
    table: dict[str, list[int]] = {}
    for path, number in map(place, names):
        table.setdefault(path, []).append(number)
    return {path: sorted(numbers) for path, numbers in table.items()}


def ranks(names: Sequence[str], mean: Float[np.ndarray, " L"], total: int) -> dict[str, int]:
    """Shares of `total` in proportion to the mean scores, whole numbers of 1 or more, by a pattern of module names.

    Raises:
        BadOutput: scores that are negative, missing, or all zero. ShapeMismatch: fewer ranks than layers.
    """
    if not (np.isfinite(mean).all() and mean.min() >= 0 and mean.sum() > 0):
        raise BadOutput(
            "expected scores ≥ 0 with a positive sum, to share ranks in proportion to them; got "
            f"{np.nanmin(mean):.3g} … {np.nanmax(mean):.3g}. Take contribution, gradnorm or drift scores"
        )
    if not is_whole(total) or total < len(names):
        raise ShapeMismatch(
            f"total = {total}: expected a whole number of ranks for all {len(names)} layers together, at least "
            f"{len(names)}. Type total={16 * len(names)} for 16 on average"
        )
    if tied := [name for name in names if "@" in name]:
        raise BadArgument(
            f"{tied[0]!r} is one execution of a module that runs several times, and has one rank for all of them. "
            "Score its modules by level='branch', or give the rank by hand"
        )
    share = total * mean / mean.sum()
    rank = np.maximum(np.floor(share), 1).astype(int)
    while rank.sum() < total:
        rank[np.argmax(share - rank)] += 1
    while rank.sum() > total:
        rank[np.argmax(np.where(rank > 1, rank - share, -np.inf))] -= 1
    # Every module of a block, for PEFT, which puts any prefix before it: not before a bare number.
    patterns = (rf"{'(?<!.)' if n[:1].isdecimal() else ''}{re.escape(n)}(\..*)?" for n in names)
    return dict(zip(patterns, rank.tolist(), strict=True))
