"""How cells were measured: by which strategies, with which notes, and how large rounding was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fog_a.attributing.cells import Cells


@dataclass
class Story:
    """How the cells were measured, for `info`."""

    strategies: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    noise: float = 0.0
    floor: float = 0.0
    """Scores up to here may be rounding."""

    def add(self, strategy: str, notes: Sequence[str] = (), noise: float = 0.0, floor: float = 0.0) -> None:
        """One cell's part."""
        self.strategies.add(strategy)
        self.notes += [n for n in notes if n not in self.notes]
        self.noise, self.floor = max(self.noise, noise), max(self.floor, floor)

    def merge(self, cells: Cells) -> None:
        """The parts of all processes: the same story on each."""
        for strategies, notes, noise, floor in cells.shared(
            [sorted(self.strategies), self.notes, self.noise, self.floor]
        ):
            for strategy in strategies:
                self.add(strategy, notes, noise, floor)
