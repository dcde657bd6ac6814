"""The release's probe input: the network is given the clean data in x_t's place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from fog_a.blocks.calls import hooked, unwrapped
from fog_a.blocks.tree import leaf, leaves, replaced
from fog_a.flows.flow import Flow


@contextlib.contextmanager
def clean_input(flow: Flow, batch: Any, seed: int) -> Iterator[None]:
    """Inside, the velocity network is given x_1 where it would be given x_t; its time stays as it is.

    x_1 is x_t at t = 1. The argument that carries it is found by comparing the network's arguments at both times: it
    differs, and is no time (one number per sample).
    """
    seen: dict[str, Any] = {}

    def grab(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["args"], seen["kwargs"] = args, kwargs

    def put(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        now = {"args": args, "kwargs": kwargs}
        new = {}
        for path, x in leaves(now):
            other = leaf(seen, path)
            if x.is_floating_point() and x.ndim > 1 and x[0].numel() > 1 and not torch.equal(x, other):
                new[path] = other
        now = replaced(now, new)
        return now["args"], now["kwargs"]

    with hooked(unwrapped(flow.module), before=grab):
        flow.velocity(batch, 1.0, seed)
    with hooked(unwrapped(flow.module), before=put):
        yield
