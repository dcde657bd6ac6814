"""How far a training with alignment is: its step, its choice, its schedule, and scalars for loggers.

A training goes through these states:

    probing    nothing is chosen yet: the warm-up measures the layers now and then
    finding    the layers are chosen by name, and the next call looks for their blocks on its batch
    aligning   the blocks are listened to, and the term is Eq. 12
    over       the schedule has ended
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from fog_a.aligning.course import Course
from fog_a.aligning.listening import Listening
from fog_a.aligning.recipe import Recipe
from fog_a.aligning.warmup import Warmup
from fog_a.blocks.calls import before_loading
from fog_a.scores.scores import Scores
from fog_a.scores.selection import Selection

State = Literal["probing", "finding", "aligning", "over"]


class Progress(nn.Module):
    """What `AGREPA` tells of its training.

    Attributes:
        recipe: the options of the run.
    """

    recipe: Recipe
    _course: Course
    _warmup: Warmup
    _listening: Listening
    _last: dict[str, Tensor]

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self._course.step

    @property
    def selection(self) -> Selection | None:
        """The layers that are aligned; None before the choice."""
        return self._course.selection

    @property
    def weight(self) -> float:
        """The schedule's factor at the next call; 0 before the choice."""
        return self._course.weight

    @property
    def state(self) -> State:
        """What the next call does: see the head of `fog_a.aligning.progress`."""
        if self.selection is None:
            return "probing"
        if self.weight == 0:
            return "over"
        return "finding" if self._listening.blocks is None else "aligning"

    @property
    def scores(self) -> Scores | None:
        """What the probes have measured since the last choice; None when nothing."""
        return self._warmup.scores({}) if self._warmup.rows else None

    def metrics(self) -> dict[str, float]:
        """Scalars of the last call for any logger: the loss, the weight, probes so far, each layer's mean cosine.

        `ag_repa/<domain>/<layer>/shuffled` is the cosine to other samples' features. Alignment learns of the samples
        as far as the layer's cosine is above it.
        """
        values = {name: float(value) for name, value in self._last.items()}
        probes = max(self._warmup.counts.values())
        return {**values, "ag_repa/weight": self.weight, "ag_repa/probes": float(probes)}

    def expect(self, steps: float) -> None:
        """Warn of a training of so many optimizer steps in which nothing would be aligned; integrations call it."""
        if self.selection is None and self.recipe.warmup >= steps:
            self._course.told = True
            warnings.warn(
                f"this run has {steps:g} optimizer steps, and AGREPA's warm-up takes {self.recipe.warmup}: nothing "
                f"will be aligned. Type AGREPA(..., warmup={max(1, int(steps) // 10)}), or pass selection=",
                stacklevel=3,
            )

    def accumulate(self, calls: int) -> None:
        """How many calls make one optimizer step; the option `accumulation`, for loops that set it late."""
        self.recipe = self._course.recipe = self.recipe.model_copy(update={"accumulation": calls})

    def resume(self, optimizer: Any) -> None:
        """Let an optimizer with the heads load a state that was saved without them: they begin without moments."""
        inner: Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's has the user's inside
        heads = {id(p) for p in self.parameters()}
        before_loading(inner, lambda optimizer, state: _with_heads(optimizer, state, heads))

    def _begin_late(self, name: str) -> None:
        """Say that a model's checkpoint has no state of this."""
        warnings.warn(
            f"this checkpoint was saved without AG-REPA ({name} is not in it): it begins now, at step {self.step}. The "
            "optimizer loads a state of before, too, if you type reg.resume(optimizer) first",
            stacklevel=2,
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """torch's own loading; a part of a model whose checkpoint holds nothing of it stays as it is."""
        if prefix and not any(name.startswith(prefix) for name in state_dict):
            self._begin_late(prefix.rstrip("."))
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _with_heads(optimizer: Optimizer, state: dict[str, Any], heads: set[int]) -> dict[str, Any]:
    """An optimizer's state with places for the heads, where they are all that it lacks."""
    groups, saved = optimizer.param_groups, state["param_groups"]
    of_head = [[id(p) in heads for p in group["params"]] for group in groups]
    if [len(row) - sum(row) for row in of_head if not all(row)] != [len(group["params"]) for group in saved]:
        return state
    fresh, rest = itertools.count(sum(len(group["params"]) for group in saved)), iter(saved)
    whole = []
    for group, row in zip(groups, of_head, strict=True):
        old = {**group, "params": []} if all(row) else next(rest)
        known = iter(old["params"])
        whole.append({**old, "params": [next(fresh if new else known) for new in row]})
    return {**state, "param_groups": whole}
