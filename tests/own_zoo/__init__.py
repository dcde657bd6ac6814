"""A small zoo of our own: hand-written models in shapes that finding blocks could get wrong, each with its truth.

Every model has, beside `forward`, a method `without(k, *inputs)`: the same forward written once more with layer k
removed, by hand. `CASES` are the models with layers, `NEGATIVES` those without any.
"""

from own_zoo.adders import ADDERS
from own_zoo.anew import ANEW
from own_zoo.carried import CARRIED
from own_zoo.case import Case
from own_zoo.couplings import COUPLINGS
from own_zoo.executions import EXECUTIONS
from own_zoo.groups import GROUPS
from own_zoo.lanes import LANES
from own_zoo.layouts import LAYOUTS
from own_zoo.lists import LISTS
from own_zoo.negatives import NEGATIVES
from own_zoo.objects import OBJECTS
from own_zoo.parents import PARENTS
from own_zoo.seconds import SECONDS
from own_zoo.shortcuts import SHORTCUTS
from own_zoo.stacks import STACKS
from own_zoo.streams import STREAMS
from own_zoo.sums import SUMS
from own_zoo.unets import UNETS
from own_zoo.units import UNITS
from own_zoo.wirings import WIRINGS

CASES: tuple[Case, ...] = (
    *SUMS, *STREAMS, *LAYOUTS, *PARENTS, *ADDERS, *SHORTCUTS, *UNITS, *UNETS, *EXECUTIONS, *WIRINGS,
    *SECONDS, *LANES, *GROUPS, *ANEW, *LISTS, *STACKS, *CARRIED, *COUPLINGS, *OBJECTS,
)  # fmt: skip

__all__ = ["CASES", "NEGATIVES", "Case"]
