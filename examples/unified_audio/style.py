"""Style: sixteen means of a clip's frames, mixed into the embeddings of the style slots.

    v_i = (1/|R_i|) Σ_{τ∈R_i} F_τ        R_i: the i-th of K = 16 equal segments in time                     (Eq. 17)
    ẽ_i = (1 − α) e_i + α P_style(v_i)   α = 0.5; in training, with probability p_drop, 0 for a whole sample  (Eq. 18)

Without a reference α is 0, which the dropout taught the model to answer; the difference of the two answers can guide.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fog_a.errors import ShapeMismatch


def segment_means(frames: Float[Tensor, "T D"], segments: int = 16) -> Float[Tensor, "K D"]:
    """Means over equal segments; where there are fewer frames than segments, some share a frame (Eq. 17).

    >>> segment_means(torch.arange(4.0)[:, None], 2).flatten().tolist()
    [0.5, 2.5]
    """
    if frames.ndim != 2 or len(frames) == 0:
        raise ShapeMismatch(f"style is averaged over frames (T, D) with T at least 1, got {tuple(frames.shape)}")
    edges = torch.linspace(0, len(frames), segments + 1).tolist()
    spans = [(min(int(a), len(frames) - 1), int(b)) for a, b in itertools.pairwise(edges)]
    return torch.stack([frames[a : max(a + 1, b)].float().mean(0) for a, b in spans])


class StyleSlots(nn.Module):
    """Mixes style vectors into slot embeddings.

    Args:
        style_dim, hidden: widths of v and e.
        alpha: α.
        drop: p_drop, in training.
    """

    def __init__(self, style_dim: int, hidden: int, alpha: float = 0.5, drop: float = 0.5) -> None:
        super().__init__()
        self.project = nn.Linear(style_dim, hidden)
        self.alpha, self.drop = alpha, drop

    def forward(
        self, e: Float[Tensor, "B K H"], v: Float[Tensor, "B K D"], styled: Bool[Tensor, "B"]
    ) -> Float[Tensor, "B K H"]:
        """ẽ. Rows that are not `styled` stay as they are, and P_style gets a zero gradient from them."""
        alpha = self.alpha * styled.to(e.dtype)
        if self.training and self.drop > 0:
            alpha = alpha * (torch.rand(len(e), device=e.device) >= self.drop)
        return torch.lerp(e, self.project(v).to(e.dtype), alpha[:, None, None])
