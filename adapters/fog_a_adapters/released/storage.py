"""The release's LASP and BiT-C."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

import fog_a
from fog_a.errors import Unsupported
from fog_a.flows.bare import flow_of
from fog_a.flows.flow import Flow
from fog_a.probing.depth import Reading
from fog_a.probing.lasp import CONTROLS, Control, read_lenses, storage
from fog_a.probing.lens import Lens
from fog_a.scores.scores import Scores
from fog_a.teachers.descriptors import descriptor, temporal_mean
from fog_a_adapters.released.clean_input import clean_input

TIME = 0.8
l2 = partial(normalize, dim=-1)
"""The release's norm of a descriptor. Unlike LayerNorm it keeps the mean over the width."""


class BiTC(fog_a.BiTC):
    """The release's BiT-C: domains weighted by their share of the batch. Its descriptor is Eq. 3's, with LayerNorm.

    There the gradient reaches no embedding, only the heads; here it does. Its λ: .5 speech, 1 sound.
    """

    def reduce(self, sums: Mapping[str, Tensor], sizes: Mapping[str, Tensor], count: Tensor) -> Tensor:
        """Summed over the samples of all domains and divided by the batch."""
        return torch.stack(list(sums.values())).sum() / count


def l2_descriptor(h: Tensor, mask: Tensor | None = None) -> Tensor:
    """The temporal mean over valid tokens, divided by its L2 norm."""
    return l2(temporal_mean(h.float(), mask))


def lasp(
    flow: Any,
    batch: Any,
    teacher: Any = None,
    *,
    norm: Literal["l2", "layer"] = "l2",
    flip: bool = True,
    clean: bool = True,
    train: bool = True,
    times: Any = (TIME,),
    head: Any = None,
    fit: Any = None,
    features: Any = None,
    blocks: Any = None,
    seed: int = 0,
    center: bool = False,
    beside: Sequence[Control] = CONTROLS,
) -> Scores:
    """The release's LASP; each of its deviations can be undone. The other arguments are those of `fog_a.lasp`.

    Args:
        norm: "l2", or "layer" as in Eq. 3.
        flip: P(z) is turned round where it points away from P(z) of the interface, which can only raise the score.
        clean: the network is given x_1 in x_t's place.
        train: dropout stays on.

    The release's log also halves its means; that is not reproduced.
    """

    @contextlib.contextmanager
    def around(flow: Flow, batch: Any, seed: int) -> Iterator[None]:
        for part in (p for m in flow.modules for p in m.modules()) if train else ():
            part.training = True
        with clean_input(flow, batch, seed, when=clean):
            yield

    reading = Reading(flow_of(flow), describe=l2_descriptor if norm == "l2" else descriptor, around=around)
    depth, lenses = read_lenses(
        reading, batch, teacher,
        head=head, fit=fit, features=features, center=center, blocks=blocks, times=times, seed=seed,
    )  # fmt: skip
    lenses = [Flipped(**vars(lens)) if flip else lens for lens in lenses]
    options = {"norm": norm, "flip": flip, "clean": clean, "train": train, "times": times, "center": center}
    return storage(depth, lenses, beside, options)


class Flipped(Lens):
    """A lens that turns P(z) round where it points away from P(z^{(0)})."""

    def look(self, number: int | None) -> tuple[Tensor, Tensor]:
        if not self.reads_interface:
            raise Unsupported(
                "flip= turns P(z) round where it points away from P(z) of the interface, and there is no interface of "
                "the layers' width here. Type flip=False: it is a quirk of the release, not of Eq. 6"
            )
        p, y = super().look(number)
        if number is not None:
            p = torch.where((p * super().look(None)[0]).sum(-1, keepdim=True) < 0, -p, p)
        return p, y
