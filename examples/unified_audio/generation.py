"""Sampling codes from stage 1, restricted to what may come next.

At each step only the codes of the family whose turn it is are allowed, and [END] where a whole moment (one code of each
family) is done. So whatever the model thinks, an answer is a sequence of codes that stage 2 can read. Nucleus sampling:
top-p 0.9 at temperature 0.8, at most 512 moments, as the release.

With a reference, style can be guided: ℓ = ℓ_u + w (ℓ_c − ℓ_u), where ℓ_u are the log-probabilities without style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fog_a.errors import BadArgument, ShapeMismatch
from unified_audio.prompts import Prompt
from unified_audio.vocabulary import Vocabulary

if TYPE_CHECKING:
    from unified_audio.language_model import LanguageStage


class AllowedCodes:
    """A logits processor of transformers: −∞ for all but the family in turn, and [END] between moments.

    Args:
        vocabulary: whose ids.
        families: in the order of their turns.
        width: of the logits, which may exceed the vocabulary.
        shortest: moments before [END] is allowed.
    """

    def __init__(self, vocabulary: Vocabulary, families: Sequence[str], width: int, shortest: int = 1) -> None:
        self.shortest, self.end = max(1, shortest), vocabulary.marker("END")
        self.turns = torch.zeros(len(families), width, dtype=torch.bool)
        for turn, family in zip(self.turns, families, strict=True):
            turn[vocabulary.family(family).start : vocabulary.family(family).stop] = True

    def __call__(self, input_ids: Int[Tensor, "B n"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """`input_ids` are the ids generated so far: the prompt went in as embeddings."""
        moment, turn = divmod(input_ids.shape[1], len(self.turns))
        allowed = self.turns[turn].clone()
        allowed[self.end] = turn == 0 and moment >= self.shortest
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


class StyleGuidance:
    """A logits processor: ℓ_u + w (ℓ_c − ℓ_u), with a cache of its own for the pass without style."""

    def __init__(self, lm: Any, plain: Float[Tensor, "B S H"], mask: Int[Tensor, "B S"], weight: float) -> None:
        self.lm, self.plain, self.mask, self.weight = lm, plain, mask, weight
        self.cache: Any = None

    def __call__(self, input_ids: Int[Tensor, "B n"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        first = self.cache is None
        new: dict[str, Any] = {"inputs_embeds": self.plain} if first else {"input_ids": input_ids[:, -1:]}
        if not first:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        places = (self.mask.cumsum(1) - 1).clamp(min=0)
        places = places if first else places[:, -1:]
        out = self.lm(**new, attention_mask=self.mask, position_ids=places, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        u = out.logits[:, -1].float().log_softmax(-1)
        return u + self.weight * (scores.float().log_softmax(-1) - u)


@torch.no_grad()
def generate(
    stage: LanguageStage,
    asked: Sequence[Prompt],
    *,
    style: Sequence[Float[Tensor, "K D"] | None] | None = None,
    allowed: Sequence[str] | None = None,
    longest: int = 512,
    shortest: int = 1,
    temperature: float = 0.8,
    top_p: float = 0.9,
    guidance: float = 1.0,
    greedy: bool = False,
    seed: int | None = None,
) -> list[tuple[Int[Tensor, "N"], ...]]:
    """Codes for each prompt, on CPU: a tuple with a stream per family of its target, all of one length.

    Args:
        style: style vectors (`segment_means` of a reference's frames) per prompt, or None where there is no reference.
        allowed: families to answer in; None: the target of each prompt's domain.
        longest, shortest: moments; one code of each family is a moment.
        guidance: w; 1 is none and halves the cost. It needs style.
        greedy: the likeliest code each time instead of sampling.
        seed: of the sampling, which then leaves torch's generator as it was; None: draw from it.

    Raises:
        BadArgument: no prompt, unknown families, impossible lengths, or guidance without style.
        ShapeMismatch: as many style entries as prompts, each (K, D), were expected.
    """
    if not asked or not 1 <= shortest <= longest:
        raise BadArgument(
            f"generate got {len(asked)} prompts and lengths {shortest}…{longest}; at least one, 1 ≤ a ≤ b"
        )
    style = [None] * len(asked) if style is None else list(style)
    if len(style) != len(asked):
        raise ShapeMismatch(f"{len(style)} style entries for {len(asked)} prompts; one each, None where there is none")
    if guidance != 1.0 and any(s is None for s in style):
        raise BadArgument("guidance needs a reference's style for every prompt; give style=[…], or guidance=1")
    families = [tuple(allowed) if allowed else tuple(stage.config.targets[p.domain]) for p in asked]
    found: dict[int, tuple[Tensor, ...]] = {}
    options = {"temperature": temperature, "top_p": top_p, "guidance": guidance, "greedy": greedy}
    training, device = stage.training, next(stage.parameters()).device
    stage.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for group in dict.fromkeys(families):
                rows = [i for i, f in enumerate(families) if f == group]
                some = _sampled(
                    stage, [asked[i] for i in rows], [style[i] for i in rows], group, longest, shortest, options
                )
                found |= dict(zip(rows, some, strict=True))
    finally:
        stage.train(training)
    return [found[i] for i in range(len(asked))]


def _sampled(
    stage: LanguageStage, asked: Sequence[Prompt], style: Sequence[Tensor | None], families: tuple[str, ...],
    longest: int, shortest: int, options: dict[str, Any],
) -> list[tuple[Int[Tensor, "N"], ...]]:  # fmt: skip
    """One call of transformers' generate: prompts padded on the left, one grammar."""
    from transformers import GenerationConfig, LogitsProcessorList

    v, lm = stage.vocabulary, stage.lm
    ids, mask = _left_padded([p.ids(v) for p in asked], v.marker("PAD"), next(stage.parameters()).device)
    if ids.shape[1] + longest * len(families) > stage.config.longest:
        raise BadArgument(
            f"a prompt of {ids.shape[1]} ids and up to {longest} × {len(families)} codes exceed the longest sequence, "
            f"{stage.config.longest}; shorten the text or ask for fewer: generate(…, longest=…)"
        )
    vectors, styled = _stacked(style, v.slots, stage.config.style_dim, ids.device)
    e = stage.embed(ids, vectors, styled)
    width = lm.get_output_embeddings().weight.shape[0]
    processors: list[Any] = [AllowedCodes(v, families, width, shortest)]
    if options["guidance"] != 1.0:
        plain = stage.embed(ids, vectors, torch.zeros_like(styled))
        processors.insert(0, StyleGuidance(lm, plain, mask, options["guidance"]))
    sampling = (
        {} if options["greedy"] else {"temperature": options["temperature"], "top_p": options["top_p"], "top_k": 0}
    )
    config = GenerationConfig(
        max_new_tokens=longest * len(families), do_sample=not options["greedy"], eos_token_id=v.marker("END"),
        pad_token_id=v.marker("PAD"), use_cache=True, **sampling,
    )  # fmt: skip
    out = lm.generate(
        inputs_embeds=e, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(processors)
    )
    return [_streams(v, families, row.cpu()) for row in out]


def _streams(v: Vocabulary, families: tuple[str, ...], row: Int[Tensor, "n"]) -> tuple[Int[Tensor, "N"], ...]:
    """A generated row up to its [END], cut to whole moments, as one stream per family."""
    stop = (row == v.marker("END")).nonzero()
    row = row[: int(stop[0])] if len(stop) else row
    moments = row[: len(row) // len(families) * len(families)].unflatten(0, (-1, len(families)))
    return tuple(v.codes(family, moments[:, i]) for i, family in enumerate(families))


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


def _stacked(style: Sequence[Tensor | None], slots: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Style vectors (B, K, D), zero where there are none, and which rows have some."""
    for s in style:
        if s is not None and s.shape != (slots, dim):
            raise ShapeMismatch(f"style vectors must be ({slots}, {dim}), got {tuple(s.shape)}: segment_means(frames)")
    vectors = torch.stack([torch.zeros(slots, dim) if s is None else s.float().cpu() for s in style]).to(device)
    return vectors, torch.tensor([s is not None for s in style], device=device)
