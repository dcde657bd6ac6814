"""Teachers: frozen encoders that say what a clip is, one pooled vector per sample.

    T(x) = mean of the encoder's output frames over the real (unpadded) part of x           T_W, T_B of Eq. 4–6, 12

A teacher is a plain object, not an `nn.Module`: kept as an attribute of a model it is no submodule, so it is neither
trained, nor saved with the model, nor put in train mode. Its network follows the audio's device. Whatever the padding
of a batch, a sample's features are those of the sample alone.

The paper's two are `WhisperTeacher` and `BEATsTeacher`. `HFAudioTeacher` is any transformers encoder; `CachedTeacher`
keeps features on disk; `SelfTeacher` and `SpectralTeacher` need no weights. `ModuleTeacher` and `LatentTeacher` read a
tensor of the batch. `teacher`: which one reads which domain.
"""

from fog_a.teachers.beats import BEATsTeacher as BEATsTeacher
from fog_a.teachers.cached import CachedTeacher as CachedTeacher
from fog_a.teachers.crops import CropTeacher as CropTeacher
from fog_a.teachers.encoders import HFAudioTeacher as HFAudioTeacher
from fog_a.teachers.encoders import WhisperTeacher as WhisperTeacher
from fog_a.teachers.modules import LatentTeacher as LatentTeacher
from fog_a.teachers.modules import ModuleTeacher as ModuleTeacher
from fog_a.teachers.self_teacher import SelfTeacher as SelfTeacher
from fog_a.teachers.weightless import SpectralTeacher as SpectralTeacher
