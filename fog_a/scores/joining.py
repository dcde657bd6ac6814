"""Several measurements joined to one: the same clip stays one clip, and strangers are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fog_a.errors import ShapeMismatch
from fog_a.scores.files import Fields, plain
from fog_a.scores.ranking import check_layers


def joined(parts: Sequence[Fields]) -> dict[str, Any]:
    """The fields of Scores that hold the samples of all. Raises ShapeMismatch where they are not of one measurement."""
    first, apart = parts[0], list[Fields]()
    for part in parts:
        _check_joinable(first, part)
        numbers, start = tuple(map(str, range(len(part["ids"])))), sum(len(p["ids"]) for p in apart)
        if part["groups"] == part["ids"] == numbers and not any(_overlap(p["values"], part["values"]) for p in apart):
            numbers = tuple(str(start + i) for i in range(len(numbers)))  # samples without names are other ones
            part = {**part, "ids": numbers, "groups": numbers}
        apart.append(part)
    rows = {name: tuple(x for p in apart for x in p[name]) for name in ("domains", "ids", "groups")}
    said = {key: [str(n) for p in apart for n in p["info"].get(key) or ()] for key in ("notes", "warnings")}
    info = {**first["info"], **{key: list(dict.fromkeys(words)) for key, words in said.items() if words}}
    return {**first, **rows, "values": np.concatenate([p["values"] for p in apart]), "info": info}


def check_alike(a: Fields, b: Fields) -> None:
    """Raises ShapeMismatch where the fields of two measurements are of other layers, kinds or times."""
    check_layers(a["layers"], b["layers"])
    for name in ("kind", "times"):
        if a[name] != b[name]:
            raise ShapeMismatch(
                f"expected scores of one measurement, got some whose {name} differ: {a[name]} and {b[name]}. Measure "
                "both with the same call"
            )


def _check_joinable(a: Fields, b: Fields) -> None:
    check_alike(a, b)
    ways = [s["info"].get("method", "exact") for s in (a, b)]
    if ways[0] != ways[1]:
        raise ShapeMismatch(f"cannot concat scores of method {ways[0]} and of {ways[1]}. Measure both with one method")
    mine, theirs = (plain(s["info"].get("signature") or {}) for s in (a, b))
    if mine and theirs and mine != theirs:
        if {**mine, "weights": None} == {**theirs, "weights": None}:
            raise ShapeMismatch(
                "cannot concat scores of two checkpoints of a model (the weights in info['signature'] differ). "
                "Compare them: a.agreement(b)"
            )
        raise ShapeMismatch("cannot concat scores of two different models (their info['signature'] differ)")


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the one holds the first rows of the other."""
    rows = min(len(a), len(b))
    return np.array_equal(a[:rows], b[:rows], equal_nan=True)
