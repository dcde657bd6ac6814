"""Nets on which a guess at the batch axis goes wrong, each as (module, batch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, T, D, H = 3, 5, 8, 2


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attend(nn.Module):
    """Pre-norm attention and MLP with whatever else its parent hands on."""

    def __init__(self, heads: int = H, width: int = D) -> None:
        super().__init__()
        self.heads, self.norm, self.qkv = heads, nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attend(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = x + self.attend(x)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Trap(nn.Module):
    """Stem, three blocks of a kind, head."""

    def __init__(self, block: type[Attend] = Attend, depth: int = 3, **options: Any) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, D), nn.Linear(D, 4)
        self.blocks = nn.ModuleList(block(**options) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class Rotated(Attend):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.attend(x * table.cos() + x.roll(1, -1) * table.sin())
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TokensAreBatch(Trap):
    """A table (T, D) with T = B goes to every block: cut to fewer rows it would cut tokens."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        table = torch.outer(torch.arange(h.shape[1]).to(h), torch.arange(D).to(h) / D)
        for block in self.blocks:
            h = block(h, table)
        return self.head(h)


class Biased(Attend):
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.attend(x, bias)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class HeadsAreBatch(Trap):
    """An attention bias (H, T, T) with H = B, the same for every sample."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        distance = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs().to(h)
        bias = -distance * torch.arange(1, B + 2)[: self.blocks[0].heads, None, None].to(h)  # type: ignore[index]
        for block in self.blocks:
            h = block(h, bias)
        return self.head(h)


class SequenceFirst(Trap):
    """(T, B, D) through the blocks, here with T = B."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).transpose(0, 1)
        for block in self.blocks:
            h = block(h)
        return self.head(h.transpose(0, 1))


class OverTime(Attend):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.attend(x.transpose(0, 1)).transpose(0, 1)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Folded(Trap):
    """Streams of (B·T, D): time and batch folded into one axis; a mask (B·H, T, T) beside them."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        lengths = (x[:, :, 0] > -5).long()
        mask = torch.zeros(len(x) * H, x.shape[1], x.shape[1]).to(h) + lengths.repeat_interleave(H, 0)[:, None].to(h)
        h = h.flatten(0, 1)
        for block in self.blocks:
            h = block(h, mask, x.shape[1])
        return self.head(h.unflatten(0, (len(x), -1)))


class FoldedBlock(Attend):
    def forward(self, x: Tensor, mask: Tensor, length: int) -> Tensor:  # type: ignore[override]
        y = x.unflatten(0, (-1, length))
        y = self.attend(y, mask.unflatten(0, (-1, H)))
        x = x + y.flatten(0, 1)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


@dataclass
class Context:
    rope: tuple[Tensor, Tensor]
    name: str = "self"
    cache: Any = None


class Nested(Trap):
    """None, strings, numbers, nested tuples, dicts and dataclasses among the arguments and in the output."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> Any:
        h = self.stem(x)
        rope = (torch.ones(x.shape[1], D).to(h), torch.zeros(x.shape[1], D).to(h))
        state = {"none": None, "deep": [(1, ("two", h.new_ones(len(x), 1, 1)))], "context": Context(rope)}
        for i, block in enumerate(self.blocks):
            h, state = block(None, i, state=state, mode="full", h=h)
        return {"log": ["done", None], "sample": self.head(h), "states": state}


class NestedBlock(Attend):
    def forward(self, nothing: None, i: int, *, state: dict[str, Any], mode: str, h: Tensor) -> Any:  # type: ignore[override]
        assert nothing is None and mode == "full" and state["none"] is None
        weight, table = state["deep"][0][1][1], state["context"].rope[0]
        h = h + weight * self.attend(h * table)
        return h + self.fc2(F.gelu(self.fc1(self.norm2(h)))), {
            **state,
            "context": Context(state["context"].rope, f"{i}"),
        }


