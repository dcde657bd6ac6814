"""FoG-A: how far the velocity moves when one block's gate is closed.

    v^{\\k} = v_θ(x_t, t, c; g_k = 0, g_{j≠k} = 1)                          (Eq. 8)
    FoG-A_k = E_{x,t,c}[ ‖v^{\\k} − v‖₂ / (‖v‖₂ + ε) ]                      (Eq. 9)

Norms are over the valid entries of one sample; the base and every ablation see the same x_t, t, c and random numbers,
in eval mode and without grad. What is asked for stands here; `measurement` turns velocities into scores, and how the
ablations are run is decided in `variants`.
"""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Bool
from torch import Tensor, nn

from fog_a.attributing.along import Along, count
from fog_a.attributing.measurement import Measurement
from fog_a.attributing.nnsight import Envoys
from fog_a.attributing.ways import How, NNsight, Until, checked_how, stopping
from fog_a.attributing.yardstick import Metric, checked_metric
from fog_a.blocks.block import Blocks, ResidualBlock
from fog_a.blocks.interrupts import unbroken
from fog_a.errors import BadArgument, is_real, known_keywords
from fog_a.flows.bare import flow_of
from fog_a.flows.batches import count_of, each
from fog_a.flows.flow import Flow
from fog_a.flows.override import Forward
from fog_a.scores.scores import Scores


@known_keywords
@unbroken()
def attribute(
    model: nn.Module | Flow,
    batch: Any,
    *,
    blocks: Blocks | ResidualBlock | str | Sequence[str] | None = None,
    level: Literal["layer", "branch"] = "layer",
    forward: Forward | None = None,
    times: int | Sequence[float] | Along | None = None,
    domains: Sequence[str] | None = None,
    mask: Bool[Tensor, "B ..."] | None = None,
    gate: float = 0.0,
    seed: int = 0,
    closed: Blocks | ResidualBlock | str | Sequence[str] | None = None,
    metric: Metric = None,
    how: How = "auto",
    until: Until = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Scores:
    """FoG-A (Eq. 9): the relative change of the velocity when each block's gate is closed, per sample and time.

    Args:
        model: any `nn.Module`, or a flow from `wrap`.
        batch: a Tensor → `model(x)`, a tuple → `model(*batch)`, a mapping → `model(**batch)`, `Inputs` → both; for a
            flow, its own batch. A list, iterator or DataLoader is several.
        blocks: `Blocks`, or names. None: those of `find_blocks` whose update depends on x_t.
        level: `"branch"` scores attention, feed-forward, … separately.
        forward: `forward(model, batch) -> Tensor` for anything else; `output_of("net.head")` measures an inner module.
        times: for a flow, None → 8 midpoints (j + ½)/8, n → n midpoints, a list → exactly those in [0, 1];
            `Along(sampler, steps)`: the steps of your own sampler, guided or not.
        domains: one name per sample of each batch; a flow's adapter gives its own.
        mask: True where v counts, broadcastable to v; a flow's adapter gives its own.
        gate: the gate's value, from 0 (closed) to 1 (open).
        seed: of every random number the model or the adapter draws.
        closed: other blocks, whose gates are closed throughout: scores given that they are gone.
        metric: None → ‖Δv‖/‖v‖; `"loss"` → the change of the flow loss, signed; or `f(v, v_k, batch) -> (B,)`.
        how: `"auto"`; `"loop"`, one ablation at a time; `Shared(rows, memory)` within a budget; `FirstOrder()`, an
            estimate; `NNsight()`, through nnsight.
        until: `"settled"` or `Settled(k, confidence, looks)`: draw batches until the top-k set holds.
        checkpoint: a directory for finished cells; the next run of the same call measures only the rest.
        progress: a progress bar over all batches and times; None: on a terminal and in a notebook.

    Returns:
        Scores of kind "contribution", samples × times × layers, each ≥ 0, without a unit ("loss", "metric" with
        `metric=`). Processes of `torch.distributed` share the work, and each gets all scores.

    Raises:
        NoBlocksFound, NotResidual, UnknownBlock, BadArgument, BadBatch, BadOutput, Unsupported.
        Interrupted: Ctrl-C; a KeyboardInterrupt whose `scores` hold what was measured before.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> scores = fog_a.attribute(net, torch.randn(4, 5, 8))
        >>> scores.layers, scores.values.shape
        (('layers.0', 'layers.1'), (4, 1, 2))
    """
    value = _gate(gate)
    checked_how(how, value)
    checked_metric(metric, how)
    if closed is not None and isinstance(how, NNsight):
        raise BadArgument("NNsight() closes the blocks that it scores alone. Leave closed= out, or how=")
    rule = stopping(until, batch)
    envoys = Envoys(model, how.remote) if isinstance(how, NNsight) else None
    flow = flow_of(model if envoys is None else envoys.model, forward, domains, mask)
    looks = None if rule is None else rule.looks
    verdicts = None
    with progress_bar(cells_of(batch, count(flow, times), looks), progress) as bar:
        run = Measurement(flow, blocks, level, times, value, seed, how, checkpoint, bar, envoys, closed, metric)
        try:
            for look, part in enumerate(itertools.islice(each(batch), looks), start=1):
                run.measure(part)
                if rule is not None:
                    planned = {"confidence": rule.confidence, "look": look, "max_looks": looks or look}
                    verdicts = run.scores().verdicts(rule.k, **planned)
                    if all(verdicts.values()):
                        break
        except KeyboardInterrupt as stop:
            raise run.interrupted() from stop
    run.warn()
    return run.scores(verdicts)


def attribute_alone(flow: Flow, batch: Any, *, blocks: Blocks, t: float, seed: int) -> Scores:
    """The scores of one batch at one time, in this process alone: in training each process has a batch of its own."""
    with progress_bar(None, False) as bar:
        run = Measurement(flow, blocks, "layer", [t], 0.0, seed, "auto", None, bar, alone=True)
        run.measure(batch)
    run.warn()
    return run.scores()


def _gate(gate: Any) -> float:
    if is_real(gate) and 0 <= gate <= 1:
        return float(gate)
    raise BadArgument(
        f"expected gate= as one number in [0, 1], got {gate!r}. 0 removes a block, 1 changes nothing; for several type "
        "{g: attribute(..., gate=g) for g in gates}"
    )


def progress_bar(total: int | None, progress: bool | None) -> Any:
    """A bar over so many cells; without a total it counts. None shows it on a terminal and in a notebook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets a notebook has a bar of text, which needs no word
        from tqdm.auto import tqdm
    shown = sys.stderr.isatty() or _in_notebook() if progress is None else progress
    return tqdm(total=total, disable=not shown, desc="FoG-A", unit="cell", leave=False)


def cells_of(batch: Any, times: int, looks: int | None) -> int | None:
    """How many cells, one batch at one time each, a call has at most; None where that is not known."""
    counts = [count for count in (count_of(batch), looks) if count is not None]
    return min(counts) * times if counts else None


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None
