"""The release's probe input: the network is given the clean data in x_t's place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fog_a.blocks.calls import hooked, unwrapped
from fog_a.blocks.tree import leaf, leaves, replaced
from fog_a.blocks.untouched import rng
from fog_a.errors import Unsupported
from fog_a.flows.flow import Flow


@contextlib.contextmanager
def clean_input(flow: Flow, batch: Any, seed: int, when: bool = True) -> Iterator[None]:
    """Inside, the velocity network is given x_1 where it would be given x_t; its time stays as it is.

    x_1 is x_t at t = 1. The argument that carries it is found by comparing the network's arguments at both times: it
    differs, and is no time (one number per sample).

    Raises Unsupported where no argument of the network differs, so that none carries x_t.
    """
    at_data: dict[str, Any] = {}

    def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        at_data["args"], at_data["kwargs"] = args, kwargs
        raise _Seen  # what the network says at t = 1 is not needed, and some conventions know no velocity there

    def exchange(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        now = {"args": args, "kwargs": kwargs}
        data = {path: (x, leaf(at_data, path)) for path, x in leaves(now)}
        moved = {path: x1 for path, (x, x1) in data.items() if _is_data(x) and not torch.equal(x, x1)}
        if not moved:
            raise Unsupported(
                "the release's probe gives the network x_1 in x_t's place, and no argument of "
                f"{type(flow.module).__name__} carries x_t. Type released.AGREPA(flow, teachers, "
                "probe=released.Probe(clean=False))"
            )
        now = replaced(now, moved)
        return now["args"], now["kwargs"]

    if not when:
        yield
        return
    with rng(), hooked(unwrapped(flow.module), before=keep), contextlib.suppress(_Seen):
        flow.velocity(batch, 1.0, seed)
    with hooked(unwrapped(flow.module), before=exchange):
        yield


class _Seen(Exception):
    """The network was called; its arguments are known."""


def _is_data(x: Tensor) -> bool:
    return x.is_floating_point() and x.ndim > 1 and x[0].numel() > 1
