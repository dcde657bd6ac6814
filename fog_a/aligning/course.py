"""Where a training stands, in plain numbers and names; it keeps no model alive."""

from __future__ import annotations

import sys
from typing import Any

from fog_a.aligning.recipe import Recipe
from fog_a.aligning.schedules import Plateau
from fog_a.errors import BadScores
from fog_a.ranks import is_first
from fog_a.scores.selection import Selection


class Course:
    """The layers that are chosen, the steps so far, and the schedule's weight.

    Attributes:
        selection: the layers; None: not chosen yet.
        calls, aligned: calls of the term in training so far, and those of them that were aligned.
        told: whether the user knows that nothing is aligned in a run as short as this.
    """

    def __init__(self, recipe: Recipe, selection: Selection | None = None) -> None:
        self.recipe, self.selection, self.plateau = recipe, selection, Plateau(recipe.schedule)
        self.calls = self.aligned = 0
        self.told = False

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

    def say_if_idle(self) -> None:
        """A line for a training that ended in its warm-up: it has aligned nothing."""
        if self.calls and self.selection is None and not self.told:
            self.told = True
            if is_first():
                print(
                    f"fog_a: AGREPA has aligned nothing in {self.step} steps: its warm-up takes {self.recipe.warmup}. "
                    f"Type AGREPA(..., warmup={max(1, self.step // 10)}), or pass selection=",
                    file=sys.stderr,
                )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-able."""
        selection = None if self.selection is None else self.selection.model_dump(mode="json")
        plateau = self.plateau.state()
        return {"calls": self.calls, "aligned": self.aligned, "selection": selection, "plateau": plateau}

    def check(self, state: dict[str, Any]) -> None:
        """Raises BadScores where this training was given other layers than the state's."""
        saved, chosen = _names(_selection(state)), _names(self.selection)
        if chosen and not self.calls and not self.recipe.refresh and chosen != saved:
            raise BadScores(
                f"this state aligns {saved or 'nothing yet'}, and selection= names {chosen}. To go on with the state's "
                "layers leave selection= out; for others start AGREPA anew, without this state"
            )

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.calls, self.aligned, self.selection = state["calls"], state["aligned"], _selection(state)
        self.plateau.restore(state["plateau"])


def _selection(state: dict[str, Any]) -> Selection | None:
    return None if state["selection"] is None else Selection.model_validate(state["selection"])


def _names(selection: Selection | None) -> dict[str, list[str]]:
    return {} if selection is None else {d: [c.layer for c in chosen] for d, chosen in selection.domains.items()}
