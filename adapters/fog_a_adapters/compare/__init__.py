"""Which layers should be aligned? Trains one flow with each choice of layers, and compares them seed by seed.

    from fog_a_adapters.compare import Plan, Task, compare
    report = compare(Task(...), Plan(seeds=(0, 1, 2)), "out/compare")

Any wrapped flow can be compared: a `Task` names it, its data and its teachers.
"""

from __future__ import annotations

from fog_a_adapters.compare.comparison import compare
from fog_a_adapters.compare.task import Plan, Task

__all__ = ["Plan", "Task", "compare"]
