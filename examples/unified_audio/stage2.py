"""Stage 2 in use: averaged weights, and tokens → mel behind a reference.

    θ̄ ← d θ̄ + (1 − d) θ          after each optimizer step, d = min(decay, (1 + n) / (10 + n))         (EMA)

The model, its loss (Eq. 21–23) and its sampler (Euler, sway, guidance) are the bundled `FlowMatching`. `speak` gives it
a reference's mel and tokens as a prefix and samples what follows; the prefix keeps to the share of the whole that
training showed (below 30 %), and the new tokens are laid over the new frames only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fog_a.errors import BadArgument
from fog_a_adapters.dit.audio.mel import HOP, MEL_RATE
from fog_a_adapters.dit.model.flow import REFERENCE, FlowMatching, MelBatch

FRAME_RATE = MEL_RATE / HOP


class Average:
    """The moving average of a model's parameters and buffers; integers, and what changes its size, are copied.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> average = Average(net)
    >>> with torch.no_grad(): _ = net.weight.add_(1.0); average.update(net)
    >>> with average.in_place_of(net): pass      # inside, the net has the averaged weights
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise BadArgument(f"the decay of an average is in [0, 1), got {decay}; 0.999 forgets over 1000 steps")
        self.decay, self.count = decay, 0
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step; early ones forget the initial weights faster."""
        d = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, value in model.state_dict().items():
            mine = self.values.get(name)
            if mine is not None and mine.is_floating_point() and mine.shape == value.shape:
                mine.lerp_(value.to(mine), 1 - d)
            else:  # counters, and AG-REPA's record of its probes, which grows
                self.values[name] = value.detach().clone()

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the averaged weights; with its own again afterwards."""
        own = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state(self) -> dict[str, Any]:
        """To save; `load` reads it back."""
        return {"count": self.count, "values": self.values}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.count = int(state["count"])
        for name, value in state["values"].items():
            mine = self.values.get(name)
            self.values[name] = value.to(mine.device if mine is not None else value.device, copy=True)


def reference_frames(new: int, share: float = REFERENCE) -> int:
    """How long a reference may be before `new` frames so that it stays below `share` of the whole.

    >>> reference_frames(70)
    29
    """
    of = Fraction(share).limit_denominator(1000)  # 0.3 is no binary fraction: 30 of 100 must not pass
    return max(1, math.ceil(of * new / (1 - of)) - 1)


def speak(
    model: FlowMatching,
    tokens: Int[Tensor, "N"],
    domain: int,
    *,
    frames: int,
    reference: tuple[Float[Tensor, "R M"], Int[Tensor, "P"]] | None = None,
    name: str = "new",
    steps: int = 32,
    cfg: float = 3.0,
    s: float = -1.0,
    seed: int = 0,
) -> Float[Tensor, "T M"]:
    """The mel of `frames` frames that tokens stand for, in the manner of a reference (its mel and tokens).

    Args:
        name: what the noise is drawn for, with the seed.
        steps, cfg, s: of the sampler; see `FlowMatching.sample`.

    Raises BadArgument: no tokens or frames, tokens outside the model's codes, or an unknown domain.
    """
    c = model.config
    if not len(tokens) or frames < 2 or not 0 <= domain < len(c.domains):
        raise BadArgument(
            f"speak got {len(tokens)} tokens for {frames} frames of domain {domain}; at least one token, two frames, "
            f"and one of the domains 0…{len(c.domains) - 1} ({', '.join(c.domains)})"
        )
    mel, before = (tokens.new_zeros(0, c.mels).float(), tokens[:0]) if reference is None else reference
    whole = torch.cat([before, tokens])
    if not 0 <= int(whole.min()) <= int(whole.max()) < c.vocab:
        raise BadArgument(
            f"codes {int(whole.min())}…{int(whole.max())} for a model of {c.vocab} codes a domain; was it trained with "
            "another tokenizer?"
        )
    device = next(model.parameters()).device
    total = len(mel) + frames
    batch = MelBatch(
        mel=torch.cat([mel.to(device), torch.zeros(frames, c.mels, device=device)])[None],
        lengths=torch.tensor([total], device=device),
        tokens=whole[None].to(device),
        token_lengths=torch.tensor([len(whole)], device=device),
        domain=torch.tensor([domain], device=device),
        ids=[name],
    )
    prefix = torch.tensor([len(mel)], device=device)
    made = model.sample(batch, steps=steps, cfg=cfg, s=s, seed=seed, prefix=prefix)
    return made[0, len(mel) :].cpu()
