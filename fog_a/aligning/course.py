"""The course of a training: the layers that are chosen, the steps so far, and the schedule's weight.

A training goes through these states:

    probing    nothing is chosen yet: the warm-up measures the layers now and then
    finding    the layers are chosen by name, and the next call looks for their blocks on its batch
    aligning   the blocks are listened to, and the term is Eq. 12
    over       the schedule has ended
"""

from __future__ import annotations

from typing import Any, Literal

from fog_a.aligning.recipe import Recipe
from fog_a.aligning.schedules import Plateau
from fog_a.scores.selection import Selection

State = Literal["probing", "finding", "aligning", "over"]


class Course:
    """Where a training stands; its state is plain numbers and names.

    Args:
        recipe: the options.
        selection: the layers, or None: they are chosen later.
    """

    def __init__(self, recipe: Recipe, selection: Selection | None) -> None:
        self.recipe, self.selection = recipe, selection
        self.calls = 0
        """Calls of the term in training so far."""
        self.aligned = 0
        """Those of them that were aligned."""
        self.plateau = Plateau(recipe.schedule)
        self.told = False
        """Whether the user knows that nothing is aligned in a run as short as this."""

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.calls // self.recipe.accumulation

    @property
    def weight(self) -> float:
        """The schedule's factor at the next call; 0 before the choice."""
        if self.selection is None or self.plateau.reached:
            return 0.0
        return self.recipe.schedule(self.aligned // self.recipe.accumulation)

    def state_of(self, listening: bool) -> State:
        """What the next call does; `listening`: whether the chosen blocks are hooked."""
        if self.selection is None:
            return "probing"
        if self.weight == 0:
            return "over"
        return "aligning" if listening else "finding"

    def choice_is_possible(self) -> bool:
        """Whether an optimizer step has just ended, and layers are still to be chosen or chosen anew."""
        return self.calls % self.recipe.accumulation == 0 and (self.selection is None or bool(self.recipe.refresh))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-able."""
        selection = None if self.selection is None else self.selection.model_dump(mode="json")
        return {
            "calls": self.calls, "aligned": self.aligned, "selection": selection, "plateau": self.plateau.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.calls, self.aligned = state["calls"], state["aligned"]
        self.selection = None if state["selection"] is None else Selection.model_validate(state["selection"])
        self.plateau.restore(state["plateau"])
