"""FoG-A: how far the velocity moves when one block's gate is closed.

    v^{\\k} = v_θ(x_t, t, c; g_k = 0, g_{j≠k} = 1)                          (Eq. 8)
    FoG-A_k = E_{x,t,c}[ ‖v^{\\k} − v‖₂ / (‖v‖₂ + ε) ]                      (Eq. 9)

Norms are in float32 over the valid entries of one sample; the base and every ablation see the same x_t, t, c and random
numbers, in eval mode and without grad. What is asked for stands here; `measurement` turns velocities into scores, and
how the ablations are run is decided in `variants`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args

from jaxtyping import Bool
from torch import Tensor, nn

from fog_a.attributing.measurement import Measurement, Method
from fog_a.attributing.nnsight import envoys_of
from fog_a.attributing.variants import Strategy, parse_bytes
from fog_a.blocks.block import Blocks
from fog_a.errors import BadArgument, BadBatch
from fog_a.flows.bare import flow_of
from fog_a.flows.batches import each
from fog_a.flows.flow import Flow, Forward
from fog_a.scores.scores import Scores


def attribute(
    model: nn.Module | Flow,
    batch: Any,
    *,
    blocks: Blocks | Sequence[str] | None = None,
    forward: Forward | None = None,
    times: int | Sequence[float] | None = None,
    domains: Sequence[str] | None = None,
    mask: Bool[Tensor, "B ..."] | None = None,
    level: Literal["layer", "branch"] = "layer",
    gate: float | Sequence[float] = 0.0,
    seed: int = 0,
    method: Method = "exact",
    projections: int = 8,
    strategy: Strategy = "auto",
    engine: Literal["hooks", "nnsight"] = "hooks",
    remote: bool = False,
    max_rows: int | None = None,
    memory: int | str | None = None,
    until: Literal["settled"] | None = None,
    k: int = 3,
    confidence: float = 0.95,
    max_batches: int | None = None,
    checkpoint: str | None = None,
    spread: bool = True,
    progress: bool | None = None,
) -> Scores:
    """FoG-A (Eq. 9): the relative change of the velocity when each block's gate is closed, per sample and time.

    Args:
        model: any `nn.Module`, or a flow from `wrap`.
        batch: a Tensor → `model(x)`, a tuple → `model(*batch)`, a mapping → `model(**batch)`, `Inputs` → both; for a
            flow, its own batch. A list, iterator or DataLoader is several.
        blocks: which to score: `Blocks`, or names. None: those of `find_blocks` whose update depends on x_t.
        forward: `forward(model, batch) -> Tensor` for anything else; `fog_a.output_of(name)` measures an inner module.
        times: for a flow, None → 8 midpoints (j + ½)/8, n → n midpoints, a list → exactly those in [0, 1].
        domains: one name per sample of each batch; a flow's adapter gives its own.
        mask: True where v counts, broadcastable to v; a flow's adapter gives its own.
        level: `"branch"` scores attention, feed-forward, … separately.
        gate: the gate's value, 0 (closed) to 1; several (dose and response) give a dict of Scores by value.
        seed: of every random number the model or the adapter draws.
        method: `"first_order"` estimates all scores from one forward and `projections` backward passes, without an
            ablation; labelled as an estimate.
        projections: how many; an estimate's standard deviation is about 0.7/√projections of itself.
        strategy: how ablations are run (`"loop"`, `"prefix"`, `"fanout"`); the result names the one that was.
        engine: `"nnsight"` ablates through nnsight, for a `model` that is an `nnsight.NNsight` or LanguageModel already
            (then a batch may be text), or any other.
        remote: with nnsight's wrappers of hub models: passed to its `trace`.
        max_rows: at most so many rows (samples × variants) in one fanned-out forward.
        memory: the same as a number of bytes, or `"2GiB"`: what may be needed beyond a plain forward, by an estimate
            from what one needs.
        until: `"settled"` draws batches until the top-`k` set holds at `confidence`, or `max_batches` are used up.
        checkpoint: a directory where finished cells are kept; the next run of the same goes on from there.
        spread: share the cells with the other processes of `torch.distributed`, where there are any.
        progress: a progress bar; None: when attached to a terminal.

    Returns:
        Scores of kind "contribution", samples × times × layers, each ≥ 0 and without a unit.

    Raises:
        NoBlocksFound, UnknownBlock, BadBatch, BadOutput: each with what was expected, what was got, what to type next.

    Example:
        >>> import fog_a, torch
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> scores = fog_a.attribute(net, torch.randn(4, 5, 8))
        >>> scores.layers, scores.values.shape
        (('layers.0', 'layers.1'), (4, 1, 2))
    """
    gates = _gates(gate)
    envoys = envoys_of(engine, model, remote, strategy=strategy, max_rows=max_rows, memory=memory)
    model = model if envoys is None else envoys.model
    _check_method(method, projections, gates)
    flow = flow_of(model, forward, domains, mask)
    run = Measurement(
        flow, blocks, level, flow.grid(times), gates, seed, strategy, max_rows, parse_bytes(memory),
        checkpoint, spread, _shown(progress), envoys, method, projections,
    )  # fmt: skip
    verdict = None
    looks = _looks(batch, until, max_batches)
    for look, one in enumerate(itertools.islice(each(batch), looks), start=1):
        run.measure(one)
        if until == "settled":
            verdict = run.scores(0).verdicts(k, confidence=confidence, look=look, max_looks=looks or look)
            if all(verdict.values()):
                break
    run.tell()
    found = [run.scores(g, verdict) for g in range(len(gates))]
    if isinstance(gate, Sequence):  # several Scores; typed as what nearly everybody asks for
        return dict(zip(gates, found, strict=True))  # pyright: ignore[reportReturnType]
    return found[0]


def _gates(gate: float | Sequence[float]) -> tuple[float, ...]:
    gates = tuple(float(g) for g in gate) if isinstance(gate, Sequence) else (float(gate),)
    if not gates or any(not 0 <= g <= 1 for g in gates):
        raise BadBatch(
            f"expected gate values in [0, 1], at least one, got {gate}. 0 removes a block, 1 changes nothing"
        )
    return gates


def _check_method(method: str, projections: int, gates: tuple[float, ...]) -> None:
    if method not in get_args(Method):
        raise BadArgument(f"expected method= one of {', '.join(get_args(Method))}, got {method!r}. 'exact' ablates")
    if method == "first_order" and (projections < 1 or gates != (0.0,)):
        raise BadArgument(
            f"method='first_order' estimates closed gates from at least one projection, got gate={list(gates)}, "
            f"projections={projections}. Leave gate= out, or use method='exact'"
        )


def _looks(batch: Any, until: str | None, max_batches: int | None) -> int | None:
    """How many batches may be drawn: planned before the first, so that looking often costs what it must."""
    if until not in (None, "settled"):
        raise BadBatch(f"expected until='settled' or None, got {until!r}")
    if max_batches is None and until is not None:
        if not hasattr(batch, "__len__") or isinstance(batch, (Tensor, dict, tuple)):
            raise BadBatch(
                "until='settled' looks after each batch and must know how many there may be. "
                "Give a list or DataLoader of batches, or max_batches="
            )
        max_batches = len(batch)
    return max_batches


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress
