"""Two stacks of one forward: what is added before each of their layers, stacks of two layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Ends, Layer, numbered


class Embedded(Ends):
    """An embedding, expanded to the stream's size, is added before every layer of both stacks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(WIDTH))
        self.first, self.second = (nn.ModuleList(Layer() for _ in range(2)) for _ in range(2))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        embedding = self.embedding.expand_as(x)

        def stack(x: Tensor, layers: nn.ModuleList, start: int) -> Tensor:
            for i, layer in enumerate(layers, start):
                x = x + embedding
                x = x if i == off else layer(x)
            return x

        return stack(x, self.first, 0) * stack(x, self.second, 2)


STACKS = (Case("embedded", Embedded, (*numbered("first", 2), *numbered("second", 2))),)
