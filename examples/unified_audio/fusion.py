"""Configurations A and B of the conditioning: which tokens stand for a moment, and what the velocity network sees.

A   one stream: S3 codes for speech, AST codes for sound, a table each                 (the bundled `TokenInterface`)
B   two streams of equal length, semantic s and acoustic b (BEATs codes of both domains):
        s_inter = [s₁, b₁, s₂, b₂, …, s_N, b_N]                                                          (Eq. 15)
        "interleave"   c = L2( Interp_T( [P_s E_s(s₁), P_b E_b(b₁), …] ) ): a sequence of 2N, as the paper says
        "fuse"         c = L2( Interp_T( P [E_s(s_i) ; E_b(b_i)] ) ): joined on the channels, N steps, as the release

Tables and projections of s are per domain. Gradients reach all of them (in the release they reach none).
`DualInterface` has the call of `TokenInterface`, so `condition(flow, "B", ...)` swaps one for the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fog_a.errors import BadArgument, ShapeMismatch
from fog_a_adapters.dit.model.dit import DiTConfig
from fog_a_adapters.dit.model.flow import FlowMatching
from fog_a_adapters.dit.model.interface import frame_mask, stretch

Configuration = Literal["A", "B"]
Dual = Literal["interleave", "fuse"]


def interleave(s: Int[Tensor, "N"], b: Int[Tensor, "M"], *, cut: bool = False) -> Int[Tensor, "2K"]:
    """Two streams over the same time as one, 1:1 (Eq. 15).

    Where their lengths differ, each s_i is joined by the b of its time (K = N); `cut=True` drops the longer one's end
    instead, as the release does (K = min(N, M)).

    >>> interleave(torch.tensor([1, 2, 3, 4]), torch.tensor([7, 8])).tolist()
    [1, 7, 2, 7, 3, 8, 4, 8]
    """
    if len(s) == 0 or len(b) == 0:
        raise ShapeMismatch(f"two streams of {len(s)} and {len(b)} codes; expected at least one in each")
    n = min(len(s), len(b)) if cut else len(s)
    if not cut and len(b) != n:
        b = b[(torch.arange(n, device=b.device) * len(b)) // n]
    return torch.stack([s[:n], b[:n]], dim=1).flatten()


def deinterleave(tokens: Int[Tensor, "*B 2N"]) -> tuple[Int[Tensor, "*B N"], Int[Tensor, "*B N"]]:
    """The inverse of `interleave`. Raises ShapeMismatch at an odd length."""
    if tokens.shape[-1] % 2:
        raise ShapeMismatch(
            f"interleaved tokens come in pairs, got {tokens.shape[-1]}; make them with interleave(s, b)"
        )
    pairs = tokens.unflatten(-1, (-1, 2))
    return pairs[..., 0], pairs[..., 1]


class DualInterface(nn.Module):
    """Configuration B: interleaved codes → conditioning features at mel length.

    Args:
        config: of the DiT: `vocab` codes in each semantic table, `token_dim` channels, the domains.
        acoustic: codes in the acoustic table (the paper's: 1024).
        dual: `"interleave"` or `"fuse"`.

    Raises:
        BadArgument: another word for `dual`.
    """

    def __init__(self, config: DiTConfig, acoustic: int = 1024, dual: Dual = "interleave") -> None:
        super().__init__()
        if dual not in ("interleave", "fuse"):
            raise BadArgument(f"dual must be 'interleave' or 'fuse', got {dual!r}")
        n, width = len(config.domains), config.token_dim
        self.dual = dual
        self.books = nn.ModuleList(nn.Embedding(config.vocab, width) for _ in range(n))
        self.acoustic = nn.Embedding(acoustic, width)
        inputs = 2 * width if dual == "fuse" else width
        self.projections = nn.ModuleList(nn.Linear(inputs, width, bias=False) for _ in range(n))
        self.acoustic_projection = nn.Linear(width, width, bias=False) if dual == "interleave" else None
        for weight in [p for m in (self.projections, self.acoustic_projection) if m for p in m.parameters()]:
            (nn.init.xavier_uniform_ if dual == "fuse" else nn.init.eye_)(weight)

    def forward(
        self,
        tokens: Int[Tensor, "B 2N"],
        token_lengths: Int[Tensor, "B"],
        domain: Int[Tensor, "B"],
        lengths: Int[Tensor, "B"],
        frames: int,
    ) -> Float[Tensor, "B T D"]:
        """As `TokenInterface`; `token_lengths` counts both streams (2N), and each sample its own real tokens."""
        s, b = deinterleave(tokens)
        rows = torch.arange(len(tokens), device=tokens.device)
        acoustic = self.acoustic(b)
        if self.acoustic_projection is None:
            of = [p(torch.cat([e(s), acoustic], -1)) for e, p in zip(self.books, self.projections, strict=True)]
            c, real = torch.stack(of)[domain, rows], token_lengths // 2  # B N D
        else:
            of = [p(e(s)) for e, p in zip(self.books, self.projections, strict=True)]
            both = torch.stack([torch.stack(of)[domain, rows], self.acoustic_projection(acoustic)], dim=2)
            c, real = both.flatten(1, 2), token_lengths  # B 2N D
        c = F.normalize(stretch(c, real, lengths, frames), dim=-1)
        return c * frame_mask(lengths, frames)[..., None]


def condition(
    flow: FlowMatching, configuration: Configuration = "A", *, acoustic: int = 1024, dual: Dual = "interleave"
) -> FlowMatching:
    """Gives an untrained model the conditioning of configuration A (as it is) or B; before an optimizer holds it."""
    if configuration not in ("A", "B"):
        raise BadArgument(f"configuration must be 'A' or 'B', got {configuration!r}")
    if configuration == "B":
        dual_interface = DualInterface(flow.config, acoustic, dual)
        flow.interface = dual_interface.to(next(flow.parameters()).device)  # pyright: ignore[reportAttributeAccessIssue]
    return flow
