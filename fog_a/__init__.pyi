from .aligning.alignment import AGREPA as AGREPA
from .attributing.attribute import attribute as attribute
from .blocks.block import Blocks as Blocks
from .blocks.block import ResidualBlock as ResidualBlock
from .blocks.gate import gate as gate
from .blocks.tap import tap as tap
from .errors import FogError as FogError
from .errors import NoBlocksFound as NoBlocksFound
from .errors import NotResidual as NotResidual
from .errors import ShapeMismatch as ShapeMismatch
from .errors import UnknownAdapter as UnknownAdapter
from .finding.blocks import find_blocks as find_blocks
from .flows.flow import Adapter as Adapter
from .flows.flow import Flow as Flow
from .flows.samples import Inputs as Inputs
from .flows.samples import Samples as Samples
from .flows.wrapping import wrap as wrap
from .probing.bitc import BiTC as BiTC
from .probing.gradnorm import gradnorm as gradnorm
from .probing.lasp import lasp as lasp
from .scores.plots import plot_scd as plot_scd
from .scores.plots import plot_scores as plot_scores
from .scores.scores import Scores as Scores
from .scores.select import select as select
from .scores.selection import Selection as Selection
from .teachers.teacher import Teacher as Teacher

__version__: str
