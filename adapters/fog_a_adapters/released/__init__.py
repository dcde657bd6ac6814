"""The ways of the paper's probe and of its authors' release, where they differ from fog_a's: to compare with.

    AGREPA(flow, teachers, **released.PAPER)        the paper's warm-up
    released.AGREPA, lasp, BiTC                     the release's, each in fog_a's place
    released.WhisperTeacher, BEATsTeacher           its pooling

The release differs from the paper, mostly by mistake; each deviation can be undone by naming its option. The rest of
fog_a knows nothing of it.
"""

from fog_a_adapters.released.alignment import AGREPA as AGREPA
from fog_a_adapters.released.alignment import PAPER as PAPER
from fog_a_adapters.released.alignment import Probe as Probe
from fog_a_adapters.released.clean_input import clean_input as clean_input
from fog_a_adapters.released.storage import BiTC as BiTC
from fog_a_adapters.released.storage import lasp as lasp
from fog_a_adapters.released.teachers import BEATsTeacher as BEATsTeacher
from fog_a_adapters.released.teachers import WhisperTeacher as WhisperTeacher
