"""How large and how long a run is: `small` for two cores, `tiny` for tests, `gpu` for a card with 80 GB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fog_a_adapters.dit.model.dit import DiTConfig
from unified_audio.ast_tokenizer import ASTConfig


@dataclass(frozen=True)
class Scale:
    """Sizes, steps and learning rates.

    Attributes:
        model: of stage 2; vocabulary, domains and token width are set by the data.
        vocab: codes per family. clips, frames: of a training batch, and of a crop.
        tokenizer_steps, language_steps: of the sound tokenizer and stage 1. warmup, steps: of phase I and each arm.
        held_out, heard: test clips per domain for the loss, and of these the ones that are synthesized and judged.
        rates: peak learning rates of tokenizer, stage 1, stage 2.
        points, cfg: of the sampler.
        large: the tokenizer has the paper's sizes.
    """

    model: DiTConfig
    vocab: int = 64
    clips: int = 8
    frames: int = 64
    tokenizer_steps: int = 60
    language_steps: int = 40
    warmup: int = 60
    steps: int = 40
    held_out: int = 24
    heard: int = 8
    rates: tuple[float, float, float] = (1e-3, 1e-3, 2e-3)
    points: int = 8
    cfg: float = 1.0
    precision: Literal["no", "bf16"] = "no"
    large: bool = False

    def tokenizer(self, width: int) -> ASTConfig:
        """The sound tokenizer over frames of a width."""
        return ASTConfig(width, vocab=self.vocab) if self.large else ASTConfig.tiny(width, self.vocab)

    @classmethod
    def small(cls) -> Scale:
        """For `make paper`."""
        return cls(DiTConfig.tiny(layers=6))

    @classmethod
    def tiny(cls) -> Scale:
        """For tests."""
        return cls(
            DiTConfig.tiny(layers=5, dim=16, heads=2), vocab=16, clips=4, frames=32, tokenizer_steps=2,
            language_steps=2, warmup=6, steps=4, held_out=4, heard=2,
        )  # fmt: skip

    @classmethod
    def gpu(cls) -> Scale:
        """24 × 1024 in bf16, whole clips of 10 s, the paper's warm-up; further steps by the hours one has (SPEC §5)."""
        return cls(
            DiTConfig.paper(), vocab=4096, clips=16, frames=938, tokenizer_steps=20_000, language_steps=20_000,
            warmup=5_000, steps=45_000, held_out=200, heard=200, rates=(1e-4, 5e-5, 1e-4), points=32, cfg=3.0,
            precision="bf16", large=True,
        )  # fmt: skip


SCALES: dict[str, Callable[[], Scale]] = {"small": Scale.small, "tiny": Scale.tiny, "gpu": Scale.gpu}
