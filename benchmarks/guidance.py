"""What skip guidance costs: one forward on twice the rows, against a plain forward and against two.

python benchmarks/guidance.py
"""

from __future__ import annotations

import argparse

import torch
from attribution import sizes
from finding import fastest
from nets import case

import fog_a
from fog_a.attributing.sighting import Footprint

CASES = ("6x64x50x2", "24x64x50x1", "24x256x200x2", "12x512x400x2")


def main() -> None:
    parser = argparse.ArgumentParser(description="What skip guidance costs.")
    parser.add_argument("--case", action="append", help="layers x width x frames x batch; several. Default: all")
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    heads = ("case", "plain, ms", "two, ms", "guided, ms", "of two", "first, ms", "memory, of a plain forward's")
    print("{:16s} {:>10s} {:>9s} {:>11s} {:>7s} {:>10s} {:>9s}".format(*heads))
    for name in a.case or CASES:
        layers = sizes(name)[0]
        net, x = case(*sizes(name))
        blocks = fog_a.find_blocks(net, x)
        middle = blocks[layers // 2 : layers // 2 + 1]
        with torch.no_grad():
            plain = fastest(lambda: net(*x), a.repeats)  # noqa: B023
            with Footprint() as one:
                net(*x)
            with fog_a.gate(middle, 0):
                skipped = fastest(lambda: net(*x), a.repeats)  # noqa: B023
            with fog_a.skip_guidance(net, middle, 1.0):
                first = fastest(lambda: net(*x), 1)  # noqa: B023
                guided = fastest(lambda: net(*x), a.repeats)  # noqa: B023
                with Footprint() as both:
                    net(*x)
        two = plain + skipped
        numbers = (1e3 * plain, 1e3 * two, 1e3 * guided, guided / two, 1e3 * first, both.peak / one.peak)
        print("{:16s} {:10.1f} {:9.1f} {:11.1f} {:7.2f} {:10.1f} {:9.2f}".format(name, *numbers))


if __name__ == "__main__":
    main()
