"""Stage 1: a causal language model from prompts to codes.

    L_LLM = L_CLM + λ_coarse L_coarse                      λ_coarse = 0.5                                     (Eq. 19)
    L_coarse = E_t[ CE( W_c h_{t−1}, cluster(s_t) ) ]      over the codes s_t of the answer                   (Eq. 20)

The coarse head reads the hidden state that *precedes* the code, the one that also predicts it. As released it reads
h_t, which has seen s_t: `coarse_shift=False` repeats that, for comparison only.

    stage = LanguageStage.build(tiny=True, families={"S3": 64, "AS": 64}, style_dim=100)      # nothing is loaded
    stage = LanguageStage.build("Qwen/Qwen3-0.6B-Base", families={"S3": 4096, "AS": 4096}, style_dim=768)
    out = stage(stage.collate(examples)); out.loss.backward()
    streams, = stage.generate([Prompt.sound("rain", "rain on a roof")], longest=200)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fog_a.errors import BadArgument, MissingDependency, NoWeights
from unified_audio import prompts
from unified_audio.clips import Domain
from unified_audio.prompts import Example, LanguageBatch, Prompt
from unified_audio.style import StyleSlots
from unified_audio.vocabulary import SLOTS, Vocabulary, byte_tokenizer

TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class LanguageConfig:
    """What stage 1 is besides its language model.

    Attributes:
        families: code families and their sizes; several may share the vocabulary.
        targets: which families answer which domain; two alternate (configuration B).
        style_dim: width of the frames that style is averaged of.
        alpha, style_drop: α and p_drop of Eq. 18 (0.5 or 0.7 in the release).
        coarse_weight: λ_coarse; 0 leaves the coarse head out.
        coarse_shift: False lets the head see its answer, as the release does.
        buckets: coarse buckets per family.
        longest: longest sequence.
    """

    families: Mapping[str, int] = field(default_factory=lambda: {"S3": 4096, "AS": 4096})
    targets: Mapping[Domain, tuple[str, ...]] = field(default_factory=lambda: {"speech": ("S3",), "sound": ("AS",)})
    style_dim: int = 768
    slots: int = SLOTS
    alpha: float = 0.5
    style_drop: float = 0.5
    coarse_weight: float = 0.5
    coarse_shift: bool = True
    buckets: int = 128
    longest: int = 8192

    def __post_init__(self) -> None:
        unknown = {f for families in self.targets.values() for f in families} - set(self.families)
        if unknown:
            raise BadArgument(f"targets name {', '.join(sorted(unknown))}, but families are {', '.join(self.families)}")

    @classmethod
    def dual(cls, semantic: int = 4096, acoustic: int = 1024, **options: Any) -> LanguageConfig:
        """Configuration B: [S3_i][BEATS_i] and [AS_i][BEATS_i] in turn; no style, no coarse head, as the release."""
        families = {"S3": semantic, "AS": semantic, "BEATS": acoustic}
        targets: dict[Domain, tuple[str, ...]] = {"speech": ("S3", "BEATS"), "sound": ("AS", "BEATS")}
        return cls(families, targets, **{"alpha": 0.0, "coarse_weight": 0.0, **options})

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LanguageConfig:
        """The inverse of `to_dict`, also after JSON."""
        return cls(**{**values, "targets": {d: tuple(f) for d, f in values["targets"].items()}})


class LanguageLoss(NamedTuple):
    """L_LLM and its terms, unweighted; `coarse` is 0 where there is no coarse head."""

    loss: Float[Tensor, ""]
    clm: Float[Tensor, ""]
    coarse: Float[Tensor, ""]


class LanguageStage(nn.Module):
    """A language model with code tokens, style slots and a coarse head. Build it with `LanguageStage.build`.

    Args:
        lm: a causal LM of transformers; its embedding table is enlarged where it is too small.
        text: its tokenizer.
        config: see `LanguageConfig`.
    """

    def __init__(self, lm: Any, text: Any, config: LanguageConfig) -> None:
        super().__init__()
        self.config, self.vocabulary = config, Vocabulary(text, config.families, config.slots, config.buckets)
        self.lm: Any = lm
        _enlarge(lm, self.vocabulary)
        hidden = int(lm.config.hidden_size)
        self.style = StyleSlots(config.style_dim, hidden, config.alpha, config.style_drop)
        self.coarse = nn.Linear(hidden, self.vocabulary.clusters) if config.coarse_weight > 0 else None

    @classmethod
    def build(
        cls,
        name: str | Path | None = None,
        *,
        tiny: bool = False,
        config: LanguageConfig | None = None,
        checkpointing: bool = False,
        **options: Any,
    ) -> LanguageStage:
        """A stage on a pretrained model (hub name or folder), or a tiny random one that loads nothing.

        Args:
            checkpointing: trade time for memory by gradient checkpointing.
            options: fields of `LanguageConfig`, over `config`.

        Raises:
            MissingDependency: transformers is absent.
            NoWeights: hub out of reach, or the folder lacks files; it says which.
            BadArgument: neither a name nor tiny=True, or both.
        """
        transformers = _transformers()
        if (name is None) != tiny:
            raise BadArgument("LanguageStage.build wants a model's name or folder, or tiny=True, one of the two")
        config = replace(config or LanguageConfig(), **options)
        if name is None:
            text = byte_tokenizer()
            size = Vocabulary(text, config.families, config.slots, config.buckets).size
            lm = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(vocab_size=size, **TINY))
        else:
            lm, text = _pretrained(transformers, name)
        if checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return cls(lm, text, config)

    def forward(self, batch: LanguageBatch) -> LanguageLoss:
        """The loss of a batch of `collate`: means over the ids of the answers, and over their codes."""
        h = self._hidden(batch)
        learned = batch["labels"][:, 1:] != -100
        answers, before = batch["labels"][:, 1:][learned], h[:, :-1][learned]
        clm = F.cross_entropy(self.lm.get_output_embeddings()(before).float(), answers)
        if self.coarse is None:
            return LanguageLoss(clm, clm, clm.new_zeros(()))
        seen = before if self.config.coarse_shift else h[:, 1:][learned]
        coarse = F.cross_entropy(self.coarse(seen).float(), self.vocabulary.cluster(answers), ignore_index=-100)
        return LanguageLoss(clm + self.config.coarse_weight * coarse, clm, coarse)

    def loss(self, batch: LanguageBatch) -> Float[Tensor, ""]:
        """L_LLM (Eq. 19)."""
        return self(batch).loss

    def collate(self, examples: Sequence[Example]) -> LanguageBatch:
        """Examples as a batch; raises what `prompts.collate` raises."""
        c = self.config
        return prompts.collate(examples, self.vocabulary, dict(c.targets), c.style_dim, c.longest)

    def embed(self, ids: Int[Tensor, "B S"], style: Float[Tensor, "B K D"], styled: Tensor) -> Float[Tensor, "B S H"]:
        """Embeddings, with the style vectors in their slots (Eq. 18)."""
        e = self.lm.get_input_embeddings()(ids)
        slots = self.vocabulary.audio
        at = (ids >= slots.start) & (ids < slots.stop)
        mixed = self.style(e[at].unflatten(0, (len(ids), -1)), style, styled)
        return e.masked_scatter(at[..., None], mixed.to(e.dtype))

    def generate(self, asked: Sequence[Prompt], **options: Any) -> list[tuple[Int[Tensor, "N"], ...]]:
        """Codes for each prompt, a stream per family of its target; see `unified_audio.generation.generate`."""
        from unified_audio.generation import generate

        return generate(self, asked, **options)

    def _hidden(self, batch: LanguageBatch) -> Float[Tensor, "B S H"]:
        e = self.embed(batch["ids"], batch["style"], batch["styled"])
        return self.lm.base_model(inputs_embeds=e, attention_mask=batch["mask"], use_cache=False).last_hidden_state


@torch.no_grad()
def _enlarge(lm: Any, vocabulary: Vocabulary) -> None:
    """Rows for the new ids, drawn like the ones that are there; rows past the text's (padding) are drawn anew."""
    table = lm.get_input_embeddings().weight
    std = float(table[: min(vocabulary.base, 10_000)].float().std())
    if len(table) < vocabulary.size:
        lm.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        layer.weight[vocabulary.base : vocabulary.size].normal_(std=std)


def _pretrained(transformers: Any, name: str | Path) -> tuple[Any, Any]:
    try:
        text = transformers.AutoTokenizer.from_pretrained(name)
        return transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True), text
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NoWeights(
            f"could not load the language model {str(name)!r}: {reason} With a connection, once: `hf download {name}`; "
            f"without: copy config.json, model.safetensors, tokenizer.json and tokenizer_config.json of it from another"
            " machine into a folder and give that. For a dry run without weights: LanguageStage.build(tiny=True)"
        ) from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency(f"stage 1 needs transformers ({error}): pip install 'fog-a[teachers]'") from error
    return transformers
