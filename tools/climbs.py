"""How often a batch that is followed through `attribute` climbs back up: calls from a lower floor to a higher one.

    python tools/climbs.py             # a small transformer, by fan-out; --how loop, prefix: the other ways

Floors are those of tools/house.py. A climb is a call whose caller stands on a lower floor, each pair of functions once.
Hooks, which blocks/calls.py or torch calls back, and decorators are counted apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from house import FLOORS
from torch import nn

import fog_a

ROOT = Path(fog_a.__file__).parent
HOOKS = "blocks/calls.py:"


def place(frame: FrameType | None) -> tuple[str, str] | None:
    """The room, and the function's name with its file; None outside fog_a."""
    if frame is None or not (path := Path(frame.f_code.co_filename)).is_relative_to(ROOT):
        return None
    inside = path.relative_to(ROOT)
    return inside.parts[0].removesuffix(".py"), f"{inside}:{frame.f_code.co_qualname}"


def floor(room: str) -> int:
    """The floor of a room; the face stands above all."""
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


def climbs(run: Any) -> tuple[set[tuple[str, str]], set[tuple[str, str]], int]:
    """The calls upwards made by a function itself, those made through torch or Python, and the files that were met."""
    direct, back, files = set[tuple[str, str]](), set[tuple[str, str]](), set[str]()

    def note(frame: FrameType, event: str, arg: Any) -> None:
        if event != "call" or (callee := place(frame)) is None:
            return
        files.add(callee[1].split(":")[0])
        above, through = frame.f_back, False
        while above is not None and place(above) is None:
            above, through = above.f_back, True
        caller = place(above)
        if caller is not None and floor(caller[0]) < floor(callee[0]):
            (back if through or caller[1].startswith(HOOKS) else direct).add((caller[1], callee[1]))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return direct, back, len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls upwards in one attribute.")
    parser.add_argument("--how", choices=["auto", "loop", "prefix"], default="auto")
    how = parser.parse_args().how
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    net, x = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval(), torch.randn(3, 5, 16)
    way: Any = fog_a.Shared(rows=3) if how == "prefix" else how
    direct, back, files = climbs(lambda: fog_a.attribute(net, x, how=way, progress=False))
    print(f"{files} files of fog_a are met; {len(direct)} calls go up, and {len(back)} hooks and decorators are called")
    for caller, callee in sorted(direct):
        print(f"  {caller} -> {callee}")
    print("hooks and decorators:")
    for caller, callee in sorted(back):
        print(f"  {caller} -> {callee}")


if __name__ == "__main__":
    main()
