"""What `fog-a demo` and `fog-a compare` run: training of the bundled model, its measures, pictures and page."""

from __future__ import annotations

from fog_a_adapters.dit.demo.demo import TIMES, load_batch, load_model, run
from fog_a_adapters.dit.demo.page import Demo

__all__ = ["TIMES", "Demo", "load_batch", "load_model", "run"]
