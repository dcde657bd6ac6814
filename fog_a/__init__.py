"""fog_a: which layers of a generative network do the work, and how to train it better by knowing.

The public names stand in `__init__.pyi`, each with its file; a file is imported when its name is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