class Guided(Trap):
    """Classifier-free guidance: twice the batch through the blocks, then combined."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(torch.cat((x, torch.zeros_like(x))))
        for block in self.blocks:
            h = block(h)
        a, b = self.head(h).chunk(2)
        return a + 2.0 * (a - b)


class PerSample(Trap):
    """Conditioning (B, D), lengths (B,) as a mask, times (B,): all scale with the batch; a position table does not."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Modulated, **options)
        self.position = nn.Parameter(draw(1, B, D))

    def forward(self, x: Tensor, t: Tensor, lengths: Tensor) -> Tensor:
        h = self.stem(x) + self.position
        keep = torch.arange(x.shape[1])[None] < lengths[:, None]
        c = torch.stack((t, t.cos(), t.sin(), t * t), -1).repeat(1, D // 4)
        for block in self.blocks:
            h = block(h, c, keep=keep)
        return self.head(h) * keep[:, :, None]


class Modulated(Attend):
    def forward(self, x: Tensor, c: Tensor, keep: Tensor) -> Tensor:  # type: ignore[override]
        x = x + c[:, None] * self.attend(x, keep[:, None, None])
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class OneSample(Trap):
    """B = 1: nothing in the shapes tells a sample from a singleton axis."""


class Squeezed(Trap):
    """No batch axis inside: one sample is run after the other. The block runs B times in a forward."""

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for one in x:
            h = self.stem(one[None])
            for block in self.blocks:
                h = block(h)
            out.append(self.head(h)[0])
        return torch.stack(out)


class Mixing(Trap):
    """Samples talk to each other."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h) - 0.3 * h.mean(0, keepdim=True)
        return self.head(h)


class Drawing(Trap):
    """Draws random numbers in eval, in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h + 0.1 * torch.randn_like(h))
        return self.head(h)


class LeavesBehind(Trap):
    """A block leaves something on itself that a later one reads (value residual, caches)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        kept = None
        for block in self.blocks:
            h = block(h, kept)
            kept = block.kept if kept is None else kept
        return self.head(h)


class Leaving(Attend):
    kept: Tensor

    def forward(self, x: Tensor, kept: Tensor | None) -> Tensor:  # type: ignore[override]
        u = self.attend(x)
        self.kept = u
        x = x + (u if kept is None else 0.5 * (u + kept))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


Made = tuple[nn.Module, Any]

CLEAR: dict[str, Callable[[], Made]] = {
    "plain": lambda: (Trap(), draw(B, T, 4)),
    "one sample": lambda: (OneSample(), draw(1, T, 4)),
    "tokens are batch": lambda: (TokensAreBatch(Rotated), draw(B, B, 4)),
    "width is batch": lambda: (Trap(), draw(D, T, 4)),
    "heads are batch": lambda: (HeadsAreBatch(Biased, heads=2), draw(2, T, 4)),
    "heads and tokens are batch": lambda: (HeadsAreBatch(Biased, heads=2), draw(2, 2, 4)),
    "sequence first": lambda: (SequenceFirst(OverTime), draw(B, T, 4)),
    "sequence first, as long": lambda: (SequenceFirst(OverTime), draw(B, B, 4)),
    "folded": lambda: (Folded(FoldedBlock), draw(B, T, 4)),
    "folded, as long": lambda: (Folded(FoldedBlock), draw(H, H, 4)),
    "nested": lambda: (Nested(NestedBlock), draw(B, T, 4)),
    "nested, as long": lambda: (Nested(NestedBlock), draw(B, B, 4)),
    "guidance": lambda: (Guided(), draw(B, T, 4)),
    "per sample": lambda: (PerSample(), (draw(B, B, 4), draw(B).sigmoid(), torch.tensor([3, 2, 1]))),
}
"""Here every strategy must work."""

HARD: dict[str, Callable[[], Made]] = {
    "one after the other": lambda: (Squeezed(), draw(B, T, 4)),
    "samples talk": lambda: (Mixing(), draw(B, T, 4)),
    "draws": lambda: (Drawing(), draw(B, T, 4)),
    "leaves behind": lambda: (LeavesBehind(Leaving), draw(B, T, 4)),
}
"""Here some strategy cannot work: it must be noticed, and another one taken."""
