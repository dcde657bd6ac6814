"""The bundled model: a DiT for token-conditioned flow matching on log-mel, with its audio data and its demo.

    from fog_a_adapters.dit import DiTConfig, FlowMatching
    flow = fog_a.wrap(FlowMatching(DiTConfig.tiny()))

Built from the description in the AG-REPA paper (arXiv 2603.01006), §"flow-matching model".
"""

from __future__ import annotations

from fog_a_adapters.dit.model.adapter import DiTAdapter
from fog_a_adapters.dit.model.dit import DiT, DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching, MelBatch

__all__ = ["DiT", "DiTAdapter", "DiTConfig", "FlowMatching", "MelBatch"]
