"""Streams in an object of the model's own; one kind of unit in a list and outside it; one module for all layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_zoo.case import WIDTH, Case, Ends


class Graph:
    """Holds its tensors in a dict of its own, as PyTorch Geometric's Data does: no tensor is seen at the calls."""

    def __init__(self, **held: Tensor) -> None:
        self.held = held


class Passing(nn.Module):
    """A layer of MeshGraphNets: edges and nodes are updated one after the other. The last edges lead nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.edge, self.node = (nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.Tanh()) for _ in range(2))

    def forward(self, graph: Graph, off: bool = False) -> Graph:
        x, e = graph.held["x"], graph.held["e"]
        new = self.edge(torch.cat([x.roll(1, 1), e], -1)) * (not off)
        return Graph(x=x + self.node(torch.cat([x, new], -1)) * (not off), e=e + new)


class Graphs(Ends):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Passing() for _ in range(3))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        graph = Graph(x=x, e=x.roll(2, 1))
        for i, layer in enumerate(self.layers):
            graph = layer(graph, i == off)
        return graph.held["x"]


class Conv(nn.Module):
    """A unit of MDX23C: two residual steps in a list of plain containers, added by the unit."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        for width in (d, WIDTH):
            step = nn.Module()
            step.first, step.shortcut = nn.Linear(width, WIDTH), nn.Linear(width, WIDTH)
            step.second = nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, WIDTH))
            self.steps.append(step)

    def forward(self, x: Tensor, off: bool = False) -> Tensor:
        for step in self.steps:
            x = step.shortcut(x) + step.second(step.first(x)) * (not off)
        return x


class Unet(Ends):
    """The units lie in items of lists, the middle one does not."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = nn.ModuleList(), Conv(WIDTH), nn.ModuleList()
        for side, width in ((self.down, WIDTH), (self.up, 2 * WIDTH)):
            for _ in range(2):
                side.append(nn.ModuleDict({"unit": Conv(width), "scale": nn.Linear(WIDTH, WIDTH)}))

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        kept: list[Tensor] = []
        for i, item in enumerate(self.down):
            kept.append(item["unit"](x, i == off))
            x = F.gelu(item["scale"](kept[-1]))
        x = self.middle(x, off == 2)
        for i, item in enumerate(self.up):
            x = item["unit"](torch.cat([F.gelu(item["scale"](x)), kept.pop()], -1), off == 3 + i)
        return x


class Indexed(nn.Module):
    """FNO's blocks: one module holds the parts of all layers, and is called once for each."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.feed = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in range(2))
        self.gates = nn.ParameterList(torch.rand(WIDTH) + 0.5 for _ in range(3))

    def forward(self, x: Tensor, i: int, off: bool = False) -> Tensor:
        return x if off else self.feed[i](F.gelu(self.mix[i](x).flip(1) + x)) + self.gates[i] * x


class Picked(Ends):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = Indexed()

    def run(self, x: Tensor, off: int | None = None) -> Tensor:
        for i in range(3):
            x = self.blocks(x, i, i == off)
        return x


UNITS = ("down.0.unit", "down.1.unit", "middle", "up.0.unit", "up.1.unit")

OBJECTS: tuple[Case, ...] = (
    Case(
        "graph_in_an_object",
        Graphs,
        (*((f"layers.{i}.node", f"layers.{i}.edge") for i in range(2)), ("layers.2.node",)),
    ),
    Case("unit_in_lists_and_outside", Unet, UNITS),
    Case("one_module_called_with_an_index", Picked, tuple(f"blocks@{i}" for i in range(3))),
)
